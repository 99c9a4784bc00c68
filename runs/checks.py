"""Check what a checkpoint says before anything is built from it; its maker may be a stranger.

Here are plain data; names and shapes of the weights are checked where the network is built (models/build.py).
"""

import math
from dataclasses import fields

import torch

from errors import require
from models.build import check_tensor
from models.checkpoint import FORMAT
from models.class_probability import smallest_distance
from models.diffusion import best_classifier
from models.image_info import ImageInfo
from models.methods import METHODS
from rules import accepted
from runs.reader import check_history, is_accuracy, is_number, is_whole_number
from settings import Settings

KNOWN = {"program", "format", "version", "config", "info", "network", "inference", "epoch", "val_accuracy", "model"}
KNOWN |= {"train_seconds", "W_embed_start", "partial", "best", "history", "optimizers", "streams", "threads", "images"}
INFERENCE = {"runs", "how", "seed", "mirror"}  # older checkpoints lack the last two


def in_todays_form(content: dict) -> dict:
    """Return the content of a checkpoint, of an older version too.

    Formats 1 and 2 did not describe their network; up to 3 theta_out was the whole classifier of z_T, now it is what is
    added to the closed form, and sigma of the posterior was absolute. Raises ValueError for settings no flag accepts.
    """
    if type(content["config"]) is dict:
        content = {**content, "config": todays_settings(content["config"])}
    if content["format"] == FORMAT:
        return content
    states = [content["model"], (content.get("best") or {}).get("model")]
    for state in {id(state): state for state in states if state is not None}.values():  # they may be one and the same
        _take_closed_form_away(state)
    settings = accepted(_with_todays_sigma(content["config"], content["model"]["W_embed"]))
    network = settings.describe_network(content["info"]["image_shape"])
    described = {"network": network, "inference": settings.inference_of_model, "config": settings.as_dict()}
    return {**content, **described, "format": FORMAT}


def todays_settings(config: dict) -> dict:
    """Return settings of an older version in today's terms, but for sigma of the posterior.

    --inference was known to dt alone; --augment, on or off, says what it does, as it was then, whatever DATASETS says
    today.
    """
    config = dict(config)
    if config.get("inference", "") is None:
        config["inference"] = Settings.inference
    if type(config.get("augment")) is bool:
        digits = config.get("dataset") in ("mnist", "digits")
        config["augment"] = (["crop"] if digits else ["crop", "flip"]) if config["augment"] else None
    return config


def _with_todays_sigma(config: dict, W_embed: torch.Tensor) -> dict:
    """Return settings with sigma of the posterior in units of the smallest distance between embeddings."""
    config = dict(config)
    if config.get("class_probability") == "posterior":
        config["posterior_sigma"] /= smallest_distance(W_embed).item()
    elif config.get("class_probability"):
        config.pop("posterior_sigma", None)
    return config


def _take_closed_form_away(state: dict) -> None:
    """Let theta_out be what is added to the closed form, in a network that has a noise level at the clean end."""
    if "alpha_bar" in state:
        alpha_bar = state["alpha_bar"][-1]
    elif "schedule.gamma_1" in state:
        alpha_bar = torch.sigmoid(-state["schedule.gamma_1"].double())
    else:
        return
    weight, bias = best_classifier(alpha_bar, state["W_embed"])
    state["theta_out.weight"] = state["theta_out.weight"] - weight
    state["theta_out.bias"] = state["theta_out.bias"] - bias


def check_content(content: dict) -> None:
    """Raise ValueError, or what a missing or odd value leads to, where this is no checkpoint of ours."""
    odd = sorted(map(str, content.keys() - KNOWN))
    require(not odd, f"it has {''.join(odd[:1])[:50]!r} in it, which no checkpoint needs")
    settings = accepted(content["config"])
    info = check_info(content["info"])
    require(is_whole_number(content["epoch"]), "its epoch is no number")
    require(is_number(content["train_seconds"]), "its train_seconds are no number")
    require(is_accuracy(content["val_accuracy"]), "its val_accuracy is no percentage")
    require(all(type(name) is str for name in content["model"]), "the names of its weights are odd")
    asked, saved = _plain(settings.describe_network(info.image_shape)), _plain(content["network"])
    fits = saved["method"] == asked["method"] and saved["arguments"].items() <= asked["arguments"].items()
    require(fits, "its network is not that of its settings")  # a setting that is new since then has its default
    d = {"one-hot": len(info.classes), "learned": settings.embedding_dim, "prototype": math.prod(info.image_shape)}
    shape = len(info.classes), d[settings.embedding_type]
    found = tuple(content["model"]["W_embed"].shape)
    require(found == shape, f"its W_embed is {found}, its settings ask for {shape}")
    check_tensor("W_embed_start", content["W_embed_start"], content["model"]["W_embed"])
    require({"runs", "how"} <= content["inference"].keys() <= INFERENCE, "its way of inference is odd")
    require(content.get("images") is None or type(content["images"]) is str, "its fingerprint of the images is odd")
    if "optimizers" in content:
        _check_progress(content, _numbers_of_optimizers(settings))


def _numbers_of_optimizers(settings: Settings) -> set[int]:
    """Return how many optimizers a checkpoint may hold; older versions had one for what all blocks share."""
    if not METHODS[settings.method].blocks_alone:
        return {1}
    held = len(settings.blocks or range(settings.num_blocks))
    return {held + 1, held + 1 if settings.block_order == "interleaved" else held + settings.num_blocks}


def _plain(network: dict) -> dict:
    """Return a description of a network with tuples for lists, so that it can be compared."""
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in network["arguments"].items()}
    return {**network, "arguments": arguments}


def check_info(info: dict) -> ImageInfo:
    """Return what is known of the data. Raises ValueError where it cannot be."""
    require(info.keys() == {field.name for field in fields(ImageInfo)}, "what it says of its images is odd")
    classes, shape = info["classes"], tuple(info["image_shape"])
    require(type(classes) is list and len(classes) > 1, "it has less than two classes")
    require(all(type(name) is str for name in classes) and len(set(classes)) == len(classes), "its classes are odd")
    sides = all(is_whole_number(side, 4) for side in shape[1:])
    require(len(shape) == 3 and shape[0] in (1, 3) and sides, "its images are odd")
    for name, low in (("mean", -math.inf), ("std", 0)):
        values = info[name]
        numbers = type(values) is list and all(type(value) is float and is_number(value, low) for value in values)
        fits = numbers and len(values) == shape[0] and (name == "mean" or min(values) > 0)
        require(fits, f"the {name} of its images is odd")
    return ImageInfo(classes, shape, info["mean"], info["std"])


def _check_progress(content: dict, optimizers: set[int]) -> None:
    """Check what continuing needs; the states of optimizers and generators are checked where they are loaded."""
    check_history(content["history"])
    partial, rows, best = content.get("partial"), len(content["history"]), content["best"]
    require(rows == content["epoch"], "its history is of other epochs")
    require(is_whole_number(best["epoch"]) and best["epoch"] <= rows, "its best epoch is none of its epochs")
    require(is_accuracy(best["accuracy"]), "its best accuracy is no percentage")
    asked = " or ".join(map(str, sorted(optimizers)))
    require(len(content["optimizers"]) in optimizers, f"it has not the {asked} optimizers of its settings")
    require(is_whole_number(content["streams"]["seed"]), "its seed is no number")
    require(is_whole_number(content.get("threads", 1), 1), "its number of threads is none")
    if partial is not None:
        numbers = is_whole_number(partial["done"]) and all(is_number(partial[k]) for k in ("seconds", "learning_rate"))
        require(numbers, "its part of an epoch is odd")
        losses = partial["losses"]
        require(losses.dtype == torch.float32 and losses.isfinite().all(), "its losses are no finite numbers")
        torch.Generator().set_state(partial["order"])

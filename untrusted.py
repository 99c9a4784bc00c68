"""What a checkpoint must say before anything is built from it; its maker may be a stranger.

The file itself has been looked at by then (container.py): here are plain data and tensors that fit into it. Every value
must have the type and range that this program gives it, and every weight the shape that the settings ask for.
"""

import math
import re
from argparse import Namespace
from dataclasses import fields

import torch
from torch import Tensor

from build import expected_state
from data import DataInfo
from errors import require
from flags import make_parser
from options import METHOD_FLAGS, as_flag, is_accepted
from parts import blocks_in


def check_content(content: dict) -> None:
    """Raises ValueError, or what a missing or odd value leads to, where this is no checkpoint of ours."""
    settings = check_config(content["config"])
    info = check_info(content["info"])
    require(_whole(content["epoch"]), "its epoch is no number")
    require(_number(content["train_seconds"]), "its train_seconds are no number")
    require(_accuracy(content["val_accuracy"]), "its val_accuracy is no percentage")
    held = _held_blocks(settings, content)
    expected = expected_state(settings, info, held)
    check_weights(content["model"], expected)
    _check_tensor("W_embed_start", content["W_embed_start"], expected["W_embed"])
    if "optimizers" in content:
        _check_progress(content, expected, len(held) + 1 if settings.method == "dt" else 1)


def check_config(config: dict) -> Namespace:
    """All settings, where every value is one that its flag accepts. Raises ValueError naming the flag."""
    parser = make_parser()
    require(type(config) is dict and {"method", "dataset", "num_blocks"} <= config.keys(), "it has no settings")
    settings = {**parser.defaults, **config}
    for name, value in settings.items():
        require(name in parser.defaults, f"it has a setting {name}, which this program does not know")
        unused = value is None and settings["method"] not in METHOD_FLAGS.get(name, [settings["method"]])
        if not unused and not is_accepted(parser, name, value):
            raise ValueError(f"its setting {as_flag(name)} is {str(value)[:50]!r}, which the flag does not accept")
    return Namespace(**settings)


def check_info(info: dict) -> DataInfo:
    """What is known of the data."""
    require(info.keys() == {field.name for field in fields(DataInfo)}, "what it says of its images is odd")
    classes, shape = info["classes"], tuple(info["image_shape"])
    require(type(classes) is list and len(classes) > 1, "it has less than two classes")
    require(all(type(name) is str for name in classes) and len(set(classes)) == len(classes), "its classes are odd")
    require(len(shape) == 3 and shape[0] in (1, 3) and all(_whole(side, 4) for side in shape[1:]), "its images are odd")
    for name, low in (("mean", -math.inf), ("std", 0)):
        values = info[name]
        numbers = len(values) == shape[0] and all(_number(value, low) for value in values)
        require(numbers and (name == "mean" or min(values) > 0), f"the {name} of its images is odd")
    return DataInfo(classes, shape, list(info["mean"]), list(info["std"]))


def _held_blocks(settings: Namespace, content: dict) -> list[int]:
    """The blocks in the file, which are those that the settings ask for."""
    named = [name for name in content["model"] if name.startswith("blocks.")]
    require(all(re.match(r"blocks\.\d{1,6}\.", name) for name in named), "its blocks have odd names")
    if settings.num_blocks is None:
        return []
    held, T = blocks_in(content), settings.num_blocks
    whole = len(held) == T and held[-1] == T
    require(held == settings.blocks if settings.blocks else whole, f"it does not hold the {T} blocks of its settings")
    return held


def check_weights(state: dict, expected: dict[str, Tensor]) -> None:
    """Names, shapes, types and values of a model's state."""
    missing, more = sorted(expected.keys() - state.keys()), sorted(map(str, state.keys() - expected.keys()))
    require(not missing, f"it lacks the weights {''.join(missing[:1])}")
    require(not more, f"it has weights {''.join(more[:1])} that its settings do not ask for")
    for name, value in expected.items():
        _check_tensor(name, state[name], value)
    if "alpha_bar" in state:
        levels = state["alpha_bar"]
        require(levels[0] > 0 and levels[-1] < 1 and (levels.diff() > 0).all(), "its alpha_bar does not rise in (0, 1)")


def _check_tensor(name: str, value: object, expected: Tensor) -> None:
    require(isinstance(value, Tensor), f"its {name} is no tensor")
    fits = value.shape == expected.shape and value.dtype == expected.dtype
    require(fits, f"its {name} is {_describe(value)}, its settings ask for {_describe(expected)}")
    require(value.isfinite().all(), f"its {name} has values that are not finite")


def _describe(value: Tensor) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'a number'} of {str(value.dtype).removeprefix('torch.')}"


def _check_progress(content: dict, expected: dict[str, Tensor], optimizers: int) -> None:
    """What continuing needs; the states of optimizers and generators are looked at where they are loaded."""
    check_history(content["history"])
    partial = content.get("partial")
    rows = len(content["history"])
    require(rows == content["epoch"], "its history is of other epochs")
    best = content["best"]
    require(_whole(best["epoch"]) and best["epoch"] <= rows, "its best epoch is none of its epochs")
    require(_accuracy(best["accuracy"]), "its best accuracy is no percentage")
    if best["model"] is not None:
        check_weights(best["model"], expected)
    require(len(content["optimizers"]) == optimizers, f"it has not the {optimizers} optimizers of its settings")
    require(_whole(content["streams"]["seed"]), "its seed is no number")
    require(_whole(content.get("threads", 1), 1), "its number of threads is none")
    if partial is not None:
        numbers = _whole(partial["done"]) and all(_number(partial[name]) for name in ("seconds", "learning_rate"))
        require(numbers, "its part of an epoch is odd")
        losses = partial["losses"]
        require(losses.dtype == torch.float32 and losses.isfinite().all(), "its losses are no finite numbers")
        torch.Generator().set_state(partial["order"])


def check_history(rows: list[dict]) -> None:
    """Rows of training_history.json, too. Raises ValueError, KeyError or TypeError."""
    require(type(rows) is list, "its history is no list")
    length = len(rows[0]["loss"]) if rows else 0
    losses = {name for name in rows[0] if name.startswith("loss")} if rows else set()
    for i, row in enumerate(rows, 1):
        require(row["epoch"] == i, "the epochs of its history do not count from 1")
        measured = _number(row["learning_rate"]) and _number(row["seconds"])
        require(measured and row["images_per_second"] > 0, f"row {i} of its history is odd")
        require(all(_accuracy(row[name]) for name in ("train_accuracy", "val_accuracy")), f"row {i} has no accuracy")
        require(losses <= row.keys(), f"row {i} of its history lacks a loss")
        for name, value in row.items():
            values = value if type(value) is list else [value]
            fits = (len(values) == length) if name in losses else type(value) is not list
            require(fits and all(_in_history(part) for part in values), f"the {name} in row {i} of its history is odd")


def _in_history(value: object) -> bool:
    return value is None or type(value) is str or _number(value, -math.inf)


def _whole(value: object, low: int = 0) -> bool:
    return type(value) is int and value >= low


def _number(value: object, low: float = 0) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= low


def _accuracy(value: object) -> bool:
    return value is None or (_number(value) and value <= 100.001)  # rounded

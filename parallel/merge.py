"""Parts of a training: some blocks with their optimizers and random states; joined they are a whole checkpoint.

Ranks started by torchrun hand in theirs after every epoch; parts from
separate machines are joined by: python main.py --merge A/last.pt B/last.pt --checkpoint-dir RUN
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from errors import UserError
from models.blocks import block_of, blocks_in, format_blocks, select_blocks, split_by_block
from models.methods import METHODS
from settings import names_where


def join_parts(parts: Sequence[dict], seconds: Callable[[list[float]], float]) -> dict:
    """Return the checkpoint of all blocks from parts that hold each of them once; what is shared comes from the first.

    seconds: of an epoch from those of the parts, max where they ran at the same time, sum for the work of all.
    """
    first = parts[0]
    optimizers = [split_by_block(part["optimizers"], part["model"]) for part in parts]
    by_block = {t: state for states, _ in optimizers for t, state in states.items()}
    holder = {t: part for part in parts for t in blocks_in(part["model"])}
    model = _join_models(holder, first, [part["model"] for part in parts], parts)
    best = dict(first["best"])
    if best["epoch"] == first["epoch"] and not first.get("partial"):
        best["model"] = model  # one copy in the file
    elif best["model"] is not None:
        best["model"] = _join_models(holder, first, [part["best"]["model"] for part in parts], parts)
    states = dict(first["streams"]["states"])
    for t, part in holder.items():
        own = (f"noise/{t}", f"dropout/{t}")
        states.update({key: state for key, state in part["streams"]["states"].items() if key in own})
    history = [_join_rows(rows, parts, seconds) for rows in zip(*(part["history"] for part in parts), strict=True)]
    return {
        **first,
        "partial": _join_partial(holder, first),
        "model": model,
        "best": best,
        "history": history,
        "train_seconds": sum(row["seconds"] for row in history),
        "optimizers": [*(by_block[t] for t in sorted(by_block)), *optimizers[0][1]],
        "streams": {**first["streams"], "states": states},
    }


def _join_models(holder: dict[int, dict], first: dict, models: list[dict], parts: Sequence[dict]) -> dict[str, Tensor]:
    joined = {}
    for part, model in zip(parts, models, strict=True):
        for name, value in model.items():
            if holder.get(block_of(name), first) is part:
                joined[name] = value
    return joined


def _join_partial(holder: dict[int, dict], first: dict) -> dict | None:
    """Join parts of one epoch that stand at the same step."""
    if not first.get("partial"):
        return None
    losses = first["partial"]["losses"].clone()  # (T, batches, terms)
    for t, part in holder.items():
        losses[t - 1] = part["partial"]["losses"][t - 1]
    return {**first["partial"], "losses": losses}


def _join_rows(rows: Sequence[dict], parts: Sequence[dict], seconds: Callable) -> dict:
    """Return one row of the history; what has a value for each block is taken from the part that holds the block."""
    joined = dict(rows[0])
    for key, value in rows[0].items():
        if isinstance(value, list):
            joined[key] = list(value)
            for row, part in zip(rows, parts, strict=True):
                for t in blocks_in(part["model"]):
                    joined[key][t - 1] = row[key][t - 1]
    images = rows[0]["images_per_second"] * rows[0]["seconds"]
    joined["seconds"] = seconds([row["seconds"] for row in rows])
    joined["images_per_second"] = images / joined["seconds"]
    if joined["peak_memory_bytes"] is not None:
        joined["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)  # of one process
    return joined


def merged(paths: Sequence[str], parts: Sequence[dict]) -> dict:
    """Return the checkpoint of a whole run from its parts; prints where they were not trained alike.

    Raises UserError where they do not fit together.
    """
    check_parts(paths, parts)
    content = join_parts(parts, seconds=sum)
    content["config"] = {**content["config"], "blocks": None}
    arguments = {name: value for name, value in content["network"]["arguments"].items() if name != "blocks"}
    content["network"] = {**content["network"], "arguments": arguments}
    if len(devices := sorted({part["streams"]["device"] for part in parts})) > 1:
        print(
            f"the parts were trained on {' and '.join(devices)}, whose noise differs: no one machine gives this network"
        )
    if len({part.get("threads") for part in parts}) > 1:
        print(
            "the parts were trained with different numbers of threads: equal to one run up to rounding, not to the bit"
        )
    return content


def check_parts(paths: Sequence[str], parts: Sequence[dict]) -> None:
    """Raise UserError, naming what differs, is missing or is there twice, where the parts do not fit together."""
    for path, part in zip(paths, parts, strict=True):
        if "optimizers" not in part:
            raise UserError(f"{path} holds a model only: to merge take last.pt of its folder")
        if part.get("partial"):
            raise UserError(f"{path} stands in the middle of epoch {part['epoch'] + 1}: continue it first")
        if not METHODS[part["config"]["method"]].blocks_alone:
            raise UserError(f"{path} is of --method {part['config']['method']}, whose blocks are not trained in parts")
        _check_pair(paths[0], parts[0], path, part)
    seen: dict[int, str] = {}
    for path, part in zip(paths, parts, strict=True):
        for t in blocks_in(part["model"]):
            if t in seen:
                raise UserError(f"block {t} is in {seen[t]} and in {path}: leave one of the two out")
            seen[t] = path
    T = parts[0]["config"]["num_blocks"]
    missing = set(range(1, T + 1)) - set(seen)
    if missing:
        raise UserError(f"no part holds --blocks {format_blocks(missing)} of 1-{T}: train them or name their part too")


def _check_pair(path: str, part: dict, other_path: str, other: dict) -> None:
    pair = f"{path} and {other_path} differ"
    free = names_where(lambda about: not about["shapes_blocks"])
    if part["config"].get("lr_schedule") == "cosine":  # falls to zero at the last of --epochs
        free -= {"epochs"}
    settings = [{k: v for k, v in p["config"].items() if k not in free} for p in (part, other)]
    for name in sorted(settings[0] | settings[1]):
        values = [setting.get(name) for setting in settings]
        if values[0] != values[1]:
            flag = name.replace("_", "-")
            raise UserError(f"{pair} in --{flag} ({values[0]} and {values[1]}): train one of them again")
    if part["epoch"] != other["epoch"]:
        raise UserError(
            f"{pair} in the epochs they have ({part['epoch']} and {other['epoch']}): continue the shorter one"
        )
    if not _same_data(part["info"], other["info"]) or part.get("images") != other.get("images"):
        raise UserError(f"{pair} in their training images: train both on the same")
    shared = [select_blocks(p["model"], ()) for p in (part, other)]
    if not torch.equal(shared[0]["W_embed"], shared[1]["W_embed"]):
        raise UserError(f"{pair} in W_embed: train both with the same --embedding-from")
    for name, value in shared[0].items():  # another machine may round differently
        if not torch.allclose(value, shared[1][name], rtol=1e-2, atol=1e-3):
            raise UserError(f"{pair} in {name}: they did not see the same images or not the same --embedding-from")


def _same_data(info: dict, other: dict) -> bool:
    same = info["classes"] == other["classes"] and tuple(info["image_shape"]) == tuple(other["image_shape"])
    numbers = zip((*info["mean"], *info["std"]), (*other["mean"], *other["std"]), strict=False)
    return same and all(math.isclose(a, b, rel_tol=1e-9) for a, b in numbers)

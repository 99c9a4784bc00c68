"""Parts of a training: some blocks with their optimizers and random states; joined they are a whole checkpoint.

A part is what Trainer.state_dict() gives. Ranks started by torchrun hand in theirs after every epoch; parts from
separate machines are joined by: python main.py --merge A/last.pt B/last.pt --checkpoint-dir RUN
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from errors import UserError

# Settings of a part that have no influence on what its blocks become.
FREE_SETTINGS = {"blocks", "checkpoint", "checkpoint_dir", "data_dir", "device", "no_cuda"}
FREE_SETTINGS |= {"compile", "epochs", "no_deterministic"}
FREE_SETTINGS |= {"save_every", "steps_report", "embedding_from", "offload_blocks", "merge", "evaluate", "predict"}
FREE_SETTINGS |= {"save_every_minutes", "compare", "tensorboard", "test_every_epoch", "recipe"}
MAX_BLOCK = 10**6  # a higher one is a slip, and a long list


def parse_blocks(text: str) -> list[int]:
    """'3,5-7' -> [3, 5, 6, 7]. Raises ValueError."""
    blocks = set()
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= MAX_BLOCK:
            raise ValueError(f"no blocks: {piece}")
        blocks.update(range(low, high + 1))
    return sorted(blocks)


def format_blocks(blocks: Iterable[int]) -> str:
    """[3, 5, 6, 7] -> '3,5-7'."""
    runs: list[list[int]] = []
    for t in sorted(blocks):
        if runs and runs[-1][-1] == t - 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def block_of(name: str) -> int | None:
    """The block t = 1..T that a name in a model's state belongs to; None for what is shared."""
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else None


def blocks_in(checkpoint: dict) -> list[int]:
    """The blocks t that a checkpoint holds."""
    return sorted({block_of(name) for name in checkpoint["model"]} - {None})


def is_whole(checkpoint: dict) -> bool:
    """Whether it is no part of a model."""
    config = checkpoint["config"]
    return not config.get("blocks") or len(blocks_in(checkpoint)) == config["num_blocks"]


def require_whole(path: str, checkpoint: dict) -> None:
    """Raises UserError for a checkpoint that holds some of the blocks only."""
    if not is_whole(checkpoint):
        held, T = blocks_in(checkpoint), checkpoint["config"]["num_blocks"]
        raise UserError(f"{path} holds blocks {format_blocks(held)} of 1-{T} only: join the parts with --merge first")


def select_blocks(state: dict[str, Tensor], blocks: Iterable[int]) -> dict[str, Tensor]:
    """Of a model's state what these blocks need: their own and what is shared."""
    wanted = {None, *blocks}
    return {name: value for name, value in state.items() if block_of(name) in wanted}


def optimizers_by_block(checkpoint: dict) -> tuple[dict[int, dict], dict]:
    """The optimizer state of every block held, and that of the shared parameters."""
    *states, shared = checkpoint["optimizers"]
    return dict(zip(blocks_in(checkpoint), states, strict=True)), shared


def join_parts(parts: Sequence[dict], seconds: Callable[[list[float]], float]) -> dict:
    """The checkpoint of all blocks from parts that hold each of them once; what is shared comes from the first.

    seconds: of an epoch from those of the parts, max where they ran at the same time, sum for the work of all.
    """
    first = parts[0]
    holder = {t: part for part in parts for t in blocks_in(part)}
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
        "optimizers": [*(optimizers_by_block(holder[t])[0][t] for t in sorted(holder)), optimizers_by_block(first)[1]],
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
    """Parts of one epoch that stand at the same step."""
    if not first.get("partial"):
        return None
    losses = first["partial"]["losses"].clone()  # (T, batches, terms)
    for t, part in holder.items():
        losses[t - 1] = part["partial"]["losses"][t - 1]
    return {**first["partial"], "losses": losses}


def _join_rows(rows: Sequence[dict], parts: Sequence[dict], seconds: Callable) -> dict:
    """One row of the history; what has a value for each block is taken from the part that holds the block."""
    joined = dict(rows[0])
    for key, value in rows[0].items():
        if isinstance(value, list):
            joined[key] = list(value)
            for row, part in zip(rows, parts, strict=True):
                for t in blocks_in(part):
                    joined[key][t - 1] = row[key][t - 1]
    images = rows[0]["images_per_second"] * rows[0]["seconds"]
    joined["seconds"] = seconds([row["seconds"] for row in rows])
    joined["images_per_second"] = images / joined["seconds"]
    if joined["peak_memory_bytes"] is not None:
        joined["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)  # of one process
    return joined


def check_parts(paths: Sequence[str], parts: Sequence[dict]) -> None:
    """Raises UserError, naming what differs, is missing or is there twice, where the parts do not fit together."""
    for path, part in zip(paths, parts, strict=True):
        if "optimizers" not in part:
            raise UserError(f"{path} holds a model only: to merge take last.pt of its folder")
        if part.get("partial"):
            raise UserError(f"{path} stands in the middle of epoch {part['epoch'] + 1}: continue it first")
        if part["config"]["method"] != "dt":
            raise UserError(f"{path} is of --method {part['config']['method']}: only blocks of dt are trained in parts")
        _check_pair(paths[0], parts[0], path, part)
    seen: dict[int, str] = {}
    for path, part in zip(paths, parts, strict=True):
        for t in blocks_in(part):
            if t in seen:
                raise UserError(f"block {t} is in {seen[t]} and in {path}: leave one of the two out")
            seen[t] = path
    T = parts[0]["config"]["num_blocks"]
    missing = set(range(1, T + 1)) - set(seen)
    if missing:
        raise UserError(f"no part holds --blocks {format_blocks(missing)} of 1-{T}: train them or name their part too")


def _check_pair(path: str, part: dict, other_path: str, other: dict) -> None:
    pair = f"{path} and {other_path} differ"
    falling = part["config"].get("lr_schedule") == "cosine"  # to zero at the last of --epochs
    free = FREE_SETTINGS - {"epochs"} if falling else FREE_SETTINGS
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
    if not _same_data(part["info"], other["info"]):
        raise UserError(f"{pair} in their training images (classes, size or statistics): train both on the same")
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

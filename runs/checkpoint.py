"""The checkpoints of a run: best_model.pt, last.pt and the one before it."""

from contextlib import suppress
from pathlib import Path

import torch

from errors import READING_ERRORS, UserError, reading
from models.checkpoint import BEST, FORMAT, PROGRAM, check_file, is_whole, read_checkpoint
from models.version import __version__
from runs.checks import check_content, in_todays_form
from runs.files import write_atomic, write_json

MODEL_KEYS = ("config", "info", "network", "inference", "epoch", "val_accuracy", "train_seconds", "model")
MODEL_KEYS += ("W_embed_start", "images", "threads")  # of best_model.pt
LAST, PREVIOUS = "last.pt", "last_previous.pt"


def save_checkpoint(path: Path, content: dict, keep: Path | None = None) -> None:
    """Write a checkpoint of tensors and plain data only."""
    marked = {"program": PROGRAM, "format": FORMAT, "version": __version__, **content}
    write_atomic(path, lambda file: torch.save(marked, file), keep)


def save_run(run: Path, content: dict) -> None:
    """Write the files that go on from here: history, best_model.pt, last.pt; the one before is last_previous.pt.

    last.pt comes last: a run that was cut off before it does its last steps again and writes all of them anew.
    """
    save_best(run, content)
    write_json(run / "logs" / "training_history.json", content["history"])
    save_checkpoint(run / LAST, content, keep=run / PREVIOUS)


def save_best(run: Path, content: dict) -> None:
    """Write best_model.pt from a state of the best epoch or a later one; none of a part, and none before epoch 1.

    Without validation images the last full epoch is the best one, whose weights a state within the next epoch lacks.
    """
    best, rows = content["best"], content["history"]
    model = best["model"] or (None if content.get("partial") else content["model"])
    if model is None or not rows or not is_whole(content):
        return
    known = {name: content[name] for name in MODEL_KEYS if name in content}  # parts of older versions lack images
    seconds = seconds_until(rows, best["epoch"])
    own = {"epoch": best["epoch"], "val_accuracy": best["accuracy"], "train_seconds": seconds, "model": model}
    save_checkpoint(run / BEST, known | own)


def seconds_until(history: list[dict], epoch: int) -> float:
    """Return the seconds of training up to an epoch."""
    return sum(row["seconds"] for row in history[:epoch])


def drop_previous(run: Path) -> None:
    """Remove last_previous.pt of a run that has ended, once last.pt, read back, is what was written."""
    with suppress(OSError, *READING_ERRORS):  # else both stay
        check_file(run / LAST)
        (run / PREVIOUS).unlink(missing_ok=True)


def load_last(path: str | Path) -> tuple[dict, str | None]:
    """Return the content of a checkpoint to continue; of last_previous.pt, and why, where last.pt does not load."""
    path = Path(path)
    previous = path.with_name(PREVIOUS)
    try:
        return load_checkpoint(path), None
    except UserError as error:
        if path.name != LAST or not previous.is_file():
            raise
        content = load_checkpoint(previous)
        return content, f"{str(error).removesuffix(': take another one')}; going on from {previous} instead"


def load_checkpoint(path: str | Path) -> dict:
    """Return the content of a checkpoint in today's form; its weights are checked where a network is built of them.

    Raises UserError for anything else than a checkpoint of ours.
    """
    content = read_checkpoint(path)
    with reading(f"the checkpoint {path}", "take another one"):
        content = in_todays_form(content)
        check_content(content)
    return content

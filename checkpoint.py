"""Files of a run: checkpoints and JSON, written so that a crash at any instant leaves the previous good file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from container import check_container
from errors import UserError, reading_checkpoint
from parts import is_whole
from untrusted import check_content

__version__ = "0.1.0"

PROGRAM = "NoProp"
FORMAT = 2  # raised when older programs could no longer read a checkpoint
READABLE = (1, 2)  # 1 knew no partial epochs
MODEL_KEYS = ("config", "info", "epoch", "val_accuracy", "train_seconds", "model", "W_embed_start")  # of best_model.pt
LAST, PREVIOUS = "last.pt", "last_previous.pt"
RUN_FILES = ("config.json", "results.json", "best_model.pt", LAST, PREVIOUS)
FOLDERS = ("logs", "plots", "tensorboard")


def write_atomic(path: Path, write: Callable[[BinaryIO], None], keep: Path | None = None) -> None:
    """Write beside the file, flush to disk, rename. keep: where the file that was there before goes on living."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            _second_name(path, keep)
        os.replace(beside, path)
    except RuntimeError as error:  # torch.save's, after a write that failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    finally:
        beside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _second_name(path: Path, name: Path) -> None:
    """At no instant there is no file under `path`, where the file system knows hard links."""
    link = _beside(name)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, name)
        return
    try:
        os.replace(link, name)
    finally:
        link.unlink(missing_ok=True)  # is still there after a failure, and where both were one file already


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: Path, content: object) -> None:
    write_atomic(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def save_checkpoint(path: Path, content: dict, keep: Path | None = None) -> None:
    """content: tensors and plain data only."""
    marked = {"program": PROGRAM, "format": FORMAT, "version": __version__, **content}
    write_atomic(path, lambda file: torch.save(marked, file), keep)


def save_last(run: Path, content: dict) -> None:
    """last.pt; the one before stays as last_previous.pt."""
    save_checkpoint(run / LAST, content, keep=run / PREVIOUS)


def save_run(run: Path, content: dict, save_every: int = 0) -> None:
    """The files of an epoch from Trainer.state_dict(). last.pt comes last: a run that was cut off before it does this
    epoch again and writes all of them anew.
    """
    epoch = content["epoch"]
    if content["best"]["epoch"] == epoch:
        save_best(run, content)
    if save_every and epoch % save_every == 0:
        save_checkpoint(run / f"checkpoint_epoch_{epoch}.pt", content)
    write_json(run / "logs" / "training_history.json", content["history"])
    save_last(run, content)


def save_best(run: Path, content: dict) -> None:
    """best_model.pt from a state of the best epoch or a later one; none of a part, and none before the first epoch.

    Without a validation part the last full epoch is the best one, whose weights a state within the next epoch lacks.
    """
    best, rows = content["best"], content["history"]
    model = best["model"] or (None if content.get("partial") else content["model"])
    if model is None or not rows or not is_whole(content):
        return
    known = {name: content[name] for name in MODEL_KEYS}
    seconds = sum(row["seconds"] for row in rows[: best["epoch"]])
    own = {"epoch": best["epoch"], "val_accuracy": best["accuracy"], "train_seconds": seconds, "model": model}
    save_checkpoint(run / "best_model.pt", known | own)


def load_last(path: str | Path) -> tuple[dict, str | None]:
    """The content of a checkpoint to continue; of last_previous.pt, and why, where last.pt does not load."""
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
    """The content of a checkpoint, tensors on the CPU. Raises UserError for anything else than one of ours."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a checkpoint in it (it has {_checkpoints_in(path)})")
    if not path.is_file():
        where = f"its folder has {_checkpoints_in(path.parent)}" if path.parent.is_dir() else "nor its folder"
        raise UserError(f"there is no checkpoint {path} ({where})")
    with reading_checkpoint(path):
        check_container(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("program") != PROGRAM:
        raise UserError(f"{path} is not a checkpoint of this program")
    if content.get("format") not in READABLE:
        raise UserError(f"{path} has checkpoint format {content.get('format')}, this program reads {READABLE}")
    with reading_checkpoint(path):
        check_content(content)
    return content


def _checkpoints_in(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"

"""Files of a run: checkpoints and JSON, written so that a crash at any instant leaves the previous good file."""

import json
import os
import tempfile
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
FORMAT = 1  # raised when older programs could no longer read a checkpoint
MODEL_KEYS = ("config", "info", "epoch", "val_accuracy", "train_seconds", "model", "W_embed_start")  # of best_model.pt
RUN_FILES = ("config.json", "results.json", "best_model.pt", "last.pt")


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write beside the file, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: object) -> None:
    write_atomic(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def save_checkpoint(path: Path, content: dict) -> None:
    """content: tensors and plain data only."""
    marked = {"program": PROGRAM, "format": FORMAT, "version": __version__, **content}
    write_atomic(path, lambda file: torch.save(marked, file))


def save_run(run: Path, content: dict, save_every: int = 0) -> None:
    """The files of an epoch from Trainer.state_dict(). last.pt first: all others can be made again from it."""
    save_checkpoint(run / "last.pt", content)
    epoch = content["epoch"]
    if content["best"]["epoch"] == epoch and is_whole(content):
        save_checkpoint(run / "best_model.pt", {name: content[name] for name in MODEL_KEYS})
    if save_every and epoch % save_every == 0:
        save_checkpoint(run / f"checkpoint_epoch_{epoch}.pt", content)
    write_json(run / "logs" / "training_history.json", content["history"])


def load_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint, tensors on the CPU. Raises UserError for anything else than one of ours."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a checkpoint in it (it has {_checkpoints_in(path)})")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (its folder has {_checkpoints_in(path.parent)})")
    with reading_checkpoint(path):
        check_container(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("program") != PROGRAM:
        raise UserError(f"{path} is not a checkpoint of this program")
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has checkpoint format {content.get('format')}, this program reads {FORMAT}")
    with reading_checkpoint(path):
        check_content(content)
    return content


def _checkpoints_in(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"


def open_run_folder(folder: Path) -> None:
    """Make the folder if need be. Raises UserError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder} ({error.strerror}): name another with --checkpoint-dir"
        ) from error


def set_aside_earlier_run(folder: Path) -> Path | None:
    """Move the run that the folder holds into folder/previous-N, so that a new run overwrites nothing.

    Returns the new place, None where there was no run.
    """
    if not any((folder / name).exists() for name in RUN_FILES):
        return None
    number = 1
    while (aside := folder / f"previous-{number}").exists():
        number += 1
    aside.mkdir()
    for path in sorted(folder.iterdir()):
        ours = path.name in (*RUN_FILES, "logs", "plots", "tensorboard") or path.match("checkpoint_epoch_*.pt")
        if ours:
            path.rename(aside / path.name)
    return aside

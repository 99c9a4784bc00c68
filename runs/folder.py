"""The folder of a run while a process works in it: make it, try it, lock it, set an earlier run in it aside."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from errors import UserError

RUN_FILES = ("config.json", "results.json", "best_model.pt", "last.pt", "last_previous.pt")
FOLDERS = ("logs", "plots", "tensorboard")
LOCK, FLAGS = ".lock", "flags.json"  # FLAGS: of a comparison
UNFINISHED = [f".{name}.tmp" for name in (*RUN_FILES, "checkpoint_epoch_*.pt")]  # see checkpoint.write_atomic
UNFINISHED += ["logs/.training_history.json.tmp", "logs/.examples.npz.tmp", "plots/.*.tmp"]


@contextmanager
def open_run_folder(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and lock it; what a process that died was writing is removed.

    The lock is the operating system's, so it ends with its process however that ends. Raises UserError where the
    folder cannot be written to, or another process works in it. What comes to nothing leaves nothing behind.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder} ({error.strerror}): name another with --checkpoint-dir"
        ) from error
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another process works in the run folder {folder}: wait for its end, or name another folder with "
            "--checkpoint-dir"
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    with lock if lock.is_locked else nullcontext():
        for pattern in UNFINISHED:
            for path in folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        try:
            yield
        finally:
            with suppress(OSError):
                _remove_unused(folder, made)


def _remove_unused(folder: Path, made: bool) -> None:
    """Remove lock and flags where there is nothing beside them, and the folder if it was made for them."""
    if {path.name for path in folder.iterdir()} <= {LOCK, FLAGS, ".gitkeep"}:
        for name in (LOCK, FLAGS):
            (folder / name).unlink(missing_ok=True)
        if made:
            folder.rmdir()


def set_aside(folder: Path, keep: Path | None = None) -> Path | None:
    """Move the run that the folder holds into folder/previous-N, so that a new run overwrites nothing.

    keep: a checkpoint_epoch_N.pt of the run, from which it is about to go on anew; it stays, and so do earlier ones.
    Returns the new place, None where there was no run.
    """
    if not any((folder / name).exists() for name in RUN_FILES):
        return None
    number = 1
    while (aside := folder / f"previous-{number}").exists():
        number += 1
    part = folder / f".previous-{number}.part"  # of a process that was killed at this, maybe
    part.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        ours = path.name in (*RUN_FILES, *FOLDERS) or _epoch_of(path) > (_epoch_of(keep) if keep else 0)
        if ours and path != keep:
            path.rename(part / path.name)
    part.rename(aside)
    return aside


def _epoch_of(path: Path) -> int:
    """Return N of a checkpoint_epoch_N.pt, 0 for other files."""
    found = re.fullmatch(r"checkpoint_epoch_(\d+)\.pt", path.name)
    return int(found[1]) if found else 0

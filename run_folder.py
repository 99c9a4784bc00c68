"""The folder of a run while a process works in it: made, tried, locked, and an earlier run in it set aside."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from checkpoint import FOLDERS, RUN_FILES
from errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are not told apart
    fcntl = None

LOCK = ".lock"
UNFINISHED = [f".{name}.tmp" for name in (*RUN_FILES, "checkpoint_epoch_*.pt")]  # see checkpoint.write_atomic
UNFINISHED += ["logs/.training_history.json.tmp", "logs/.examples.npz.tmp", "plots/.*.png.tmp"]


@contextmanager
def open_run_folder(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and lock it; what a process that died was writing is removed.

    The lock is the operating system's, so it ends with its process however that ends. Raises UserError where the
    folder cannot be written to, or another process works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder} ({error.strerror}): name another with --checkpoint-dir"
        ) from error
    with lock:
        _take(lock, folder)
        for pattern in UNFINISHED:
            for path in folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        yield


def _take(lock: TextIO, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise UserError(
            f"another process works in the run folder {folder} ({lock.read().strip()}): wait for its end, or name "
            "another folder with --checkpoint-dir"
        ) from None
    except OSError:
        return  # a file system without locks
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()


def set_aside_earlier_run(folder: Path) -> Path | None:
    """Move the run that the folder holds into folder/previous-N, so that a new run overwrites nothing.

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
        ours = path.name in (*RUN_FILES, *FOLDERS) or path.match("checkpoint_epoch_*.pt")
        if ours:
            path.rename(part / path.name)
    part.rename(aside)
    return aside

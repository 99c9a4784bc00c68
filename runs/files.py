"""Files written so that a crash at any instant leaves the previous good one."""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)  # seconds between tries to rename


def write_atomic(path: Path, write: Callable[[BinaryIO], None], keep: Path | None = None) -> None:
    """Write beside the file, flush to disk, rename. keep: where the file that was there before goes on living.

    A link goes on leading to its file; what is no file, such as a device or a pipe, is written into.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            write(file)
        return
    beside = _beside(path)
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            _second_name(path, keep)
        _replace(beside, path)
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
    """Give a file a second name; where the file system knows no hard links, rename it."""
    link = _beside(name)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        _replace(path, name)
        return
    try:
        _replace(link, name)
    finally:
        link.unlink(missing_ok=True)  # is still there after a failure, and where both were one file already


def _replace(path: Path, name: Path) -> None:
    """Rename; where that is refused for a moment, as beside a virus scanner on Windows, try again for a second."""
    for wait in WAITS:
        try:
            os.replace(path, name)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(path, name)


def _flush_folder(folder: Path) -> None:
    """Bring a rename to the disk, which is there once its folder is; some file systems know no such thing."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically."""
    write_atomic(path, lambda file: file.write(json.dumps(content, indent=1).encode()))

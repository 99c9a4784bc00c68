"""Images that stay on disk: a uint8 file made once and mapped into memory, whose rows are read where they are used."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from errors import UserError
from hardware.memory import memory_limit
from loaders.colours import is_grey, to_grey

MOST_IN_MEMORY = 1 / 4  # of the memory: images that would take more stay on disk
CHUNK = 2**25  # bytes of images that are read at a time where all are looked at


def at_a_time(shape: tuple[int, ...]) -> int:
    """Return how many uint8 images (N, H, W, C) make a chunk."""
    return max(1, CHUNK // math.prod(shape[1:]))


class ImagesOnDisk:
    """Some rows of mapped images (N, H, W, C) uint8, as far as it goes used as a tensor on a device would be.

    Indexing reads; `subset`, `split` and `to` read nothing.
    """

    def __init__(self, mapped: Tensor, rows: Tensor | None = None, device: torch.device | str = "cpu"):
        self.mapped, self.device = mapped, torch.device(device)
        self.rows = torch.arange(len(mapped)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """Return (N, H, W, C)."""
        return torch.Size([len(self.rows), *self.mapped.shape[1:]])

    def subset(self, index: Tensor | slice) -> "ImagesOnDisk":
        """Return some of the images, still on disk."""
        return ImagesOnDisk(self.mapped, self.rows[index.cpu() if isinstance(index, Tensor) else index], self.device)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        return self.mapped[rows].to(self.device)

    def split(self, size: int) -> list["ImagesOnDisk"]:
        """Return the images in parts, still on disk."""
        return [ImagesOnDisk(self.mapped, rows, self.device) for rows in self.rows.split(size)]

    def to(self, device: torch.device) -> "ImagesOnDisk":
        """Return the same images, which indexing then brings to a device."""
        return ImagesOnDisk(self.mapped, self.rows, device)


def _write(path: Path, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> None:
    """Write chunks (n, H, W, C) uint8 as one .npy file of this shape, under another name until it is whole."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "wb") as file:  # not mapped: a full disk would then end the process without a word
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def map_images(path: Path) -> ImagesOnDisk:
    """Return the images of a file, of which nothing is read yet."""
    array = np.load(path, mmap_mode="r")  # not to be written to: a private copy would count as memory in full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that it cannot be written to
        return ImagesOnDisk(torch.from_numpy(array))


def is_too_large(shape: tuple[int, ...]) -> bool:
    """Return whether uint8 images of this shape would take more than their part of the memory."""
    limit = memory_limit(torch.device("cpu"))
    return limit is not None and math.prod(shape) > MOST_IN_MEMORY * limit


def keep_on_disk(
    cache: Path,
    part: str,
    key: str,
    shape: tuple[int, ...],
    channels: int | None,
    decoded: Iterator[np.ndarray],
    sides: set[int],
) -> tuple[ImagesOnDisk, Path, set[int]]:
    """Return images (N, H, W, 3 or 1) from a file that is made once, the file, and the sides that they had in pixels.

    cache: the folder. key: what the images follow from. channels: None: 1 where no image has colour. decoded: yields
    the images, and fills `sides`. The name of the file, of another key, size or part another one, holds the sides.
    """
    key = blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    with _locked(cache):
        path = next(cache.glob(f"{part}-{key}-*.npy"), None)
        if path is None:
            colour, grey = cache / f".{part}-colour.npy", True
            try:
                grey = _write_colour(colour, shape, decoded)
                path = cache / f"{part}-{key}-{min(sides)}-{max(sides)}.npy"
                if (channels or (1 if grey else 3)) == 1:
                    _write(
                        path,
                        (*shape[:-1], 1),
                        (_without_colour(c[:], grey) for c in map_images(colour).split(at_a_time(shape))),
                    )
                else:
                    os.replace(colour, path)
            finally:
                colour.unlink(missing_ok=True)
            _remove_others(cache, part, path)
    low, high = path.stem.split("-")[-2:]
    return map_images(path), path, {int(low), int(high)}


def _write_colour(path: Path, shape: tuple[int, ...], decoded: Iterator[np.ndarray]) -> bool:
    """Write images as they come; returns whether all are grey."""
    grey = [True]

    def chunks() -> Iterator[np.ndarray]:
        while some := list(islice(decoded, at_a_time(shape))):
            chunk = np.stack(some)
            grey[0] = grey[0] and is_grey(torch.from_numpy(chunk))
            yield chunk

    _write(path, shape, chunks())
    return grey[0]


def _without_colour(images: Tensor, grey: bool) -> np.ndarray:
    return (images[..., :1] if grey else to_grey(images)).numpy()


def _remove_others(cache: Path, part: str, path: Path) -> None:
    """Remove the images of a part as they were before."""
    for other in cache.glob(f"{part}-*.npy"):
        if other != path:
            with suppress(OSError):  # on Windows, of a process that still reads it
                other.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from making files in a folder, where its file system knows locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        with suppress(NotImplementedError):
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}), where images stay that do not fit in memory: name another "
            "folder with --checkpoint-dir, or lower --image-size"
        ) from error
    with lock if lock.is_locked else nullcontext():
        yield

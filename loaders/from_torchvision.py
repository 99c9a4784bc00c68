"""MNIST, Fashion-MNIST and CIFAR through torchvision, downloaded only where the files are not there."""

import contextlib
import os
import socket
from functools import partial
from pathlib import Path

import torch

from errors import UserError
from loaders import RawImages

DOWNLOAD_TIMEOUT = 15  # seconds without an answer


def torchvision_loader(name: str, kind: str):
    """Return a loader of the data set `kind` of torchvision, which we call `name`."""
    return partial(_load, name, kind)


def _load(name: str, kind: str, part: str, data_dir: str) -> RawImages:
    import torchvision

    make, train = getattr(torchvision.datasets, kind), part == "train"
    try:
        dataset = make(data_dir, train=train, download=False)
    except (RuntimeError, FileNotFoundError):
        _download(make, name, data_dir)
        dataset = make(data_dir, train=train, download=False)
    except Exception as error:
        raise UserError(f"the {name} files in {data_dir} cannot be read ({error}): delete them") from error
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images.unsqueeze(-1)  # (N, H, W) -> (N, H, W, 1)
    return RawImages(images, torch.as_tensor(dataset.targets).long(), [str(c) for c in dataset.classes])


def _download(make: type, name: str, data_dir: str) -> None:
    """Download a data set. Raises UserError where that fails, and leaves no folder that it made for nothing.

    Own images are not taken for a place to download to: who names their folder has forgotten --dataset folder.
    """
    base, place = getattr(make, "base_folder", f"{make.__name__}/raw"), Path(data_dir).resolve()
    files, beside = Path(data_dir, base), place.parent / base
    if beside.is_dir() and beside.is_relative_to(place):
        raise UserError(f"no {name} files in {data_dir}: did you mean --data-dir {place.parent}?")
    if Path(data_dir, "train").is_dir():
        way_out = "if it holds own images, add --dataset folder, else name another --data-dir"
        raise UserError(f"{data_dir} has a folder train and no {name} files: {way_out}")
    made = [place for place in (files, *files.parents) if not place.exists()]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            make(data_dir, download=True)
    except Exception as error:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"no {name} files in {os.path.abspath(data_dir)} and the download failed ({reason}): take --dataset "
            f"digits, which needs no files, or put torchvision's files into {files} (other places: --data-dir)"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)

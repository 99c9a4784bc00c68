"""Datasets -> batches on the device: the whole set in memory as uint8, normalised as whole batches.

Digits come with scikit-learn; MNIST, Fashion-MNIST and CIFAR through torchvision, downloaded only where the files
are not there; own images from folders (folder.py).
"""

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from errors import UserError
from folder import load_folder
from streams import Streams

TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
DATASETS = (*TORCHVISION, "digits", "folder")
NO_FLIP = ("mnist", "digits")  # a mirrored digit is another sign
DOWNLOAD_TIMEOUT = 15  # seconds without an answer


class RawImages(NamedTuple):
    """images (N, H, W, C) uint8, labels (N,) int64, names of the classes."""

    images: Tensor
    labels: Tensor
    classes: list[str]


@dataclass
class Split:
    """images (N, H, W, C) uint8 and labels (N,) int64, on the device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Split":
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass
class DataInfo:
    """What a checkpoint remembers of its data: image_shape (C, H, W), statistics of the training part per channel."""

    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]

    def __post_init__(self):
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}  # copied once, not at every batch

    def normalise(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32 in channels_last memory, mean 0 and deviation 1."""
        device = images.device
        if device not in self._on_device:
            self._on_device[device] = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        mean, std = self._on_device[device]
        return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def load_raw(
    name: str, data_dir: str, part: str, image_size: int | None = None, shape: tuple[int, int, int] | None = None
) -> RawImages:
    """The `train` or `test` part of a dataset. image_size or a fixed shape (C, H, W) apply to folder only.

    Raises UserError where the files are missing, broken or not as expected.
    """
    if name == "digits":
        return _load_digits(part)
    if name == "folder":
        return RawImages(*load_folder(data_dir, part, image_size, shape))
    return _load_torchvision(name, data_dir, part)


def _load_digits(part: str) -> RawImages:
    """scikit-learn's 1,797 digits of 8x8 pixels; every part of every class is the same for all seeds."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1)
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    chosen = train if part == "train" else test
    return RawImages(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]).long(), list("0123456789"))


def _load_torchvision(name: str, data_dir: str, part: str) -> RawImages:
    import torchvision

    kind = getattr(torchvision.datasets, TORCHVISION[name])
    train = part == "train"
    try:
        dataset = kind(data_dir, train=train, download=False)
    except (RuntimeError, FileNotFoundError):
        _download(kind, name, data_dir)
        dataset = kind(data_dir, train=train, download=False)
    except Exception as error:
        raise UserError(f"the {name} files in {data_dir} cannot be read ({error}): delete them") from error
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images.unsqueeze(-1)  # (N, H, W) -> (N, H, W, 1)
    return RawImages(images, torch.as_tensor(dataset.targets).long(), [str(c) for c in dataset.classes])


def _download(kind: type, name: str, data_dir: str) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            kind(data_dir, download=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"no {name} files in {os.path.abspath(data_dir)} and the download failed ({reason}): put torchvision's "
            f"files there (or name their folder with --data-dir), or take --dataset digits, which needs no files"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, exact: (N, H, W, C) uint8 -> two lists of C numbers."""
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(-1):
        counts = torch.bincount(channel.flatten(), minlength=256).double().cpu()
        mean = (counts @ values / counts.sum()).item()
        variance = (counts @ (values - mean) ** 2 / counts.sum()).item()
        means.append(mean)
        stds.append(max(variance**0.5, 1.0))  # a constant channel stays constant
    return means, stds


@dataclass
class TrainingData:
    """The training part, the validation part held out of it (may be empty) and what is known of both."""

    info: DataInfo
    train: Split
    validation: Split


def training_data(
    raw: RawImages, val_fraction: float, streams: Streams, info: DataInfo | None = None, train_size: int | None = None
) -> TrainingData:
    """Split off the validation part, by (seed) alone, and move all to the device of the streams.

    info: of a checkpoint to be continued; its statistics are taken over. train_size: so many of the others, None: all.
    Raises UserError for too few images.
    """
    count = len(raw.labels)
    order = torch.randperm(count, generator=streams.fresh("split", device="cpu"))
    held_out = round(val_fraction * count)
    if val_fraction > 0 and held_out == 0:
        raise UserError(f"--val-fraction {val_fraction} of {count} images is none: raise it, or set 0")
    if count - held_out < 2:
        raise UserError(f"{count - held_out} training images are too few: batch norm needs two")
    if train_size is not None and train_size > count - held_out:
        raise UserError(f"--train-size {train_size} is more than the {count - held_out} training images: lower it")
    whole = Split(raw.images, raw.labels)
    train, validation = whole.subset(order[held_out:][:train_size]), whole.subset(order[:held_out])
    if info is None:
        height, width, channels = raw.images.shape[1:]
        info = DataInfo(raw.classes, (channels, height, width), *channel_statistics(train.images))
    return TrainingData(info, train.to(streams.device), validation.to(streams.device))


def require_same(raw: RawImages, info: DataInfo, part: str) -> None:
    """Raises UserError where the classes or the shape are not those of the checkpoint that info is from."""
    if raw.classes != info.classes:
        missing, more = sorted(set(info.classes) - set(raw.classes)), sorted(set(raw.classes) - set(info.classes))
        raise UserError(f"the {part} images have other classes than the model (missing: {missing}, more: {more})")
    height, width, channels = raw.images.shape[1:]
    if (channels, height, width) != tuple(info.image_shape):
        sizes = ("x".join(map(str, shape)) for shape in ((channels, height, width), info.image_shape))
        raise UserError("the {} images are {}, those of the model {}: take another checkpoint".format(part, *sizes))


def count_batches(count: int, batch_size: int) -> int:
    """Of an epoch; see epoch_batches."""
    single = count % batch_size == 1 and count > 1
    return -(-count // batch_size) - single


def epoch_batches(count: int, batch_size: int, order: torch.Generator) -> list[Tensor]:
    """The indices 0..count-1 in a drawn order, cut into batches; a last single one joins the batch before it."""
    batches = list(torch.randperm(count, generator=order).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def augment(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Random crops of images padded by an eighth of their side, and mirror images; (B, H, W, C) uint8 -> the same."""
    batch, height, width, _ = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (0, 0, pad_x, pad_x, pad_y, pad_y))

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator, device=images.device)

    rows = draw(2 * pad_y + 1) + torch.arange(height, device=images.device)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, -1)  # (B, W)
    if flip:
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    columns = columns + draw(2 * pad_x + 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]]

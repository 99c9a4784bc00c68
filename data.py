"""Datasets -> splits -> batches on the device: the whole set in memory as uint8, normalised as whole batches.

DATASETS lists what there is; a new data set is a loader in loaders/ and an entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from errors import UserError
from loaders import RawImages
from loaders.digits import load_digits
from loaders.from_torchvision import torchvision_loader
from loaders.image_folder import load_folder
from models.image_info import ImageInfo
from models.methods import arguments_for
from models.random_streams import Streams


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Args:
        load: (part, ...) -> RawImages, part "train" or "test"; other arguments with a setting's name get its value, and
            only data sets whose loader has such an argument know the setting. `shape` is that of a checkpoint, or None.
        mirror: --augment may mirror its images.
        defaults: of settings whose default depends on the data set.
    """

    load: Callable[..., RawImages]
    mirror: bool = True
    defaults: dict[str, object] = field(default_factory=lambda: {"batch_size": 128})


DATASETS = {
    "cifar10": Dataset(torchvision_loader("cifar10", "CIFAR10")),
    "cifar100": Dataset(torchvision_loader("cifar100", "CIFAR100")),
    "mnist": Dataset(torchvision_loader("mnist", "MNIST"), mirror=False),  # a mirrored digit is another sign
    "fashion-mnist": Dataset(torchvision_loader("fashion-mnist", "FashionMNIST")),
    # few digits: smaller batches make more steps an epoch
    "digits": Dataset(load_digits, mirror=False, defaults={"batch_size": 32}),
    "folder": Dataset(load_folder),
}


def datasets_with(setting: str) -> list[str]:
    """Return the data sets that know a setting: all, unless the loaders of some have it as an argument."""
    owners = [name for name, dataset in DATASETS.items() if arguments_for(dataset.load, {setting: None})]
    return owners or list(DATASETS)


def load_images(name: str, part: str, **values) -> RawImages:
    """Return the `train` or `test` part of a data set; values: settings that its loader may know.

    Raises UserError where the files are missing, broken or not as expected.
    """
    load = DATASETS[name].load
    return load(part=part, **arguments_for(load, values))


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
class TrainingData:
    """The training split, the validation split held out of it (may be empty) and what is known of both."""

    info: ImageInfo
    train: Split
    validation: Split


def training_data(
    raw: RawImages, val_fraction: float, streams: Streams, info: ImageInfo | None = None, train_size: int | None = None
) -> TrainingData:
    """Split off the validation images, by (seed) alone, and move all to the device of the streams.

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
        info = ImageInfo(raw.classes, (channels, height, width), *channel_statistics(train.images))
    return TrainingData(info, train.to(streams.device), validation.to(streams.device))


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, exact: (N, H, W, C) uint8 -> two lists of C numbers."""
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(-1):
        counts = torch.bincount(channel.flatten(), minlength=256).double().cpu()
        mean = (counts @ values / counts.sum()).item()
        variance = (counts @ (values - mean) ** 2 / counts.sum()).item()
        means.append(mean)
        stds.append(max(variance**0.5, 1.0))  # a constant channel stays constant
    return means, stds


def require_same(raw: RawImages, info: ImageInfo, part: str) -> None:
    """Raise UserError where the classes or the shape are not those of the checkpoint that info is from."""
    if raw.classes != info.classes:
        missing, more = sorted(set(info.classes) - set(raw.classes)), sorted(set(raw.classes) - set(info.classes))
        raise UserError(f"the {part} images have other classes than the model (missing: {missing}, more: {more})")
    height, width, channels = raw.images.shape[1:]
    if (channels, height, width) != tuple(info.image_shape):
        sizes = ("x".join(map(str, shape)) for shape in ((channels, height, width), info.image_shape))
        raise UserError("the {} images are {}, those of the model {}: take another checkpoint".format(part, *sizes))


class Batch:
    """Labels y (B,), and images x (B, C, H, W) that are made when they are first asked for."""

    def __init__(self, y: Tensor, make_images: Callable[[], Tensor]):
        self.y, self._make_images = y, make_images

    @cached_property
    def x(self) -> Tensor:
        return self._make_images()


class Batches:
    """The batches of every epoch, in an order that the generator of the epoch draws.

    Args:
        augment: whether images are cropped at random, and mirrored where `mirror` says so.
    """

    def __init__(
        self,
        split: Split,
        info: ImageInfo,
        batch_size: int,
        streams: Streams,
        augment: bool = False,
        mirror: bool = True,
    ):
        self.split, self.info, self.batch_size, self.streams = split, info, batch_size, streams
        self.augment, self.mirror = augment, mirror

    def __len__(self) -> int:
        """Return the number of batches of an epoch; see `indices`."""
        count, size = len(self.split), self.batch_size
        return -(-count // size) - (count % size == 1 and count > 1)

    def indices(self, order: torch.Generator) -> list[Tensor]:
        """Draw the images of each batch of an epoch; a last single one joins the batch before it."""
        batches = list(torch.randperm(len(self.split), generator=order).split(self.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return [indices.to(self.streams.device, non_blocking=True) for indices in batches]

    def batch(self, indices: Tensor, epoch: int, number: int) -> Batch:
        """Return batch `number` of an epoch, the same for all blocks."""

        def images() -> Tensor:
            chosen = self.split.images[indices]
            if self.augment:
                chosen = augment(chosen, self.streams.fresh(f"augment/{epoch}", number), self.mirror)
            return self.info.normalise(chosen)

        return Batch(self.split.labels[indices], images)


def augment(images: Tensor, generator: torch.Generator, mirror: bool) -> Tensor:
    """Crop images, padded by an eighth of their side, at random, and mirror some: (B, H, W, C) uint8 -> the same."""
    batch, height, width, _ = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (0, 0, pad_x, pad_x, pad_y, pad_y))

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator, device=images.device)

    rows = draw(2 * pad_y + 1) + torch.arange(height, device=images.device)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, -1)  # (B, W)
    if mirror:
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    columns = columns + draw(2 * pad_x + 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]]

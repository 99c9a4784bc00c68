"""Datasets -> splits -> batches on the device: the whole set in memory, or mapped, as uint8; batches normalised whole.

DATASETS lists what there is; a new data set is a loader in loaders/ and an entry here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn import functional as F

from errors import UserError, printable
from loaders import RawImages
from loaders.digits import load_digits
from loaders.from_torchvision import torchvision_loader
from loaders.image_folder import load_folder
from loaders.npz import load_npz
from loaders.on_disk import ImagesOnDisk, at_a_time
from models.image_info import ImageInfo
from models.methods import arguments_for
from models.random_streams import Streams
from models.shares import Part, Source, draw_rows, share

GREY = 128  # of what cutout covers
AUGMENTATIONS = ("crop", "flip", "cutout")


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Args:
        load: (part, ...) -> RawImages, part "train" or "test"; other arguments with a setting's name get its value, and
            only data sets whose loader has such an argument know the setting. `shape` is that of a checkpoint, or None.
        augment: what a bare --augment does to its images, of AUGMENTATIONS.
        defaults: of settings whose default depends on the data set.
        own_validation: `load` also knows the part "validation", and gives None where the data have none.
    """

    load: Callable[..., RawImages]
    augment: tuple[str, ...] = ("crop", "flip")
    defaults: dict[str, object] = field(default_factory=lambda: {"batch_size": 128})
    own_validation: bool = False


DATASETS = {
    "cifar10": Dataset(torchvision_loader("cifar10", "CIFAR10")),
    "cifar100": Dataset(torchvision_loader("cifar100", "CIFAR100")),
    "mnist": Dataset(torchvision_loader("mnist", "MNIST"), augment=("crop",)),  # a mirrored digit is another sign
    "fashion-mnist": Dataset(torchvision_loader("fashion-mnist", "FashionMNIST")),
    # few digits: smaller batches make more steps an epoch
    "digits": Dataset(load_digits, augment=("crop",), defaults={"batch_size": 32}),
    # who knows whether they may be mirrored
    "folder": Dataset(load_folder, augment=("crop",), own_validation=True),
    "npz": Dataset(load_npz, augment=("crop",), own_validation=True),
}


def datasets_with(setting: str) -> list[str]:
    """Return the data sets that know a setting: all, unless the loaders of some have it as an argument."""
    if arguments_for(load_images, {setting: None}):
        return list(DATASETS)
    owners = [name for name, dataset in DATASETS.items() if arguments_for(dataset.load, {setting: None})]
    return owners or list(DATASETS)


def load_images(name: str, part: str, image_size: int | None = None, **values) -> RawImages | None:
    """Return the `train` or `test` part of a data set, or its own `validation` part: None where it has none.

    image_size: side in pixels to which images are scaled; a loader that knows it does so itself. values: settings that
    its loader may know. Prints the loader's notes. Raises UserError where the files are missing, broken or not as
    expected.
    """
    if part == "validation" and not DATASETS[name].own_validation:
        return None
    load = DATASETS[name].load
    raw = load(part=part, **arguments_for(load, {**values, "image_size": image_size}))
    for note in raw.notes if raw else ():
        print(printable(note))
    if raw and image_size and not arguments_for(load, {"image_size": image_size}):
        raw = raw._replace(images=scaled(raw.images, image_size))
    return raw


def scaled(images: Tensor, side: int) -> Tensor:
    """Return images scaled to a square: (N, H, W, C) uint8 -> (N, side, side, C)."""

    def scale(part: Tensor) -> Tensor:
        part = F.interpolate(part.permute(0, 3, 1, 2).float(), (side, side), mode="bilinear", antialias=True)
        return part.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    return torch.cat([scale(part) for part in images.split(1000)])


@dataclass
class Split:
    """images (N, H, W, C) uint8, on the device or left on disk, and labels (N,) int64, on the device."""

    images: Tensor | ImagesOnDisk
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Split":
        on_disk = isinstance(self.images, ImagesOnDisk)
        return Split(self.images.subset(indices) if on_disk else self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass
class TrainingData:
    """The training split, the validation split held out of it (may be empty) and what is known of both.

    fingerprint: of all the images and the seed; where it is the same, so are the splits.
    """

    info: ImageInfo
    train: Split
    validation: Split
    fingerprint: str


def training_data(
    raw: RawImages,
    val_fraction: float,
    streams: Streams,
    info: ImageInfo | None = None,
    train_size: int | None = None,
    own_validation: RawImages | None = None,
) -> TrainingData:
    """Split off the validation images, by seed and class, and move all to the device of the streams.

    info: of a checkpoint to be continued; its statistics are taken over. train_size: so many of the others, None: all.
    own_validation: the data set's own validation images, which are taken unless val_fraction is 0.
    Raises UserError for too few images.
    """
    keys, whole = image_keys(raw, streams.seed), Split(raw.images, raw.labels)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if own_validation and val_fraction:
        keys += image_keys(own_validation, streams.seed)
        validation, kept = Split(own_validation.images, own_validation.labels), order
    else:
        held_out, kept = stratified(order, raw.labels.tolist(), val_fraction)
        validation = whole.subset(torch.tensor(held_out, dtype=torch.int64))
        _check_held_out(len(held_out), len(order), val_fraction)
    if len(kept) < 2:
        raise UserError(f"{len(kept)} training images are too few: batch norm needs two")
    if train_size is not None and train_size > len(kept):
        raise UserError(f"--train-size {train_size} is more than the {len(kept)} training images: lower it")
    # the last of them are a fair draw of the classes: of the first, validation has taken its share of every class
    train = whole.subset(torch.tensor(kept[-train_size:] if train_size else kept))
    if info is None:
        info = ImageInfo(raw.classes, raw.image_shape, *channel_statistics(train.images))
    fingerprint = blake2b(b"".join(sorted(keys)), digest_size=16).hexdigest()
    return TrainingData(info, train.to(streams.device), validation.to(streams.device), fingerprint)


def _check_held_out(held_out: int, count: int, val_fraction: float) -> None:
    if val_fraction > 0 and not held_out:
        why = "is none: raise it" if val_fraction * count < 0.5 else "is none, since each class keeps one: add some"
        raise UserError(f"--val-fraction {val_fraction} of {count} images {why}, or set 0")


def image_keys(raw: RawImages, seed: int) -> list[bytes]:
    """Return a key for each image that follows from its pixels, its class and the seed alone; sorted they are mixed."""
    salt = str(seed).encode()[-16:]
    rows = (image for part in raw.images.split(at_a_time(raw.images.shape)) for image in part[:].numpy())
    pairs = zip(rows, raw.labels.tolist(), strict=True)
    return [blake2b(image.tobytes() + str(y).encode(), digest_size=16, salt=salt).digest() for image, y in pairs]


def stratified(order: list[int], labels: list[int], fraction: float) -> tuple[list[int], list[int]]:
    """Return the images held out, and the others: of every class the first `fraction` in this order.

    Shares are rounded so that their sum is right; every class keeps an image.
    """
    counts = Counter(labels)
    shares = {y: int(fraction * count) for y, count in counts.items()}
    by_rest = sorted(counts, key=lambda y: (shares[y] - fraction * counts[y], y))
    for y in by_rest[: round(fraction * len(labels)) - sum(shares.values())]:
        shares[y] += 1
    left = {y: min(share, counts[y] - 1) for y, share in shares.items()}
    held_out, kept = [], []
    for i in order:
        takes = left[labels[i]] > 0
        left[labels[i]] -= takes
        (held_out if takes else kept).append(i)
    return held_out, kept


def channel_statistics(images: Tensor | ImagesOnDisk) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, exact: (N, H, W, C) uint8 -> two lists of C numbers."""
    values = torch.arange(256, dtype=torch.float64)
    histograms = torch.zeros(images.shape[-1], 256, dtype=torch.int64)
    for part in images.split(at_a_time(images.shape)):
        histograms += torch.stack([torch.bincount(c.flatten(), minlength=256).cpu() for c in part[:].unbind(-1)])
    means, stds = [], []
    for counts in histograms.double():
        mean = (counts @ values / counts.sum()).item()
        variance = (counts @ (values - mean) ** 2 / counts.sum()).item()
        means.append(mean)
        stds.append(max(variance**0.5, 1.0))  # a constant channel stays constant
    return means, stds


def as_known(raw: RawImages, classes: list[str], image_shape: Sequence[int], part: str) -> RawImages:
    """Return images with the class numbers of a model; prints which of its classes have none.

    part: training, where every class of the model must be there; validation or test, where classes may be missing.
    Raises UserError for images of other classes or of another shape than the model's.
    """
    missing, more = sorted(set(classes) - set(raw.classes)), sorted(set(raw.classes) - set(classes))
    if more or (missing and part == "training"):
        differ = f"(missing: {missing}, more: {more})"
        raise UserError(f"the {part} images have other classes than the model {differ}: take another --data-dir")
    if raw.image_shape != tuple(image_shape):
        sizes = ("x".join(map(str, shape)) for shape in (raw.image_shape, image_shape))
        raise UserError("the {} images are {}, those of the model {}: take another checkpoint".format(part, *sizes))
    if missing:
        names = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        print(printable(f"{len(missing)} of {len(classes)} classes have no {part} images: {names}"))
    place = torch.tensor([classes.index(name) for name in raw.classes])
    return raw._replace(labels=place[raw.labels], classes=classes)


class Batch:
    """Labels y (B,), and images x (B, C, H, W) that are made when they are first asked for.

    Args:
        part: which rows of a batch these are, where several processes share it; None: all.
    """

    def __init__(self, y: Tensor, make_images: Callable[[], Tensor], part: Part | None = None):
        self.y, self._make_images, self.part = y, make_images, part

    @cached_property
    def x(self) -> Tensor:
        return self._make_images()


class Batches:
    """The batches of every epoch, in an order that the generator of the epoch draws.

    Args:
        see: makes x of images (B, H, W, C) uint8.
        augment: what is done to the images, see `augment`.
        kept: x of the whole split, where it is the same in every epoch.
        part_of: gives the part of so many images that is taken here, None for all.
    """

    def __init__(
        self,
        split: Split,
        see: Callable[[Tensor], Tensor],
        batch_size: int,
        streams: Streams,
        augment: Collection[str] = (),
        kept: Tensor | None = None,
        part_of: Callable[[int], Part | None] = lambda images: None,
    ):
        self.split, self.see, self.batch_size, self.streams = split, see, batch_size, streams
        self.augment, self.kept, self.part_of = augment, kept, part_of

    @property
    def sizes(self) -> list[int]:
        """Return the number of images of each batch of an epoch; a last single one joins the batch before it."""
        full, rest = divmod(len(self.split), self.batch_size)
        if rest == 1 and full:
            return [self.batch_size] * (full - 1) + [self.batch_size + 1]
        return [self.batch_size] * full + [rest] * (rest > 0)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sizes)

    def indices(self, order: torch.Generator) -> list[Tensor]:
        """Draw the images of each batch of an epoch."""
        images = torch.randperm(len(self.split), generator=order).to(self.streams.device)  # one copy for all batches
        return list(images.split(self.sizes))

    def batch(self, indices: Tensor, epoch: int, number: int) -> Batch:
        """Return batch `number` of an epoch, the same for all blocks."""
        part = self.part_of(len(indices))
        if part:
            indices = indices[part.first : part.end]

        def images() -> Tensor:
            if self.kept is not None:
                return self.kept[indices]
            chosen = self.split.images[indices]
            if self.augment:
                generator = self.streams.fresh(f"augment/{epoch}", number)
                chosen = augment(chosen, share(generator, part), self.augment)
            return self.see(chosen)

        return Batch(self.split.labels[indices], images, part)


def augment(images: Tensor, source: Source, ways: Collection[str]) -> Tensor:
    """Return images changed at random: (B, H, W, C) uint8 -> the same.

    ways: `crop` shifts an image by up to an eighth of its side, what is missing is mirrored from inside; `flip` mirrors
    every second one; `cutout` covers a square of a quarter of its side with grey.
    """
    batch, height, width, _ = images.shape

    def draw(high: int) -> Tensor:
        return draw_rows(batch, source, lambda n, g: torch.randint(high, (n, 1), generator=g, device=images.device))

    def shifted(places: Tensor, size: int) -> Tensor:  # (B, size) -> (B, size)
        most = max(1, size // 8)
        places = (places + draw(2 * most + 1) - most).abs()
        return size - 1 - (size - 1 - places).abs()

    rows, columns = (torch.arange(size, device=images.device).expand(batch, -1) for size in (height, width))
    if "crop" in ways:
        rows, columns = shifted(rows, height), shifted(columns, width)
    if "flip" in ways:
        columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
    index = torch.arange(batch, device=images.device)[:, None, None]
    images = images[index, rows[:, :, None], columns[:, None, :]]
    if "cutout" in ways:

        def covered(size: int) -> Tensor:  # (B, size)
            side = max(1, size // 4)
            first = draw(size + side - 1) - side + 1  # it may stick out
            place = torch.arange(size, device=images.device)
            return (place >= first) & (place < first + side)

        images = images.masked_fill((covered(height)[:, :, None] & covered(width)[:, None, :])[..., None], GREY)
    return images

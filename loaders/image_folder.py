"""Own images: DIR/train/CLASS/* and DIR/test/CLASS/* decoded once, in parallel, into one uint8 tensor.

Or DIR/train/labels.csv and DIR/test/labels.csv with lines of file,class. DIR/val is the validation split.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from errors import UserError
from hardware.threads import usable_cores
from loaders import RawImages
from loaders.colours import is_grey, to_grey
from loaders.image_files import endings_in_words, list_images
from loaders.on_disk import ImagesOnDisk, at_a_time, is_too_large, keep_on_disk

FOLDERS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
MOST_THREADS = 4  # that decode; 24 megapixels in colour take 0.1 GB several times over
LOW = 2**13  # 16-bit images whose values all lie below would turn nearly black
LARGEST_OWN_SIZE = 64  # images of one size up to this are taken as they are
DEFAULT_SIZE = 32  # otherwise
SMALLEST_SIZE = 4  # the networks halve images twice


class Decoded(NamedTuple):
    """An image (H, W, 3) uint8, its largest value where it had 16 bits, and the sides of its file in pixels."""

    pixels: np.ndarray
    top: int | None
    sides: tuple[int, int]


def load_folder(
    part: str,
    data_dir: str,
    image_size: int | None = None,
    shape: tuple[int, int, int] | None = None,
    cache: Path | None = None,
) -> RawImages | None:
    """Return the images of a part with their classes; None where there is no folder of validation images.

    The size is that of shape (C, H, W), else image_size squared, else the images' own where all have the same, at
    most 64 pixels, else 32x32. One channel where shape says so or where no image has colour, else three.
    cache: the folder where images stay that would take more than a quarter of the memory, see keep_on_disk.
    Raises UserError for a folder that is not laid out so and for images that do not open.
    """
    folder = next((path for name in FOLDERS[part] if (path := Path(data_dir, name)).is_dir()), None)
    if folder is None and part == "validation":
        return None
    files = list_images(folder or Path(data_dir, part), needs_all=part == "train")
    size = shape[1:] if shape else (image_size, image_size) if image_size else _common_size(files.paths)
    if min(size) < SMALLEST_SIZE:
        small = "the images in {} are {} x {} pixels, and at least 4 x 4 pixels are needed".format(data_dir, *size)
        raise UserError(f"{small}: scale them up with --image-size 32")
    images, sides, notes = _load(part, files.paths, size, shape[0] if shape else None, cache)
    notes += _notes(folder, files.others) + (_scaled(sides, size) if part == "train" else ())
    return RawImages(images, torch.tensor(files.labels), files.classes, notes)


def _load(
    part: str, paths: list[str], size: tuple[int, int], channels: int | None, cache: Path | None
) -> tuple[Tensor | ImagesOnDisk, set[int], tuple[str, ...]]:
    """Return images of so many channels, the sides that they had in pixels, and notes."""
    sides: set[int] = set()
    decoded, shape = _decoded(paths, size, f"decode {part}", sides), (len(paths), *size, 3)
    if cache is None or not is_too_large(shape):
        images = _gather(decoded, shape)
        grey = is_grey(images)
        if (channels or (1 if grey else 3)) == 1:
            images = images[..., :1] if grey else to_grey(images)
        return images, sides, ()
    key = repr(([(path, _stamp(path)) for path in paths], size, channels))
    images, place, sides = keep_on_disk(cache, part, key, shape, channels, decoded, sides)
    return (
        images,
        sides,
        (f"the {part} images would take more than a quarter of the memory: they stay on disk, in {place}",),
    )


def _stamp(path: str) -> tuple[int, int] | None:
    """Return size and time of change of a file; None for one that is not there, which decoding names."""
    try:
        return (status := os.stat(path)).st_size, status.st_mtime_ns
    except OSError:
        return None


def _scaled(sides: set[int], size: tuple[int, int]) -> tuple[str, ...]:
    if sides <= {*size}:
        return ()
    low, high = min(sides), max(sides)
    before, after = (f"{one}-{other}" if one != other else str(one) for one, other in ((low, high), sorted(size)))
    return (f"the images are scaled from {before} to {after} pixels",)


def _notes(folder: Path, others: Counter) -> tuple[str, ...]:
    if not others:
        return ()
    why = f"since they are no images or have no class ({endings_in_words(others)})"
    return (f"{folder}: {others.total()} files are not taken, {why}",)


def decode_images(paths: list[str], size: tuple[int, int]) -> Tensor:
    """Return the images as (N, H, W, 3) uint8, cropped in the middle to the shape of size (H, W) and scaled to it.

    Raises UserError that names those that do not open, and for 16-bit images that would be black.
    """
    return _gather(_decoded(paths, size), (len(paths), *size, 3))


def _gather(decoded: Iterator[np.ndarray], shape: tuple[int, ...]) -> Tensor:
    images = torch.empty(shape, dtype=torch.uint8)
    for i, pixels in enumerate(decoded):
        images[i] = torch.from_numpy(pixels)
    return images


def _decoded(
    paths: list[str], size: tuple[int, int], title: str | None = None, sides: set[int] | None = None
) -> Iterator[np.ndarray]:
    """Yield the images of decode_images one by one; its errors come at the end. sides: gets their sides in pixels."""
    broken, tops = [], []
    bar = tqdm(desc=title, total=len(paths), disable=None if title else True, leave=False)
    with bar, _without_warnings(), ThreadPoolExecutor(_decoding_threads()) as pool:
        count = at_a_time((len(paths), *size, 3))  # no more than these wait in memory
        for start in range(0, len(paths), count):
            some = paths[start : start + count]
            for path, result in zip(some, pool.map(lambda path: _decoded_or_error(path, size), some), strict=True):
                bar.update()
                if isinstance(result, UserError):
                    broken.append(str(result))
                    continue
                tops += [(result.top, path)] if result.top is not None else []
                if sides is not None:
                    sides.update(result.sides)
                yield result.pixels
    if broken:
        raise UserError(_name_all(broken))
    top, path = max(tops, default=(0, ""))
    if 0 < top < LOW:
        raise UserError(
            f"the 16-bit images, such as {path}, use values up to {top} of 65535 only, so that they would be (nearly) "
            "black: scale their values to the full range, or save them with 8 bits"
        )


def _decoding_threads() -> int:
    """Return one thread for each core that this process may use, but few: each holds a photograph in memory."""
    return min(usable_cores(), MOST_THREADS)


def _name_all(broken: list[str]) -> str:
    if len(broken) == 1:
        return broken[0]
    causes = "; ".join(line.removeprefix("the image ").partition(": mend it")[0] for line in broken[:10])
    more = f"; and {len(broken) - 10} more" if len(broken) > 10 else ""
    return f"{len(broken)} images do not open: {causes}{more}: mend them or leave them out"


def _decoded_or_error(path: str, size: tuple[int, int]) -> Decoded | UserError:
    try:
        return decode_image(path, size)
    except UserError as error:
        return error


def decode_image(path: str, size: tuple[int, int]) -> Decoded:
    """Return an image upright, transparency laid on white, 16 bits cut to 8; of an animation the first image.

    Raises UserError that names the file.
    """
    height, width = size
    top = None
    try:
        with Image.open(path) as opened:
            image = _upright(opened)
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, of which no one knows what is white")
            if image.mode.startswith("I"):
                values = np.asarray(image)
                top = int(values.max())
                image = Image.fromarray(_cut_to_8_bits(values))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return Decoded(np.array(image), top, opened.size)
    except Exception as error:  # Pillow's readers raise nearly every kind of error on a broken file
        raise UserError(f"the image {path} does not open ({_reason(path, error)}): mend it or leave it out") from error


def _upright(opened: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says; as it is where the EXIF cannot be read, as Pillow itself does."""
    opened.load()
    try:
        return ImageOps.exif_transpose(opened)
    except Exception:  # of odd EXIF data, which is not what the image shows
        return opened


def _cut_to_8_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    return (values >> 8).astype(np.uint8)


def _reason(path: str, error: Exception) -> object:
    """Return why an image does not open, in words."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a link that points nowhere: to {os.readlink(path)}"
    reasons = {
        FileNotFoundError: "no such file",
        IsADirectoryError: "it is a folder",
        UnidentifiedImageError: "it is no image of a known format",
        Image.DecompressionBombWarning: f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels",
        Image.DecompressionBombError: f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels",
        MemoryError: "there is not enough memory for it",
    }
    return reasons.get(type(error), error)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow, but for an image so large that it may be meant to fill the memory, which is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Return images as the model wants them: (N, H, W, 3) uint8 -> (N, H, W, channels)."""
    return to_grey(images) if channels == 1 else images


def _common_size(paths: list[str]) -> tuple[int, int]:
    """Return (H, W) of all images where they agree and are small, else 32x32. Reads headers only."""
    sizes = set()
    for path in paths:
        try:
            with _without_warnings(), Image.open(path) as image:
                sizes.add(image.size[::-1])
        except Exception:
            continue  # decoding names it
        if len(sizes) > 1:
            break
    size = sizes.pop() if len(sizes) == 1 else (DEFAULT_SIZE, DEFAULT_SIZE)
    return size if max(size) <= LARGEST_OWN_SIZE else (DEFAULT_SIZE, DEFAULT_SIZE)

"""Own images: DIR/train/CLASS/* and DIR/test/CLASS/* decoded once, in parallel, into one uint8 tensor.

Or DIR/train/labels.csv and DIR/test/labels.csv with lines of file,class. DIR/val is the validation split.
"""

import csv
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
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

NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # which Pillow knows and cannot decode by itself
HIDDEN = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"}
FOLDERS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
LABELS = "labels.csv"
MOST_THREADS = 4  # that decode; 24 megapixels in colour take 0.1 GB several times over
LOW = 2**13  # 16-bit images whose values all lie below would turn nearly black
LARGEST_OWN_SIZE = 64  # images of one size up to this are taken as they are
DEFAULT_SIZE = 32  # otherwise
SMALLEST_SIZE = 4  # the networks halve images twice


class ImageFiles(NamedTuple):
    """Files of a part with the index of their class, and how many others are among them, by ending."""

    paths: list[str]
    labels: list[int]
    classes: list[str]
    others: Counter


def load_folder(
    part: str, data_dir: str, image_size: int | None = None, shape: tuple[int, int, int] | None = None
) -> RawImages | None:
    """Return the images of a part with their classes; None where there is no folder of validation images.

    The size is that of shape (C, H, W), else image_size squared, else the images' own where all have the same, at
    most 64 pixels, else 32x32. One channel where shape says so or where no image has colour, else three.
    Raises UserError for a folder that is not laid out so and for images that do not open.
    """
    folder = next((path for name in FOLDERS[part] if (path := Path(data_dir, name)).is_dir()), None)
    if folder is None and part == "validation":
        return None
    files = _list_images(folder or Path(data_dir, part), needs_all=part == "train")
    size = shape[1:] if shape else (image_size, image_size) if image_size else _common_size(files.paths)
    if min(size) < SMALLEST_SIZE:
        small = "the images in {} are {} x {} pixels, and at least 4 x 4 pixels are needed".format(data_dir, *size)
        raise UserError(f"{small}: scale them up with --image-size 32")
    images = decode_images(files.paths, size, f"decode {part}")
    channels = shape[0] if shape else 1 if _is_grey(images) else 3
    if channels == 1:
        images = images[..., :1] if _is_grey(images) else _to_grey(images)
    return RawImages(images, torch.tensor(files.labels), files.classes, _notes(folder, files.others))


def _notes(folder: Path, others: Counter) -> tuple[str, ...]:
    if not others:
        return ()
    most = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    endings = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in most)
    return (f"{folder}: {others.total()} files are not taken, since they are no images or have no class ({endings})",)


def decode_images(paths: list[str], size: tuple[int, int], title: str | None = None) -> Tensor:
    """Return the images as (N, H, W, 3) uint8, cropped in the middle to the shape of size (H, W) and scaled to it.

    Raises UserError that names those that do not open, and for 16-bit images that would be black.
    """
    images = torch.empty(len(paths), *size, 3, dtype=torch.uint8)
    broken, tops = [], []
    with _without_warnings(), ThreadPoolExecutor(_decoding_threads()) as pool:
        decoded = pool.map(lambda path: _decoded_or_error(path, size), paths)
        bar = tqdm(decoded, desc=title, total=len(paths), disable=None if title else True, leave=False)
        for i, result in enumerate(bar):
            if isinstance(result, UserError):
                broken.append(str(result))
            else:
                pixels, top = result
                images[i] = torch.from_numpy(pixels)
                tops += [(top, paths[i])] if top is not None else []
    if broken:
        raise UserError(_name_all(broken))
    top, path = max(tops, default=(0, ""))
    if 0 < top < LOW:
        raise UserError(
            f"the 16-bit images, such as {path}, use values up to {top} of 65535 only, so that they would be (nearly) "
            "black: scale their values to the full range, or save them with 8 bits"
        )
    return images


def _decoding_threads() -> int:
    """Return one thread for each core that this process may use, but few: each holds a photograph in memory."""
    return min(usable_cores(), MOST_THREADS)


def _name_all(broken: list[str]) -> str:
    if len(broken) == 1:
        return broken[0]
    causes = "; ".join(line.removeprefix("the image ").partition(": mend it")[0] for line in broken[:10])
    more = f"; and {len(broken) - 10} more" if len(broken) > 10 else ""
    return f"{len(broken)} images do not open: {causes}{more}: mend them or leave them out"


def _decoded_or_error(path: str, size: tuple[int, int]) -> tuple[np.ndarray, int | None] | UserError:
    try:
        return _decode(path, size)
    except UserError as error:
        return error


def decode_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8: upright, transparency laid on white, 16 bits cut to 8; of an animation the first image.

    Raises UserError that names the file.
    """
    return _decode(path, size)[0]


def _decode(path: str, size: tuple[int, int]) -> tuple[np.ndarray, int | None]:
    """Return the image of decode_image, and the largest value of one of 16 bits."""
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
            return np.array(image), top
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
    return _to_grey(images) if channels == 1 else images


def _list_images(folder: Path, needs_all: bool) -> ImageFiles:
    """Return the images of a part; needs_all: every class must have one, and there must be two."""
    layout = f"expected DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/train/{LABELS}, DIR given with --data-dir"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: {layout}")
    by_class, others = _from_table(folder) if (folder / LABELS).is_file() else _from_folders(folder)
    if not by_class:
        raise UserError(f"there is no class folder in {folder}: {layout}")
    if needs_all and len(by_class) < 2:
        raise UserError(f"{folder} has one class only ({next(iter(by_class))!r}): two or more are needed")
    empty = [name for name, paths in by_class.items() if not paths]
    if needs_all and empty:
        raise UserError(f"no images in the class folder {folder / empty[0]}: add some (png, jpg, ...) or remove it")
    if len(empty) == len(by_class):
        raise UserError(f"there are no images in {folder}: add some (png, jpg, ...)")
    classes = sorted(by_class.keys() - set(empty))
    paths = [path for name in classes for path in by_class[name]]
    return ImageFiles(paths, [y for y, name in enumerate(classes) for _ in by_class[name]], classes, others)


def _from_folders(folder: Path) -> tuple[dict[str, list[str]], Counter]:
    """Return the images of every class folder, and what else is in them by ending; hidden things are passed over."""
    by_class: dict[str, list[str]] = {}
    others: Counter = Counter()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not _is_hidden(entry.name):
            found, more = _images_in(Path(entry.path))
            by_class.setdefault(_normal(entry.name), []).extend(found)
            others += more
    return by_class, others


def _from_table(folder: Path) -> tuple[dict[str, list[str]], Counter]:
    """Return the images that labels.csv names in lines of file,class; the first line may be a heading."""
    by_class: dict[str, list[str]] = {}
    path = folder / LABELS
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): save it as CSV in UTF-8") from error
    if rows and not (folder / rows[0][0]).is_file():
        rows = rows[1:]  # a heading
    for row in rows:
        if len(row) < 2 or not row[1]:
            raise UserError(f"{path} has the line {','.join(row)!r}: every line needs file,class")
        if not (folder / row[0]).is_file():
            raise UserError(f"{path} names the file {row[0]}, which is not there: add it or remove the line")
        by_class.setdefault(_normal(row[1]), []).append(str(folder / row[0]))
    named = {os.path.realpath(place) for paths in by_class.values() for place in paths}
    found, others = _images_in(folder)
    others.update(Path(place).suffix.lower() for place in found if os.path.realpath(place) not in named)
    return by_class, others - Counter([".csv"])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in HIDDEN


def _normal(name: str) -> str:
    """Return a name in Unicode's normal form: macOS and Linux write the same letters differently."""
    return unicodedata.normalize("NFC", name)


@cache
def _endings() -> frozenset[str]:
    """Return the endings of all images that Pillow can open."""
    return frozenset(
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - NO_IMAGES
    )


def _images_in(folder: Path) -> tuple[list[str], Counter]:
    """Return all image files below, in order, and the number of other files by ending.

    A folder that links lead to again, or to one around it, counts once.
    """
    real = folder.resolve()
    seen = {real, *real.parents}
    found, others = [], Counter()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        new = {}
        for name in sorted(folders):
            if not _is_hidden(name):
                new.setdefault(Path(root, name).resolve(), name)
        folders[:] = [name for place, name in new.items() if place not in seen]
        seen |= new.keys()
        for name in files:
            ending = Path(name).suffix.lower()
            if ending in _endings() and not _is_hidden(name):
                found.append(os.path.join(root, name))
            elif not _is_hidden(name):
                others[ending] += 1
    return sorted(found, key=lambda path: (os.path.dirname(path), path)), others


def _raise(error: OSError) -> None:
    raise error


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


def _is_grey(images: Tensor) -> bool:
    red, green, blue = images.unbind(-1)
    return torch.equal(red, green) and torch.equal(green, blue)


def _to_grey(images: Tensor) -> Tensor:
    """Return ITU-R 601 luma, as Pillow's mode L: (N, H, W, 3) uint8 -> (N, H, W, 1) uint8."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = [(chunk.float() @ weights).round().to(torch.uint8) for chunk in images.split(4096)]
    return torch.cat(grey).unsqueeze(-1)

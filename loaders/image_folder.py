"""Own images: DIR/train/CLASS/* and DIR/test/CLASS/* decoded once, in parallel, into one uint8 tensor."""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from errors import UserError
from loaders import RawImages

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LARGEST_OWN_SIZE = 64  # images of one size up to this are taken as they are
DEFAULT_SIZE = 32  # otherwise
SMALLEST_SIZE = 4  # the networks halve images twice


def load_folder(
    part: str, data_dir: str, image_size: int | None = None, shape: tuple[int, int, int] | None = None
) -> RawImages:
    """Return the images of DIR/part with their classes.

    The size is that of shape (C, H, W), else image_size squared, else the images' own where all have the same, at
    most 64 pixels, else 32x32. One channel where shape says so or where no image has colour, else three.
    Raises UserError for a folder that is not laid out so and for an image that does not open.
    """
    paths, labels, classes = _list_images(Path(data_dir), part)
    size = shape[1:] if shape else (image_size, image_size) if image_size else _common_size(paths)
    if min(size) < SMALLEST_SIZE:
        small = "the images in {} are {} x {} pixels, and at least 4 x 4 pixels are needed".format(data_dir, *size)
        raise UserError(f"{small}: scale them up with --image-size 32")
    images = decode_images(paths, size, f"decode {part}")
    channels = shape[0] if shape else 1 if _is_grey(images) else 3
    if channels == 1:
        images = images[..., :1] if _is_grey(images) else _to_grey(images)
    return RawImages(images, labels, classes)


def decode_images(paths: list[str], size: tuple[int, int], title: str | None = None) -> Tensor:
    """Return the images as (N, H, W, 3) uint8, cropped in the middle to the shape of size (H, W) and scaled to it."""
    images = torch.empty(len(paths), *size, 3, dtype=torch.uint8)
    with _without_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda path: decode_image(path, size), paths)
        bar = tqdm(decoded, desc=title, total=len(paths), disable=None if title else True, leave=False)
        for i, image in enumerate(bar):
            images[i] = torch.from_numpy(image)
    return images


def decode_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8: upright, transparency laid on white, 16 bits cut to 8; of an animation the first image.

    Raises UserError that names the file.
    """
    height, width = size
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, of which no one knows what is white")
            if image.mode.startswith("I"):
                image = Image.fromarray(_cut_to_8_bits(np.asarray(image)))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.array(image)
    except Exception as error:  # Pillow's readers raise nearly every kind of error on a broken file
        raise UserError(f"the image {path} does not open ({_reason(path, error)}): mend it or leave it out") from error


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


def _list_images(root: Path, part: str) -> tuple[list[str], Tensor, list[str]]:
    folder = root / part
    layout = "expected DIR/train/CLASS/* and DIR/test/CLASS/*, DIR given with --data-dir"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: {layout}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise UserError(f"there is no class folder in {folder}: {layout}")
    if len(classes) < 2:
        raise UserError(f"{folder} has one class only ({classes[0]!r}): two or more are needed")
    paths, labels = [], []
    for y, name in enumerate(classes):
        found = _images_in(folder / name)
        if not found:
            raise UserError(
                f"no images in the class folder {folder / name}: add some ({' '.join(EXTENSIONS)}) or remove it"
            )
        paths += found
        labels += [y] * len(found)
    return paths, torch.tensor(labels), classes


def _images_in(folder: Path) -> list[str]:
    """Return all image files below, in order. A folder that links lead to again, or to one around it, counts once."""
    real = folder.resolve()
    seen = {real, *real.parents}
    found = []
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        new = {}
        for name in sorted(folders):
            new.setdefault(Path(root, name).resolve(), name)
        folders[:] = [name for place, name in new.items() if place not in seen]
        seen |= new.keys()
        found += [os.path.join(root, name) for name in files if name.lower().endswith(EXTENSIONS)]
    return sorted(found, key=lambda path: (os.path.dirname(path), path))


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

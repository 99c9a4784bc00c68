"""Own images: DIR/train/CLASS/* and DIR/test/CLASS/* decoded once, in parallel, into one uint8 tensor."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import find_classes, make_dataset
from tqdm import tqdm

from errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LARGEST_OWN_SIZE = 64  # images of one size up to this are taken as they are
DEFAULT_SIZE = 32  # otherwise


def load_folder(
    data_dir: str, part: str, image_size: int | None, shape: tuple[int, int, int] | None
) -> tuple[Tensor, Tensor, list[str]]:
    """images (N, H, W, C) uint8, labels (N,) and the class names of DIR/part.

    The size is that of shape (C, H, W), else image_size squared, else the images' own where all have the same, at
    most 64 pixels, else 32x32. One channel where shape says so or where no image has colour, else three.
    Raises UserError for a folder that is not laid out so and for an image that does not open.
    """
    paths, labels, classes = _list_images(Path(data_dir), part)
    size = shape[1:] if shape else (image_size, image_size) if image_size else _common_size(paths)
    images = decode_images(paths, size, f"decode {part}")
    channels = shape[0] if shape else 1 if _is_grey(images) else 3
    if channels == 1:
        images = images[..., :1] if _is_grey(images) else _to_grey(images)
    return images, labels, classes


def decode_images(paths: list[str], size: tuple[int, int], title: str | None = None) -> Tensor:
    """(N, H, W, 3) uint8 of the image files, cropped in the middle to the shape of size (H, W) and scaled to it."""
    images = torch.empty(len(paths), *size, 3, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda path: decode_image(path, size), paths)
        bar = tqdm(decoded, desc=title, total=len(paths), disable=None if title else True, leave=False)
        for i, image in enumerate(bar):
            images[i] = torch.from_numpy(image)
    return images


def decode_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: turned upright, transparency laid on white, 16 bits cut to 8.

    Raises UserError that names the file.
    """
    height, width = size
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reasons = {
            FileNotFoundError: "no such file",
            IsADirectoryError: "it is a folder",
            UnidentifiedImageError: "it is no image of a known format",
        }
        reason = reasons.get(type(error), error)
        raise UserError(f"the image {path} does not open ({reason}): mend it or leave it out") from error


def match_channels(images: Tensor, channels: int) -> Tensor:
    """(N, H, W, 3) uint8 as the model wants it: (N, H, W, channels)."""
    return _to_grey(images) if channels == 1 else images


def _list_images(root: Path, part: str) -> tuple[list[str], Tensor, list[str]]:
    folder = root / part
    layout = "expected DIR/train/CLASS/* and DIR/test/CLASS/*, DIR given with --data-dir"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: {layout}")
    try:
        classes, class_to_index = find_classes(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"there is no class folder in {folder}: {layout}") from error
    if len(classes) < 2:
        raise UserError(f"{folder} has one class only ({classes[0]!r}): two or more are needed")
    try:
        samples = make_dataset(str(folder), class_to_index, extensions=EXTENSIONS)
    except FileNotFoundError as error:
        empty = [c for c in classes if not _has_images(folder / c)]
        raise UserError(
            f"no images in the class folder {folder / empty[0]}: add some ({' '.join(EXTENSIONS)}) or remove it"
        ) from error
    return [path for path, _ in samples], torch.tensor([y for _, y in samples]), classes


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))


def _common_size(paths: list[str]) -> tuple[int, int]:
    """(H, W) of all images where they agree and are small, else 32x32. Reads headers only."""
    sizes = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.add(image.size[::-1])
        except (OSError, SyntaxError, Image.DecompressionBombError):
            continue  # decoding names it
        if len(sizes) > 1:
            break
    size = sizes.pop() if len(sizes) == 1 else (DEFAULT_SIZE, DEFAULT_SIZE)
    return size if max(size) <= LARGEST_OWN_SIZE else (DEFAULT_SIZE, DEFAULT_SIZE)


def _is_grey(images: Tensor) -> bool:
    red, green, blue = images.unbind(-1)
    return torch.equal(red, green) and torch.equal(green, blue)


def _to_grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma, as Pillow's mode L: (N, H, W, 3) uint8 -> (N, H, W, 1) uint8."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = [(chunk.float() @ weights).round().to(torch.uint8) for chunk in images.split(4096)]
    return torch.cat(grey).unsqueeze(-1)

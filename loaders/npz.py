"""Images in one NumPy file, as MedMNIST has them: train_images, train_labels, test_images, test_labels, maybe val_*."""

from pathlib import Path

import numpy as np
import torch

from errors import UserError, reading, require
from loaders import RawImages

NAMES = {"train": "train", "test": "test", "validation": "val"}


def load_npz(part: str, data_dir: str) -> RawImages | None:
    """Return the images (N, H, W) or (N, H, W, C) uint8 of a part, labels (N,) or (N, 1); None without validation.

    A class is a number of train_labels. Raises UserError for arrays of another kind.
    """
    path = Path(data_dir)
    if not path.is_file():
        raise UserError(f"there is no file {path}: --dataset npz needs --data-dir FILE.npz")
    with reading(path, "mend it"):
        with np.load(path, allow_pickle=False) as file:
            wanted = [f"{NAMES[part]}_{kind}" for kind in ("images", "labels")]
            if part == "validation" and wanted[0] not in file:
                return None
            missing = [name for name in (*wanted, "train_labels") if name not in file]
            require(not missing, f"it has no array {''.join(missing[:1])}")
            images, labels = (file[name] for name in wanted)
            known = labels if part == "train" else file["train_labels"]
        images = images[..., None] if images.ndim == 3 else images
        _check(images, labels)
    numbers, trained = labels.ravel().tolist(), sorted(set(known.ravel().tolist()))
    classes = trained + sorted(set(numbers) - set(trained))
    place = {number: y for y, number in enumerate(classes)}
    y = torch.tensor([place[number] for number in numbers])
    return RawImages(torch.from_numpy(images), y, [str(number) for number in classes])


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    fits = images.ndim == 4 and images.shape[3] in (1, 3) and min(images.shape[1:3]) >= 4
    require(
        fits, f"its images are {'x'.join(map(str, images.shape))}, not N x H x W or N x H x W x 3, of 4 x 4 or more"
    )
    require(images.dtype == np.uint8, f"its images are {images.dtype}, not uint8")
    require(labels.dtype.kind in "iu" and labels.size == len(images), "its labels are not one whole number an image")

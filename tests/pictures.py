"""Folders of images for --dataset folder."""

import numpy as np
from PIL import Image


def make_folder(root, counts=(3, 3), classes=("cat", "dog"), size=(8, 8), mode="RGB"):
    """Write so many random images (W, H) of each class for training, and as many for the test; returns the folder."""
    for part in ("train", "test"):
        for name, count in zip(classes, counts, strict=True):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / part / name / f"{i}.png")
    return root

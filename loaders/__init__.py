"""Loaders of data sets: each returns all images of a part, train or test, as one uint8 tensor. data.py lists them."""

from typing import NamedTuple

from torch import Tensor

from loaders.on_disk import ImagesOnDisk


class RawImages(NamedTuple):
    """images (N, H, W, C) uint8, labels (N,) int64, names of the classes, and what the user should know of them."""

    images: Tensor | ImagesOnDisk
    labels: Tensor
    classes: list[str]
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

"""Hold what a network knows of its images: names of the classes, shape, statistics that normalise them; and how many
it answers at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EVAL_BATCH = 500  # images of 32x32 pixels at a time


def images_at_a_time(height: int, width: int) -> int:
    """Return how many images are answered together: of larger ones fewer, so that features take no more memory."""
    return max(1, min(EVAL_BATCH, EVAL_BATCH * 32 * 32 // (height * width)))


@dataclass
class ImageInfo:
    """Classes, image_shape (C, H, W), mean and standard deviation of each channel in the training images (0-255)."""

    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]

    def __post_init__(self):
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}  # copied once, not at every batch

    def normalise(self, images: Tensor) -> Tensor:
        """Return images of mean 0 and deviation 1: (B, H, W, C), 0-255 -> (B, C, H, W) float32, channels_last."""
        device = images.device
        if device not in self._on_device:
            self._on_device[device] = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        mean, std = self._on_device[device]
        return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)

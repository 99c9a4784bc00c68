"""Grey and colour: whether images have one, and what they look like without."""

import torch
from torch import Tensor


def is_grey(images: Tensor) -> bool:
    """Return whether red, green and blue are the same everywhere: (N, H, W, 3)."""
    red, green, blue = images.unbind(-1)
    return torch.equal(red, green) and torch.equal(green, blue)


def to_grey(images: Tensor) -> Tensor:
    """Return ITU-R 601 luma, as Pillow's mode L: (N, H, W, 3) uint8 -> (N, H, W, 1) uint8."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = [(chunk.float() @ weights).round().to(torch.uint8) for chunk in images.split(4096)]
    return torch.cat(grey).unsqueeze(-1)

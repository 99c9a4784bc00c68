"""An encoder that learns CIFAR-10 in a few epochs: a fixed whitening, then six convolutions.

The shape of airbench94 (Keller Jordan 2024, arXiv 2404.00498). Batch norm stays in continuous time too: it sees the
image only, never z or t.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 256
LEAST_SIDE = 16
VALUES_AT_A_TIME = 2**22  # of images in `prepare`, whose patches are held in double precision
LEAST_VARIANCE = 5e-4  # added to that of every direction of the patches


class StartsAsIdentity(nn.Conv2d):
    """A 3x3 convolution without bias, whose first channels let their input through at the start."""

    def __init__(self, inside: int, outside: int):
        super().__init__(inside, outside, 3, padding=1, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.dirac_(self.weight[: self.in_channels])


class Group(nn.Module):
    """Two convolutions, batch norm and GELU after each, max-pooling after the first: (B, C, H, W) halves H and W."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.conv1, self.norm1 = StartsAsIdentity(inside, outside), nn.BatchNorm2d(outside)
        self.conv2, self.norm2 = StartsAsIdentity(outside, outside), nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(h)))


class Airbench(nn.Module):
    """Image (B, C, H, W) -> features (B, width): whitened 2x2 patches, groups of width / 4, width and width, maximum.

    Args:
        image_shape: (C, H, W) with H, W >= 16.
        norm: has no effect, see above.
        width: channels at the end.
    """

    def __init__(self, image_shape: tuple[int, int, int], norm: bool = True, width: int = WIDTH):
        super().__init__()
        channels, height, width_of_image = image_shape
        if min(height, width_of_image) < LEAST_SIDE:
            raise ValueError(
                f"encoder airbench needs images of at least {LEAST_SIDE} x {LEAST_SIDE} pixels, not {height} x "
                f"{width_of_image}: raise --image-size"
            )
        self.out_features = width
        directions = 4 * channels
        self.register_buffer("whitening", torch.zeros(2 * directions, channels, 2, 2))
        self.shift = nn.Parameter(torch.zeros(2 * directions))
        self.groups = nn.Sequential(Group(2 * directions, width // 4), Group(width // 4, width), Group(width, width))

    def prepare(self, x: Tensor) -> None:
        """Set the whitening from training images: the directions of their 2x2 patches, each of variance 1, and -1."""
        self.shift.data.zero_()
        products, count = 0, 0
        for some in x.split(max(1, VALUES_AT_A_TIME // x[0].numel())):
            patches = F.unfold(some.double(), 2).transpose(1, 2).flatten(0, 1)  # (n, 4 C)
            products, count = products + patches.T @ patches, count + len(patches)
        variances, directions = torch.linalg.eigh(products / count)
        filters = (directions / (variances + LEAST_VARIANCE).sqrt()).T.flip(0).reshape(-1, *self.whitening.shape[1:])
        self.whitening.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return features: x (B, C, H, W) -> (B, width). There is no dropout."""
        h = F.gelu(F.conv2d(x, self.whitening, self.shift))
        return self.groups(h).amax(dim=(2, 3))

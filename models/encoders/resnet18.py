"""ResNet-18 of torchvision, in the form usual for small images: image (B, C, H, W) -> features (B, 512)."""

import torch
from torch import Tensor, nn

LARGE = 64  # pixels; of larger images the first convolution takes every second one, and a maximum follows, as published


class ResNet18(nn.Module):
    """Without its last layer. Batch norm stays in continuous time too: it sees the image only, never z or t.

    Args:
        image_shape: (C, H, W).
        norm: has no effect, see above.
    """

    def __init__(self, image_shape: tuple[int, int, int], norm: bool = True):
        super().__init__()
        self.out_features = 512
        self.image_shape = image_shape
        self.net = self._make()

    def _make(self) -> nn.Module:
        from torchvision.models import resnet18  # takes a second to import

        channels, *sides = self.image_shape
        net = resnet18()
        net.fc = nn.Identity()
        if max(sides) > LARGE:
            net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        else:
            net.conv1, net.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
        return net

    def reset_parameters(self) -> None:
        """Draw the start as torchvision does."""
        self.net.load_state_dict(self._make().state_dict())

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return features: x (B, C, H, W) -> (B, 512). There is no dropout."""
        return self.net(x)

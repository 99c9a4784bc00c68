"""The paper's image encoder (figure 6): three convolutions, image (B, C, H, W) -> features (B, 256)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dropout import relu_dropout

FEATURES = 256


class PaperCNN(nn.Module):
    """Three 3x3 convolutions (32, 64, 128 channels), max-pooling after the first and third, FC 256, batch norm or ReLU.

    Pooling comes before ReLU: the same function, with a quarter of the ReLUs.

    Args:
        image_shape: (C, H, W) with H, W >= 4.
        drop: probability of the element-wise dropout after each convolution.
        norm: whether batch norm comes last, or ReLU.
    """

    def __init__(self, image_shape: tuple[int, int, int], drop: float = 0.2, norm: bool = True):
        super().__init__()
        self.out_features = FEATURES
        channels, height, width = image_shape
        if min(height, width) < 4:
            raise ValueError(f"images must be at least 4 x 4 pixels, not {height} x {width}")
        self.drop = drop
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(128 * (height // 4) * (width // 4), FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES) if norm else nn.ReLU()

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return features: x (B, C, H, W) -> (B, 256). The generator draws the dropout masks, in training mode only."""
        h = self._relu_dropout(self.pool(self.conv1(x)), generator)
        h = self._relu_dropout(self.conv2(h), generator)
        h = self._relu_dropout(self.pool(self.conv3(h)), generator)
        return self.norm(self._fully_connected(h))

    def _fully_connected(self, h: Tensor) -> Tensor:
        """Return fc of h: (B, 128, H/4, W/4) -> (B, 256); on a CPU as one convolution, which is faster."""
        if h.device.type == "cpu":
            weight = self.fc.weight.unflatten(1, (*h.shape[2:], h.shape[1]))  # (256, H/4, W/4, 128)
            return F.conv2d(h, weight.permute(0, 3, 1, 2), self.fc.bias).flatten(1)  # (B, 256, 1, 1) -> (B, 256)
        return self.fc(h.permute(0, 2, 3, 1).flatten(1))  # (B, H/4 * W/4 * 128): free of copies in channels_last

    def _relu_dropout(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        return relu_dropout(h, self.drop, generator) if self.training and self.drop > 0 else h.relu()

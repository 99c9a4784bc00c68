"""The network of continuous time and flow matching (figure 6 of the paper, right): logits from z, x and t.

As NoPropBlock with a third path for t, and without batch norm. What depends on the image alone is computed once per
image (`image_part`), what depends on t alone once per t (`time_part`), so a step of inference is four small matrix
products (`logits`).
"""

import math

import torch
from torch import Tensor, nn

from models.diffusion import repeat
from models.encoders import make_encoder
from models.encoders.paper import FEATURES
from models.NoPropBlock import PrototypePath

TIME_SIZE = 64


def sinusoids(t: Tensor, size: int = TIME_SIZE) -> Tensor:
    """Return the sinusoidal position embedding of t (n,) -> (n, size) float32."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = t.float().unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class EmbeddingPath(nn.Module):
    """Label path for an embedding that is a vector: z (B, d) -> (B, 256)."""

    def __init__(self, embedding_dim: int):
        super().__init__()
        self.embed = nn.Linear(embedding_dim, FEATURES)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.embed(z).relu_()


class TimeBlock(nn.Module):
    """m logits from z (B, d), x (B, C, H, W) and t (B,).

    Arguments as those of NoPropBlock, and time_scale: by which t is multiplied before its sinusoids are taken.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        embedding_dim: int,
        num_classes: int,
        prototype: bool = False,
        encoder: str = "paper",
        time_scale: float = 1000.0,
    ):
        super().__init__()
        self.time_scale = time_scale
        self.image_path = make_encoder(encoder, image_shape, norm=False)
        self.label_path = PrototypePath(image_shape, norm=False) if prototype else EmbeddingPath(embedding_dim)
        self.time_path = nn.Sequential(nn.Linear(TIME_SIZE, FEATURES), nn.ReLU())
        self.parts = [self.image_path.out_features, FEATURES, FEATURES]  # of what is fused: image, label, time
        self.fuse = nn.Linear(sum(self.parts), 256)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, num_classes))

    def _fuse_weights(self) -> tuple[Tensor, ...]:
        """Return the weights of the image, label and time features: a product with all three is a sum of three."""
        return self.fuse.weight.split(self.parts, dim=1)

    def image_part(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return what the image adds to the fused features: x (B, C, H, W) -> (B, 256)."""
        return nn.functional.linear(self.image_path(x, generator), self._fuse_weights()[0], self.fuse.bias)

    def time_part(self, t: Tensor) -> Tensor:
        """Return what the time adds to them: t (n,) -> (n, 256)."""
        return (
            self.time_path(sinusoids(self.time_scale * t.float()).to(self.fuse.weight.dtype))
            @ self._fuse_weights()[2].T
        )

    def logits(
        self, z: Tensor, image_part: Tensor, time_part: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the logits (B, m) of z (B, d), image_part (B, 256) and time_part (B, 256) or (256,)."""
        fused = torch.addmm(image_part + time_part, self.label_path(z, generator), self._fuse_weights()[1].T)
        return self.head(fused.relu_())

    def forward(self, z: Tensor, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits (M B, m) of z (M B, d), x (B, C, H, W) and t (M B,); see `repeat`.

        The generator draws the dropout masks.
        """
        image_part = repeat(self.image_part(x, generator), len(z) // len(x))
        return self.logits(z, image_part, self.time_part(t), generator)

"""One denoising block u_hat_theta_t(z_{t-1}, x) of NoProp-DT (figure 6 of the paper, left).

An image path (the encoder) and a label path are concatenated and end in m logits; u_hat = softmax(logits) W_embed is
a convex combination of the class embeddings. Only the label path and what follows depends on z, so `features` (nearly
all of the work) can be computed once per image and shared by many calls of `logits`.
"""

import math

import torch
from torch import Tensor, nn

from models.diffusion import repeat
from models.encoders import make_encoder
from models.encoders.paper import FEATURES, PaperCNN
from models.precision import weighted_embedding


class VectorPath(nn.Module):
    """Label path for an embedding that is a vector: z (B, d) -> (B, 256), with one residual step."""

    def __init__(self, embedding_dim: int, width: int = FEATURES):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(embedding_dim, width), nn.BatchNorm1d(width), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width)
        )

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        h = self.embed(z)
        return h + self.residual(h)


class PrototypePath(nn.Module):
    """Label path for an embedding that is an image: z (B, C*H*W) -> (B, 256), as the image path."""

    def __init__(self, image_shape: tuple[int, int, int], norm: bool = True):
        super().__init__()
        self.image_shape = image_shape
        self.path = PaperCNN(image_shape, norm=norm)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        image = z.unflatten(1, self.image_shape)  # (B, C, H, W)
        return self.path(image.contiguous(memory_format=torch.channels_last), generator)


class NoPropBlock(nn.Module):
    """The network u_hat_theta_t(z_{t-1}, x).

    Args:
        image_shape: (C, H, W).
        embedding_dim: d.
        num_classes: m.
        prototype: z is an image (d = C*H*W) and takes a convolutional path.
        encoder: name of the image encoder.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        embedding_dim: int,
        num_classes: int,
        prototype: bool = False,
        encoder: str = "paper",
    ):
        super().__init__()
        if prototype and embedding_dim != math.prod(image_shape):
            raise ValueError(f"prototypes of images {image_shape} have d = {math.prod(image_shape)}")
        self.image_path = make_encoder(encoder, image_shape)
        self.label_path = PrototypePath(image_shape) if prototype else VectorPath(embedding_dim)
        self.fuse = nn.Sequential(
            nn.Linear(self.image_path.out_features + FEATURES, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def features(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return what does not depend on z: x (B, C, H, W) -> (B, F)."""
        return self.image_path(x, generator)

    def logits(self, z: Tensor, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits of the classes: z (B, d) and features (B, F) -> (B, m)."""
        return self.fuse(torch.cat([features, self.label_path(z, generator)], dim=1))

    def forward(self, z: Tensor, x: Tensor, W_embed: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return u_hat (M B, d) of z (M B, d), x (B, C, H, W) and W_embed (m, d); see `repeat`.

        The generator draws the dropout masks.
        """
        features = repeat(self.features(x, generator), len(z) // len(x))
        return weighted_embedding(self.logits(z, features, generator), W_embed)

"""Show what the encoder does without NoProp: T of them, each with a linear layer, trained alone and averaged.

T blocks of NoProp are T networks, and an ensemble is what one would otherwise train for the same work.
Try: python main.py --method classifier --dataset digits --num-blocks 1
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import Classifier
from models.networks import NETWORKS, Shape


class Member(nn.Module):
    """An image encoder and a linear layer: x (B, C, H, W) -> logits (B, m)."""

    def __init__(self, image_path: nn.Module, num_classes: int):
        super().__init__()
        self.image_path = image_path
        self.head = nn.Linear(image_path.out_features, num_classes)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.head(self.image_path(x, generator))


class EnsembleNet(Classifier):
    """T members; no noise, and no gradient or weight is shared. z_t is the mean probability of the first t members.

    Args:
        W_embed: one-hot.
        image_shape, encoder: as those of NoPropNetDT.
        network: one of NETWORKS, taken as a whole; vit_*: see Shape.
        num_blocks: T.
    """

    loss_terms = ("cross_entropy",)
    denoises = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        encoder: str = "paper",
        network: str = "noprop",
        vit_layers: int = 12,
        vit_width: int = 128,
        vit_heads: int = 4,
        vit_patch: int = 4,
        num_blocks: int = 1,
    ):
        super().__init__(W_embed, learn_embedding=False, learn_theta_out=False)
        m, sizes = len(W_embed), (vit_layers, vit_width, vit_heads, vit_patch)
        shape = Shape(tuple(image_shape), m, m, False, encoder, *sizes)
        self.blocks = nn.ModuleDict({str(i): Member(NETWORKS[network].whole(shape), m) for i in range(num_blocks)})

    @property
    def networks(self) -> dict[int, nn.Module]:
        return {t: self.blocks[str(t - 1)] for t in self.times()}

    def times(self, **how) -> list[float]:
        return list(range(1, len(self.blocks) + 1))

    def loss(
        self, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> tuple[Tensor]:
        """Return the sum of the members' cross-entropies: each gets the gradient of its own. x (B, C, H, W), y (B,)."""
        return (sum(F.cross_entropy(member(x, drop).float(), y) for member in self.blocks.values()),)

    @torch.no_grad()
    def denoise(
        self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield z_t and the probabilities of member t, both (R, B, m), for t = 0..T; all runs are the same."""
        shape = len(generators), x.shape[0], len(self.W_embed)
        uniform = torch.full(shape, 1 / shape[2], device=x.device)
        yield uniform, uniform
        total = torch.zeros_like(uniform)
        for t, member in enumerate(self.blocks.values(), 1):
            p = member(x).float().softmax(dim=1).expand(shape)
            total = total + p
            yield total / t, p

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(y), where z is p itself: (..., m) -> the same."""
        return z.clamp(min=1e-12).log()

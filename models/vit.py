"""A vision transformer (Dosovitskiy et al., arXiv 2010.11929), whole and in pieces that are trained apart.

The whole one reads its answer from a class token. In a piece the embedded z stands in that token's place, and the
noise level shifts and scales what every layer normalises.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.diffusion import repeat
from models.noise_ranges import c_in, c_out, c_skip, sigma_of
from models.time_block import TIME_SIZE, sinusoids

FEW_TOKENS = 200
START = 0.02  # deviation of tokens and positions at their start


class Patches(nn.Module):
    """Image (B, C, H, W) -> tokens of its patches with their positions (B, N, width).

    Args:
        others: tokens beside those of the patches that have a start of their own.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, patch: int, others: int = 0):
        super().__init__()
        channels, height, rows = image_shape
        if height % patch or rows % patch:
            raise ValueError(f"images of {height} x {rows} pixels have no patches of {patch}: change --vit-patch")
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.empty((height // patch) * (rows // patch), width))
        self.others = nn.Parameter(torch.empty(others, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the starting weights."""
        self.embed.reset_parameters()
        nn.init.normal_(self.positions, std=START)
        nn.init.normal_(self.others, std=START)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return torch.cat([self.others.to(tokens.dtype).expand(x.shape[0], -1, -1), tokens], dim=1)


class Zeros(nn.Linear):
    """A linear layer that starts with zeros."""

    def reset_parameters(self) -> None:
        """Start with zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def wants_plain_kernel(parts: Tensor) -> bool:
    """Return whether attention to (..., N, width) is better computed by torch's plain kernel than by a fused one.

    On CUDA the gradients of the fused ones differ in their last bits from run to run. On a CPU theirs double the time
    of a whole training step in bfloat16, unless there are many tokens.
    """
    if parts.device.type == "cuda":
        return torch.are_deterministic_algorithms_enabled()
    return parts.dtype == torch.bfloat16 and parts.shape[-2] < FEW_TOKENS


class Layer(nn.Module):
    """Self-attention and two fully connected layers, each after a layer norm and added to the tokens (B, N, width).

    Args:
        conditioned: the norms are shifted and scaled by a vector, in adaptive layer norm.
    """

    def __init__(self, width: int, heads: int, conditioned: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads: change --vit-heads or --vit-width")
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = Zeros(width, 4 * width) if conditioned else None

    def forward(self, h: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the tokens after the layer; condition (B or 1, 1, width)."""
        if self.modulation is None:
            h = h + self._attend(self.norm1(h))
            return h + self.mlp(self.norm2(h))
        shift1, scale1, shift2, scale2 = self.modulation(condition).chunk(4, dim=-1)
        h = h + self._attend(self.norm1(h) * (1 + scale1) + shift1)
        return h + self.mlp(self.norm2(h) * (1 + scale2) + shift2)

    def _attend(self, h: Tensor) -> Tensor:
        parts = self.queries_keys_values(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(SDPBackend.MATH) if wants_plain_kernel(parts) else nullcontext():
            seen = F.scaled_dot_product_attention(*parts)  # (B, heads, N, width / heads)
        return self.out(seen.transpose(1, 2).flatten(2))


class ViT(nn.Module):
    """The whole transformer: image (B, C, H, W) -> features of the class token (B, width); no dropout."""

    def __init__(self, image_shape: tuple[int, int, int], layers: int, width: int, heads: int, patch: int):
        super().__init__()
        self.out_features = width
        self.patches = Patches(image_shape, width, patch, others=1)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.norm(self.layers(self.patches(x))[:, 0])


class ViTPiece(nn.Module):
    """Some layers as a block of DiffusionBlocks: logits of the classes from z, an image and the noise level.

    It has patches, noise path and head of its own, so nothing is shared by the pieces. No dropout.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        embedding_dim: int,
        num_classes: int,
        layers: int,
        width: int,
        heads: int,
        patch: int,
    ):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.patches = Patches(image_shape, width, patch)
        self.embed = nn.Linear(embedding_dim, width, bias=False)
        self.time_path = nn.Sequential(nn.Linear(TIME_SIZE, width), nn.SiLU())
        self.layers = nn.ModuleList(Layer(width, heads, conditioned=True) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def image_part(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the tokens of the patches: x (B, C, H, W) -> (B, N, width)."""
        return self.patches(x)

    def time_part(self, t: Tensor) -> Tensor:
        """Return what layers and head need of noise levels c_noise t (n,): (n, width + 2)."""
        sigma = sigma_of(t)
        condition = self.time_path(sinusoids(t).to(self.embed.weight.dtype))
        factors = torch.stack([c_out(sigma), c_skip(sigma) / c_in(sigma)], dim=1)
        return torch.cat([condition, factors.to(condition.dtype)], dim=1)

    def logits(
        self, z: Tensor, image_part: Tensor, time_part: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the logits (B, m) of c_in z (B, d), image_part (B, N, width), time_part (B, width + 2) or of one."""
        time_part = time_part.unsqueeze(-2).expand(z.shape[0], 1, -1)
        condition, out, skip = time_part[..., :-2], time_part[:, 0, -2:-1], time_part[:, 0, -1:]
        token = self.embed(z)
        h = torch.cat([token.unsqueeze(1), image_part], dim=1)
        for layer in self.layers:
            h = layer(h, condition)
        return self.head(out * h[:, 0] + skip * token)

    def forward(self, z: Tensor, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits (M B, m) of c_in z (M B, d), x (B, C, H, W) and c_noise t (M B,); see `repeat`."""
        return self.logits(z, repeat(self.image_part(x), len(z) // len(x)), self.time_part(t))

"""Noise levels sigma of DiffusionBlocks: their density, the range of each block, the ladder of inference, a step on it.

z_sigma = u_y + sigma eps. log sigma is normal, truncated to a range; K blocks own equal shares of it, block 1 the
noisiest. Shing, Koyama and Akiba, ICLR 2026, arXiv 2506.14202; z / sqrt(1 + sigma^2) is NoProp's z at
alpha_bar = 1 / (1 + sigma^2).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

RARE = 1e-6  # a share of all noise levels so small that its quantiles are inexact
S = 0.5  # deviation of the data that the preconditioning of Karras et al. (arXiv 2206.00364) assumes


@dataclass(frozen=True)
class NoiseDensity:
    """log sigma ~ N(mean, std^2), truncated to sigma in [low, high]; ValueError where that range has hardly any."""

    low: float
    high: float
    mean: float
    std: float

    def __post_init__(self):
        if self.quantile(self.high) - self.quantile(self.low) < RARE:
            levels = f"noise levels with a mean log sigma of {self.mean:g} and deviation {self.std:g}"
            where = f"hardly ever lie in {self.low:g} to {self.high:g}"
            raise ValueError(f"{levels} {where}: change --p-mean, --p-std or --noise-range")

    def quantile(self, sigma: float) -> float:
        """Return Phi((log sigma - mean) / std), where truncation does not count."""
        return math.erfc((self.mean - math.log(sigma)) / self.std / math.sqrt(2)) / 2

    def sigma(self, quantile: Tensor) -> Tensor:
        """Return the sigma of a quantile, float64, within the range."""
        return (self.mean + self.std * torch.special.ndtri(quantile)).exp().clamp(self.low, self.high)

    def even(self, steps: int) -> list[float]:
        """Return sigma_i, i = 0..steps, that fall from high to low in steps of equal probability."""
        top, bottom = self.quantile(self.high), self.quantile(self.low)
        inner = (top + i / steps * (bottom - top) for i in range(1, steps))
        of_log = NormalDist(self.mean, self.std).inv_cdf
        return [self.high, *(math.exp(of_log(q)) for q in inner), self.low]

    def ranges(self, blocks: int, overlap: float) -> list[tuple[float, float]]:
        """Return (low, high) of the sigma that each block is trained on: its own, widened on both sides.

        overlap: power of the ratio of its ends by which a range is widened.
        """
        ends = self.even(blocks)
        pairs = [(low, high, (high / low) ** overlap) for high, low in zip(ends, ends[1:], strict=False)]
        return [(max(self.low, low / wider), min(self.high, high * wider)) for low, high, wider in pairs]

    def draw(self, count: int, low: float, high: float, generator: torch.Generator | None, device) -> Tensor:
        """Draw sigma in [low, high] by the density, (count,) float64."""
        part = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        bottom, top = self.quantile(low), self.quantile(high)
        return self.sigma(bottom + part * (top - bottom)).clamp(low, high)


def ladder(density: NoiseDensity, steps: int) -> list[float]:
    """Return the sigma of inference, high = s_0 > s_1 > ... > s_steps = 0."""
    return [*density.even(steps)[:-1], 0.0]


def block_of_step(step: int, steps: int, blocks: int) -> int:
    """Return the block t = 1..K that takes step 0..steps-1: a node on a boundary belongs to the cleaner one."""
    return step * blocks // steps + 1


def step_towards(z: Tensor, u_hat: Tensor, sigma: float, lower: float, eps: Tensor | None, noise: float) -> Tensor:
    """Return z at noise level `lower` from z at sigma: a perfect u_hat carries u_y + sigma eps to u_y + lower eps'.

    noise 0: Euler's step of the probability-flow ODE; noise 1: eq. 3 of NoProp, with fresh eps. z, u_hat, eps (..., d).
    """
    fresh = noise * lower * math.sqrt(1 - (lower / sigma) ** 2)
    kept = math.sqrt(lower**2 - fresh**2) / sigma
    z = u_hat + kept * (z - u_hat)
    return z if eps is None else z + fresh * eps


def c_in(sigma: Tensor) -> Tensor:
    """Return the factor by which z at sigma is scaled before a network sees it."""
    return (sigma**2 + S**2).rsqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """Return sigma as a network sees it."""
    return sigma.log() / 4


def sigma_of(c_noise: Tensor) -> Tensor:
    """Return the sigma that c_noise stands for."""
    return (4 * c_noise).exp()


def c_out(sigma: Tensor) -> Tensor:
    """Return the size of what a network of unit output adds; 1 / c_out^2 weighs the loss."""
    return sigma * S * (sigma**2 + S**2).rsqrt()


def middle_weights(ranges: list[tuple[float, float]]) -> list[float]:
    """Return 1 / c_out^2 in the middle of each range (low, high) of log sigma."""
    middles = torch.tensor([low * high for low, high in ranges], device="cpu").sqrt()
    return c_out(middles).pow(-2).tolist()


def c_skip(sigma: Tensor) -> Tensor:
    """Return the share of z itself in what leaves a network."""
    return S**2 / (sigma**2 + S**2)

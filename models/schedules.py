"""Noise schedules alpha_bar_t and the coefficients of one denoising step (section 3 of the paper, eq. 3).

t = 0 is pure noise and t = T is clean, so alpha_bar rises with t. All in float64.
"""

import math

import torch
from torch import Tensor

ALPHA_BAR_CLIP = (1e-4, 1 - 1e-3)


def cosine_alpha_bar(num_blocks: int, s: float = 0.008) -> Tensor:
    """Return alpha_bar_t = f(T - t) / f(0), f(k) = cos^2((k/T + s)/(1 + s) pi/2) (Nichol, Dhariwal 2021); (T+1,)."""
    k = num_blocks - torch.arange(num_blocks + 1, dtype=torch.float64)
    f = torch.cos((k / num_blocks + s) / (1 + s) * math.pi / 2) ** 2
    return f / f[-1]


def linear_alpha_bar(num_blocks: int) -> Tensor:
    """Return alpha_bar_t = t / T; shape (T+1,)."""
    return torch.arange(num_blocks + 1, dtype=torch.float64) / num_blocks


SCHEDULES = {"cosine": cosine_alpha_bar, "linear": linear_alpha_bar}


def clip_alpha_bar(alpha_bar: Tensor, low: float, high: float) -> Tensor:
    """Clip into [low, high] so that SNR(0), SNR(T) and every coefficient are finite.

    Levels that would be clipped to the same value are spread evenly up to the next level inside,
    so that alpha_bar stays strictly increasing at every T. alpha_bar (T+1,) increasing; same shape returned.
    """
    inside = ((alpha_bar > low) & (alpha_bar < high)).nonzero().flatten().tolist()
    if not inside:
        return torch.linspace(low, high, len(alpha_bar), dtype=torch.float64)
    first, last = inside[0], inside[-1]
    below = torch.linspace(low, alpha_bar[first].item(), first + 1, dtype=torch.float64)
    above = torch.linspace(alpha_bar[last].item(), high, len(alpha_bar) - last, dtype=torch.float64)
    return torch.cat([below[:-1], alpha_bar[first : last + 1], above[1:]])


def default_clip(W_embed: Tensor) -> tuple[float, float]:
    """Return the range into which alpha_bar is clipped, for embeddings W_embed (m, d).

    z_0 has the mean sqrt(alpha_bar_0) u_y: that of a long embedding, such as an image, would tell its class. So its
    lower end is 1e-4 over their mean squared length, where that is more than 1.
    """
    low, high = ALPHA_BAR_CLIP
    if W_embed.is_meta:  # of a network without values
        return ALPHA_BAR_CLIP
    return low / max(1.0, W_embed.square().sum(dim=1).mean().item()), high


def make_alpha_bar(schedule: str, num_blocks: int, clip: tuple[float, float] = ALPHA_BAR_CLIP) -> Tensor:
    """Return alpha_bar_0 .. alpha_bar_T of the named schedule, clipped; float64, shape (T+1,), on the CPU."""
    with torch.device("cpu"):  # its values count, also where a network is built without values (device meta)
        return clip_alpha_bar(SCHEDULES[schedule](num_blocks), *clip)


def snr(alpha_bar: Tensor) -> Tensor:
    """Return SNR = alpha_bar / (1 - alpha_bar)."""
    return alpha_bar / (1 - alpha_bar)


def step_coefficients(alpha_bar_prev: Tensor, alpha_bar_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a_t, b_t, c_t of eq. 3: z_t = a_t u_hat(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) eps.

    From the levels alpha_bar_{t-1} and alpha_bar_t (any one shape); alpha_{t-1} = alpha_bar_{t-1} / alpha_bar_t.
    """
    alpha_prev = alpha_bar_prev / alpha_bar_t
    a_t = alpha_bar_t.sqrt() * (1 - alpha_prev) / (1 - alpha_bar_prev)
    b_t = alpha_prev.sqrt() * (1 - alpha_bar_t) / (1 - alpha_bar_prev)
    c_t = (1 - alpha_bar_t) * (1 - alpha_prev) / (1 - alpha_bar_prev)
    return a_t, b_t, c_t

"""Element-wise dropout whose mask comes from a given generator and costs little.

Sixteen random bits decide about one element, so four elements share one 64-bit draw; the probability of a drop
is p rounded to a multiple of 2^-16. torch's own dropout cannot be given a generator.
"""

import torch
from torch import Tensor


def dropout(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """x with each element zeroed with probability p and the others scaled by 1 / (1 - p).

    Args:
        x: (B, C, H, W); the random bits are laid out as (B, H, W, C), whatever the strides of x.
        generator: on the device of x; None is torch's default generator.
    """
    batch, channels, height, width = x.shape
    count = x.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device)
    bits = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    bits = bits.view(batch, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)
    keep = bits >= round(p * 2**16) - 2**15
    return x * keep.to(x.dtype).mul_(1 / (1 - p))

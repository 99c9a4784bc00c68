"""ReLU followed by element-wise dropout whose mask comes from a given generator, as one operation that costs little.

Eight random bits decide about one element, so eight elements share one 64-bit draw. They are compared with 256 p,
rounded up or down for a whole image, at random such that an element is dropped with probability p, not a multiple of
1/256. torch's own dropout cannot be given a generator.
"""

import torch
from torch import Tensor

from models.shares import Source, draw_rows


def relu_dropout(x: Tensor, p: float, source: Source) -> Tensor:
    """Return relu(x) with each element zeroed with probability p and the others scaled by 1 / (1 - p). Overwrites x.

    Args:
        x: (B, C, H, W); the random bits are laid out as (B, H, W, C), whatever the strides of x.
        source: its generator is on the device of x.
    """
    return _ReLUDropout.apply(x, p, source)


class _ReLUDropout(torch.autograd.Function):
    """Does both at once: what is positive in the end has passed both, so the backward pass needs the result alone."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float, source: Source) -> Tensor:
        ctx.scale = 1 / (1 - p)
        mask = _keep_mask(x, p, source)
        mask *= ctx.scale
        y = x.relu_()
        y *= mask
        ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None, None


def _keep_mask(x: Tensor, p: float, source: Source) -> Tensor:
    """Return 1 where an element of x (B, C, H, W) stays and 0 where it is dropped, float32.

    Comparing floats in place is several times faster on a CPU than making booleans of integers and floats of them.
    """
    batch, channels, height, width = x.shape
    count = channels * height * width

    def draw_levels(batch: int, generator: torch.Generator | None) -> Tensor:  # their mean is 256 p
        return (torch.rand(batch, 1, generator=generator, device=x.device) + 256 * p).floor_()

    def draw_words(batch: int, generator: torch.Generator | None) -> Tensor:
        words = torch.empty(batch, (count + 7) // 8, dtype=torch.int64, device=x.device)
        return words if x.is_meta else words.random_(-(2**63), None, generator=generator)

    level, words = draw_rows(batch, source, draw_levels), draw_rows(batch, source, draw_words)
    mask = words.view(torch.int8)[:, :count].float().ge_(level - 128)
    return mask.view(batch, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)

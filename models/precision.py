"""Keep out of autocast what loses too much by bfloat16: softmax, u_hat, p(y given z)."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of a tensor."""
    return torch.autocast(like.device.type, enabled=False)


def weighted_embedding(logits: Tensor, W_embed: Tensor) -> Tensor:
    """Return u_hat = softmax(logits) W_embed: (..., m) -> (..., d), a convex combination of the class embeddings."""
    with full_precision(logits):
        return logits.to(W_embed.dtype).softmax(dim=-1) @ W_embed

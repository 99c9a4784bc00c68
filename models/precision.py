"""Keep out of autocast what loses too much by bfloat16: softmax, u_hat, p(y given z)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(like: Tensor) -> AbstractContextManager:
    """Return a context without autocast on the device of a tensor."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def weighted_embedding(logits: Tensor, W_embed: Tensor) -> Tensor:
    """Return u_hat = softmax(logits) W_embed: (..., m) -> (..., d), a convex combination of the class embeddings."""
    with full_precision(logits):
        return logits.to(W_embed.dtype).softmax(dim=-1) @ W_embed

"""The class probability p_theta_out(y | z_T) of the paper: a softmax (eq. 14) or radial distances (eq. 15-16)."""

import torch
from torch import Tensor


def smallest_distance(W_embed: Tensor) -> Tensor:
    """Return the smallest distance between two embeddings, at least 1e-6; no gradient reaches them. W_embed (m, d)."""
    return torch.nn.functional.pdist(W_embed.detach()).min().clamp(min=1e-6)


def class_log_prob(logits: Tensor, W_embed: Tensor, kind: str = "softmax", sigma: float = 1.0) -> Tensor:
    """Return log p(y | z_T) of every class, shape (..., m).

    `softmax` (eq. 14): log softmax of logits = f_theta_out(z_T). `posterior` (eq. 15-16): y~ = softmax(logits) W_embed,
    p(y) proportional to exp(-|y~ - u_y|^2 / (2 sigma^2)), sigma in units of the smallest distance between embeddings.
    logits (..., m), W_embed (m, d).
    """
    if kind == "softmax":
        return logits.log_softmax(dim=-1)
    if kind == "posterior":
        y_tilde = logits.softmax(dim=-1) @ W_embed
        # |y~ - u_y|^2 without its part |y~|^2, which is the same for all classes
        square = W_embed.square().sum(dim=1) - 2 * y_tilde @ W_embed.T
        return (-square / (2 * (sigma * smallest_distance(W_embed)) ** 2)).log_softmax(dim=-1)
    raise ValueError(f"no class probability {kind!r}: softmax or posterior")


def nearest_log_prob(z: Tensor, W_embed: Tensor, sigma: float = 1.0) -> Tensor:
    """Return log p(y | z) of z ~ N(u_y, sigma^2 I): the nearest embedding has the most. z (..., d) -> (..., m)."""
    # -|z - u_y|^2 / 2 without its part |z|^2, which is the same for all classes
    closeness = z @ W_embed.T - W_embed.square().sum(dim=1) / 2
    return (closeness / sigma**2).log_softmax(dim=-1)

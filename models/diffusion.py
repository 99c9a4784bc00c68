"""Compute what discrete and continuous time share: q(z_t | y), its distance from noise, the three terms of the loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.shares import Source, normal_like

LOSSES = ("squared", "cross-entropy")


class DiffusionLoss(NamedTuple):
    """The three terms of eq. 8 or 9, each a scalar averaged over the batch; the loss is their sum."""

    class_nll: Tensor
    kl: Tensor
    denoise: Tensor


def repeat(rows: Tensor, times: int) -> Tensor:
    """Return what belongs to the B images of a batch, for `times` noised embeddings of each: (B, ...) -> (M B, ...)."""
    return rows if times == 1 else rows.repeat(times, *[1] * (rows.ndim - 1))


def q_sample(alpha_bar: Tensor, u_y: Tensor, generator: Source = None) -> Tensor:
    """Draw z_t ~ q(z_t | y) = N(sqrt(alpha_bar) u_y, (1 - alpha_bar) I); alpha_bar () or (B, 1), u_y and z_t (B, d)."""
    eps = normal_like(u_y, generator)
    return alpha_bar.sqrt().to(u_y.dtype) * u_y + (1 - alpha_bar).sqrt().to(u_y.dtype) * eps


def best_classifier(alpha_bar: Tensor | float, W_embed: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (m, d) and bias (m,) of the best linear classifier of z ~ q(z | y), classes of equal share.

    logits_y = log p(y | z) but for a constant = (sqrt(alpha_bar) u_y . z - alpha_bar |u_y|^2 / 2) / (1 - alpha_bar).
    """
    slope, shift = alpha_bar**0.5 / (1 - alpha_bar), alpha_bar / (1 - alpha_bar) / 2
    return slope * W_embed, -shift * W_embed.square().sum(dim=1)


def kl_to_noise(alpha_bar_0: Tensor, u_y: Tensor) -> Tensor:
    """Return KL(q(z_0 | y) || N(0, I)), mean over the batch; alpha_bar_0 (), u_y (B, d)."""
    d = u_y.shape[1]
    square = u_y.square().sum(dim=1)
    return (alpha_bar_0 * square - d * alpha_bar_0 - d * torch.log1p(-alpha_bar_0)).mean() / 2

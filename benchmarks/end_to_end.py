"""The peer of the benchmarks: the same blocks trained end to end by back-propagation (eq. 17-19 of the paper)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.NoProp_DT import NoPropNetDT


class EndToEnd(nn.Module):
    """z_t = (1 - alpha_t) z_{t-1} + alpha_t u_hat_t(z_{t-1}, x) with alpha_t = tanh(w_t), over the blocks of a net."""

    def __init__(self, net: NoPropNetDT):
        super().__init__()
        self.net = net
        self.w = nn.Parameter(torch.full((net.num_blocks,), 0.5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, C, H, W), y (B,) -> the mean cross-entropy."""
        z = torch.randn(len(x), self.net.embedding_dim, device=x.device)
        for t, alpha_t in enumerate(self.w.tanh(), 1):
            z = (1 - alpha_t) * z + alpha_t * self.net.block(t)(z, x, self.net.W_embed)
        return F.cross_entropy(self.net.theta_out(z), y)

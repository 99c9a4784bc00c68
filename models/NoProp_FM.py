"""NoProp as flow matching: a network learns the velocity that carries noise to the class embedding (eq. 10 to 13).

Nothing is integrated in training. Try: python main.py --method fm --dataset digits
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.continuous import ContinuousNet, draw_times
from models.precision import full_precision
from models.solvers import ode_ways


class NoPropNetFM(ContinuousNet):
    """The velocity field v(z, x, t) = logits W_embed, unrestricted, with W_embed and the anchor layer theta_out.

    Args:
        flow_sigma: deviation of z_t around the straight line from z_0 to u_y.
        stratified_time: t is spread evenly over a batch.
    """

    readouts = (*ContinuousNet.readouts, "mean-z")

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        learn_embedding: bool = False,
        prototype: bool = False,
        encoder: str = "paper",
        flow_sigma: float = 0.1,
        stratified_time: bool = False,
    ):
        super().__init__(image_shape, W_embed, learn_embedding, prototype, encoder, learn_theta_out=learn_embedding)
        self.flow_sigma, self.stratified_time = flow_sigma, stratified_time
        self.start_theta_out_at_embeddings()  # else the anchor is weak while the flow shrinks W_embed
        self.loss_terms = ("flow", "anchor") if learn_embedding else ("flow",)

    @staticmethod
    def ways(steps: Sequence[int] = (1000,), solver: Sequence[str] = ("euler",)) -> list[dict]:
        """Return a way of inference for each solver and number of steps."""
        return ode_ways(steps, solver)

    def loss(
        self, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Return |v(z_t, x, t) - (z_1 - z_0)|^2 summed over d (eq. 10 and 11), mean over the batch.

        With a learned W_embed also -log p_theta_out(y | z~_1), z~_1 = z_t + (1 - t) v (eq. 12, 13 and 64), which keeps
        the embeddings apart. x (B, C, H, W), y (B,) int64.
        """
        z_1 = self.W_embed[y]  # (B, d)
        t = draw_times(len(y), self.stratified_time, noise, y.device)
        part = t.to(z_1.dtype).unsqueeze(1)  # (B, 1)
        z_0 = torch.empty_like(z_1).normal_(generator=noise)
        eps = torch.empty_like(z_1).normal_(generator=noise)
        z_t = part * z_1 + (1 - part) * z_0 + self.flow_sigma * eps
        logits = self.block(z_t, x, t, drop)
        with full_precision(logits):
            v = logits.to(z_t.dtype) @ self.W_embed
        flow = (v - (z_1 - z_0)).square().sum(dim=1).mean()
        if "anchor" not in self.loss_terms:
            return (flow,)
        end = z_t + (1 - part) * v
        with full_precision(end):
            return flow, F.nll_loss(self.theta_out(end).log_softmax(dim=1), y)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(y | z_1), z_1 ~ N(u_y, sigma^2): the nearest embedding has the most. z (..., d) -> (..., m)."""
        # -|z - u_y|^2 / 2 without its part |z|^2, which is the same for all classes
        closeness = z @ self.W_embed.T - self.W_embed.square().sum(dim=1) / 2
        return (closeness / self.flow_sigma**2).log_softmax(dim=-1)

"""NoProp as flow matching: a network learns the velocity that carries noise to the class embedding (eq. 10 to 13).

Nothing is integrated in training. Try: python main.py --method fm --dataset digits
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from errors import check_name
from models.class_probability import nearest_log_prob
from models.continuous import ContinuousNet, draw_times
from models.diffusion import LOSSES, repeat
from models.precision import full_precision, weighted_embedding
from models.shares import normal_like
from models.solvers import ode_ways

ANCHOR_SCALE = 10.0  # of theta_out at its start where W_embed is fixed: with 1, an anchor of one-hot vectors is weak
LEAST_REST = 1e-4  # 1 - t where dopri5 asks for the velocity at the end


class NoPropNetFM(ContinuousNet):
    """The velocity field v(z, x, t) = logits W_embed, unrestricted, with W_embed and the anchor layer theta_out.

    Args:
        loss: squared, the paper's of an unrestricted velocity v = logits W_embed; cross-entropy: softmax(logits) = p
            predicts the end point, v = (p W_embed - z) / (1 - t), and is trained by cross-entropy alone (variational
            flow matching, arXiv 2406.04843), which is not the paper's.
        anchor: adds -log p(y | z~_1) of eq. 13 also where W_embed is fixed; a learned one needs it, and has it.
        noise_levels: noised embeddings for each image in a step; they share its features.
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
        loss: str = "squared",
        anchor: bool = False,
        noise_levels: int = 1,
        flow_sigma: float = 0.1,
        stratified_time: bool = False,
    ):
        check_name("loss", loss, LOSSES)
        anchor = loss == "squared" and (anchor or learn_embedding)
        super().__init__(image_shape, W_embed, learn_embedding, prototype, encoder, learn_theta_out=anchor)
        self.flow_sigma, self.stratified_time, self.noise_levels = flow_sigma, stratified_time, noise_levels
        self.start_theta_out_at_embeddings()  # else the anchor is weak while the flow shrinks W_embed
        if anchor and not learn_embedding:
            self.theta_out.weight.data.mul_(ANCHOR_SCALE)
        self.loss_name, self.open_end = loss, loss == "cross-entropy"
        flow = "flow" if loss == "squared" else "cross_entropy"
        self.loss_terms = (flow, "anchor") if anchor else (flow,)

    @staticmethod
    def ways(steps: Sequence[int] = (1000,), solver: Sequence[str] = ("euler",)) -> list[dict]:
        """Return a way of inference for each solver and number of steps."""
        return ode_ways(steps, solver)

    def loss(
        self, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Return |v(z_t, x, t) - (z_1 - z_0)|^2 summed over d (eq. 10 and 11), mean over the batch.

        With an anchor also -log p_theta_out(y | z~_1), z~_1 = z_t + (1 - t) v (eq. 12, 13 and 64), which keeps learned
        embeddings apart. x (B, C, H, W), y (B,) int64. M noised embeddings of an image share its features.
        """
        y = repeat(y, self.noise_levels)
        z_1 = self.W_embed[y]  # (M B, d)
        t = draw_times(len(y), self.stratified_time, noise, y.device)
        part = t.to(z_1.dtype).unsqueeze(1)  # (B, 1)
        z_0 = normal_like(z_1, noise)
        eps = normal_like(z_1, noise)
        z_t = part * z_1 + (1 - part) * z_0 + self.flow_sigma * eps
        logits = self.block(z_t, x, t, drop)
        if self.loss_name == "cross-entropy":
            return (F.cross_entropy(logits.to(z_t.dtype), y),)
        with full_precision(logits):
            v = logits.to(z_t.dtype) @ self.W_embed
        flow = (v - (z_1 - z_0)).square().sum(dim=1).mean()
        if "anchor" not in self.loss_terms:
            return (flow,)
        end = z_t + (1 - part) * v
        with full_precision(end):
            return flow, F.nll_loss(self.theta_out(end).log_softmax(dim=1), y)

    def velocity(self, z: Tensor, image_part: Tensor, time_part: Tensor, *rest: Tensor) -> Tensor:
        """Return dz/dt; rest: 1 - t where the network predicts the end point."""
        if self.loss_name == "squared":
            return super().velocity(z, image_part, time_part)
        return (weighted_embedding(self.block.logits(z, image_part, time_part), self.W_embed) - z) / rest[0]

    def terms(self, t: Tensor, steps: int) -> tuple[Tensor, ...]:
        """Return the time features of t (n,), and 1 - t where the network predicts the end point."""
        if self.loss_name == "squared":
            return super().terms(t, steps)
        rest = (1 - t).clamp(min=min(LEAST_REST, 1 / steps)).to(self.W_embed.dtype)
        return *super().terms(t, steps), rest

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(y | z_1), z_1 ~ N(u_y, sigma^2): the nearest embedding has the most. z (..., d) -> (..., m)."""
        return nearest_log_prob(z, self.W_embed, self.flow_sigma)

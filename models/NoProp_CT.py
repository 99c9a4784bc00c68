"""NoProp in continuous time: one network u_hat(z, x, t) for all noise levels, and a noise schedule that is learned.

Section 3 and appendix B of the paper. Nothing is integrated in training: a step sees one noised embedding per image.
Try: python main.py --method ct --dataset digits
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import check_name
from models.continuous import ContinuousNet, draw_times
from models.diffusion import LOSSES, DiffusionLoss, best_classifier, kl_to_noise, q_sample, repeat
from models.learned_schedule import LearnedSchedule
from models.precision import weighted_embedding
from models.schedules import step_coefficients
from models.solvers import SAMPLERS, grid, kept_steps, ode_ways

FIXED_GAMMA = 4.0, -3.0  # gamma_0 and gamma_1 of the schedule that stays


class NoPropNetCT(ContinuousNet):
    """The network, W_embed, theta_out and the schedule; arguments as those of NoPropNetDT, and:

    Args:
        loss: squared, the paper's, with a schedule that is learned; cross-entropy of softmax(logits) with weight eta at
            every t, with a schedule that stays (its gradient would make all noise levels clean). Not the paper's.
    """

    loss_terms = DiffusionLoss._fields

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        learn_embedding: bool = False,
        prototype: bool = False,
        encoder: str = "paper",
        eta: float = 1.0,
        loss: str = "squared",
        noise_levels: int = 1,
        class_probability: str = "softmax",
        posterior_sigma: float = 0.2,
        stratified_time: bool = False,
    ):
        check_name("loss", loss, LOSSES)
        posterior = {"class_probability": class_probability, "posterior_sigma": posterior_sigma}
        super().__init__(image_shape, W_embed, learn_embedding, prototype, encoder, **posterior)
        self.eta, self.stratified_time, self.noise_levels = eta, stratified_time, noise_levels
        self.loss_name = loss
        self.schedule = self.new_schedule()

    def new_schedule(self) -> LearnedSchedule:
        """Return the schedule as it starts."""
        return LearnedSchedule() if self.loss_name == "squared" else LearnedSchedule(*FIXED_GAMMA).requires_grad_(False)

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Return theta_out's and gamma's: the data hardly move the interior of gamma, so a decay alone would."""
        return [*super().undecayed_parameters(), *self.schedule.parameters()]

    @staticmethod
    def ways(
        steps: Sequence[int] = (1000,), sampler: Sequence[str] = ("ancestral",), solver: Sequence[str] = ("euler",)
    ) -> list[dict]:
        """Return a way of inference for each sampler, solver of the ODE and number of steps."""
        ancestral = [{"sampler": "ancestral", "steps": n} for n in steps]
        ode = [{"sampler": "ode", **way} for way in ode_ways(steps, solver)]
        return [way for name in sampler for way in (ancestral if name == "ancestral" else ode)]

    @torch.no_grad()
    def curves(self, **how) -> dict[str, Tensor]:
        """Return gamma(t) at 201 even t from 0 to 1, as it started and as it is."""
        t = torch.linspace(0, 1, 201, dtype=torch.float64, device=self.W_embed.device)
        start = self.new_schedule().to(t.device)
        return {"gamma_start": start.gamma(t), "gamma": self.schedule.gamma(t)}

    def class_logits(self, z: Tensor) -> Tensor:
        """Return the best linear classifier of z_1, in closed form from the current W_embed, plus what is learned."""
        alpha_bar_1 = self.schedule.alpha_bar(self.schedule.ends)[1]
        return F.linear(z, *best_classifier(alpha_bar_1, self.W_embed)) + self.theta_out(z)

    def loss(
        self, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> DiffusionLoss:
        """Return the loss of eq. 9 and 62, its three terms apart; gradients reach the schedule.

        x (B, C, H, W), y (B,) int64. M noised embeddings of an image share its features.
        """
        y = repeat(y, self.noise_levels)
        u_y = self.W_embed[y]  # (M B, d)
        t = draw_times(len(y), self.stratified_time, noise, y.device)
        times = torch.cat([self.schedule.ends, t])
        alpha_bar, snr_slope = self.schedule.alpha_bar_and_snr_slope(times)  # (2 + B,) float64
        alpha_bar_0, alpha_bar_1, alpha_bar_t = alpha_bar[0], alpha_bar[1], alpha_bar[2:]
        z_t = q_sample(alpha_bar_t.unsqueeze(1), u_y, noise)
        logits = self.block(z_t, x, t, drop)
        if self.loss_name == "squared":
            square = (weighted_embedding(logits, self.W_embed) - u_y).square().sum(dim=1)  # summed over d
            denoise = self.eta / 2 * (snr_slope[2:].to(square.dtype) * square).mean()
        else:
            denoise = self.eta * F.cross_entropy(logits.to(u_y.dtype), y)
        z_1 = q_sample(alpha_bar_1, u_y, noise)
        return DiffusionLoss(F.nll_loss(self.log_prob(z_1), y), kl_to_noise(alpha_bar_0, u_y), denoise)

    def path(
        self,
        z: Tensor,
        image_part: Tensor,
        generators: Sequence[torch.Generator | None],
        steps: int = 1000,
        solver: str = "euler",
        sampler: str = "ancestral",
    ) -> Iterator[Tensor]:
        """Yield z by eq. 3 (ancestral), or by the probability-flow ODE and a solver (ode)."""
        check_name("sampler", sampler, SAMPLERS)
        if sampler == "ancestral":
            return self._ancestral(z, image_part, generators, steps)
        return super().path(z, image_part, generators, steps, solver)

    def u_hat(self, z: Tensor, image_part: Tensor, time_part: Tensor) -> Tensor:
        """Return u_hat (B, d) of z (B, d), image_part (B, 256) and time_part (256,)."""
        return weighted_embedding(self.block.logits(z, image_part, time_part), self.W_embed)

    def velocity(self, z: Tensor, image_part: Tensor, time_part: Tensor, of_u_hat: Tensor, of_z: Tensor) -> Tensor:
        """Return dz/dt = -gamma'(t) / 2 (sqrt(alpha_bar) u_hat - alpha_bar z)."""
        return of_u_hat * self.u_hat(z, image_part, time_part) + of_z * z

    def _ancestral(
        self, z: Tensor, image_part: Tensor, generators: Sequence[torch.Generator | None], steps: int
    ) -> Iterator[Tensor]:
        """Take the steps of eq. 3 on the grid t_i = i / steps."""
        t = grid(steps, z.device)
        alpha_bar = self.schedule.alpha_bar(t)
        coefficients = zip(*(c.tolist() for c in step_coefficients(alpha_bar[:-1], alpha_bar[1:])), strict=True)
        time_parts, kept = self.block.time_part(t[:-1]), set(kept_steps(steps))
        batch = z.shape[0] // len(generators)
        for i, (a_t, b_t, c_t) in enumerate(coefficients, 1):
            u_hat = self.u_hat(z, image_part, time_parts[i - 1])
            z = a_t * u_hat + b_t * z + c_t**0.5 * self.noise(generators, batch).flatten(0, 1)
            if i in kept:
                yield z

    def terms(self, t: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the time features of t (n,), and the factors of u_hat and z in the probability-flow ODE."""
        gamma, slope = self.schedule.gamma_and_slope(t)
        alpha_bar = torch.sigmoid(-gamma)
        factors = -slope / 2 * alpha_bar.sqrt(), slope / 2 * alpha_bar
        return self.block.time_part(t), *(factor.to(self.W_embed.dtype) for factor in factors)

"""NoProp in discrete time: T blocks that each learn alone to denoise a class embedding (section 3 of the paper).

t = 0 is pure noise and t = T is clean; block t (1..T) maps z_{t-1} and the image x to u_hat. No graph ever spans
two blocks: gradients stay inside a block, there is no back-propagation between blocks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.blockwise import BlockwiseNet
from models.classifier import Classifier
from models.diffusion import DiffusionLoss, best_classifier, kl_to_noise, q_sample, repeat
from models.NoPropBlock import NoPropBlock
from models.schedules import default_clip, make_alpha_bar, snr, step_coefficients


class NoPropNetDT(BlockwiseNet):
    """T blocks, the class embeddings W_embed, the linear classifier theta_out and the schedule alpha_bar.

    Args:
        image_shape: (C, H, W).
        W_embed: (m, d) class embeddings; learned if learn_embedding, else a fixed buffer.
        prototype: embeddings are images.
        encoder: name of the image encoder, one in each block.
        num_blocks: T.
        schedule, alpha_bar_clip: see make_alpha_bar; the default clip: see default_clip.
        eta: weight of the denoising term.
        noise_levels: noised embeddings for each image in a step; they share its features.
        class_probability, posterior_sigma: see class_log_prob.
        learn_theta_out: whether theta_out gets gradients.
        blocks: those of the blocks 1..T that this process holds; all by default.
    """

    loss_terms = DiffusionLoss._fields
    readouts = (*Classifier.readouts, "ensemble")

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        learn_embedding: bool = False,
        prototype: bool = False,
        encoder: str = "paper",
        num_blocks: int = 10,
        schedule: str = "cosine",
        alpha_bar_clip: tuple[float, float] | None = None,
        eta: float = 0.1,
        noise_levels: int = 1,
        class_probability: str = "softmax",
        posterior_sigma: float = 0.2,
        learn_theta_out: bool = True,
        blocks: Iterable[int] | None = None,
    ):
        num_classes, embedding_dim = W_embed.shape
        super().__init__(
            W_embed,
            learn_embedding,
            class_probability,
            posterior_sigma,
            learn_theta_out,
            num_blocks=num_blocks,
            blocks=blocks,
            make_block=lambda: NoPropBlock(image_shape, embedding_dim, num_classes, prototype, encoder),
        )
        self.eta, self.noise_levels = eta, noise_levels
        alpha_bar = make_alpha_bar(schedule, num_blocks, alpha_bar_clip or default_clip(W_embed))
        self._read_levels(alpha_bar)
        self.register_buffer("alpha_bar", alpha_bar.to(W_embed.device))
        self.register_load_state_dict_post_hook(_read_loaded_levels)

    def _read_levels(self, alpha_bar: Tensor) -> None:
        """Keep as numbers what every step needs of alpha_bar, so that none waits for the device."""
        self.alpha_bar_T = alpha_bar[-1].item()
        gains = self.eta * snr(alpha_bar).diff()  # (T,)
        self.loss_weights = ((len(alpha_bar) - 1) / 2 * gains).tolist()  # T/2 eta (SNR(t) - SNR(t-1)) of eq. 8

    def curves(self, **how) -> dict[str, Tensor]:
        """Return alpha_bar (T+1,) and the coefficients a, b, c of eq. 3 (3, T)."""
        coefficients = torch.stack(step_coefficients(self.alpha_bar[:-1], self.alpha_bar[1:]))
        return {"alpha_bar": self.alpha_bar, "coefficients": coefficients}

    def times(self, **how) -> list[float]:
        return list(range(1, self.num_blocks + 1))

    def coefficients(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a_t, b_t, c_t of eq. 3 for t = 1..T, scalars."""
        return step_coefficients(self.alpha_bar[t - 1], self.alpha_bar[t])

    def q_sample(self, t: int, u_y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw z_t ~ q(z_t | y) = N(sqrt(alpha_bar_t) u_y, (1 - alpha_bar_t) I); u_y and z_t (B, d)."""
        return q_sample(self.alpha_bar[t], u_y, generator)

    def loss(
        self, t: int, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> DiffusionLoss:
        """Return the loss L_t of block t (eq. 8 and 61), its three terms apart.

        x (B, C, H, W), y (B,) int64; generators for the noise of z and for the dropout masks.
        """
        y = repeat(y, self.noise_levels)
        u_y = self.W_embed[y]  # (M B, d)
        class_nll, z_prev = self._class_nll(t, u_y, y, noise)
        u_hat = self.block(t)(z_prev, x, self.W_embed, drop)
        square = (u_hat - u_y).square().sum(dim=1)  # summed over d
        denoise = self.loss_weights[t - 1] * square.mean()
        return DiffusionLoss(class_nll, kl_to_noise(self.alpha_bar[0], u_y), denoise)

    def class_loss(self, t: int, y: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return the first term of L_t alone, from the same draws as in `loss`.

        Where W_embed is fixed this is all that theta_out learns from block t, so it can do so where block t is not.
        """
        y = repeat(y, self.noise_levels)
        return self._class_nll(t, self.W_embed[y], y, noise)[0]

    def class_logits(self, z: Tensor) -> Tensor:
        """Return the best linear classifier of z_T, in closed form from the current W_embed, plus what is learned."""
        return F.linear(z, *best_classifier(self.alpha_bar_T, self.W_embed)) + self.theta_out(z)

    def _class_nll(self, t: int, u_y: Tensor, y: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return -log p(y | z_T) and z_{t-1}: all that is drawn from the noise of block t, in this order."""
        z_T = self.q_sample(self.num_blocks, u_y, noise)
        return F.nll_loss(self.log_prob(z_T), y), self.q_sample(t - 1, u_y, noise)

    def step(self, t: int, z_prev: Tensor, u_hat: Tensor, eps: Tensor | None = None) -> Tensor:
        """Return z_t of eq. 3 from z_{t-1} and u_hat (both (..., d)); without eps the noise is left out."""
        a_t, b_t, c_t = self.coefficients(t)
        z_t = a_t * u_hat + b_t * z_prev
        return z_t if eps is None else z_t + c_t.sqrt() * eps

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        generators: Sequence[torch.Generator | None] = (None,),
        relay: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Carry noise to an answer, one block after the other; yields (z_t, u_hat's class weights) for t = 0..T.

        z_t is (R, B, d), the weights softmax(logits) are (R, B, m), and 1/m at t = 0. R runs, one for each
        generator, share the image features.
        x (B, C, H, W) only: no label is seen. Where not all blocks are held, relay(t, weights) is called in every
        process for t = 1..T and fills in the weights that the holder of block t gave.
        """
        runs, batch, d, m = len(generators), x.shape[0], *self.W_embed.shape[::-1]
        z = self.noise(generators, batch)
        yield z, torch.full((runs, batch, m), 1 / m, device=x.device)
        features = {t: self.block(t).features(x) for t in self.held}  # (B, 256) each, once for all runs
        for t in range(1, self.num_blocks + 1):
            weights = torch.empty(runs * batch, m, device=x.device)
            if t in features:
                logits = self.block(t).logits(z.flatten(0, 1), features[t].repeat(runs, 1))
                weights = logits.softmax(dim=1)  # (R*B, m)
            if relay is not None:
                relay(t, weights)
            u_hat = (weights @ self.W_embed).view(runs, batch, d)
            z = self.step(t, z, u_hat, self.noise(generators, batch))
            yield z, weights.view(runs, batch, m)


def _read_loaded_levels(net: NoPropNetDT, keys: object) -> None:
    net._read_levels(net.alpha_bar)

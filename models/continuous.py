"""Hold what the networks share that know a time t in [0, 1]: one TimeBlock, and inference along dz/dt = v(z, x, t)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.classifier import Classifier
from models.shares import Source, draw_rows
from models.solvers import kept_steps, solve
from models.time_block import TimeBlock


def draw_times(batch: int, stratified: bool, source: Source, device: torch.device) -> Tensor:
    """Draw t ~ U(0, 1), (B,) float64; stratified: t_i ~ U(i / B, (i + 1) / B)."""

    def draw(batch: int, generator: torch.Generator | None) -> Tensor:
        t = torch.rand(batch, generator=generator, device=device, dtype=torch.float64)
        return (t + torch.arange(batch, device=device)) / batch if stratified else t

    return draw_rows(batch, source, draw)


class ContinuousNet(Classifier):
    """One network for all times; v = logits W_embed where a method does not say otherwise (`velocity`, `terms`).

    Args:
        image_shape: (C, H, W).
        prototype: embeddings are images.
        encoder: name of the image encoder.
        W_embed and others: see Classifier.
    """

    open_end = False  # whether the velocity has no meaning at t = 1, see solve

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        learn_embedding: bool,
        prototype: bool,
        encoder: str,
        **kwargs,
    ):
        super().__init__(W_embed, learn_embedding, **kwargs)
        num_classes, embedding_dim = W_embed.shape
        self.block = TimeBlock(image_shape, embedding_dim, num_classes, prototype, encoder)

    @property
    def networks(self) -> dict[int, nn.Module]:
        return {0: self.block}

    def times(self, steps: int = 1000, **how) -> list[float]:
        return [i / steps for i in kept_steps(steps)]

    @torch.no_grad()
    def denoise(
        self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,), **how
    ) -> Iterator[tuple[Tensor, None]]:
        """Carry noise to an answer; yields (z_t, None) at t = 0 and after each of kept_steps; z_t (R, B, d).

        x (B, C, H, W) only: no label is seen. The image features are computed once and shared by the runs and steps.
        how: see `path`.
        """
        runs, batch = len(generators), x.shape[0]
        z_0 = self.noise(generators, batch)
        yield z_0, None
        image_part = self.block.image_part(x).repeat(runs, 1)  # (R*B, 256)
        for z in self.path(z_0.flatten(0, 1), image_part, generators, **how):
            yield z.view(runs, batch, -1), None

    def path(
        self,
        z: Tensor,
        image_part: Tensor,
        generators: Sequence[torch.Generator | None],
        steps: int = 1000,
        solver: str = "euler",
    ) -> Iterator[Tensor]:
        """Yield z (R*B, d) after each of kept_steps(steps), from z_0 and what the images add (R*B, 256)."""

        def velocity(z: Tensor, *terms: Tensor) -> Tensor:
            return self.velocity(z, image_part, *terms)

        return solve(velocity, lambda t: self.terms(t, steps), z, steps, solver, self.open_end)

    def velocity(self, z: Tensor, image_part: Tensor, time_part: Tensor) -> Tensor:
        """Return dz/dt (B, d) of z (B, d), image_part (B, 256) and the row of `terms` at t."""
        return self.block.logits(z, image_part, time_part) @ self.W_embed

    def terms(self, t: Tensor, steps: int) -> tuple[Tensor, ...]:
        """Return what the velocity needs of t (n,), one of so many steps: tensors (n, ...)."""
        return (self.block.time_part(t),)

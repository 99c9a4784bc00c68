"""DiffusionBlocks: K blocks that each learn alone to denoise class embeddings in a range of noise of their own.

Between NoProp's discrete time, one noise level a block, and continuous time, all levels in one network. The blocks may
be the pieces of one network that is cut. Shing, Koyama and Akiba, ICLR 2026, arXiv 2506.14202.
Try: python main.py --method diffusionblocks --dataset digits
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from errors import check_name
from models.blockwise import BlockwiseNet
from models.class_probability import nearest_log_prob
from models.classifier import Classifier
from models.diffusion import LOSSES, repeat
from models.networks import NETWORKS, Shape
from models.noise_ranges import NoiseDensity, block_of_step, c_in, c_noise, c_out, ladder, middle_weights, step_towards
from models.precision import weighted_embedding
from models.shares import normal_like
from models.solvers import SAMPLERS, kept_steps


class DiffusionBlocksNet(BlockwiseNet):
    """K blocks and the class embeddings, whose rows count by their direction alone (|u_y| = 1).

    Args:
        image_shape, prototype, encoder, learn_embedding, noise_levels, blocks: as those of NoPropNetDT.
        num_blocks: K.
        network: what the blocks are, one of NETWORKS; vit_*: see Shape, layers are those of all blocks together.
        loss: cross-entropy of softmax(logits), or squared error of u_hat, for fixed embeddings.
        noise_range: smallest and largest sigma; p_mean, p_std: of log sigma.
        overlap: see NoiseDensity.ranges.
    """

    readouts = (*Classifier.readouts, "ensemble")
    one_weight = runs_together = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        learn_embedding: bool = False,
        prototype: bool = False,
        encoder: str = "paper",
        network: str = "noprop",
        vit_layers: int = 12,
        vit_width: int = 128,
        vit_heads: int = 4,
        vit_patch: int = 4,
        num_blocks: int = 3,
        loss: str = "cross-entropy",
        noise_levels: int = 1,
        noise_range: Sequence[float] = (0.002, 80.0),
        p_mean: float = -1.2,
        p_std: float = 1.2,
        overlap: float = 0.1,
        blocks: Iterable[int] | None = None,
    ):
        check_name("loss", loss, LOSSES)
        if loss == "squared" and learn_embedding:
            raise ValueError("the squared error would make learned embeddings all the same: take --loss cross-entropy")
        sizes = vit_layers, vit_width, vit_heads, vit_patch
        shape = Shape(tuple(image_shape), W_embed.shape[1], len(W_embed), prototype, encoder, *sizes)
        super().__init__(
            W_embed,
            learn_embedding,
            learn_theta_out=False,
            num_blocks=num_blocks,
            blocks=blocks,
            make_block=lambda: NETWORKS[network].piece(shape, num_blocks),
        )
        self.loss_name, self.noise_levels = loss, noise_levels
        self.loss_terms = ("weighted_cross_entropy" if loss == "cross-entropy" else "weighted_error",)
        self.density = NoiseDensity(*noise_range, p_mean, p_std)
        self.ranges = self.density.ranges(num_blocks, overlap)
        self.loss_weights = middle_weights(self.ranges)

    @staticmethod
    def ways(steps: Sequence[int] = (4,), sampler: Sequence[str] = ("ode",)) -> list[dict]:
        """Return a way of inference for each sampler and number of steps."""
        return [{"sampler": name, "steps": n} for name in sampler for n in steps]

    @property
    def u(self) -> Tensor:
        """Return the class embeddings (m, d), of length 1: learned ones cannot drown the noise by growing."""
        return F.normalize(self.W_embed, dim=1)

    def shown_steps(self, steps: int) -> list[int]:
        """Return the steps 1..N after which z is shown: some evenly spread, the first, and the last of each block."""
        return sorted({1, *kept_steps(steps), *self._last_steps(steps)})

    def _last_steps(self, steps: int) -> set[int]:
        """Return the last step of each block that takes any."""
        taken = {block_of_step(i, steps, self.num_blocks): i + 1 for i in range(steps)}
        return set(taken.values())

    def times(self, steps: int = 4, **how) -> list[float]:
        return self.shown_steps(steps)

    def answering(self, steps: int = 4, **how) -> list[int]:
        shown, last = self.shown_steps(steps), self._last_steps(steps)
        return [i for i, step in enumerate(shown) if step in last]

    def idle(self, steps: int = 4, **how) -> list[int]:
        return sorted(
            set(range(1, self.num_blocks + 1)) - {block_of_step(i, steps, self.num_blocks) for i in range(steps)}
        )

    def curves(self, steps: int = 4, **how) -> dict[str, Tensor]:
        """Return the density's low, high, mean and deviation, ends of the blocks' ranges, wider ones, the ladder."""
        density = self.density
        return {
            "noise_density": torch.tensor([density.low, density.high, density.mean, density.std]),
            "noise_ends": torch.tensor(density.even(self.num_blocks)),
            "noise_ranges": torch.tensor(self.ranges),
            "noise_ladder": torch.tensor(ladder(density, steps)),
        }

    def loss(
        self, t: int, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> tuple[Tensor]:
        """Return the loss of block t at noise levels drawn from its range, weighted by 1 / c_out^2.

        x (B, C, H, W), y (B,) int64. M noised embeddings of an image share its features.
        """
        y = repeat(y, self.noise_levels)
        sigma = self.density.draw(len(y), *self.ranges[t - 1], noise, y.device)  # (M B,) float64
        return (self.loss_at(t, x, y, sigma, c_out(sigma).pow(-2), noise, drop),)

    def loss_at(
        self,
        t: int,
        x: Tensor,
        y: Tensor,
        sigma: Tensor,
        weight: Tensor,
        noise: torch.Generator | None = None,
        drop: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of block t at given noise levels with given weights: y, sigma and weight (M B,)."""
        u = self.u
        u_y = u[y]  # (M B, d)
        z = u_y + sigma.unsqueeze(1).to(u.dtype) * normal_like(u_y, noise)
        logits = self.block(t)(c_in(sigma).unsqueeze(1).to(u.dtype) * z, x, c_noise(sigma), drop)
        if self.loss_name == "cross-entropy":
            each = F.cross_entropy(logits.to(u.dtype), y, reduction="none")
        else:
            each = (weighted_embedding(logits, u) - u_y).square().sum(dim=1)  # summed over d
        return (weight.to(u.dtype) * each).mean()

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        generators: Sequence[torch.Generator | None] = (None,),
        steps: int = 4,
        sampler: str = "ode",
        relay: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Carry noise to an answer down the ladder of N steps; yields (z, u_hat's class weights) at shown_steps.

        z / sqrt(1 + sigma^2), NoProp's z, is (R, B, d), the weights softmax(logits) are (R, B, m). The last step ends
        at u_hat itself. sampler: ode, or ancestral, which is eq. 3. relay: see NoPropNetDT.denoise.
        """
        check_name("sampler", sampler, SAMPLERS)
        runs, batch, m, u = len(generators), x.shape[0], len(self.W_embed), self.u
        sigmas, shown, ancestral = ladder(self.density, steps), self.shown_steps(steps), sampler == "ancestral"
        start = self.noise(generators, batch)
        z = math.sqrt(1 + self.density.high**2) * start
        yield start, torch.full((runs, batch, m), 1 / m, device=x.device)
        levels = torch.tensor(sigmas[:-1], dtype=torch.float64, device=x.device)
        current, images, times = 0, None, None  # a block, and what it computes once for its steps and all runs
        for i, (sigma, lower) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            t = block_of_step(i, steps, self.num_blocks)
            weights = torch.empty(runs, batch, m, device=x.device)
            if t in self.held:
                if t != current:
                    current, images, times = t, self.block(t).image_part(x), self.block(t).time_part(c_noise(levels))
                scaled = c_in(levels[i]) * z  # run after run: memory does not grow with the runs
                logits = torch.stack([self.block(t).logits(each, images, times[i]) for each in scaled])
                weights = logits.to(u.dtype).softmax(dim=2)
            if relay is not None:
                relay(t, weights)
            eps = self.noise(generators, batch) if ancestral and lower > 0 else None
            z = step_towards(z, weights @ u, sigma, lower, eps, noise=float(ancestral))
            if i + 1 in shown:
                yield z / math.sqrt(1 + lower**2), weights

    def answer(self, z: Tensor, weights: Tensor) -> Tensor:
        return weights

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(y | z) as if sigma were 1: the nearest embedding has the most. z (..., d) -> (..., m)."""
        return nearest_log_prob(z, self.u)

"""Hold what the networks of all methods share: class embeddings W_embed, the linear layer theta_out, the answer."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.class_probability import class_log_prob
from models.image_info import ImageInfo, images_at_a_time
from models.precision import full_precision
from models.random_streams import Streams
from models.shares import Source, draw_rows


class SameNoise(list):
    """Generators whose noise is the same for every image of a batch."""


class NoNoise(list):
    """Generators of which nothing is drawn: their noise is zero, its mean."""


class Classifier(nn.Module):
    """Carries noise z to an answer, given an image: `loss` trains it, `denoise` and `predict` use it.

    Args:
        W_embed: (m, d) class embeddings; learned if learn_embedding, else a fixed buffer.
        class_probability, posterior_sigma: see class_log_prob.
        learn_theta_out: whether theta_out gets gradients.

    `encoder`, where there is one, is frozen and shared by the blocks, which are given its features as x (B, F).
    `info` and `inference` are set by models.load: what the network knows of images, and how `predict` uses it.
    """

    readouts: tuple[str, ...] = ("sample", "vote", "mean")  # ways to read the answer out of several runs
    denoises = True  # whether z starts as noise and goes from step to step to an embedding
    runs_together = True  # whether an evaluation takes all runs through a network at once
    loss_terms: tuple[str, ...]  # names of what `loss` returns, scalars whose sum is the loss
    info: ImageInfo | None = None
    inference: dict = {"runs": 5, "how": {}}  # noqa: RUF012 - replaced, never changed

    def __init__(
        self,
        W_embed: Tensor,
        learn_embedding: bool,
        class_probability: str = "softmax",
        posterior_sigma: float = 0.2,
        learn_theta_out: bool = True,
    ):
        super().__init__()
        self.encoder: nn.Module | None = None
        self.class_probability, self.posterior_sigma = class_probability, posterior_sigma
        if learn_embedding:
            self.W_embed = nn.Parameter(W_embed.clone())
        else:
            self.register_buffer("W_embed", W_embed.clone())
        num_classes, embedding_dim = W_embed.shape
        self.theta_out = nn.Linear(embedding_dim, num_classes)
        for parameter in self.theta_out.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(learn_theta_out)

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.W_embed.shape[1]

    @property
    def u(self) -> Tensor:
        """Return the embeddings u_y of the classes (m, d), as the noise is mixed into them."""
        return self.W_embed

    def see(self, images: Tensor) -> Tensor:
        """Return what the blocks are given as x: images (B, H, W, C), 0-255 -> (B, C, H, W) normalised, or (B, F)."""
        x = self.info.normalise(images)
        if self.encoder is None:
            return x
        with torch.no_grad():
            return self.encoder(x)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or eval mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    @property
    def networks(self) -> dict[int, nn.Module]:
        """Return the networks that start from random weights, each by the index of its stream."""
        raise NotImplementedError

    @staticmethod
    def ways() -> list[dict]:
        """Return the ways of inference that settings ask for, as arguments of `infer`; the last one counts.

        The settings that a method reads are the arguments of its own `ways`.
        """
        return [{}]

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters on which no weight decay pulls."""
        return list(self.theta_out.parameters())

    def times(self, **how) -> list[float]:
        """Return where on the way from noise the z stand that `denoise` yields after z_0."""
        raise NotImplementedError

    def answering(self, **how) -> list[int]:
        """Return which of `times` give answers of their own to average, where blocks answer: all of them."""
        return list(range(len(self.times(**how))))

    def idle(self, **how) -> list[int]:
        """Return the blocks that have no part in an answer."""
        return []

    def denoise(
        self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,), **how
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Carry noise to an answer; yields z (R, B, d) and the class weights (R, B, m) of u_hat, None without one.

        x (B, C, H, W) only: no label is seen. R runs, one for each generator, share the image features.
        """
        raise NotImplementedError

    def infer(
        self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,), stochastic: bool = True, **how
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield what `denoise` does; not stochastic: from z_0 = 0 and without noise, the generators count the runs."""
        return self.denoise(x, generators if stochastic else NoNoise(generators), **how)

    def curves(self, **how) -> dict[str, Tensor]:
        """Return what the figures show of the network and a way of inference, by name."""
        return {}

    @torch.no_grad()
    def start_theta_out_at_embeddings(self) -> None:
        """Let theta_out begin with u_y / |u_y|^2, so that it names an embedding by its class from the start."""
        square = self.W_embed.square().sum(dim=1, keepdim=True)
        self.theta_out.weight.copy_(self.W_embed / square.clamp(min=1e-12))

    def class_logits(self, z: Tensor) -> Tensor:
        """Return f_theta_out(z) of eq. 14: z (..., d) -> (..., m)."""
        return self.theta_out(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p_theta_out(y | z) of every class: z (..., d) -> (..., m)."""
        with full_precision(z):
            logits = self.class_logits(z)
            return class_log_prob(logits, self.W_embed, self.class_probability, self.posterior_sigma)

    def answer(self, z: Tensor, weights: Tensor | None) -> Tensor:
        """Return p(y) (..., m) from what `denoise` yields last."""
        return self.log_prob(z).exp()

    @torch.no_grad()
    def sample(self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,), **how) -> Tensor:
        """Return p(y | z) at the end of R inference runs: x (B, C, H, W) -> (R, B, m). Use in eval mode."""
        for z, weights in self.infer(x, generators, **how):
            last = z, weights
        return self.answer(*last)

    @torch.no_grad()
    def predict(
        self, images: Tensor, runs: int | None = None, seed: int | None = None, mirror: bool | None = None, **how
    ) -> tuple[Tensor, Tensor]:
        """Return class indices (N,) and probabilities (N, m), the mean over the inference runs.

        images (N, C, H, W): uint8, or floats in [0, 1]; they are normalised as in training. The same seed draws the
        same noise for every image, so an answer does not depend on the other images. mirror: averages the answers to
        an image and to its mirror image. how: arguments of `infer`. What is not given is the checkpoint's. Leaves the
        network in eval mode. Raises ValueError for other images.
        """
        self.eval()
        asked = {"seed": 0, "mirror": False, **self.inference}
        given = {"runs": runs, "seed": seed, "mirror": mirror}
        asked |= {name: value for name, value in given.items() if value is not None}
        levels, means = self._levels(images), []
        for batch in levels.split(images_at_a_time(*levels.shape[1:3])):
            streams = Streams(asked["seed"], batch.device)
            noise = SameNoise(streams.fresh("predict", r) for r in range(asked["runs"]))
            views = (batch, batch.flip(2)) if asked["mirror"] else (batch,)
            answers = [self.sample(self.see(view), noise, **{**asked["how"], **how}) for view in views]
            means.append(torch.stack(answers).mean(dim=(0, 1)))
        probabilities = torch.cat(means)
        return probabilities.argmax(dim=1), probabilities

    def forward(self, images: Tensor) -> Tensor:
        """Return the class probabilities of `predict`: (N, C, H, W) -> (N, m)."""
        return self.predict(images)[1]

    def _levels(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise ValueError(f"images must be a torch.Tensor, not {type(images).__name__}: torch.as_tensor makes one")
        if self.info is None:
            raise ValueError("the network knows no statistics of images: load it from a checkpoint, or set net.info")
        if tuple(images.shape[1:]) != tuple(self.info.image_shape):
            shape = ", ".join(map(str, self.info.image_shape))
            raise ValueError(f"images must be (N, {shape}), not {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images must be uint8, or floats in [0, 1], not {images.dtype}")
        if images.is_floating_point() and images.numel() and not 0 <= images.min() <= images.max() <= 1:
            span = f"{images.min().item():.3g} to {images.max().item():.3g}"
            raise ValueError(f"images of floats must be in [0, 1], these are {span}: give uint8, or divide by 255")
        levels = images.to(self.W_embed.device).permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
        return levels if levels.dtype == torch.uint8 else levels * 255

    def noise(self, generators: Sequence[Source], batch: int) -> Tensor:
        """Draw standard normal noise (R, B, d), run r from generator r."""
        if isinstance(generators, NoNoise):
            return torch.zeros(len(generators), batch, self.embedding_dim, device=self.W_embed.device)
        rows = 1 if isinstance(generators, SameNoise) else batch

        def draw(rows: int, generator: torch.Generator | None) -> Tensor:
            return torch.randn(rows, self.embedding_dim, generator=generator, device=self.W_embed.device)

        return torch.stack([draw_rows(rows, source, draw) for source in generators]).expand(-1, batch, -1)

"""What the networks of all methods share: class embeddings W_embed, the linear layer theta_out, reading the answer."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.class_probability import class_log_prob


class Classifier(nn.Module):
    """Carries noise z to an answer, given an image: `loss` trains it, `denoise` and `predict` use it.

    Args:
        W_embed: (m, d) class embeddings; learned if learn_embedding, else a fixed buffer.
        class_probability, sigma: see class_log_prob.
        learn_theta_out: whether theta_out gets gradients.
    """

    loss_terms: tuple[str, ...]  # names of what `loss` returns, scalars whose sum is the loss

    def __init__(
        self,
        W_embed: Tensor,
        learn_embedding: bool,
        class_probability: str = "softmax",
        sigma: float = 1.0,
        learn_theta_out: bool = True,
    ):
        super().__init__()
        self.class_probability = class_probability
        self.sigma = sigma
        if learn_embedding:
            self.W_embed = nn.Parameter(W_embed.clone())
        else:
            self.register_buffer("W_embed", W_embed.clone())
        num_classes, embedding_dim = W_embed.shape
        self.theta_out = nn.Linear(embedding_dim, num_classes)
        for parameter in self.theta_out.parameters():
            nn.init.zeros_(parameter)  # favours no class, so that its few steps per epoch soon tell them apart
            parameter.requires_grad_(learn_theta_out)

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.W_embed.shape[1]

    @property
    def networks(self) -> dict[int, nn.Module]:
        """The networks that start from random weights, each by the index of its stream."""
        raise NotImplementedError

    def times(self, **how) -> list[float]:
        """Where on the way from noise the z stand that `denoise` yields after z_0."""
        raise NotImplementedError

    def denoise(
        self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,), **how
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Carry noise to an answer; yields z (R, B, d) and the class weights (R, B, m) of u_hat, None without one.

        x (B, C, H, W) only: no label is seen. R runs, one for each generator, share the image features.
        """
        raise NotImplementedError

    @torch.no_grad()
    def start_theta_out_at_embeddings(self) -> None:
        """theta_out begins with u_y / |u_y|^2, so that it names an embedding by its class from the start."""
        square = self.W_embed.square().sum(dim=1, keepdim=True)
        self.theta_out.weight.copy_(self.W_embed / square.clamp(min=1e-12))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p_theta_out(y | z) of every class: z (..., d) -> (..., m)."""
        return class_log_prob(self.theta_out(z), self.W_embed, self.class_probability, self.sigma)

    @torch.no_grad()
    def predict(self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,), **how) -> Tensor:
        """p(y | z) at the end of R inference runs from images only: x (B, C, H, W) -> (R, B, m). Use in eval mode."""
        for z, _ in self.denoise(x, generators, **how):
            last = z
        return self.log_prob(last).exp()

    def noise(self, generators: Sequence[torch.Generator | None], batch: int) -> Tensor:
        """Standard normal (R, B, d), run r drawn from generator r."""
        draws = [torch.randn(batch, self.embedding_dim, generator=g, device=self.W_embed.device) for g in generators]
        return torch.stack(draws)

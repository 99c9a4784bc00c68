"""The back-propagation baseline (eq. 17 to 19 of the paper): the very blocks of NoProp-DT, trained end to end.

Try: python main.py --method backprop --dataset digits
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import Classifier
from models.NoPropBlock import NoPropBlock

W_START = 0.5  # tanh(0.5) = 0.46: every block gets a gradient, and ten blocks leave 0.2 % of the noise


class BackpropNet(Classifier):
    """z_t = (1 - alpha_t) z_{t-1} + alpha_t u_hat_t(z_{t-1}, x), alpha_t = tanh(w_t), then theta_out on z_T.

    Arguments as those of NoPropNetDT.
    """

    loss_terms = ("cross_entropy",)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        learn_embedding: bool = False,
        prototype: bool = False,
        encoder: str = "paper",
        num_blocks: int = 10,
        class_probability: str = "softmax",
        posterior_sigma: float = 0.2,
    ):
        super().__init__(W_embed, learn_embedding, class_probability, posterior_sigma)
        self.start_theta_out_at_embeddings()  # from zero it finds a few of the classes only
        num_classes, embedding_dim = W_embed.shape
        self.num_blocks = num_blocks
        self.w = nn.Parameter(torch.full((num_blocks,), W_START))
        self.blocks = nn.ModuleDict(
            {str(t - 1): NoPropBlock(image_shape, embedding_dim, num_classes, prototype, encoder) for t in self.times()}
        )

    @property
    def networks(self) -> dict[int, nn.Module]:
        return {t: self.blocks[str(t - 1)] for t in self.times()}

    def times(self, **how) -> list[float]:
        return list(range(1, self.num_blocks + 1))

    def loss(
        self, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> tuple[Tensor]:
        """Return the cross-entropy, with a graph through all blocks. x (B, C, H, W), y (B,) int64."""
        z = self.noise([noise], len(x))[0]
        for alpha_t, block in zip(self.w.tanh(), self.blocks.values(), strict=True):
            z = (1 - alpha_t) * z + alpha_t * block(z, x, self.W_embed, drop)
        return (F.nll_loss(self.log_prob(z), y),)

    @torch.no_grad()
    def denoise(
        self, x: Tensor, generators: Sequence[torch.Generator | None] = (None,)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Carry noise to an answer by the same chain; yields (z_t, u_hat's class weights) for t = 0..T."""
        runs, batch, m = len(generators), x.shape[0], len(self.W_embed)
        z = self.noise(generators, batch)  # (R, B, d)
        yield z, torch.full((runs, batch, m), 1 / m, device=x.device)
        for alpha_t, block in zip(self.w.tanh(), self.blocks.values(), strict=True):
            logits = block.logits(z.flatten(0, 1), block.features(x).repeat(runs, 1))
            weights = logits.softmax(dim=1).view(runs, batch, m)
            z = (1 - alpha_t) * z + alpha_t * (weights @ self.W_embed)
            yield z, weights

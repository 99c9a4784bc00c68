"""Hold what the networks share whose blocks learn alone: T blocks, of which a process may hold some."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from models.classifier import Classifier


class BlockwiseNet(Classifier):
    """T blocks, each with a loss of its own: gradients stay inside a block.

    A subclass has `loss(t, x, y, noise, drop)` of block t = 1..T, and `loss_weights`, by which the losses of the blocks
    differ in size.

    Args:
        num_blocks: T.
        blocks: those of the blocks 1..T that this process holds; None: all.
        make_block: makes one.
        W_embed and others: see Classifier.
    """

    loss_weights: list[float]
    one_weight = True  # whether all noise levels of a block have the same weight in its loss

    def __init__(
        self,
        W_embed: Tensor,
        learn_embedding: bool,
        *args,
        num_blocks: int,
        blocks: Iterable[int] | None,
        make_block: Callable[[], nn.Module],
        **kwargs,
    ):
        super().__init__(W_embed, learn_embedding, *args, **kwargs)
        self.before_block: Callable[[int], None] | None = None  # told which block is about to be used
        self.num_blocks = num_blocks
        self.held = list(range(1, num_blocks + 1) if blocks is None else blocks)
        # by names, so that block t is blocks.{t-1} whichever others are held
        self.blocks = nn.ModuleDict({str(t - 1): make_block() for t in self.held})

    @property
    def networks(self) -> dict[int, nn.Module]:
        return {t: self.blocks[str(t - 1)] for t in self.held}

    def block(self, t: int) -> nn.Module:
        """Return block t = 1..T. Raises IndexError for one that is not held."""
        if t not in self.held:
            raise IndexError(f"block {t} is none of those held: {self.held} of 1..{self.num_blocks}")
        if self.before_block is not None:
            self.before_block(t)
        return self.blocks[str(t - 1)]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return those of theta_out and W_embed that are learned."""
        return [p for name, p in self.named_parameters() if not name.startswith("blocks.") and p.requires_grad]

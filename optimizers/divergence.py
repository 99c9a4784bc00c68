"""Losses and weights that are not finite any more: found before they are saved, and told where it began."""

from torch import Tensor
from torch.nn.utils import get_total_norm

from errors import UserError
from models.blocks import block_of


def check_losses(losses: Tensor, epoch: int) -> None:
    """Raise UserError naming the first block and batch whose loss is not finite; losses (rows, batches, terms)."""
    bad = ~losses.isfinite().all(dim=2)
    if bad.any():
        batch, block = bad.T.nonzero()[0].tolist()
        which = f" of block {block + 1}" if len(losses) > 1 else ""
        raise _diverged(f"the loss{which} is not finite at epoch {epoch}, batch {batch + 1}")


def check_finite(state: dict[str, Tensor], epoch: int) -> None:
    """Raise UserError naming the first weight of a state that is not finite."""
    weights = {name: value for name, value in state.items() if value.is_floating_point()}
    if get_total_norm(weights.values()).isfinite():  # looks at all of them at once
        return
    for name, value in weights.items():
        if not value.isfinite().all():
            which = f" of block {t}" if (t := block_of(name)) else ""
            raise _diverged(f"the weights {name}{which} are not finite in epoch {epoch}")


def _diverged(what: str) -> UserError:
    return UserError(
        f"{what}, most likely since the steps are too large: lower --lr, raise --warmup-epochs or set "
        "--clip-grad-norm; files that were saved before are kept"
    )

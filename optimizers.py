"""One optimizer for each block and one for the shared parameters, each with its own schedule of the learning rate.

What the blocks add to the gradient of the shared parameters is gathered apart from them.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

PLATEAU_FACTOR = 0.5


class Updater:
    """AdamW over some parameters; its learning rate rises for warmup_steps steps, then stays or falls.

    Args:
        plateau_patience: epochs without a better validation accuracy before the rate is halved; 0 is never.
        cosine_steps: after the warm-up the rate falls to zero along half a cosine in so many steps; 0 is never.
        clip_norm: longer gradients are shortened to this norm, over all the parameters together; 0 is never.
        adam_w: AdamW, else Adam.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        warmup_steps: int = 0,
        plateau_patience: int = 0,
        cosine_steps: int = 0,
        clip_norm: float = 0.0,
        adam_w: bool = True,
    ):
        self.learned = [parameter for parameter in parameters if parameter.requires_grad]
        self.clip_norm = clip_norm
        kind = AdamW if adam_w else Adam
        self.optimizer = kind([{"params": self.learned}], lr=lr, weight_decay=weight_decay, fused=True)
        self.warmup = self.plateau = self.cosine = None
        if plateau_patience:
            self.plateau = ReduceLROnPlateau(self.optimizer, "max", factor=PLATEAU_FACTOR, patience=plateau_patience)
        if cosine_steps:
            self.cosine = LambdaLR(self.optimizer, lambda step: (1 + math.cos(math.pi * step / cosine_steps)) / 2)
        if warmup_steps:
            self.warmup = LinearLR(self.optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @property
    def warming_up(self) -> bool:
        return self.warmup is not None and self.warmup.last_epoch < self.warmup.total_iters

    def step(self) -> None:
        """Apply and clear the gradients."""
        if self.clip_norm:
            clip_grad_norm_(self.learned, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.warming_up:
            self.warmup.step()
        elif self.cosine:
            self.cosine.step()

    def end_epoch(self, val_accuracy: float | None) -> None:
        if self.plateau and val_accuracy is not None and not self.warming_up:
            self.plateau.step(val_accuracy)

    def state_dict(self) -> dict:
        schedules = {"warmup": self.warmup, "plateau": self.plateau, "cosine": self.cosine}
        parts = {"optimizer": self.optimizer, **schedules}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict) -> None:
        for name, part_state in state.items():
            getattr(self, name).load_state_dict(part_state)


class SharedGradient:
    """The sum over blocks of their gradients of the shared parameters, kept in double precision.

    There a sum of float32 numbers is exact (as long as they lie within a factor of about 2^25 of each other), so it
    does not depend on the order of the blocks, nor on the ranks that hold them; it is rounded once, at the end.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        device = self.parameters[0].device if self.parameters else None
        self.total = torch.zeros(sum(self.sizes), dtype=torch.float64, device=device)

    def take(self) -> None:
        """Add the gradient that a backward pass has left at the parameters, and clear it there."""
        if self.parameters:
            self.total += torch.cat([parameter.grad.flatten() for parameter in self.parameters])
            for parameter in self.parameters:
                parameter.grad = None

    def give(self) -> None:
        """Leave the sum at the parameters, for their optimizer, and start from zero."""
        for parameter, part in zip(self.parameters, self.total.split(self.sizes), strict=True):
            parameter.grad = part.to(parameter.dtype).view_as(parameter)
        self.total.zero_()

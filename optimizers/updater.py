"""An optimizer with its learning-rate schedule: one for each block, and one for what the blocks share."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

PLATEAU_FACTOR = 0.5


class Updater:
    """An optimizer over some parameters; its learning rate rises for warmup_steps steps, then stays or falls.

    Args:
        optimizer: AdamW or Adam.
        plateau_patience: epochs without a better validation accuracy before the rate is halved; 0 is never.
        cosine_steps: after the warm-up the rate falls to zero along half a cosine in so many steps; 0 is never.
        clip_norm: longer gradients are shortened to this norm, over all the parameters together; 0 is never.
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
        optimizer: type[Optimizer] = AdamW,
    ):
        self.learned = [parameter for parameter in parameters if parameter.requires_grad]
        self.clip_norm = clip_norm
        self.optimizer = optimizer([{"params": self.learned}], lr=lr, weight_decay=weight_decay, fused=True)
        self.warmup = self.plateau = self.cosine = None
        if plateau_patience:
            self.plateau = ReduceLROnPlateau(self.optimizer, "max", factor=PLATEAU_FACTOR, patience=plateau_patience)
        if cosine_steps:
            self.cosine = LambdaLR(self.optimizer, lambda step: (1 + math.cos(math.pi * step / cosine_steps)) / 2)
        if warmup_steps:
            self.warmup = LinearLR(self.optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)

    @classmethod
    def by_epochs(
        cls,
        parameters: Iterable[nn.Parameter],
        steps_per_epoch: int,
        *,
        epochs: int,
        lr: float = 0.001,
        weight_decay: float = 0.001,
        warmup_epochs: int = 0,
        lr_schedule: str = "constant",
        lr_scheduler_patience: int = 0,
        clip_grad_norm: float = 0.0,
        optimizer: type[Optimizer] = AdamW,
    ) -> "Updater":
        """Return an updater whose schedule is told in epochs, as the settings tell it."""
        return cls(
            parameters,
            lr,
            weight_decay,
            warmup_steps=warmup_epochs * steps_per_epoch,
            plateau_patience=lr_scheduler_patience,
            cosine_steps=(epochs - warmup_epochs) * steps_per_epoch if lr_schedule == "cosine" else 0,
            clip_norm=clip_grad_norm,
            optimizer=optimizer,
        )

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
        """Raises ValueError for what is no state of such an optimizer and schedulers; it may come from a stranger."""
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError("it has other optimizers or schedulers than its settings ask for")
        moments, groups = state["optimizer"]["state"], own["optimizer"]["param_groups"]
        check_moments(moments, self.optimizer.param_groups[0]["params"])
        for group, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            group["lr"] = checked(saved["lr"], group["lr"])  # all else is as the settings say
            if not math.isfinite(group["lr"]):
                raise ValueError("the learning rate of its optimizer is not finite")
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name in state.keys() - {"optimizer"}:
            getattr(self, name).load_state_dict(checked(state[name], own[name]))


def check_moments(state: dict, parameters: list[nn.Parameter]) -> None:
    """Raises ValueError where Adam's state of a parameter is not of its shape, or not finite."""
    for index, moments in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"the optimizer's state is of a parameter {index} that there is not")
        shape = parameters[index].shape
        shapes = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        fits = moments.keys() == shapes.keys() and all(moments[name].shape == shapes[name] for name in shapes)
        if not fits or not all(value.is_floating_point() and value.isfinite().all() for value in moments.values()):
            raise ValueError(f"the optimizer's state of its parameter {index} does not fit")
        if moments["step"] < 0 or (moments["exp_avg_sq"] < 0).any():
            raise ValueError(f"the optimizer's state of its parameter {index} is negative")


def checked(saved: object, own: object) -> object:
    """Return saved, as far as it has parts of the same names as own. Raises ValueError where their types differ."""
    number = type(own) in (int, float)
    if not (type(saved) in (int, float) and not math.isnan(saved) if number else type(saved) is type(own)):
        raise ValueError(f"its scheduler or optimizer has {str(saved)[:50]!r} where a {type(own).__name__} belongs")
    if isinstance(own, dict):  # another version of torch has some other names
        return {name: checked(saved[name], own[name]) for name in own.keys() & saved.keys()}
    return [checked(*pair) for pair in zip(saved, own, strict=True)] if isinstance(own, list) else saved

"""An optimizer with its learning-rate schedule: one for each block, and one for what the blocks share."""

import math
from collections.abc import Callable, Iterable
from itertools import groupby

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

PLATEAU_FACTOR = 0.5


def rate_factor(step: int, warmup_steps: int, cosine_steps: int) -> float:
    """Return the factor of the learning rate in step 0, 1, ...: it rises for the warm-up and ends there at 1.

    Then it falls along half a cosine, from 1 in the first of cosine_steps steps to a little above 0 in the last;
    cosine_steps = 0: it stays 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if not cosine_steps:
        return 1.0
    return (1 + math.cos(math.pi * min((step - warmup_steps) / cosine_steps, 1))) / 2


class Updater:
    """An optimizer over some parameters; its learning rate rises for warmup_steps steps, then stays or falls.

    Args:
        undecayed: those of the parameters on which no weight decay pulls.
        optimizer: AdamW or Adam.
        plateau_patience: epochs without a better validation accuracy before the rate is halved; 0 is never.
        cosine_steps: steps of the fall after the warm-up; 0: the rate stays. See rate_factor.
        clip_norm: longer gradients are shortened to this norm, over all the parameters together; 0 is never.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        undecayed: Iterable[nn.Parameter] = (),
        warmup_steps: int = 0,
        plateau_patience: int = 0,
        cosine_steps: int = 0,
        clip_norm: float = 0.0,
        optimizer: type[Optimizer] = AdamW,
    ):
        self.learned = [parameter for parameter in parameters if parameter.requires_grad]
        self.full_lr, self.warmup_steps, self.cosine_steps, self.clip_norm = lr, warmup_steps, cosine_steps, clip_norm
        self.steps = 0
        free = {id(parameter) for parameter in undecayed}
        groups = [  # in the order of the parameters, on which the state's numbers depend
            {"params": list(same), "weight_decay": 0.0 if is_free else weight_decay}
            for is_free, same in groupby(self.learned, key=lambda parameter: id(parameter) in free)
        ]
        self.optimizer = optimizer(groups or [{"params": []}], lr=lr, fused=True)
        self.plateau = None
        if plateau_patience:
            self.plateau = ReduceLROnPlateau(self.optimizer, "max", factor=PLATEAU_FACTOR, patience=plateau_patience)
        self._set_rate()

    @classmethod
    def by_epochs(
        cls,
        parameters: Iterable[nn.Parameter],
        steps_per_epoch: int,
        undecayed: Iterable[nn.Parameter] = (),
        clip_scale: float = 1.0,
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
        """Return an updater whose schedule is told in epochs, as the settings tell it.

        clip_scale: the weight of the loss, to which clip_grad_norm is relative: one number for all blocks.
        """
        return cls(
            parameters,
            lr,
            weight_decay,
            undecayed,
            warmup_steps=warmup_epochs * steps_per_epoch,
            plateau_patience=lr_scheduler_patience,
            cosine_steps=(epochs - warmup_epochs) * steps_per_epoch if lr_schedule == "cosine" else 0,
            clip_norm=clip_grad_norm * clip_scale,
            optimizer=optimizer,
        )

    @property
    def lr(self) -> float:
        """Return the learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def _set_rate(self) -> None:
        if self.cosine_steps or self.steps <= self.warmup_steps:  # else it is constant, or the plateau's
            factor = rate_factor(self.steps, self.warmup_steps, self.cosine_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.full_lr * factor

    def step(self) -> None:
        """Apply and clear the gradients."""
        if self.clip_norm:
            clip_grad_norm_(self.learned, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._set_rate()

    def end_epoch(self, val_accuracy: float | None) -> None:
        """Let the plateau look at the accuracy, once the warm-up is over."""
        if self.plateau and val_accuracy is not None and self.steps >= self.warmup_steps:
            self.plateau.step(val_accuracy)

    def state_dict(self) -> dict:
        """Return what going on needs."""
        plateau = {"plateau": self.plateau.state_dict()} if self.plateau else {}
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, **plateau}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state; it may come from a stranger.

        Raises ValueError for what is no state of such an optimizer and schedule.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError("it has another learning-rate schedule than its settings ask for")
        moments, groups = state["optimizer"]["state"], own["optimizer"]["param_groups"]
        check_moments(moments, self.learned)
        self.steps = checked(state["steps"], self.steps)
        lr = checked(state["optimizer"]["param_groups"][0]["lr"], self.lr)
        if not math.isfinite(lr) or self.steps < 0:
            raise ValueError("the learning rate of its optimizer is not finite")
        for group in groups:
            group["lr"] = lr  # all else is as the settings say
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.plateau:
            self.plateau.load_state_dict(checked(state["plateau"], own["plateau"]))
        if self.cosine_steps or self.steps < self.warmup_steps:
            self._set_rate()


MakeUpdater = Callable[..., Updater]  # (parameters, steps per epoch) -> an optimizer with its schedule


def check_moments(state: dict, parameters: list[nn.Parameter]) -> None:
    """Raise ValueError where Adam's state of a parameter is not of its shape, or not finite."""
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

"""Blocks and the states of their optimizers kept in the memory of the CPU; only the block in use is on the device."""

import torch
from torch import Tensor, nn

from models.NoProp_DT import NoPropNetDT
from optimizers import Updater


class BlockOffload:
    """Brings a block to the device when the model asks for it, and sends the one before back.

    In sequential order a block travels once per epoch, in interleaved order once per batch.
    """

    def __init__(self, model: NoPropNetDT, updaters: dict[int, Updater], device: torch.device, home: str = "cpu"):
        self.model, self.updaters, self.device, self.home = model, updaters, device, torch.device(home)
        self.current: int | None = None
        for t in model.held:
            self._move(t, self.home)
        model.before_block = self.bring

    def bring(self, t: int) -> None:
        """Block t is about to be used."""
        if t != self.current:
            if self.current is not None:
                self._move(self.current, self.home)
            self._move(t, self.device)
            self.current = t

    def _move(self, t: int, device: torch.device) -> None:
        self.model.blocks[str(t - 1)].to(device)
        for state in self.updaters[t].optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.to(device)


def move_without_blocks(model: NoPropNetDT, device: torch.device) -> None:
    """W_embed, theta_out and the schedule to the device; no block is ever there beside another."""
    blocks, model.blocks = model.blocks, nn.ModuleDict()
    model.to(device)
    model.blocks = blocks

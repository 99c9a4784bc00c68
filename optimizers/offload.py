"""Blocks and the states of their optimizers kept in the memory of the CPU; only the block in use is on the device."""

import torch
from torch import Tensor, nn

from optimizers.updater import Updater


class BlockOffload:
    """Brings a block to the device when it is about to be used, and sends the one before back.

    In sequential order a block travels once per epoch, in interleaved order once per batch.
    """

    def __init__(
        self, blocks: dict[int, nn.Module], updaters: dict[int, Updater], device: torch.device, home: str = "cpu"
    ):
        self.blocks, self.updaters, self.device, self.home = blocks, updaters, device, torch.device(home)
        self.current: int | None = None
        for t in blocks:
            self._move(t, self.home)

    def bring(self, t: int) -> None:
        """Make block t ready for use."""
        if t != self.current:
            if self.current is not None:
                self._move(self.current, self.home)
            self._move(t, self.device)
            self.current = t

    def _move(self, t: int, device: torch.device) -> None:
        self.blocks[t].to(device)
        for state in self.updaters[t].optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.to(device)


def move_without_blocks(network: nn.Module, device: torch.device) -> None:
    """Move W_embed, theta_out and the schedule to the device; no block is ever there beside another."""
    blocks, network.blocks = network.blocks, nn.ModuleDict()
    network.to(device)
    network.blocks = blocks

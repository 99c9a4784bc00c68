"""This process as the only one of a run; parallel/ranks.py is the same for several, where every call is collective."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from models.shares import Part


class OneProcess:
    """The process that trains everything, prints and writes."""

    rank, size, local_rank = 0, 1, 0
    bytes_reduced = 0  # that it has sent or got as sums of gradients
    relay: Callable[[int, Tensor], None] | None = None  # passes on the class weights of a block
    add_up: Callable[[Tensor], None] | None = None  # sums the gradients of all processes

    @property
    def first(self) -> bool:
        """Return whether it is the one that prints, draws and writes."""
        return self.rank == 0

    @property
    def hides_bars(self) -> bool | None:
        """tqdm's `disable`: None, which is a bar where stderr is a terminal, on the first process only."""
        return None if self.first else True

    @property
    def restarted(self) -> bool:
        """Return whether torchrun started the processes again after one died."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0

    def connect(self) -> None:
        """Wait for all processes."""

    def close(self) -> None:
        """Wait until all are done; each may then end when it likes."""

    def one_per_machine_first(self) -> AbstractContextManager:
        """Let one process of every machine do what is inside before the others, which then find its files."""
        return nullcontext()

    def deal(self, blocks: Sequence[int]) -> list[int]:
        """Return the blocks of this process."""
        return list(blocks)

    def part_of(self, images: int) -> Part | None:
        """Return which of the images of a batch this process takes where they are shared out, None for all."""

    def average_gradients(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are the mean over the processes."""
        return network

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over the processes."""
        return values

    def gather_checkpoint(self, state: dict) -> dict | None:
        """Return the checkpoint of all processes where it is written, None elsewhere."""
        return state

    def from_first(self, make: Callable[[], object]) -> object:
        """Return on every process what make() gives on the first; it is called there only."""
        return make()

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return number

    def all_pause(self, wish: bool) -> bool:
        """Return whether all have come to the same step, since one of them wished so. Called between two steps."""
        return wish

    def who_died(self) -> str | None:
        """Return the name of a process that has stopped answering, None if all live."""
        return None

    def tells(self) -> bool:
        """Return whether it is for this process to tell why all end."""
        return self.first

    def report(self, error: str) -> None:
        """Print one line on stderr."""
        print(f"main.py: error: {error}", file=sys.stderr)

    def leave(self, code: int) -> int:
        """Return the exit code."""
        return code

"""Choose how many OpenMP threads torch works with and how long they wait actively, by the cores that there are to use.

Bits depend on the number of threads, so it follows from the network and the cores, never from the load of the moment.
Imports no torch, which reads its variables when it is loaded.
"""

import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from hardware.cgroup import group_folders

OF_THE_USER = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")
FREE = "torch" not in sys.modules and not any(map(os.environ.get, OF_THE_USER))  # nobody else has a number
WORK_PER_THREAD = 10**9  # of work_of_step: digits 0.2, MNIST 9, CIFAR-10 12 of them


def wait_briefly() -> None:
    """Let OpenMP's threads wait actively for a moment only, where the user says nothing of it; before torch is loaded.

    A thread that waits so keeps a core from the one it waits for, where other processes have the other cores.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def set_threads(
    network: dict, batch_size: int, checkpoint: dict | None, from_first: Callable = lambda make: make()
) -> None:
    """Let torch work with as many threads as a step of a network in plain values is worth, where nobody gave a number.

    checkpoint: its number is taken over, where it knows one. from_first: gives all ranks the number of the first.
    """
    import torch

    before = checkpoint.get("threads") if checkpoint else None
    number = from_first(lambda: choose_threads(before, work_of_step(network["arguments"], batch_size)))
    if FREE and number != torch.get_num_threads():
        torch.set_num_threads(number)


def choose_threads(before: int | None, work: float) -> int:
    """Return the number of threads for a step of so much work; `before` where there are the cores for it."""
    own = _number_of_torch()
    if not FREE:
        return own
    if before and before <= usable_cores():
        return before
    return max(1, int(min(usable_cores(), own, work / WORK_PER_THREAD)))


def work_of_step(arguments: dict, batch_size: int) -> float:
    """Return weights of the encoder's convolutions times pixels of a batch; inf where that cannot be told."""
    import torch

    from models.encoders import make_encoder

    shape = tuple(arguments["image_shape"])
    with suppress(ValueError, KeyError), torch.device("meta"):  # without memory
        encoder = make_encoder(arguments.get("encoder") or arguments["frozen_encoder"], shape)
        weights = sum(w.numel() for w in encoder.parameters() if w.dim() == 4)
        return weights * math.prod(shape[1:]) * batch_size
    return math.inf


@cache
def _number_of_torch() -> int:
    """Return torch's number before it is changed here: its cores without their second hardware threads."""
    import torch

    return torch.get_num_threads()


@cache
def usable_cores() -> int:
    """Return how many whole cores the affinity and the cgroups of this process leave it, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, cgroup_cores())))


def cgroup_cores(root: Path = Path("/")) -> float:
    """Return the least limit, in cores, of this process's cgroups and those around them; or inf."""
    return min(map(_limit, group_folders("cpu", root)), default=math.inf)


def _limit(folder: Path) -> float:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # the word max means no limit
            quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
            if quota > 0:
                return quota / period
    return math.inf


usable_cores()  # now: OMP_PROC_BIND narrows the affinity when torch is loaded

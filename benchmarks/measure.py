"""Times of alternatives taken in turn, floating-point operations, and peak memory."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


def in_turn(cases: dict[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, float]:
    """Median seconds of a call of each case; every round times all cases, one after the other (A B A B)."""
    for _ in range(2):  # warm-up, twice: a DataLoader's workers, once forked, make their parent's memory copy-on-write
        for case in cases.values():
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            for _ in range(calls):
                case()
            _wait_for_device()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_flops(case: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations of matrix products and of convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        case()
    by_operation = counter.get_flop_counts()["Global"]
    convolutions = sum(count for operation, count in by_operation.items() if "conv" in str(operation))
    return {"product": sum(by_operation.values()) - convolutions, "convolution": convolutions}


def matrix_product(
    n: int = 3072, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], object], int]:
    """Return a large matrix product, whose rate is what arithmetic can reach here, and its operations."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2 * n**3


def convolution(
    channels: int = 256, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], object], int]:
    """Return a large convolution 3x3, whose rate may differ from a product's, and its operations."""
    x, w = torch.randn(64, channels, 32, 32), torch.randn(channels, channels, 3, 3)
    x, w = (each.to(device, dtype, memory_format=torch.channels_last) for each in (x, w))
    return lambda: torch.nn.functional.conv2d(x, w, padding=1), 2 * 9 * 64 * 32 * 32 * channels**2


def memory_of(case: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Bytes that a call's result keeps alive, and the most that were allocated during the call, above what was there.

    By the allocator on CUDA, and by the profiler's record of all allocations on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = case()
        held = torch.cuda.memory_allocated(device) - before
        del result
        return held, torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = case()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return held, peak


@contextlib.contextmanager
def _quiet():
    """Silence the profiler: its library writes lines to the standard error of the process."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

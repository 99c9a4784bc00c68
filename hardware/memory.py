"""Memory of this process: its peak, as the allocator or the operating system counts it, and how glibc reuses it."""

import contextlib
import ctypes
import sys

import torch

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "allocation_failed")  # torch's wordings


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew what peak_memory counts; without Linux's /proc the peak of a CPU is that since the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(device: torch.device) -> dict:
    """Return the peak in bytes since the last reset, and what was counted: CUDA's allocator, or the resident set."""
    if device.type == "cuda":
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
            "peak_memory_kind": "torch.cuda.max_memory_allocated",
        }
    return {"peak_memory_bytes": _peak_resident_set(), "peak_memory_kind": "resident set of the process"}


def _peak_resident_set() -> int | None:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reuse_freed_memory() -> None:
    """Let glibc keep freed activations for the next step instead of returning them to the kernel page by page.

    A training step on a CPU is about a fifth faster so; elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch means that there is no memory left."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY)


def out_of_memory(error: Exception) -> str:
    """Return one line for the user."""
    reason = " ".join(str(error).split())[:150]
    return f"not enough memory ({reason}): lower --batch-size, --num-blocks or --image-size; what was saved is intact"

"""Memory of this process: what it has, its peak and its limit, what tensors would take, and how glibc reuses it."""

import contextlib
import ctypes
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hardware.cgroup import group_folders

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "allocation_failed")  # torch's wordings
MOST_CODE = 400 * 2**20  # of files mapped for libraries, torch's above all


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


def memory_now(device: torch.device) -> int:
    """Return the bytes that this process has on a device; on a CPU without the files that it has mapped, but for code.

    The system takes back the pages of a mapped file where it needs them.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, KeyError), open("/proc/self/status") as file:
        kinds = {
            name: int(text.split()[0]) * 1024
            for name, _, text in (line.partition(":\t") for line in file)
            if name in ("RssAnon", "RssShmem", "RssFile")
        }
        return kinds["RssAnon"] + kinds["RssShmem"] + min(kinds["RssFile"], MOST_CODE)
    return _peak_resident_set() or MOST_CODE


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes that this process may use: of the card, or of the machine, its control group and ulimit.

    None where it is not known.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [*_limits_of_groups()]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ImportError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return min(limits, default=None)


def _limits_of_groups(root: Path = Path("/")) -> list[int]:
    """Return the limits of this process's control groups and of those around them, of version 1 and 2."""
    found = []
    for folder in group_folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                found.append(int((folder / name).read_text()))
    return found


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live, and their largest sum."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def bytes_of(calculate: Callable[[], object]) -> int:
    """Return the most bytes that a calculation has in tensors of its own at a time; on device meta it takes none."""
    with _LiveTensors() as tensors:
        calculate()
    return tensors.peak


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

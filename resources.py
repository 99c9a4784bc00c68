"""Peak memory of this process, as the allocator or the operating system counts it."""

import sys

import torch


def peak_memory(device: torch.device) -> dict:
    """Peak bytes so far, and what was counted: CUDA's allocator, or the resident set of the process on a CPU."""
    if device.type == "cuda":
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
            "peak_memory_kind": "torch.cuda.max_memory_allocated",
        }
    try:
        import resource
    except ImportError:  # not on Windows
        return {"peak_memory_bytes": None, "peak_memory_kind": "not measured"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "peak_memory_kind": "resident set of the process",
    }

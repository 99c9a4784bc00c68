"""Choose the device of a network, make its arithmetic repeatable, compile it."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from errors import UserError, printable


def pick_device(name: str, no_cuda: bool = False, local_rank: int = 0, offload_blocks: bool = False) -> torch.device:
    """Return the device of this process; a CUDA device always has its index, and ranks may have to share one.

    Raises UserError for what is not there and for flags that need CUDA.
    """
    if name == "auto":
        name = "cuda" if not no_cuda and _cuda_is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise UserError("--device mps lacks float64, in which noise levels are calculated: take --device cpu")
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is none: take auto, cpu, cuda or cuda:N")
    if offload_blocks and device.type != "cuda":
        raise UserError("--offload-blocks needs CUDA: on a CPU all blocks are in its memory anyway; leave it out")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    index = local_rank % max(count, 1) if device.index is None else device.index
    if index >= count:
        raise UserError(f"--device {name}: torch finds {count} CUDA devices here; take --device cpu")
    return torch.device("cuda", index)


def _cuda_is_available() -> bool:
    """Tell in one line why torch cannot use a GPU that is there, as with a driver that is too old for it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if told and not available:
        reason = " ".join(str(told[0].message).split("(Triggered")[0].split())[:200]
        print(printable(f"main.py: training on the CPU, since torch cannot use CUDA: {reason}"), file=sys.stderr)
    return available


def bfloat16_wanted(amp: bool | str, device: torch.device) -> bool:
    """Return whether to calculate in bfloat16; amp "auto": where it is faster, and one line says where it is not."""
    if amp != "auto":
        return amp
    faster = is_faster_in_bfloat16(device)
    if not faster:
        print("--amp auto: this machine has no instructions for bfloat16, so it calculates in float32")
    return faster


def is_faster_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16: GPUs from 8.0 on, CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def set_numerics(device: torch.device, deterministic: bool) -> None:
    """Make CUDA give the same bits in every run, or give that up for speed; float32 products stay float32 (no TF32).

    On a CPU there is nothing to set. Call it before anything is on the GPU. An operation without a deterministic
    version runs all the same: here that is the backward pass of max-pooling. Its windows do not overlap, so that no
    order of sums is left open, but in resnet18 on images above 64 pixels and in some of timm's encoders they do.
    """
    if device.type == "cpu":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.filterwarnings("ignore", message=".* does not have a deterministic implementation")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def numerics() -> dict:
    """Return what config.json keeps of set_numerics."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Compile the parts of networks; what their methods do between them stays as it is.

    Raises UserError where there is no compiler for C++, which torch needs on a CPU and for what calls the GPU.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "c++", "cl"))):
        raise UserError("--compile needs a compiler for C++, and there is none: install g++, or leave --compile out")
    for network in networks:
        for part in network.children():
            for each in part if isinstance(part, nn.ModuleList) else [part]:  # a list itself is never called
                each.compile()

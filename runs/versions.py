"""Versions, machine and date of a run, for config.json and results.json."""

import contextlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from hardware.device import numerics
from models.version import __version__


def versions(device: torch.device, ranks: int = 1) -> dict:
    """Return what a result depends on beside its settings."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "noprop": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "ranks": ranks,
        "launch": launch_id(),
        "numerics": numerics(),
    }


def launch_id() -> str | None:
    """Return what the processes of one call of torchrun have in common over its restarts, None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{run} {platform.node()} {os.getppid()}" if run else None


def _commit() -> str | None:
    """Return the commit of the working copy that the program runs from; None where it is none."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    """Return the model's name where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

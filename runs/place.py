"""Where the program was started: closed or odd outputs, variables that are left over, folders that are read-only."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


def prepare_output() -> None:
    """Let printing work where stdout or stderr is closed, or is a notebook's, and where it cannot show a letter."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers, which a file opened later would take
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for the whole run
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is getattr(sys, f"__{name}__"):  # not a notebook's
            setattr(sys, name, Unbroken(getattr(sys, name)))


class Unbroken:
    """A stream that goes on into nothing where its reader has gone: `| head` ends no training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._or_nowhere(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._or_nowhere(self._stream.flush)

    def _or_nowhere(self, call: Callable):
        try:
            return call()
        except BrokenPipeError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            return call()


def find_temporary_folder(run: Path) -> None:
    """Let torch and matplotlib put their temporary files into the run folder where /tmp and the like are read-only."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        run.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(run.resolve())


def several_processes() -> bool:
    """Return whether torchrun started this process among others: RANK and WORLD_SIZE alone may be left over."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if several and not by_torchrun:
        print("main.py: WORLD_SIZE is set, but not by torchrun: one process trains all blocks", file=sys.stderr)
    return several and by_torchrun

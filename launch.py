"""main.py started as a process of its own, so that its time and peak memory are its own, and stopped with us."""

import os
import subprocess
import sys
from pathlib import Path

from flags import make_parser
from options import as_tokens
from stops import Stopped

MAIN = Path(__file__).parent / "main.py"


def run_main(flags: list[str], ranks: int = 1) -> int:
    """Its exit code. ranks: processes of one thread each, to which torchrun deals the blocks of dt."""
    start, environment = [sys.executable, str(MAIN)], None
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        start, environment = [sys.executable, *torchrun, str(MAIN)], {**os.environ, "OMP_NUM_THREADS": "1"}
    process = None
    try:
        # in a session of its own: a Ctrl-C of the terminal reaches it once, from here
        process = subprocess.Popen([*start, *flags], env=environment, start_new_session=True)
        return process.wait()
    except Stopped as stop:
        if process:
            process.terminate()
            process.wait()
            stop.note = "the whole goes on from there with the command that was given here"
            raise


def tokens(flags: dict[str, object]) -> list[str]:
    """Settings as they are typed: {"num_blocks": 3, "augment": True} -> ["--num-blocks=3", "--augment"]."""
    parser = make_parser()
    return [token for name, value in flags.items() for token in as_tokens(parser, name, value)]

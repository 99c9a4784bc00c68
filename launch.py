"""main.py started as a process of its own, so that its time and peak memory are its own, and stopped with us."""

import os
import subprocess
import sys
from pathlib import Path

from options import as_flag

MAIN = Path(__file__).parent / "main.py"


def run_main(flags: list[str], ranks: int = 1) -> int:
    """Its exit code. ranks: processes of one thread each, to which torchrun deals the blocks of dt."""
    start, environment = [sys.executable, str(MAIN)], None
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        start, environment = [sys.executable, *torchrun, str(MAIN)], {**os.environ, "OMP_NUM_THREADS": "1"}
    # in a session of its own: a Ctrl-C of the terminal reaches it once, from here
    with subprocess.Popen([*start, *flags], env=environment, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def tokens(flags: dict[str, object]) -> list[str]:
    """Settings as they are typed: {"num_blocks": 3, "augment": True} -> ["--num-blocks", "3", "--augment"]."""
    return [token for name, value in flags.items() for token in _tokens(name, value)]


def _tokens(name: str, value: object) -> list[str]:
    if value is True:
        return [as_flag(name)]
    if isinstance(value, list) and name != "alpha_bar_clip":
        return [as_flag(name), ",".join(map(str, value))]
    return [as_flag(name), *(map(str, value) if isinstance(value, list) else [str(value)])]

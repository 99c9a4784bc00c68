"""main.py started as a process of its own, so that its time and peak memory are its own, and stopped with us."""

import json
import os
import subprocess
import sys
from pathlib import Path

from command_line import as_flag, show
from errors import UserError, require
from runs.checkpoint import LAST
from runs.files import write_json
from runs.reader import finished_run, read_json
from runs.signals import Stopped
from settings import make_parser, names_where

MAIN = Path(__file__).parent.parent / "main.py"


def run_main(flags: list[str], ranks: int = 1) -> int:
    """Return the exit code of main.py. ranks: processes of one thread each, started by torchrun."""
    start, environment = [sys.executable, str(MAIN)], None
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        torchrun += ["--local-addr", "127.0.0.1"]  # else it asks for this machine's name, which may have no address
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


def same_flags(path: Path, flags: dict[str, object]) -> None:
    """Keep the flags of several runs that belong together. Raises UserError where others, or a run, are kept there."""
    if (path.parent / "config.json").exists():
        raise UserError(f"{path.parent} holds a single run: name another --checkpoint-dir")
    now = json.loads(json.dumps(flags))
    before = read_json(path, "delete it", _check_flags)
    before = now if before is None else before
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            old, new = (
                f"{as_flag(name)} {show(x[name])}" if name in x else f"no {as_flag(name)}" for x in (before, now)
            )
            raise UserError(f"{path.parent} holds runs with {old}, this one has {new}: name another --checkpoint-dir")
    write_json(path, flags)


def _check_flags(flags: dict) -> None:
    require(type(flags) is dict and flags.keys() <= make_parser().defaults.keys(), "it holds no flags")


def finish(name: str, folder: Path, flags: dict[str, object]) -> None:
    """Train in a folder to the end, unless that is done, and tell which run it is.

    A run that goes on is given those of the flags that its checkpoint does not hold.
    """
    free = names_where(lambda about: about["of_call"] and "resume" in about["may_change"])
    if finished_run(folder):
        print(f"{name}: done already in {folder}", flush=True)
    else:
        print(f"\n{name}:", flush=True)
        start_or_continue(name, folder, flags, {key: value for key, value in flags.items() if key in free})


def start_or_continue(name: str, folder: Path, flags: dict[str, object], flags_to_go_on: dict, ranks: int = 1) -> None:
    """Train in a folder, from its last.pt where there is one. Raises UserError where main.py fails, having told why."""
    last = folder / LAST
    own = {**flags_to_go_on, "checkpoint": str(last)} if last.exists() else flags
    code = run_main([*tokens(own), "--checkpoint-dir", str(folder)], ranks)
    if code:
        way_on = "see above" if code == 2 else "the same command goes on from there"
        raise UserError(f"{name} ended with code {code}; {way_on}")


def tokens(flags: dict[str, object]) -> list[str]:
    """Return settings as they are typed: {"num_blocks": 3, "augment": True} -> ["--num-blocks", "3", "--augment"]."""
    parser = make_parser()
    return [token for name, value in flags.items() for token in parser.words(name, value)]

"""make soak: main.py as a process, killed by SIGKILL at random instants and continued each time, again and again.

    python tests/runs/soak.py --kills 100 --seed 0

Kills fall on training, saving, evaluating and drawing, at a random instant within each. After a kill every file of the
run must load; a run that comes to its end must equal the one that was never interrupted, to the bit. Then every single
write of a save is made to fail.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults import check_failing_saves  # noqa: E402
from helpers import differences  # noqa: E402

from runs.checkpoint import load_checkpoint, load_last  # noqa: E402

PHASES = ("training", "saving", "evaluating", "drawing")
EVERY_STEP = ["--save-every-minutes", "0.00001", "--save-every", "1"]  # minutes: after every step
SCENARIOS = {
    "dt": "--num-blocks 2 --epochs 3 --lr-schedule cosine --augment",
    "dt random": "--embedding-type one-hot --num-blocks 2 --epochs 2 --block-order random --eval-runs 30",
    "dt without validation": "--num-blocks 2 --epochs 3 --val-fraction 0 --warmup-epochs 1",
    "ct": "--method ct --epochs 4 --steps 50",
    "backprop": "--method backprop --num-blocks 2 --epochs 3 --lr-schedule plateau --clip-grad-norm 1",
}


class Process:
    """main.py in a folder; its lines as they come."""

    def __init__(self, run: Path, flags: list[str]):
        self.run, self.lines = run, []
        self.results_before = self._results()
        command = [sys.executable, "main.py", *flags, *EVERY_STEP]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def _results(self) -> int:
        path = self.run / "results.json"
        return path.stat().st_mtime_ns if path.exists() else 0

    def said(self, start: str) -> bool:
        return any(line.startswith(start) for line in list(self.lines))

    def reached(self, phase: str) -> bool:
        """Return whether the phase has begun, as far as it shows from outside."""
        if phase == "saving":
            return any(self.run.glob(".*.tmp"))
        if phase == "drawing":
            return self._results() != self.results_before
        if phase == "evaluating":
            lines = [line for line in list(self.lines) if line.startswith("epoch")]
            return bool(lines) and len(set(lines[-1].split()[1].split("/"))) == 1
        return phase == "training" and (self.said("NoProp") or self.said("back-prop"))

    def kill_in(self, phase: str, delay: float) -> bool:
        """SIGKILL `delay` seconds after the phase has begun; False where the process came to its end before."""
        while self.process.poll() is None:
            if self.reached(phase):
                time.sleep(delay)
                break
            time.sleep(0.0002 if phase == "saving" and self.reached("training") else 0.005)
        self.process.kill()
        code = self.process.wait()
        self.reader.join()
        assert code in (0, -9), "\n".join(self.lines)
        return code != 0


def content_of(path: Path) -> object:
    """Return what a file of a run holds, None for pictures and what is not ours; raises where it is damaged."""
    if path.suffix == ".pt":
        return load_checkpoint(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    return None


def check_files(run: Path) -> None:
    """Load whatever is there."""
    if (run / "last.pt").exists():
        assert load_last(run / "last.pt")[1] is None
    for path in run.rglob("*"):
        content_of(path)


def compare_runs(one: Path, two: Path) -> list[str]:
    """Return the differences in any file but pictures; one killed before its first save is in previous-N."""
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "previous-" not in str(path)}
        for run in (one, two)
    ]
    found = [f"only in one: {name}" for name in names[0] ^ names[1]]
    for name in sorted(names[0] & names[1] - {"last_previous.pt"}):  # where that was saved depends on the stops
        found += differences(content_of(one / name), content_of(two / name), name)
    return found


def kill_again_and_again(name: str, folder: Path, kills: int, seed: int) -> Counter:
    """Kill runs of a scenario so often; every run goes on until it is finished. Counts kills by phase, and runs."""
    draw, done = random.Random(f"{seed}/{name}"), Counter()
    flags = ["--dataset", "digits", "--train-size", "600", *SCENARIOS[name].split()]
    whole = Process(folder / "whole", [*flags, "--checkpoint-dir", str(folder / "whole")])
    assert not whole.kill_in("never", 0), "\n".join(whole.lines)
    assert whole.lines[-1].startswith("test accuracy"), "\n".join(whole.lines)
    while done.total() - done["runs"] < kills:
        run, finished = folder / f"run{done['runs']}", False
        while not finished:
            begun = (run / "last.pt").exists()
            where = ["--checkpoint", str(run / "last.pt")] if begun else [*flags, "--checkpoint-dir", str(run)]
            phase = draw.choice(PHASES)
            delay = {"training": 2.0, "saving": 0.01, "evaluating": 0.5, "drawing": 2.0}[phase] * draw.random()
            process = Process(run, where)
            killed = process.kill_in(phase, delay)
            finished = not killed
            if killed:
                done[phase] += 1
                check_files(run)
            else:
                assert process.lines[-1] == whole.lines[-1], "\n".join(process.lines)
        found = compare_runs(folder / "whole", run)
        assert not found, f"{name}, {run}: {found}"
        done["runs"] += 1
        shutil.rmtree(run)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="at least so many in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once (default: the number of cores)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, total = time.monotonic(), Counter()
    each = -(-args.kills // len(SCENARIOS))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        places = [(name, Path(folder) / name.replace(" ", "-"), each, args.seed) for name in SCENARIOS]
        for name, done in zip(SCENARIOS, pool.map(lambda place: kill_again_and_again(*place), places), strict=True):
            phases = ", ".join(f"{done[phase]} in {phase}" for phase in PHASES)
            print(
                f"{name}: killed {phases}; {done['runs']} runs finished, all equal to the uninterrupted one", flush=True
            )
            total += done
    kills = sum(total[phase] for phase in PHASES)
    print(f"{kills} kills, {total['runs']} runs, {time.monotonic() - start:.0f} s: 0 files damaged, 0 differences")
    with tempfile.TemporaryDirectory() as folder:
        print(f"{check_failing_saves(Path(folder), every=1)} writes of a save failed: 0 files damaged")


if __name__ == "__main__":
    main()

"""Everything that a CUDA card has to show, in stages: python benchmarks/gpu.py [STAGE ...] --out gpu.json

Stages: demo, methods, bits, sync, profile, speed, parts, memory; each takes at most nine minutes and needs neither
network nor files. What a stage finds is written to --out before the next one begins; one that fails is noted there.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import in_turn  # noqa: E402
from benchmarks.memory import memory_of_training  # noqa: E402
from benchmarks.setup import BATCH, make_benchmark_trainer  # noqa: E402
from hardware.device import compile_networks  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from train import Trainer  # noqa: E402

LIMIT = 540  # seconds of a stage
DIGITS = ["--dataset", "digits"]
ONE_HOT = ["--embedding-type", "one-hot"]


def main() -> int:
    """Return the exit code: 0 done, 1 a stage failed, 2 no CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="default: gpu.json")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself, where there is no card")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: error: torch finds no CUDA device here", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    report = {"card": card, "torch": torch.__version__, "stages": {}}
    for name in args.stages or STAGES:
        start = time.perf_counter()
        try:
            found = STAGES[name](args.device)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        report["stages"][name] = {**found, "seconds": round(time.perf_counter() - start, 1)}
        beside = args.out.with_name(f".{args.out.name}.tmp")
        beside.write_text(json.dumps(report, indent=1))
        os.replace(beside, args.out)
        print(f"{name}: {json.dumps(report['stages'][name])}", flush=True)
    print_table(report)
    return int(any("error" in found for found in report["stages"].values()))


def run_main(device: str, run: Path, *flags: str) -> dict:
    """Run main.py as a process; returns its last line and seconds."""
    start = time.perf_counter()
    command = [sys.executable, "main.py", *flags, "--device", device, "--checkpoint-dir", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(flags)}: {done.stderr[-1500:]}")
    return {"last_line": done.stdout.splitlines()[-1], "seconds": round(time.perf_counter() - start, 1)}


def demo(device: str) -> dict:
    """Train the demo on the device that --device auto finds."""
    with tempfile.TemporaryDirectory() as folder:
        return run_main("auto" if device == "cuda" else device, Path(folder), *DIGITS)


def methods(device: str) -> dict:
    """Train two epochs of every method."""
    own = {"dt": [], "ct": ["--steps", "50"], "fm": ["--steps", "50"], "backprop": [], "adjoint": ["--steps", "20"]}
    with tempfile.TemporaryDirectory() as folder:
        flags = {name: [*DIGITS, "--method", name, "--epochs", "2", *more] for name, more in own.items()}
        return {name: run_main(device, Path(folder) / name, *each) for name, each in flags.items()}


def bits(device: str) -> dict:
    """Compare a run with itself, with its blocks alone and merged, in sequence, and stopped and continued."""
    flags = [*DIGITS, *ONE_HOT, "--num-blocks", "4", "--epochs", "2", "--save-every", "1"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run, more in {"whole": [], "again": [], "sequence": ["--block-order", "sequential"]}.items():
            run_main(device, folder / run, *flags, *more)
        parts = [folder / str(t) / "last.pt" for t in range(1, 5)]
        for t, part in enumerate(parts, 1):
            run_main(device, part.parent, *flags, "--blocks", str(t))
        merge = [sys.executable, "main.py", "--merge", *map(str, parts), "--checkpoint-dir", str(folder / "merged")]
        subprocess.run(merge, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT)
        first = folder / "whole" / "checkpoint_epoch_1.pt"
        run_main(device, folder / "continued", "--checkpoint", str(first))
        runs = ("whole", "again", "sequence", "merged", "continued")
        states = {run: read_checkpoint(folder / run / "last.pt")["model"] for run in runs}
    return {run: _first_difference(states["whole"], state) for run, state in states.items() if run != "whole"}


def _first_difference(one: dict, two: dict) -> str:
    names = [name for name in one if name.startswith("blocks.")]
    return next((name for name in names if not torch.equal(one[name], two[name])), "equal")


def steps_of(trainer: Trainer) -> Callable[[], None]:
    """Return a function that takes a step: of the next block alone, or of the whole network."""
    batch = trainer.batches.batch(torch.arange(BATCH, device=trainer.streams.device), 1, 0)
    rows, turn = trainer.updates.rows, iter(range(10**9))
    return lambda: trainer.updates.step([1 + next(turn) % rows], batch) and None


def sync(device: str) -> dict:
    """Take steps that may not wait for the device."""
    found = {}
    for method in ("dt", "ct"):
        step = steps_of(make_benchmark_trainer(BATCH, "--method", method, *ONE_HOT, device=device))
        step()  # the first one makes what is kept
        with _no_synchronisation(device):
            for _ in range(20):
                step()
        found[method] = "no synchronisation"
    return found


@contextlib.contextmanager
def _no_synchronisation(device: str):
    """Make what waits for the card an error."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def profiled(device: str) -> dict:
    """Count the kernels of 20 block steps, and the share of the time that the card is busy."""
    found = {}
    for name, flags in {"fp32": [], "bf16": ["--amp"]}.items():
        step = steps_of(make_benchmark_trainer(BATCH, *ONE_HOT, *flags, device=device))
        step()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            start = time.perf_counter()
            for _ in range(20):
                step()
            _wait(device)
            seconds = time.perf_counter() - start
        kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.device_time for event in kernels) / 1e6
        longest = sorted(kernels, key=lambda event: -event.device_time)[:5]
        found[name] = {"kernels_a_step": len(kernels) / 20, "busy": round(busy / seconds, 3), "ms": 50 * seconds}
        found[name]["longest"] = [event.name[:80] for event in longest]
    return found


def speed(device: str) -> dict:
    """Time a block step, eager and compiled, in fp32 and bf16."""
    cases = {}
    for precision, flags in {"fp32": [], "bf16": ["--amp"]}.items():
        for way in ("eager", "compiled"):
            trainer = make_benchmark_trainer(BATCH, *ONE_HOT, "--num-blocks", "2", *flags, device=device)
            if way == "compiled":
                compile_networks(trainer.model.networks.values())
            cases[f"{precision} {way}"] = steps_of(trainer)
    seconds = in_turn(cases, rounds=5, calls=10)
    return {n: {"ms": round(1e3 * s, 3), "images_per_second": round(BATCH / s)} for n, s in seconds.items()}


def parts(device: str) -> dict:
    """Time three blocks in one process, and in three processes at once."""
    flags = [*DIGITS, *ONE_HOT, "--num-blocks", "3", "--epochs", "5", "--batch-size", "128"]
    with tempfile.TemporaryDirectory() as name:
        one = run_main(device, Path(name) / "one", *flags)["seconds"]
        start = time.perf_counter()
        command = [sys.executable, "main.py", *flags, "--device", device, "--blocks"]
        places = {t: str(Path(name) / str(t)) for t in range(1, 4)}
        running = [subprocess.Popen([*command, str(t), "--checkpoint-dir", p], cwd=ROOT) for t, p in places.items()]
        codes = [process.wait(LIMIT) for process in running]
        return {"one_process": one, "three_processes": round(time.perf_counter() - start, 1), "exit_codes": codes}


def memory(device: str) -> dict:
    """Measure a training step of T = 10 blocks alone, and of back-propagation through them."""
    sizes = {}
    for method in ("dt", "backprop"):
        trainer = make_benchmark_trainer(BATCH, "--method", method, *ONE_HOT, device=device)
        sizes[method] = memory_of_training(trainer)
    return sizes


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def print_table(report: dict) -> None:
    """Print the stages as a table in Markdown that names the card."""
    print(f"\n| {report['card']}, torch {report['torch']} | |\n| --- | --- |")
    for name, found in report["stages"].items():
        for key, value in found.items():
            print(f"| {name} {key} | {json.dumps(value)[:300]} |")


STAGES = {"demo": demo, "methods": methods, "bits": bits, "sync": sync, "profile": profiled}
STAGES |= {"speed": speed, "parts": parts, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())

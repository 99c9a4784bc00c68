"""Show what the program does on one CUDA card, in stages: python benchmarks/gpu.py [STAGE ...] --out gpu.json

A stage takes at most nine minutes and needs neither network nor files. What it finds is written to --out before the
next one begins; one that fails is noted there, and the others go on. With --device cpu --quick the script itself can be
tried where there is no card.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import in_turn  # noqa: E402
from benchmarks.memory import memory_of_training  # noqa: E402
from benchmarks.setup import BATCH, SHAPE, make_benchmark_trainer  # noqa: E402
from hardware.device import compile_networks  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from train import Trainer  # noqa: E402

LIMIT = 540  # seconds of a stage
STEPS = 20
ONE_HOT = ["--embedding-type", "one-hot"]
PRECISIONS = {"fp32": [], "bf16": ["--amp"]}
ON_CUDA_ONLY = ("sync", "profile")


class Options(NamedTuple):
    """Hold how all stages are run: on a device, and whether with tiny sizes."""

    device: str
    quick: bool

    @property
    def digits(self) -> list[str]:
        """Return the flags of main.py for the digits."""
        return ["--dataset", "digits", *["--train-size", "200"] * self.quick]

    def trainer(self, *flags: str) -> Trainer:
        """Return a trainer on random images, a batch of them."""
        count, shape = (16, (8, 8, 3)) if self.quick else (BATCH, SHAPE)
        return make_benchmark_trainer(count, *flags, device=self.device, shape=shape)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a stage failed, 2 no CUDA device or bad flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="PATH", help="default: gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: all but sync and profile")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    args = parser.parse_args(argv)
    on_cuda = args.device == "cuda"
    known = [name for name in STAGES if on_cuda or name not in ON_CUDA_ONLY]
    if unknown := [name for name in args.stages if name not in known]:
        parser.error(f"no stage of --device {args.device}: {', '.join(unknown)}; there are {', '.join(known)}")
    if on_cuda and not torch.cuda.is_available():
        print("gpu.py: error: torch finds no CUDA device here", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if on_cuda else f"CPU {platform.processor()}".strip()
    report = {"card": card, "torch": torch.__version__, "cuda": torch.version.cuda, "quick": args.quick, "stages": {}}
    save(args.out, report)
    for name in args.stages or known:
        report["stages"][name] = result = run_stage(STAGES[name], Options(args.device, args.quick))
        save(args.out, report)
        print(f"{name}: {result.get('error', 'done')} ({result['seconds']} s)", flush=True)
    print_table(report)
    return int(any("error" in result for result in report["stages"].values()))


def run_stage(stage: Callable[[Options, dict], None], options: Options) -> dict:
    """Return what a stage finds, also where it fails in the midst, and its seconds."""
    found: dict = {}
    result, start = {"found": found}, time.perf_counter()
    try:
        with deadline():
            stage(options, found)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:2000]
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


@contextlib.contextmanager
def deadline():
    """Raise TimeoutError inside where it takes longer than a stage may."""

    def late(*_):
        raise TimeoutError(f"the stage took longer than {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def save(path: Path, report: dict) -> None:
    """Write the report whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(report, indent=1))
    os.replace(beside, path)


def run_together(calls: dict[Path, list[str]]) -> dict:
    """Run main.py once for each folder, all at once; returns the last line of the last, and the seconds of all."""
    start, running = time.perf_counter(), []
    try:
        for run, flags in calls.items():
            command, pipe = [sys.executable, "main.py", *flags, "--checkpoint-dir", str(run)], subprocess.PIPE
            running.append(subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe))
        for process in running:
            out, err = process.communicate()
            if process.returncode:
                raise RuntimeError(f"{' '.join(process.args[1:])}: exit code {process.returncode}: {err[-1200:]}")
    finally:
        for process in running:
            process.kill()
            process.wait()
    return {"last_line": out.splitlines()[-1], "seconds": round(time.perf_counter() - start, 1)}


def demo(options: Options, found: dict) -> None:
    """Train the demo on the device that --device auto finds."""
    device = "auto" if options.device == "cuda" else options.device
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        found[device] = run_together({run: [*options.digits, "--device", device]})
        found["device"] = json.loads((run / "config.json").read_text())["versions"]["device"]


def methods(options: Options, found: dict) -> None:
    """Train two epochs of every method."""
    steps = ["--steps", "2" if options.quick else "20"]
    own = {"dt": [], "ct": steps, "fm": steps, "backprop": [], "adjoint": steps}
    with tempfile.TemporaryDirectory() as name:
        for method, more in own.items():
            flags = [*options.digits, "--method", method, "--epochs", "2", *more, "--device", options.device]
            found[method] = run_together({Path(name) / method: flags})


def bits(options: Options, found: dict) -> None:
    """Compare the blocks of a run with those of a second one, in sequence, alone and merged, and continued."""
    flags = [*options.digits, *ONE_HOT, "--num-blocks", "4", "--device", options.device]
    two = [*flags, "--epochs", "2"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = {t: folder / f"block{t}" for t in range(1, 5)}
        for run, order in {"whole": "interleaved", "again": "interleaved", "sequential": "sequential"}.items():
            run_together({folder / run: [*two, "--block-order", order]})
        for t, run in alone.items():
            run_together({run: [*two, "--blocks", str(t)]})
        run_together({folder / "merged": ["--merge", *(str(run / "last.pt") for run in alone.values())]})
        run_together({folder / "continued": [*flags, "--epochs", "1", "--save-every", "1"]})
        last = ["--checkpoint", str(folder / "continued" / "last.pt"), "--device", options.device]
        run_together({folder / "continued": [*last, "--epochs", "2"]})
        whole = read_checkpoint(folder / "whole" / "last.pt")["model"]
        for run in ("again", "sequential", "merged", "continued"):
            found[run] = same_blocks(whole, read_checkpoint(folder / run / "last.pt")["model"])
        for t, run in alone.items():
            found[f"block {t} alone"] = same_blocks(whole, read_checkpoint(run / "last.pt")["model"], f"{t - 1}.")


def same_blocks(one: dict, two: dict, which: str = "") -> bool | str:
    """Return True, or the first name of a weight that differs; which: a block's number from 0 and a dot, or all."""
    names = [name for name in one if name.startswith(f"blocks.{which}")]
    if not names:
        raise RuntimeError(f"the checkpoint has no weights blocks.{which}")
    return next((name for name in names if name not in two or not torch.equal(one[name], two[name])), True)


def sync(options: Options, found: dict) -> None:
    """Take training steps in which waiting for the card is an error."""
    for method in ("dt", "ct"):
        trainer = options.trainer("--method", method, *ONE_HOT)
        order = trainer.streams.get("order", device="cpu")
        indices, (_, blocks) = trainer.batches.indices(order)[0], trainer.updates.steps(order)[0]
        trainer.updates.step(blocks, trainer.batches.batch(indices, 1, 0))  # the first one makes what is kept
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(STEPS):
                trainer.updates.step(blocks, trainer.batches.batch(indices, 1, number))
            found[method] = "no synchronisation"
        except RuntimeError as error:
            found[method] = str(error)[:1000]
        finally:
            torch.cuda.set_sync_debug_mode("default")


def block_steps(trainer: Trainer) -> Callable[[], None]:
    """Return a function that updates the next block, with the step of theta_out, on the first batch."""
    batch = trainer.batches.batch(torch.arange(len(trainer.batches.split), device=trainer.streams.device), 1, 0)
    turn = itertools.cycle(trainer.updates.parts)
    return lambda: trainer.updates.step([next(turn)], batch) and None


def profile(options: Options, found: dict) -> None:
    """Count the kernels of block steps, and time them: their share of the time that steps take unwatched."""
    for name, flags in PRECISIONS.items():
        step = block_steps(options.trainer(*ONE_HOT, *flags))
        seconds = in_turn({"step": step}, rounds=5, calls=STEPS)["step"]
        with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
        times: dict[str, list[float]] = defaultdict(list)
        for event in watched.events():  # ranges of record_function, as of an optimizer's step, are no kernels
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                times[event.name].append(event.time_range.elapsed_us())
        if not times:
            raise RuntimeError("the profiler has seen no kernel")
        copies = sum(len(each) for kernel, each in times.items() if kernel.startswith(("Memcpy", "Memset")))
        busy = sum(map(sum, times.values())) / STEPS / 1e6  # seconds of a step
        found[name] = {
            "kernels_a_step": (sum(map(len, times.values())) - copies) / STEPS,
            "copies_a_step": copies / STEPS,
            "ms_a_step": round(1e3 * seconds, 3),
            "busy_ms_a_step": round(1e3 * busy, 3),
            "busy_share": round(busy / seconds, 3),
        }
        found[f"{name} longest"] = [
            {"us_a_step": round(sum(each) / STEPS, 1), "calls_a_step": len(each) / STEPS, "kernel": kernel[:200]}
            for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:10]
        ]


def speed(options: Options, found: dict) -> None:
    """Time three blocks in one process and in three at once, then a block step, eager and compiled."""
    found |= one_process_and_three(options)
    rounds, calls = (1, 2) if options.quick else (5, STEPS)
    steps: dict[str, Callable[[], None]] = {}
    for way in ("eager", "compiled"):
        for precision, flags in PRECISIONS.items():
            trainer = options.trainer(*ONE_HOT, "--num-blocks", "2", *flags)  # in_turn warms up with two steps
            if way == "compiled":
                compile_networks(trainer.model.networks.values())
            steps[f"{precision} {way}"] = block_steps(trainer)
        images = len(trainer.batches.split)
        for name, seconds in in_turn(steps, rounds, calls).items():  # the eager ones again, beside the compiled
            found[name] = {"ms_a_step": round(1e3 * seconds, 3), "images_per_second": round(images / seconds)}


def one_process_and_three(options: Options) -> dict:
    """Return seconds of whole processes, and of their trainings alone: the slowest of those at once."""
    flags = [*options.digits, *ONE_HOT, "--num-blocks", "3", "--epochs", "1" if options.quick else "5"]
    flags, found = [*flags, "--batch-size", "128", "--device", options.device], {}
    with tempfile.TemporaryDirectory() as name:
        one = {Path(name) / "one": flags}
        three = {Path(name) / str(t): [*flags, "--blocks", str(t)] for t in range(1, 4)}
        for title, calls in {"one process": one, "three processes": three}.items():
            seconds = run_together(calls)["seconds"]
            trained = [read_checkpoint(run / "last.pt")["train_seconds"] for run in calls]
            found[title] = {"seconds": seconds, "train_seconds": round(max(trained), 2)}
    return found


def memory(options: Options, found: dict) -> None:
    """Measure the bytes of a training step of T = 10 blocks, each alone, and of back-propagation through them."""
    for method in ("dt", "backprop"):
        found[method] = memory_of_training(options.trainer("--method", method, *ONE_HOT, "--num-blocks", "10"))
    found["peak of backprop / peak of dt"] = round(found["backprop"]["peak"] / found["dt"]["peak"], 2)


def print_table(report: dict) -> None:
    """Print what was found as a table in Markdown whose title names the card."""
    print(f"\n## {report['card']}, torch {report['torch']}\n\n| stage | what | found |\n| --- | --- | --- |")
    for stage, result in report["stages"].items():
        for what, value in {**result["found"], **{k: result[k] for k in result if k != "found"}}.items():
            print(f"| {stage} | {what} | {in_words(value)[:1500]} |")


def in_words(value: object) -> str:
    """Return a value as a cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(inner)[:60]}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(map(in_words, value))
    return " ".join(str(value).split()).replace("|", "\\|")


STAGES = {"demo": demo, "methods": methods, "bits": bits, "sync": sync}
STAGES |= {"profile": profile, "speed": speed, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())

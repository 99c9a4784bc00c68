"""What a run says of itself: the opening lines, the accuracies at the end, results.json, the versions."""

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import torch

from checkpoint import __version__, write_json
from data import DataInfo, Split
from devices import numerics
from distributed import Ranks
from epochs import RunningEpoch
from evaluate import Evaluation, Evaluator
from models.classifier import Classifier
from parts import format_blocks
from readout import READOUTS
from resources import peak_memory, reset_peak_memory

TITLES = {
    "dt": "NoProp-DT",
    "ct": "NoProp-CT",
    "fm": "NoProp-FM",
    "backprop": "back-propagation",
    "adjoint": "neural ODE (adjoint)",
}


def describe_run(args: Namespace, info: DataInfo, model: Classifier, sizes: dict[str, int], ranks: Ranks) -> str:
    """Two lines; sizes: the numbers of images by part."""
    spread = f"{ranks.size} ranks of " if ranks.size > 1 else ""
    shape = "x".join(map(str, info.image_shape))
    images = ", ".join(f"{size} {part}" for part, size in sizes.items())
    return (
        f"{args.dataset}: {images} images {shape}, {len(info.classes)} classes\n"
        f"{_describe_model(args, model)}, on {spread}{model.W_embed.device} (threads: {torch.get_num_threads()})"
    )


def _describe_model(args: Namespace, model: Classifier) -> str:
    frozen = f" of {args.embedding_from}, frozen" if args.embedding_from else ""
    embedding = f"{args.embedding_type} embedding of d = {model.embedding_dim}{frozen}"
    size, own = f"a network of {count_parameters(model) / 1e6:.2f} M parameters", ""
    if args.num_blocks is not None:
        blocks = f"{args.num_blocks} blocks"
        if args.blocks:
            blocks = f"{len(args.blocks)} of {blocks} ({format_blocks(args.blocks)})"
        size = f"{blocks} of {parameters_per_block(model) / 1e6:.2f} M parameters"
    if args.method == "dt":
        own = f", {args.schedule} noise schedule, {args.block_order} order"
    warmup = f" after warm-up of {args.warmup_epochs}" if args.warmup_epochs else ""
    return f"{TITLES[args.method]}: {size}, {embedding}{own}, lr {args.lr:g} {args.lr_schedule}{warmup}"


def go_on(last: Path, ranks: int = 1) -> str:
    """The command that continues a run, from the folder in which this one was started."""
    found = shutil.which("python")
    python = "python" if found and os.path.abspath(found) == sys.executable else sys.executable
    script = sys.argv[0] if Path(sys.argv[0]).name == "main.py" else "main.py"
    again = " (or with torchrun, as before)" if ranks > 1 else ""
    return shlex.join([python, script, "--checkpoint", str(last)]) + again


def describe_progress(history: list[dict], running: RunningEpoch | None) -> str:
    """What last.pt holds."""
    parts = [f"epoch {len(history)}"] if history else []
    if running:
        parts.append(f"{running.done} steps of epoch {len(history) + 1}")
    return " and ".join(parts) + (" are saved" if running else " is saved")


def test_model(evaluator: Evaluator, test: Split, run: Path, trained: dict) -> Evaluation:
    """Evaluate on the test images; writes results.json and the material of the pictures.

    trained: epoch, val_accuracy and train_seconds of the model's weights.
    """
    ranks, args = evaluator.ranks, evaluator.args
    test = test.to(evaluator.streams.device)
    by_way = []
    reset_peak_memory(evaluator.streams.device)
    for way in evaluator.ways:
        start = time.perf_counter()
        result = evaluator.evaluate(test, "inference", way)
        mean, sem = result.accuracy()
        seconds = time.perf_counter() - start
        by_way.append({**_settings_of(way), "accuracy_mean": mean, "accuracy_sem": sem, "seconds": seconds})
    seconds = {"training": trained["train_seconds"], "evaluation": seconds}
    evaluator.write_examples(run, result, test, "test", trained["epoch"])
    kept = ("epoch", "val_accuracy", "train_accuracy_mean", "train_accuracy_sem")
    trained = {name: trained.get(name) for name in kept} | {"seconds": seconds}
    if ranks.first:
        extra = {"test_images": len(test), "by_inference": by_way, "ranks": ranks.size}
        extra["all_reduced_bytes"] = ranks.bytes_reduced  # by each rank since it started
        write_json(run / "results.json", results_of(args, evaluator.model, result) | trained | extra)
        if len(by_way) > 1:
            for row in by_way:
                accuracy = f"{row['accuracy_mean']:.2f} +- {row['accuracy_sem']:.2f} %"
                print(f"{describe_way(row)}: {accuracy}, {row['seconds']:.1f} s")
    return result


def _settings_of(way: dict) -> dict:
    return {name: value for name, value in way.items() if name != "relay" and not (name == "steps" and adaptive(way))}


def adaptive(way: dict) -> bool:
    """Whether the solver chooses its own steps."""
    return way.get("solver") == "dopri5"


def describe_way(way: dict) -> str:
    """A way of inference in words: 'ode euler, 50 steps'."""
    names = [way[name] for name in ("sampler", "solver") if name in way]
    return ", ".join([" ".join(names), *([f"{way['steps']} steps"] if "steps" in way else [])]).strip(", ")


def results_of(args: Namespace, model: Classifier, result: Evaluation) -> dict:
    """The part of results.json that follows from the model and its evaluation."""
    mean, sem = result.accuracy()
    by_readout = {name: dict(zip(("mean", "sem"), result.accuracy(name), strict=True)) for name in READOUTS}
    device = model.W_embed.device
    return {
        "method": args.method,
        "dataset": args.dataset,
        "seed": args.seed,
        "test_accuracy_mean": mean,
        "test_accuracy_sem": sem,
        "readout": args.readout,
        "inference": args.inference,
        "accuracy_by_readout": by_readout,
        "per_run": result.per_run,
        "accuracy_by_runs": result.by_runs,
        "calibration": {
            name: {"nll": part.nll, "ece": part.ece, "bins": part.bins.tolist()}
            for name, part in result.calibration.items()
        },
        "per_step_times": result.times,
        "per_step_accuracy": result.per_step_accuracy,
        "per_step_accuracy_u_hat": result.per_step_u_hat,
        **parameters_of(args, model),
        **peak_memory(device),
        "versions": versions(device),
    }


def print_accuracies(args: Namespace, result: Evaluation) -> None:
    """Accuracy by step if asked for, by readout, and the last line of the program."""
    if args.steps_report:
        _print_steps(args, result)
    for name in READOUTS:
        mean, sem = result.accuracy(name)
        print(f"readout {name + ':':7} {mean:.2f} +- {sem:.2f} %")
    print(last_line(*result.accuracy(), len(result.per_run)))


def last_line(mean: float, sem: float, runs: int) -> str:
    """The last line of a training or evaluation."""
    return f"test accuracy: {mean:.2f} +- {sem:.2f} % ({runs} runs)"


def _print_steps(args: Namespace, result: Evaluation) -> None:
    where = "after block" if args.num_blocks else "at time"
    print(f"{where:11}   class of z_t" + ("   class of the block's u_hat" if result.per_step_u_hat else ""))
    for step, (t, accuracy) in enumerate(zip(result.times, result.per_step_accuracy, strict=True)):
        u_hat = f"   {result.per_step_u_hat[step]:10.2f} %" if result.per_step_u_hat else ""
        print(f"{t:11{'d' if args.num_blocks else '.3f'}}   {accuracy:10.2f} %{u_hat}")


def parameters_of(args: Namespace, model: Classifier) -> dict:
    """Of the whole model, of which this process may hold some blocks only."""
    parameters = count_parameters(model)
    if args.num_blocks is None:
        return {"parameters": parameters}
    per_block = parameters_per_block(model)
    elsewhere = args.num_blocks - len(model.networks)
    return {"parameters": parameters + per_block * elsewhere, "parameters_per_block": per_block}


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def parameters_per_block(model: Classifier) -> int:
    return count_parameters(next(iter(model.networks.values())))


def versions(device: torch.device, ranks: int = 1) -> dict:
    """Versions, hardware and date, for config.json and results.json."""
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
        "numerics": numerics(),
    }


def _commit() -> str | None:
    """Of the working copy that the program runs from; None where it is none."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    """The model's name where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def markdown_table(columns: Iterable[str], rows: list[list[str]]) -> str:
    head = list(columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))

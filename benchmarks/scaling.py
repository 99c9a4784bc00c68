"""Seconds and bytes per step of blocks dealt out to ranks, beside DistributedDataParallel back-propagation.

    python benchmarks/scaling.py                 # 1, 2 and 4 ranks on this machine, a few minutes

A step is one batch through all T blocks. A rank of NoProp takes the whole batch through its own blocks, a rank of
DistributedDataParallel its share of the batch through all of them, so both do the same work. Every case is a torchrun
of its own; the cases take turns, and medians over the rounds are shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.setup import BATCH, SHAPE, make_benchmark_trainer, train_epoch  # noqa: E402
from hardware.memory import reuse_freed_memory  # noqa: E402
from optimizers.whole_update import LossOf  # noqa: E402
from parallel.ranks import Ranks  # noqa: E402
from runs.process import OneProcess  # noqa: E402
from train import Trainer  # noqa: E402

METHODS = {
    "one-hot": "NoProp, fixed embeddings",
    "learned": "NoProp, learned embeddings",
    "ddp": "back-propagation, DistributedDataParallel",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-blocks", type=int, default=4, metavar="T", help="blocks (default: 4)")
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="steps of a measurement (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of a case (default: 3)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        measure(args)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    layouts = [(1, 1), (1, cores), (2, max(1, cores // 2)), (4, max(1, cores // 4))]  # ranks, threads of each
    cases = [(method, *layout) for method in METHODS for layout in dict.fromkeys(layouts)]
    rounds: dict[tuple, list[dict]] = {case: [] for case in cases}
    for number in range(args.rounds):
        for case in cases:
            print(f"round {number + 1} of {args.rounds}: {case}", file=sys.stderr)
            rounds[case].append(launch(args, *case))
    rows = [summary(case, results) for case, results in rounds.items()]
    report = {
        "torch": torch.__version__,
        "cores": cores,
        "num_blocks": args.num_blocks,
        "batch": BATCH,
        "image": "x".join(map(str, SHAPE)),
        "rounds": args.rounds,
        "rows": rows,
    }
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def launch(args: argparse.Namespace, method: str, ranks: int, threads: int) -> dict:
    """One measurement in processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    command += [f"--worker={method}", f"--num-blocks={args.num_blocks}", f"--steps={args.steps}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> None:
    """In a process of torchrun: time some steps between two barriers; rank 0 prints a line of JSON."""
    reuse_freed_memory()
    ranks = Ranks.from_environment()
    ranks.connect()
    run = ddp_epoch(args, ranks) if args.worker == "ddp" else noprop_epoch(args, ranks)
    payload = run()  # warm-up
    ranks.wait()
    seconds, wire = time.perf_counter(), loopback_bytes()
    payload = run() - payload
    ranks.wait()
    seconds, wire = time.perf_counter() - seconds, loopback_bytes() - wire
    per_step = {"seconds": seconds, "payload_bytes": payload, "loopback_bytes": wire}
    result = {name: value / args.steps for name, value in per_step.items()}
    if ranks.first:
        print(json.dumps(result))
    ranks.close()


def noprop_epoch(args: argparse.Namespace, ranks: OneProcess) -> Callable[[], int]:
    """Return a function that trains for one epoch of args.steps batches and returns the bytes all-reduced so far."""
    trainer = trainer_of(args, args.worker, ranks)

    def epoch() -> int:
        trainer.epoch += 1
        train_epoch(trainer)
        return ranks.bytes_reduced

    return epoch


def ddp_epoch(args: argparse.Namespace, ranks: OneProcess) -> Callable[[], int]:
    """Return the same with plain DistributedDataParallel, where a rank draws for its own images only."""
    flags = ["--method", "backprop", "--num-blocks", str(args.num_blocks)]
    trainer = make_benchmark_trainer(args.steps * BATCH, *flags)  # all blocks, in every rank
    model = trainer.model
    network = LossOf(model)
    if ranks.size > 1:
        network = ranks.average_gradients(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.001, fused=True)
    share = slice(ranks.rank, None, ranks.size)

    def epoch() -> int:
        for i in range(args.steps):
            batch = trainer.batches.batch(torch.arange(i * BATCH, (i + 1) * BATCH)[share], 0, i)
            sum(network(batch.x, batch.y)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return ranks.bytes_reduced

    return epoch


def trainer_of(args: argparse.Namespace, embedding: str, ranks: OneProcess | None = None) -> Trainer:
    flags = ["--embedding-type", embedding, "--num-blocks", str(args.num_blocks)]
    return make_benchmark_trainer(args.steps * BATCH, *flags, processes=ranks)


def loopback_bytes() -> int:
    """Return the bytes that the loopback interface of this machine has carried; 0 where the system does not say."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def summary(case: tuple, results: list[dict]) -> dict:
    method, ranks, threads = case
    medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
    seconds = [result["seconds"] for result in results]
    spread = {"seconds_min": min(seconds), "seconds_max": max(seconds)}
    return {"method": method, "ranks": ranks, "threads": threads, **medians, **spread}


def print_report(report: dict) -> None:
    print(
        f"\nT = {report['num_blocks']} blocks, batch {report['batch']}, {report['image']}, torch {report['torch']}, "
        f"{report['cores']} cores, medians of {report['rounds']} rounds (smallest to largest)\n"
    )
    print("| method | ranks x threads | seconds per step | payload bytes per step | bytes on the loopback per step |")
    print("| --- | --- | --- | --- | --- |")
    for row in report["rows"]:
        seconds = f"{row['seconds']:.3f} ({row['seconds_min']:.3f} to {row['seconds_max']:.3f})"
        sizes = f"{row['payload_bytes']:,.0f} | {row['loopback_bytes']:,.0f}"
        print(f"| {METHODS[row['method']]} | {row['ranks']} x {row['threads']} | {seconds} | {sizes} |")
    cores = report["cores"]
    by_case = {(row["method"], row["ranks"], row["threads"]): row["seconds"] for row in report["rows"]}
    for method in METHODS:
        ratio = by_case[method, 1, cores] / by_case[method, 2, max(1, cores // 2)]
        print(f"\n{METHODS[method]}: 2 ranks are {ratio:.2f} times as fast as one process with {cores} threads")


if __name__ == "__main__":
    main()

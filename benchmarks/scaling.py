"""Seconds and bytes per step of blocks dealt out to ranks, beside DistributedDataParallel back-propagation.

    python benchmarks/scaling.py                 # 1, 2 and 4 ranks on this machine, a few minutes
    python benchmarks/scaling.py --figure docs/scaling.png

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
from torch import distributed

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.setup import BATCH, SHAPE, make_trainer, train_epoch  # noqa: E402
from distributed import ALONE, Ranks  # noqa: E402
from resources import reuse_freed_memory  # noqa: E402
from train import Trainer  # noqa: E402

PROJECTED_T = 10
BANDWIDTH, LATENCY = 1.25e9, 50e-6  # of the projection: a 10 Gbit/s network, in bytes/s and seconds per message
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
    parser.add_argument("--figure", type=Path, metavar="PATH", help="draw them there")
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
        "projection": projection(rows, args.num_blocks),
    }
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    if args.figure:
        draw(report, args.figure)


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
    result["replay_seconds"] = replay_seconds(args) if args.worker == "one-hot" and ranks.size == 1 else 0.0
    if ranks.first:
        print(json.dumps(result))
    ranks.close()


def replay_seconds(args: argparse.Namespace) -> float:
    """What a block that is trained elsewhere costs per step, where theta_out learns from its replayed noise."""
    trainer = trainer_of(args, "one-hot")
    y, calls = trainer.data.train.labels[:BATCH], 200
    start = time.perf_counter()
    for _ in range(calls):
        trainer.replay_block(1, y)
    return (time.perf_counter() - start) / calls


def noprop_epoch(args: argparse.Namespace, ranks: Ranks) -> Callable[[], int]:
    """A function that trains for one epoch of args.steps batches and returns the bytes all-reduced so far."""
    trainer = trainer_of(args, args.worker, ranks)

    def epoch() -> int:
        trainer.epoch += 1
        train_epoch(trainer)
        return ranks.bytes_reduced

    return epoch


def ddp_epoch(args: argparse.Namespace, ranks: Ranks) -> Callable[[], int]:
    """The same with DistributedDataParallel; the bytes are those of its gradient buckets."""
    flags = ["--method", "backprop", "--num-blocks", str(args.num_blocks)]
    trainer = make_trainer(args.steps * BATCH, *flags)  # all blocks, in every rank
    model = network = trainer.model
    counter = {"bytes": 0}
    if ranks.size > 1:
        network = torch.nn.parallel.DistributedDataParallel(model)
        network.register_comm_hook(counter, _counting_all_reduce)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.001, fused=True)
    share = slice(ranks.rank, None, ranks.size)

    def epoch() -> int:
        for i in range(args.steps):
            x, y = trainer.batch(torch.arange(i * BATCH, (i + 1) * BATCH)[share], i)
            sum(network(x, y)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return counter["bytes"]

    return epoch


def _counting_all_reduce(counter: dict, bucket: distributed.GradBucket):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    counter["bytes"] += bucket.buffer().nbytes
    return allreduce_hook(None, bucket)


def trainer_of(args: argparse.Namespace, embedding: str, ranks: Ranks = ALONE) -> Trainer:
    flags = ["--embedding-type", embedding, "--num-blocks", str(args.num_blocks)]
    return make_trainer(args.steps * BATCH, *flags, ranks=ranks)


def loopback_bytes() -> int:
    """Bytes that the loopback interface of this machine has carried; 0 where the system does not say."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def summary(case: tuple, results: list[dict]) -> dict:
    method, ranks, threads = case
    medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
    seconds = [result["seconds"] for result in results]
    spread = {"seconds_min": min(seconds), "seconds_max": max(seconds)}
    return {"method": method, "ranks": ranks, "threads": threads, **medians, **spread}


def projection(rows: list[dict], T: int) -> list[dict]:
    """Seconds per step of PROJECTED_T blocks on N machines of one thread each. Not measured: made of the measured times
    of one process of one thread, and of the bytes counted.
    """
    alone = {row["method"]: row for row in rows if (row["ranks"], row["threads"]) == (1, 1)}
    payload = {row["method"]: max(r["payload_bytes"] for r in rows if r["method"] == row["method"]) for row in rows}
    payload["ddp"] *= PROJECTED_T / T  # nearly all parameters are those of the blocks
    projected = []
    for ranks in (n for n in range(1, PROJECTED_T + 1) if PROJECTED_T % n == 0):
        line: dict = {"ranks": ranks}
        held = PROJECTED_T // ranks
        for method in METHODS:
            work = alone[method]["seconds"] / T * held + alone[method]["replay_seconds"] * (PROJECTED_T - held)
            messages = 2 * (ranks - 1) if payload[method] else 0  # of a ring all-reduce
            line[method] = work + messages * (payload[method] / ranks / BANDWIDTH + LATENCY)
        projected.append(line)
    return projected


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
    print(
        f"\nPROJECTED, not measured: seconds per step of T = {PROJECTED_T} blocks on N machines of one thread, from the"
    )
    print("times of one process of one thread and the bytes above, over 10 Gbit/s with 50 us per message\n")
    print("| machines |" + "".join(f" {name} |" for name in METHODS.values()))
    print("| --- |" + " --- |" * len(METHODS))
    for line in report["projection"]:
        print(f"| {line['ranks']} |" + "".join(f" {line[method]:.3f} |" for method in METHODS))


def draw(report: dict, path: Path) -> None:
    """Seconds and bytes per step against the number of ranks."""
    from matplotlib.figure import Figure

    cores = report["cores"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    time_axes, byte_axes = figure.subplots(1, 2)
    styles = zip(METHODS, ("#0072B2", "#009E73", "#D55E00"), ("o", "s", "^"), strict=True)
    for i, (method, colour, marker) in enumerate(styles):
        rows = [r for r in report["rows"] if r["method"] == method and (r["ranks"], r["threads"]) != (1, 1)]
        ranks, seconds = [r["ranks"] for r in rows], [r["seconds"] for r in rows]
        time_axes.plot(ranks, seconds, color=colour, marker=marker, label=METHODS[method])
        shared = [r for r in rows if r["ranks"] > 1]
        places = [j + (i - 1) * 0.27 for j in range(len(shared))]
        heights = [r["payload_bytes"] for r in shared]
        byte_axes.bar(places, [max(h, 1) for h in heights], 0.25, color=colour)
        for place, height in zip(places, heights, strict=True):
            byte_axes.annotate(f"{height:,.0f}", (place, max(height, 1)), ha="center", va="bottom", fontsize=8)
    time_axes.set(xlabel=f"ranks (together {cores} threads, 4 ranks: 4)", ylabel="seconds per step", xticks=[1, 2, 4])
    time_axes.set_ylim(bottom=0)
    time_axes.grid(alpha=0.3)
    byte_axes.set(yscale="log", ylabel="bytes to all-reduce per step (log scale)", ylim=(1, 1e10))
    byte_axes.set_xticks(range(2), ["2 ranks", "4 ranks"])
    figure.legend(*time_axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

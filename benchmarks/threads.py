"""Seconds of an epoch alone and beside busy processes, by the number of OpenMP threads and how long they wait actively.

    python benchmarks/threads.py                 # --rounds, --images, --only

Every candidate is a process of its own, since libgomp reads its variables when it is loaded; they take turns. A busy
process multiplies matrices with one thread. Shown are medians over those half of the rounds in which the processes of
others took the least time, and how many cores they took then: where that is not nearly 0, "alone" is not alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.peer import Peer  # noqa: E402
from hardware.threads import OF_THE_USER, set_threads, wait_briefly  # noqa: E402 - before torch

IMAGES = {"digits": (320, (8, 8, 1), 32), "MNIST": (256, (28, 28, 1), 128), "32x32x3": (256, (32, 32, 3), 128)}
SPINS = ("default", "0", "100", "1000", "10000")
CANDIDATES = {"1 thread": {"OMP_NUM_THREADS": "1"}}
CANDIDATES |= {f"2 threads, spin {n}": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": n} for n in SPINS}
CANDIDATES["2 threads, spin default"].pop("GOMP_SPINCOUNT")
CANDIDATES |= {"the program's choice": {}}
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(500, 500)\nwhile True: a @ a"


def epoch_of(candidate: str, count: int, shape: tuple[int, int, int], batch_size: int) -> dict:
    """Return a function that trains an epoch of five blocks, in the process of a candidate."""
    if not CANDIDATES[candidate]:
        wait_briefly()
    from benchmarks.setup import make_benchmark_trainer, reuse_freed_memory, train_epoch
    from rules import parse, settle

    flags = ["--num-blocks", "5", "--batch-size", str(batch_size)]
    set_threads(settle(*parse(flags)).describe_network((shape[2], *shape[:2])), batch_size, None)
    reuse_freed_memory()
    trainer = make_benchmark_trainer(count, *flags, shape=shape)
    return {"epoch": lambda: train_epoch(trainer)}


def start(candidate: str, images: str) -> Peer:
    """Start the process of a candidate with its variables."""
    with patch.dict(os.environ, CANDIDATES[candidate]):
        return Peer(epoch_of, candidate, *IMAGES[images])


def seconds_of_others(pids: list[int]) -> float:
    """Return the seconds that processors have worked for other processes than these."""
    ticks = sum(map(int, Path("/proc/stat").read_text().split()[1:4]))
    for pid in pids:
        ticks -= sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(images: str, rounds: int) -> None:
    """Print the rows of a kind of images."""
    found = {name: [] for name in CANDIDATES}
    with ExitStack() as stack:
        peers = {name: stack.enter_context(start(name, images)) for name in CANDIDATES}
        for peer in peers.values():
            peer["epoch"]()
        pids = [peer.process.pid for peer in peers.values()]
        for busy in range(3):
            if busy:
                process = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
                stack.callback(process.kill)
                pids.append(process.pid)
                time.sleep(5)
            timed = {name: [] for name in CANDIDATES}
            for _ in range(rounds):
                for name, peer in peers.items():
                    others, begin = seconds_of_others(pids), time.perf_counter()
                    peer["epoch"]()
                    seconds = time.perf_counter() - begin
                    timed[name].append(((seconds_of_others(pids) - others) / seconds, seconds))
            for name, values in timed.items():
                calm = sorted(values)[: (rounds + 1) // 2]
                found[name].append([statistics.median(column) for column in zip(*calm, strict=True)])
    for name, ((_, alone), *_) in found.items():
        times = " | ".join(f"{seconds / alone:.1f}" for _, seconds in found[name][1:])
        others = ", ".join(f"{others:.1f}" for others, _ in found[name])
        print(f"| {images} | {name} | {alone:.2f} | {times} | {others} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="CANDIDATE")
    args = parser.parse_args()
    for name in CANDIDATES.keys() - set(args.only):
        del CANDIDATES[name]
    for name in (*OF_THE_USER, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    print("| images | candidate | alone, s | beside one busy, times | beside two | cores of others |")
    print("| --- | --- | --- | --- | --- | --- |")
    for images in args.images:
        measure(images, args.rounds)


if __name__ == "__main__":
    main()

"""Time and memory of the program beside a plain reference and beside the limit of the machine, in one run.

    python benchmarks/run.py                     # all tables, about ten minutes on 2 cores
    python benchmarks/run.py --quick             # fewer rounds and blocks

Images are 32x32x3, batches 128, embeddings one-hot, T = 10 where nothing else is said. Alternatives take turns,
A B A B, and medians are shown. reference.py says what the plain reference is.
"""

import argparse
import json
import math
import os
import platform
import socket
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import convolution, count_flops, in_turn, matrix_product  # noqa: E402
from benchmarks.memory import memory_of_training  # noqa: E402
from benchmarks.peer import Peer, together  # noqa: E402
from benchmarks.reference import plain_cases  # noqa: E402
from benchmarks.setup import BATCH, CLASSES, make_benchmark_trainer, rank_cases, train_epoch  # noqa: E402
from evaluate import EVAL_BATCH  # noqa: E402
from hardware.memory import reuse_freed_memory  # noqa: E402
from models.encoders import ENCODERS  # noqa: E402
from train import Trainer  # noqa: E402

T = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and blocks")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some of the tables")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    reuse_freed_memory()
    report: dict = {"machine": machine(args.device)}
    print("  ".join(f"{name} {value}" for name, value in report["machine"].items()))
    for name in args.only:
        report[name] = SECTIONS[name](args.device, args.quick)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def machine(device: str) -> dict:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def one_hot(num_blocks: int = T, order: str = "interleaved") -> list[str]:
    return ["--embedding-type", "one-hot", "--num-blocks", str(num_blocks), "--block-order", order]


def one_hot_trainer(device: str, num_images: int, num_blocks: int = T, order: str = "interleaved") -> Trainer:
    return make_benchmark_trainer(num_images, *one_hot(num_blocks, order), device=device)


def plain_peer(trainer: Trainer, keeps_memory: bool = False) -> Peer:
    """Start the plain reference on the trainer's images, with its noise schedule; on the CPU whatever the device is."""
    images = trainer.batches.split
    arrays = images.images.cpu().numpy(), images.labels.cpu().numpy()
    return Peer(plain_cases, trainer.model.alpha_bar.tolist(), *arrays, BATCH, CLASSES, keeps_memory)


def block_steps(trainer: Trainer):
    """Return a function that updates the next block, with the step of theta_out, on the first batch."""
    batch = trainer.batches.batch(torch.arange(BATCH, device=trainer.streams.device), 0, 0)
    turn = iter(range(10**9))

    def step() -> None:
        trainer.updates.step([1 + next(turn) % trainer.model.num_blocks], batch)

    return step


def training_step(device: str, quick: bool) -> dict:
    trainer = one_hot_trainer(device, BATCH, 2)
    autocast = make_benchmark_trainer(BATCH, *one_hot(2), "--amp", device=device)
    step = block_steps(trainer)
    large = {"product": matrix_product(device=device), "convolution": convolution(device=device)}
    with plain_peer(trainer) as plain, plain_peer(trainer, keeps_memory=True) as keeping:
        cases = {
            "program": step,
            "amp": block_steps(autocast),
            "plain": plain["step"],
            "plain_keeping": keeping["step"],
        }
        cases |= {name: case for name, (case, _) in large.items()}
        seconds = in_turn(cases, rounds=5 if quick else 20, calls=3)
    flops = count_flops(step)
    total, rates = sum(flops.values()), {name: count / seconds[name] for name, (_, count) in large.items()}
    limit, by_kind = total / rates["product"], sum(flops[name] / rates[name] for name in flops)
    rows = {"program": seconds["program"], "program with --amp": seconds["amp"], "plain reference": seconds["plain"]}
    rows |= {"plain reference that keeps freed memory, as the program": seconds["plain_keeping"]}
    rows |= {"limit": limit, "limit by kind": by_kind}
    print("\n| training step of a block | ms | GFLOP/s |\n| --- | --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {1e3 * value:.1f} | {total / value / 1e9:.0f} |")
    ratios = {
        "to_limit": seconds["program"] / limit,
        "to_limit_by_kind": seconds["program"] / by_kind,
        "plain_to_program": seconds["plain"] / seconds["program"],
        "plain_keeping_to_program": seconds["plain_keeping"] / seconds["program"],
        "program_to_amp": seconds["program"] / seconds["amp"],
    }
    print(f"{ratios['to_limit']:.2f} times the limit ({total / 1e9:.1f} GFLOP at the rate of a product of 3072^3),")
    print(f"{ratios['to_limit_by_kind']:.2f} times with convolutions at the rate of a large convolution;")
    print(f"{ratios['plain_to_program']:.2f} times as fast as the plain reference,")
    print(f"{ratios['plain_keeping_to_program']:.2f} times where that keeps freed memory;")
    print(f"--amp makes it {ratios['program_to_amp']:.2f} times as fast")
    return {**seconds, "limit": limit, "limit_by_kind": by_kind, "flops": flops, **ratios}


def encoders(device: str, quick: bool) -> dict:
    """Time a block step with every encoder, beside its operations at the rates of a product and a convolution."""
    report, more = {}, {"paper": [], "airbench": ["--noise-levels", "4"]}
    print(
        "\n| encoder | precision | GFLOP | step, ms | limit, ms | step / limit |\n| --- | --- | --- | --- | --- | --- |"
    )
    for precision, flags, dtype in (("float32", [], torch.float32), ("bfloat16", ["--amp"], torch.bfloat16)):
        large = {"product": matrix_product(device=device, dtype=dtype)}
        large["convolution"] = convolution(device=device, dtype=dtype)
        for name in ENCODERS:
            flags_of_encoder = ["--encoder", name, *more.get(name, [])]
            step = block_steps(make_benchmark_trainer(BATCH, *one_hot(2), *flags_of_encoder, *flags, device=device))
            cases = {"step": step, **{kind: case for kind, (case, _) in large.items()}}
            seconds, flops = in_turn(cases, rounds=2 if quick else 9), count_flops(step)
            limit = sum(count * seconds[kind] / large[kind][1] for kind, count in flops.items())
            ratio, total = seconds["step"] / limit, sum(flops.values())
            cells = f"{total / 1e9:.1f} | {1e3 * seconds['step']:.1f} | {1e3 * limit:.1f} | {ratio:.2f}"
            print(f"| {name} | {precision} | {cells} |", flush=True)
            report[f"{name} {precision}"] = {"step": seconds["step"], "limit": limit, "flops": flops}
    return report


def epoch(device: str, quick: bool) -> dict:
    trainer = one_hot_trainer(device, 4 * BATCH if quick else 10 * BATCH)
    images = len(trainer.batches.split)
    with plain_peer(trainer) as plain, two_ranks(images) as ranks:
        cases = {"program": lambda: train_epoch(trainer), "plain": plain["epoch"]}
        if device == "cpu":
            cases["ranks"] = together(ranks, "epoch")
        seconds = in_turn(cases, rounds=5)
        together(ranks, "close")()
    titles = {"program": "program, interleaved", "ranks": "program, blocks dealt out to two processes of one thread"}
    print(f"\n| epoch of T = {T} blocks, {images} images | s | times as fast as the plain reference |")
    print("| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {titles.get(name, 'plain reference')} | {value:.2f} | {seconds['plain'] / value:.2f} |")
    ratios = {f"plain_to_{name}": seconds["plain"] / seconds[name] for name in titles.keys() & seconds.keys()}
    return {**seconds, **ratios, "images": images}


@contextmanager
def two_ranks(num_images: int):
    """Two processes as `torchrun --nproc-per-node 2` would start them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(rank_cases, rank, 2, port, num_images, *one_hot())) for rank in range(2)]


def data_pipeline(device: str, quick: bool) -> dict:
    trainer = one_hot_trainer(device, 2000 if quick else 10000, 1)
    images = trainer.batches.split

    def program() -> None:
        for i, indices in enumerate(trainer.batches.indices(trainer.streams.get("order", device="cpu"))):
            _ = trainer.batches.batch(indices, 0, i).x

    with plain_peer(trainer) as plain:
        seconds = in_turn({"program": program, "plain": plain["data"]}, rounds=2 if quick else 5)
    rates = {name: len(images) / value for name, value in seconds.items()}
    print("\n| data pipeline alone | images/s |\n| --- | --- |")
    print(f"| program | {rates['program']:,.0f} |\n| DataLoader with 2 workers | {rates['plain']:,.0f} |")
    return {"images_per_second": rates, "plain_to_program": seconds["plain"] / seconds["program"]}


def inference(device: str, quick: bool) -> dict:
    count = 100 if quick else 500
    trainer = one_hot_trainer(device, count)
    model, x = trainer.model.eval(), trainer.model.see(trainer.batches.split.images)

    def program(runs: int):
        return lambda: model.sample(x, [trainer.streams.get("inference", r) for r in range(runs)])

    cases = {f"{runs}": program(runs) for runs in (1, 5, 50)}
    with plain_peer(trainer) as plain:
        cases |= {f"plain {runs}": plain[f"predict {runs}"] for runs in (1, 5)}
        seconds = in_turn(cases, rounds=2 if quick else 5)
    print(f"\n| inference, T = {T}, {count} images | s | images/s | times 1 run |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        title = f"program, {name} runs" if name.isdigit() else f"features computed again, {name[6:]} runs"
        print(f"| {title} | {value:.3f} | {count / value:,.0f} | {value / seconds['1']:.2f} |")
    ratio = seconds["plain 5"] / seconds["5"]
    print(f"5 runs are {ratio:.2f} times as fast as with features computed again")
    return {**seconds, "plain_5_to_5": ratio}


def memory(device: str, quick: bool) -> dict:
    rows = []
    for num_blocks in (1, 2, 5, 10) if quick else (1, 2, 5, 10, 20, 50):
        for order in ("sequential", "interleaved"):
            trainer = one_hot_trainer(device, BATCH, num_blocks, order)
            rows.append({"method": f"NoProp, {order}", "T": num_blocks, **memory_of_training(trainer)})
        flags = ["--method", "backprop", "--embedding-type", "one-hot", "--num-blocks", str(num_blocks)]
        trainer = make_benchmark_trainer(BATCH, *flags, device=device)
        rows.append({"method": "back-propagation", "T": num_blocks, **memory_of_training(trainer)})
    print(
        "\n| memory of a step, MB | T | activations | peak above what stays | parameters and optimizers | total peak |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        sizes = " | ".join(f"{row[name] / 1e6:,.0f}" for name in ("activations", "peak", "kept", "total"))
        print(f"| {row['method']} | {row['T']} | {sizes} |")
    return {"rows": rows}


def pieces(device: str, quick: bool) -> dict:
    """Time and measure a training step of a transformer of 12 layers as a whole, and of one of its K pieces alone."""
    whole = ["--method", "classifier", "--num-blocks", "1"]
    cases = {"whole": whole} | {
        f"K = {k}": ["--method", "diffusionblocks", "--num-blocks", str(k), "--blocks", "1"] for k in (1, 2, 3, 4, 6)
    }
    flags = ["--embedding-type", "one-hot", "--network", "vit"]
    trainers = {name: make_benchmark_trainer(BATCH, *flags, *more, device=device) for name, more in cases.items()}
    sizes = {name: memory_of_training(trainer) for name, trainer in trainers.items()}
    steps = {name: partial(train_epoch, trainer) for name, trainer in trainers.items()}
    seconds = in_turn(steps, rounds=2 if quick else 5)
    print("\n| transformer of 12 layers | parameters, M | step, ms | activations, MB | in all, MB | whole / this |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size in sizes.items():
        cells = [f"{size['kept'] / 12e6:.2f}", f"{1e3 * seconds[name]:.0f}"]
        cells += [f"{size[part] / 1e6:,.0f}" for part in ("activations", "total")]
        print(f"| {name} | {' | '.join(cells)} | {sizes['whole']['total'] / size['total']:.2f} |")
    return {name: {"step": seconds[name], **size} for name, size in sizes.items()}


def steps_of_inference(device: str, quick: bool) -> dict:
    """1000 steps with the image features computed once, and again at every step (measured for a few steps)."""
    images, steps, few = (200, 100, 2) if quick else (2000, 1000, 4)
    report = {}
    print(f"\n| inference on {images} images 28x28x1, {steps} steps, one run | s | features again | ratio |")
    print("| --- | --- | --- | --- |")
    for method in ("ct", "fm"):
        flags = ["--method", method, "--embedding-type", "one-hot"]
        trainer = make_benchmark_trainer(images, *flags, device=device, shape=(28, 28, 1))
        model = trainer.model.eval()
        batches = trainer.model.see(trainer.batches.split.images).split(EVAL_BATCH)

        def once(model=model, batches=batches) -> None:
            for x in batches:
                model.sample(x, steps=steps)

        def again(model=model, batches=batches) -> None:
            for x in batches:
                for _ in range(few):
                    model.sample(x, steps=1)

        seconds = in_turn({"once": once, "again": again}, rounds=3)
        seconds["again"] *= steps / few
        ratio = seconds["again"] / seconds["once"]
        print(f"| {method} | {seconds['once']:.2f} | {seconds['again']:.0f} (from {few} steps) | {ratio:.0f} |")
        report[method] = {**seconds, "ratio": ratio}
    return report


def growth(device: str, quick: bool) -> dict:
    blocks = (1, 2, 5, 10) if quick else (1, 2, 5, 10, 20, 50)
    batches = (2, 4, 8) if quick else (2, 4, 8, 16, 32)
    by_blocks = {n: partial(train_epoch, one_hot_trainer(device, 2 * BATCH, n)) for n in blocks}
    by_size = {n: partial(train_epoch, one_hot_trainer(device, n * BATCH, 2)) for n in batches}
    report = {}
    for title, cases in (("T", by_blocks), ("batches of data", by_size)):
        seconds = in_turn(cases, rounds=2 if quick else 5)
        exponent = slope([math.log(n) for n in seconds], [math.log(s) for s in seconds.values()])
        print(f"\n| {title} | s per epoch |\n| --- | --- |")
        for n, value in seconds.items():
            print(f"| {n} | {value:.2f} |")
        print(f"grows with {title} with an exponent of {exponent:.3f}")
        report[title] = {"seconds": seconds, "exponent": exponent}
    return report


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of the least-squares line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


SECTIONS = {
    "step": training_step,
    "encoders": encoders,
    "epoch": epoch,
    "data": data_pipeline,
    "inference": inference,
    "steps": steps_of_inference,
    "memory": memory,
    "pieces": pieces,
    "growth": growth,
}

if __name__ == "__main__":
    main()

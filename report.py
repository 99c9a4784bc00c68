"""What a run says of itself: the opening lines, the accuracies at the end, results.json, the versions."""

import os
import platform
import time
from argparse import Namespace
from pathlib import Path

import torch

from checkpoint import __version__, write_json
from data import DataInfo, Split
from distributed import Ranks
from evaluate import READOUTS, Evaluation, Evaluator
from models.NoProp_DT import NoPropNetDT
from parts import format_blocks
from resources import peak_memory


def describe_run(args: Namespace, info: DataInfo, model: NoPropNetDT, sizes: dict[str, int], ranks: Ranks) -> str:
    """Two lines; sizes: the numbers of images by part."""
    shape = "x".join(map(str, info.image_shape))
    images = ", ".join(f"{size} {part}" for part, size in sizes.items())
    trained = f"{args.num_blocks} blocks"
    if args.blocks:
        trained = f"{len(args.blocks)} of {trained} ({format_blocks(args.blocks)})"
    frozen = f" of {args.embedding_from}, frozen" if args.embedding_from else ""
    spread = f"{ranks.size} ranks of " if ranks.size > 1 else ""
    return (
        f"{args.dataset}: {images} images {shape}, {len(info.classes)} classes\n"
        f"NoProp-DT: {trained} of {parameters_per_block(model) / 1e6:.2f} M parameters, "
        f"{args.embedding_type} embedding of d = {model.embedding_dim}{frozen}, {args.schedule} schedule, "
        f"{args.block_order} order, on {spread}{model.W_embed.device} (threads: {torch.get_num_threads()})"
    )


def test_model(evaluator: Evaluator, test: Split, run: Path, trained: dict) -> Evaluation:
    """Evaluate on the test images; writes results.json and the material of the pictures.

    trained: epoch, val_accuracy and train_seconds of the model's weights.
    """
    ranks = evaluator.ranks
    test = test.to(evaluator.streams.device)
    start = time.perf_counter()
    result = evaluator.evaluate(test, "inference")
    seconds = {"training": trained["train_seconds"], "evaluation": time.perf_counter() - start}
    evaluator.write_examples(run, result, test, "test", trained["epoch"])
    trained = {"epoch": trained["epoch"], "val_accuracy": trained["val_accuracy"], "seconds": seconds}
    if ranks.first:
        spread = {"ranks": ranks.size, "all_reduced_bytes": ranks.bytes_reduced}  # by each rank since it started
        content = results_of(evaluator.args, evaluator.model, result) | trained | {"test_images": len(test)} | spread
        write_json(run / "results.json", content)
    return result


def results_of(args: Namespace, model: NoPropNetDT, result: Evaluation) -> dict:
    """The part of results.json that follows from the model and its evaluation."""
    mean, sem = result.accuracy()
    by_readout = {name: dict(zip(("mean", "sem"), result.accuracy(name), strict=True)) for name in READOUTS}
    device = model.W_embed.device
    return {
        "method": args.method,
        "dataset": args.dataset,
        "test_accuracy_mean": mean,
        "test_accuracy_sem": sem,
        "readout": args.readout,
        "inference": args.inference,
        "accuracy_by_readout": by_readout,
        "per_run": result.per_run,
        "per_step_accuracy": result.per_step_accuracy,
        "per_step_accuracy_u_hat": result.per_step_u_hat,
        "parameters": count_parameters(model) + parameters_per_block(model) * (model.num_blocks - len(model.held)),
        "parameters_per_block": parameters_per_block(model),
        **peak_memory(device),
        "versions": versions(device),
    }


def print_accuracies(args: Namespace, result: Evaluation) -> None:
    """Accuracy by step if asked for, by readout, and the last line of the program."""
    if args.steps_report:
        print("after block   class of z_t   class of the block's u_hat")
        for t, accuracies in enumerate(zip(result.per_step_accuracy, result.per_step_u_hat, strict=True), 1):
            print(f"{t:11d}   {accuracies[0]:10.2f} %   {accuracies[1]:10.2f} %")
    for name in READOUTS:
        mean, sem = result.accuracy(name)
        print(f"readout {name + ':':7} {mean:.2f} +- {sem:.2f} %")
    mean, sem = result.accuracy()
    print(f"test accuracy: {mean:.2f} +- {sem:.2f} % ({len(result.per_run)} runs)")


def count_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def parameters_per_block(model: NoPropNetDT) -> int:
    return count_parameters(model.block(model.held[0]))


def versions(device: torch.device) -> dict:
    """Versions and hardware, for config.json and results.json."""
    return {
        "noprop": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }

"""What a run says of itself: the opening lines, the accuracies at the end, results.json, the versions."""

import os
import platform
import time
from argparse import Namespace
from pathlib import Path

import torch

from checkpoint import __version__, write_json
from data import DataInfo, Split
from evaluate import READOUTS, Evaluation, evaluate, example_paths, inference_generators, write_examples
from models.NoProp_DT import NoPropNetDT
from resources import peak_memory
from streams import Streams


def describe_run(args: Namespace, info: DataInfo, model: NoPropNetDT, sizes: tuple[int, int, int]) -> str:
    """Two lines; sizes are the numbers of training, validation and test images."""
    shape = "x".join(map(str, info.image_shape))
    train, validation, test = sizes
    return (
        f"{args.dataset}: {train} training, {validation} validation, {test} test images {shape}, "
        f"{len(info.classes)} classes\n"
        f"NoProp-DT: {args.num_blocks} blocks of {count_parameters(model.block(1)) / 1e6:.2f} M parameters, "
        f"{args.embedding_type} embedding of d = {model.embedding_dim}, {args.schedule} schedule, "
        f"{args.block_order} order, on {model.W_embed.device}"
    )


def test_model(
    args: Namespace, model: NoPropNetDT, info: DataInfo, test: Split, streams: Streams, run: Path, trained: dict
) -> Evaluation:
    """Evaluate on the test images; writes results.json and the material of the pictures.

    trained: epoch, val_accuracy and train_seconds of the model's weights.
    """
    test = test.to(streams.device)
    stochastic = args.inference == "stochastic"
    start = time.perf_counter()
    generators = inference_generators(streams, "inference", args.eval_runs)
    result = evaluate(model, info, test, generators, args.readout, stochastic)
    seconds = {"training": trained["train_seconds"], "evaluation": time.perf_counter() - start}
    generators = inference_generators(streams, "examples", args.eval_runs)
    content = example_paths(model, info, test, generators, stochastic)
    write_examples(run, content, result, "test", trained["epoch"])
    trained = {"epoch": trained["epoch"], "val_accuracy": trained["val_accuracy"], "seconds": seconds}
    write_json(run / "results.json", results_of(args, model, result) | trained | {"test_images": len(test)})
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
        "parameters": count_parameters(model),
        "parameters_per_block": count_parameters(model.block(1)),
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

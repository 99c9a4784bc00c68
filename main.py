"""Command line of NoProp: train, continue, evaluate, predict.

python main.py --dataset digits                                  train, test and draw
python main.py --evaluate --checkpoint checkpoints_run/best_model.pt
python main.py --help                                            all flags
"""

import shlex
import signal
import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import torch

from build import model_from_checkpoint, new_model
from checkpoint import load_checkpoint, open_run_folder, set_aside_earlier_run, write_json
from data import DataInfo, Split, load_raw, training_data
from errors import UserError
from evaluate import inference_generators, read_out
from folder import decode_images, match_channels
from models.NoProp_DT import NoPropNetDT
from options import adopt, parse_flags, settle
from report import describe_run, print_accuracies, test_model, versions
from resources import reuse_freed_memory
from streams import Streams
from train import Trainer
from visualize import draw_run

DEFAULT_RUN = "checkpoints_run"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (one line on stderr), 130 and 143 stopped by a signal."""
    signal.signal(signal.SIGTERM, _terminate)
    reuse_freed_memory()
    try:
        args, given = parse_flags(argv)
        if args.evaluate:
            evaluate_checkpoint(args, given)
        elif args.predict:
            predict_files(args, given)
        else:
            train(args, given)
    except UserError as error:
        print("main.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"main.py: error: {error}: the files written before are intact", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        print("main.py: stopped;", getattr(stop, "note", "nothing was changed"), file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    return 0


class Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(*_):
    raise Terminated


def train(args: Namespace, given: set[str]) -> None:
    """Train a new model, or go on from a checkpoint; then test it once, with the best weights."""
    checkpoint = load_checkpoint(args.checkpoint) if args.checkpoint else None
    if checkpoint:
        args = adopt(args, given, checkpoint["config"])
        if "optimizers" not in checkpoint:
            raise UserError(f"{args.checkpoint} holds a model only: to continue training take last.pt of its folder")
        if args.epochs < checkpoint["epoch"]:
            raise UserError(f"{args.checkpoint} has {checkpoint['epoch']} epochs already: raise --epochs above that")
    else:
        settle(args, given)
    device = pick_device(args)
    streams = Streams(args.seed, device)
    run = run_folder(args)
    info = DataInfo(**checkpoint["info"]) if checkpoint else None
    shape = info.image_shape if info else None

    raw = load_raw(args.dataset, args.data_dir, "train", args.image_size, shape)
    require_classes(raw.classes, info.classes if info else raw.classes, "training")
    data = training_data(raw, args.val_fraction, streams, info)
    test = load_test(args, data.info)
    open_run_folder(run)
    if checkpoint:
        model = model_from_checkpoint(args, data.info, checkpoint["model"])
    else:
        model = new_model(args, data.info, data.train, streams)
    model.to(device)
    if args.compile:
        compile_blocks(model)
    trainer = Trainer(model, data, args, streams, run)
    if checkpoint:
        trainer.load_state_dict(checkpoint)
    elif (aside := set_aside_earlier_run(run)) is not None:
        print(f"the earlier run in {run} is now in {aside}")

    print(describe_run(args, data.info, model, (len(data.train), len(data.validation), len(test))))
    write_json(run / "config.json", {**vars(args), "versions": versions(device)})
    with resumable(trainer):
        trainer.fit()
        result = test_model(args, model, data.info, test, streams, run, trainer.best_dict())
    draw_pictures(run)
    print(f"tested: the weights of epoch {trainer.best['epoch']} of {trainer.epoch}")
    print_accuracies(args, result)


@contextmanager
def resumable(trainer: Trainer):
    """Whoever stops the training is told how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        last = shlex.quote(str(trainer.run / "last.pt"))
        saved = f"epoch {len(trainer.history)} is saved, continue with: python main.py --checkpoint {last}"
        stop.note = saved if trainer.history else "no epoch was finished, so nothing is saved"
        raise


def draw_pictures(run: Path) -> None:
    """Whatever goes wrong in drawing, the result of the training is still to be printed."""
    try:
        for path in draw_run(run):
            print(f"drawn: {path}")
    except Exception as error:
        print(f"main.py: no pictures ({error}); try again with: python visualize.py {run}", file=sys.stderr)


def evaluate_checkpoint(args: Namespace, given: set[str]) -> None:
    """Accuracy of a checkpoint's model on the test images; its settings and data come from the checkpoint."""
    checkpoint = load_checkpoint(args.checkpoint)
    args = adopt(args, given, checkpoint["config"])
    device = pick_device(args)
    run = run_folder(args)
    info = DataInfo(**checkpoint["info"])
    test = load_test(args, info)
    model = model_from_checkpoint(args, info, checkpoint["model"]).to(device)
    open_run_folder(run)
    if not (run / "config.json").exists():
        write_json(run / "config.json", {**vars(args), "versions": versions(device)})
    print(
        f"{args.checkpoint}: epoch {checkpoint['epoch']}, {len(test)} {args.dataset} test images; results go to {run}"
    )
    result = test_model(args, model, info, test, Streams(args.seed, device), run, checkpoint)
    print_accuracies(args, result)


def predict_files(args: Namespace, given: set[str]) -> None:
    """Class and probability of image files, a line each: file, class, per cent."""
    checkpoint = load_checkpoint(args.checkpoint)
    files = args.predict
    args = adopt(args, given, checkpoint["config"])
    device = pick_device(args)
    info = DataInfo(**checkpoint["info"])
    channels, height, width = info.image_shape
    images = match_channels(decode_images(files, (height, width)), channels)
    model = model_from_checkpoint(args, info, checkpoint["model"]).to(device).eval()

    streams, stochastic = Streams(args.seed, device), args.inference == "stochastic"
    for name, image in zip(files, images.to(device), strict=True):
        generators = inference_generators(streams, "predict", args.eval_runs)  # the same noise for every file
        probabilities = model.predict(info.normalise(image[None]), generators, stochastic)  # (R, 1, m)
        if args.readout == "sample":
            probabilities = probabilities[:1]
        y = read_out(probabilities, args.readout).item()
        print(f"{name}\t{info.classes[y]}\t{100 * probabilities[:, 0, y].mean().item():.2f} %")


def run_folder(args: Namespace) -> Path:
    if args.checkpoint_dir:
        return Path(args.checkpoint_dir)
    return Path(args.checkpoint).parent if args.checkpoint else Path(DEFAULT_RUN)


def pick_device(args: Namespace) -> torch.device:
    """Raises UserError for a device that is not there and for --amp without CUDA."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is none: take auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here; take --device cpu"
        )
    if args.amp and device.type != "cuda":
        raise UserError("--amp needs CUDA: on a CPU it would only slow the training down; leave it out")
    return device


def load_test(args: Namespace, info: DataInfo) -> Split:
    """The test images on the CPU. Raises UserError where their classes are not those of the training images."""
    raw = load_raw(args.dataset, args.data_dir, "test", shape=info.image_shape)
    require_classes(raw.classes, info.classes, "test")
    return Split(raw.images, raw.labels)


def require_classes(found: list[str], expected: list[str], part: str) -> None:
    if found != expected:
        missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise UserError(f"the {part} images have other classes than the model (missing: {missing}, more: {more})")


def compile_blocks(model: NoPropNetDT) -> None:
    for block in model.blocks:
        for part in (block.image_path, block.label_path, block.fuse):
            part.compile()


if __name__ == "__main__":
    sys.exit(main())

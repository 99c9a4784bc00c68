"""Command line of NoProp: train, continue, evaluate, predict, merge, compare.

python main.py --dataset digits                                  train, test and draw
python main.py --evaluate --checkpoint checkpoints_run/best_model.pt
torchrun --nproc-per-node 2 main.py --dataset digits             blocks dealt out to two processes
python main.py --help                                            all flags
"""

# ruff: noqa: E402 - the imports below take seconds, in which Ctrl-C ends the program without a traceback
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
import warnings
from argparse import Namespace
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

import torch

from build import model_from_checkpoint, new_model
from checkpoint import LAST, load_checkpoint, load_last, save_best, save_run, write_json
from compare import compare
from data import DataInfo, Split, load_raw, require_same, training_data
from devices import compile_blocks, pick_device, set_numerics
from distributed import Ranks
from epochs import Training
from errors import UserError, printable, reading, reading_checkpoint
from evaluate import Evaluator, inference_generators, inference_settings
from folder import decode_images, match_channels
from live import LiveBoard, require_tensorboard
from models.classifier import Classifier
from offload import move_without_blocks
from options import adopt, check_ranks, parse_flags, settle, take_embedding_settings
from parts import check_parts, format_blocks, join_parts, require_whole
from readout import answer
from report import describe_progress, describe_run, go_on, print_accuracies, test_model, versions
from resources import is_out_of_memory, out_of_memory, reuse_freed_memory
from run_folder import open_run_folder, set_aside_earlier_run
from stops import Stopped, StopSignals
from streams import Streams
from train import Trainer, WholeTrainer
from visualize import draw_run

DEFAULT_RUN = "checkpoints_run"


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 another rank died, 2 bad input (one line on stderr), 130 and 143 stopped by a signal."""
    # torch's own: forward-mode differentiation still loads code that it made with torch.jit.script
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    reuse_freed_memory()
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
    ranks = Ranks.from_environment()
    try:
        with StopSignals() as stops:
            if ranks.first:
                run_command(argv, ranks, stops)
            else:
                with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                    run_command(argv, ranks, stops)
    except UserError as error:
        ranks.report(printable(error))
        return ranks.leave(2)
    except OSError as error:
        ranks.report(printable(f"{error}: the files written before are intact{getattr(error, 'note', '')}"))
        return ranks.leave(2)
    except MemoryError as error:
        ranks.report(out_of_memory(error))
        return ranks.leave(2)
    except Stopped as stop:
        if ranks.tells():
            print("main.py: stopped;", printable(stop.note), file=sys.stderr)
        return ranks.leave(stop.code)
    except RuntimeError as error:
        dead = ranks.who_died()
        if dead is None and not is_out_of_memory(error):
            raise
        if dead is None:
            ranks.report(out_of_memory(error))
            return ranks.leave(2)
        if ranks.tells():
            print(f"main.py: error: {dead} died; the files saved before are intact", file=sys.stderr)
        return ranks.leave(1)
    return 0


def run_command(argv: list[str] | None, ranks: Ranks, stops: StopSignals) -> None:
    args, given = parse_flags(argv)
    if args.evaluate or args.predict or args.merge or args.compare:
        check_ranks(args, ranks.size)
    if args.evaluate:
        evaluate_checkpoint(args, given)
    elif args.predict:
        predict_files(args, given)
    elif args.merge:
        merge(args)
    elif args.compare:
        compare(args, given, run_folder(args))
    else:
        ranks.connect()
        with ExitStack() as folder:
            train(args, given, ranks, stops, folder)


def train(args: Namespace, given: set[str], ranks: Ranks, stops: StopSignals, folder: ExitStack) -> None:
    """Train a new model, or go on from a checkpoint; then test it once, with the best weights."""
    if args.tensorboard:
        require_tensorboard()
    trainer, test = prepare(args, given, ranks, stops, folder)
    args, run = trainer.args, trainer.run
    board = LiveBoard(run) if args.tensorboard and ranks.first else None
    with resumable(trainer):
        trainer.fit(board.after_epoch if board else None)
        if test:
            result = test_model(trainer.evaluator, test, run, trainer.best_dict())
        ranks.close()
        if not ranks.first:
            return
        draw_pictures(run)
        if board:
            board.close(trainer.epoch)
    if not test:
        held = f"blocks {format_blocks(args.blocks)} of {args.num_blocks} are in {run / 'last.pt'}"
        join = f"join all parts with: python main.py --merge {run / 'last.pt'} ... --checkpoint-dir DIR"
        print(printable(f"{held}; {join}"))
        return
    print(f"tested: the weights of epoch {trainer.best['epoch']} of {trainer.epoch}")
    print_accuracies(args, result)


def prepare(
    args: Namespace, given: set[str], ranks: Ranks, stops: StopSignals, folder: ExitStack
) -> tuple[Training, Split | None]:
    """Settings, data, model and run folder of a training; its test images, None where only --blocks are trained.

    The run folder stays locked until `folder` is closed.
    """
    args, checkpoint, source = training_settings(args, given, ranks)
    device = pick_device(args, ranks.local_rank)
    set_numerics(device, not args.no_deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    streams = Streams(args.seed, device)
    run = run_folder(args)

    info = DataInfo(**checkpoint["info"]) if checkpoint else None
    with ranks.one_per_machine_first():
        raw = load_raw(args.dataset, args.data_dir, "train", args.image_size, info.image_shape if info else None)
        if info:
            require_same(raw, info, "training")
        data = training_data(raw, args.val_fraction, streams, info, args.train_size)
        test = None if args.blocks else load_test(args, data.info)
    if ranks.first:
        folder.enter_context(open_run_folder(run))
    held = ranks.deal(args.blocks or range(1, args.num_blocks + 1)) if args.method == "dt" else None
    if checkpoint:
        model = model_from_checkpoint(args, data.info, checkpoint["model"], held)
    else:
        model = new_model(args, data.info, data.train, streams, held, source)
    move(model, args, device)
    kind = Trainer if args.method == "dt" else WholeTrainer
    watched = test.to(device) if args.test_every_epoch else None
    trainer = kind(model, data, args, streams, run, ranks, watched, stops)
    if checkpoint:
        with reading_checkpoint(args.checkpoint):
            trainer.load_state_dict(checkpoint)
    announce(trainer, test, checkpoint)
    return trainer, test


def move(model: Classifier, args: Namespace, device: torch.device) -> None:
    """Onto the device that trains it; with --offload-blocks all but its blocks."""
    if args.offload_blocks:
        move_without_blocks(model, device)
    else:
        model.to(device)
    if args.compile:
        compile_blocks(model)


def training_settings(args: Namespace, given: set[str], ranks: Ranks) -> tuple[Namespace, dict | None, dict | None]:
    """All settings; the checkpoint to continue and that of --embedding-from, None where there is none."""
    source = None
    checkpoint = ranks.from_first(lambda: checkpoint_to_continue(args, ranks))
    if checkpoint:
        args = adopt(args, given, checkpoint["config"])
        if args.epochs < (begun := checkpoint["epoch"] + bool(checkpoint.get("partial"))):
            raise UserError(f"{args.checkpoint} has {begun} epochs already: raise --epochs above that")
    else:
        if args.embedding_from:
            source = ranks.from_first(lambda: load_checkpoint(args.embedding_from))
            take_embedding_settings(args, given, source)
        settle(args, given)
    check_ranks(args, ranks.size)
    return args, checkpoint, source


def checkpoint_to_continue(args: Namespace, ranks: Ranks) -> dict | None:
    """That of --checkpoint; after a restart by torchrun last.pt of the run. None for a new run."""
    last = run_folder(args) / LAST
    if ranks.restarts and last.exists():
        args.checkpoint = str(last)
    if not args.checkpoint:
        return None
    checkpoint, instead = load_last(args.checkpoint)
    if instead:
        print(printable(f"main.py: {instead}"), file=sys.stderr)
    if "optimizers" not in checkpoint:
        raise UserError(f"{args.checkpoint} holds a model only: to continue training take last.pt of its folder")
    return checkpoint


def announce(trainer: Training, test: Split | None, checkpoint: dict | None) -> None:
    """Tell what is going to be trained, and write config.json; an earlier run in the folder is set aside."""
    args, data, run, ranks = trainer.args, trainer.data, trainer.run, trainer.ranks
    if not ranks.first:
        return
    if checkpoint is None or Path(args.checkpoint).resolve().parent != run.resolve():
        make_room(run)
    if checkpoint:
        save_best(run, checkpoint)
    if trainer.epoch < args.epochs:
        (run / "results.json").unlink(missing_ok=True)  # of fewer epochs
    sizes = {"training": len(data.train), "validation": len(data.validation)}
    print(describe_run(args, data.info, trainer.model, sizes | ({"test": len(test)} if test else {}), ranks))
    if trainer.running:
        print(f"going on in epoch {trainer.epoch + 1}, of which {trainer.running.done} steps are done")
    threads, device = torch.get_num_threads(), trainer.streams.device.type
    if checkpoint and checkpoint["streams"]["device"] != device:
        print(
            f"trained on {checkpoint['streams']['device']} so far, whose random states {device} cannot take over: noise "
            "and dropout begin new streams, so the run is no longer equal to the bit to one on one device"
        )
    if checkpoint and checkpoint.get("threads", threads) != threads:
        print(f"trained with {checkpoint['threads']} threads so far: from here on equal up to rounding, not to the bit")
    if trainer.epoch < args.epochs or not (run / "config.json").exists():  # else it is of what trained the run
        write_json(run / "config.json", {**vars(args), "versions": versions(trainer.streams.device, ranks.size)})


@contextmanager
def resumable(trainer: Training):
    """Whoever stops the training, or a write that fails, leaves the user told how to go on."""
    try:
        yield
    except (Stopped, OSError) as stop:
        last = trainer.run / LAST
        command = go_on(last, trainer.ranks.size)
        if isinstance(stop, OSError):
            remedy = "someone must read the output" if isinstance(stop, BrokenPipeError) else "make room"
            stop.note = f"; {remedy}, then continue with: {command}" if last.exists() else ""
        elif last.exists():
            stop.note = f"{describe_progress(trainer.history, trainer.running)}, continue with: {command}"
        else:
            stop.note = "no step was finished, so nothing is saved"
        raise


def draw_pictures(run: Path) -> None:
    """Whatever goes wrong in drawing, the result of the training is still to be printed."""
    try:
        for path in draw_run(run):
            print(f"drawn: {printable(path)}")
    except Exception as error:
        what = f"main.py: no pictures ({error}); try again with: python visualize.py {run}"
        print(printable(what), file=sys.stderr)


def evaluate_checkpoint(args: Namespace, given: set[str]) -> None:
    """Accuracy of a checkpoint's model on the test images; its settings and data come from the checkpoint."""
    checkpoint = load_checkpoint(args.checkpoint)
    require_whole(args.checkpoint, checkpoint)
    args = adopt(args, given, checkpoint["config"])
    device = pick_device(args)
    set_numerics(device, not args.no_deterministic)
    run = run_folder(args)
    info = DataInfo(**checkpoint["info"])
    test = load_test(args, info)
    model = model_from_checkpoint(args, info, checkpoint["model"]).to(device)
    evaluator = Evaluator(args, model, info, Streams(args.seed, device))
    if (run / LAST).exists() and run.resolve() != Path(args.checkpoint).resolve().parent:
        raise UserError(f"{run} holds another training than {args.checkpoint}: name another --checkpoint-dir")
    with open_run_folder(run):
        if not (run / LAST).exists():
            write_json(run / "config.json", {**vars(args), "versions": versions(device)})
        begun = " and a part of the next" if checkpoint.get("partial") else ""
        source = f"{args.checkpoint}: epoch {checkpoint['epoch']}{begun}"
        print(printable(f"{source}, {len(test)} {args.dataset} test images; results go to {run}"))
        result = test_model(evaluator, test, run, checkpoint)
        draw_pictures(run)
    print_accuracies(args, result)


def predict_files(args: Namespace, given: set[str]) -> None:
    """Class and probability of image files, a line each: file, class, per cent."""
    checkpoint = load_checkpoint(args.checkpoint)
    require_whole(args.checkpoint, checkpoint)
    files = args.predict
    args = adopt(args, given, checkpoint["config"])
    device = pick_device(args)
    set_numerics(device, not args.no_deterministic)
    info = DataInfo(**checkpoint["info"])
    channels, height, width = info.image_shape
    images = match_channels(decode_images(files, (height, width)), channels)
    model = model_from_checkpoint(args, info, checkpoint["model"]).to(device).eval()

    streams, how = Streams(args.seed, device), inference_settings(args)[-1]
    for name, image in zip(files, images.to(device), strict=True):
        generators = inference_generators(streams, "predict", args.eval_runs)  # the same noise for every file
        probabilities = model.predict(info.normalise(image[None]), generators, **how)  # (R, 1, m)
        y, sure = answer(probabilities[:, 0], args.readout)
        print(f"{printable(name)}\t{printable(info.classes[y])}\t{100 * sure:.2f} %")


def merge(args: Namespace) -> None:
    """Join parts that hold every block once into a run that can be evaluated, used, drawn and continued."""
    parts = [load_checkpoint(path) for path in args.merge]
    with reading("one of the parts", "train it again"):
        check_parts(args.merge, parts)
        content = join_parts(parts, seconds=sum)
    run = run_folder(args)
    content["config"] = {**content["config"], "blocks": None, "checkpoint": None, "checkpoint_dir": str(run)}
    with open_run_folder(run):
        make_room(run)
        write_json(run / "config.json", {**content["config"], "versions": versions(torch.device("cpu"))})
        save_run(run, content)
        draw_pictures(run)
    if len(devices := sorted({part["streams"]["device"] for part in parts})) > 1:
        print(
            f"the parts were trained on {' and '.join(devices)}, whose noise differs: no one machine gives this network"
        )
    if len({part.get("threads") for part in parts}) > 1:
        print("the parts were trained with different numbers of threads: one process would have given other roundings")
    print(printable(f"merged into {run}: {', '.join(args.merge)}"))
    print(printable(f"evaluate it with: python main.py --evaluate --checkpoint {run / 'best_model.pt'}"))


def make_room(run: Path) -> None:
    """A new run overwrites none: an earlier one in its folder is set aside, and the user told where."""
    aside = set_aside_earlier_run(run)
    if aside is not None:
        print(f"the earlier run in {printable(run)} is now in {printable(aside)}")


def run_folder(args: Namespace) -> Path:
    if args.checkpoint_dir:
        return Path(args.checkpoint_dir)
    return Path(args.checkpoint).parent if args.checkpoint else Path(DEFAULT_RUN)


def load_test(args: Namespace, info: DataInfo) -> Split:
    """The test images on the CPU. Raises UserError where their classes are not those of the training images."""
    raw = load_raw(args.dataset, args.data_dir, "test", shape=info.image_shape)
    require_same(raw, info, "test")
    return Split(raw.images, raw.labels)


if __name__ == "__main__":
    sys.exit(main())

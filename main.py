"""Command line of NoProp: train, repeat, continue, evaluate, predict, export, merge, compare.

python main.py --help                                            examples and common flags
torchrun --nproc-per-node 2 main.py --dataset digits             blocks, or parts of a batch, dealt out to two processes
"""

# ruff: noqa: E402 - the imports below take seconds, in which Ctrl-C ends the program without a traceback
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from hardware.threads import set_threads, wait_briefly

if __name__ == "__main__":
    wait_briefly()

import os
import shlex
import sys
import warnings
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from assemble import (
    add_callbacks,
    held_blocks,
    load_data,
    load_tested,
    make_evaluator,
    make_model,
    make_trainer,
    model_to_use,
    name_files,
    restored,
    run_folder,
    take_up,
    use_device,
)
from command_line import as_flag
from errors import UserError, printable
from hardware.device import bfloat16_wanted
from hardware.memory import is_out_of_memory, out_of_memory, reuse_freed_memory
from models.export import export
from models.methods import methods_with
from models.random_streams import Streams
from rules import adopt, check_ranks, commands_in, parse, settle, take_embedding_settings
from runs.checkpoint import BEST, LAST, PREVIOUS, drop_previous, load_checkpoint, load_last, save_run
from runs.files import write_atomic
from runs.folder import FLAGS, open_run_folder
from runs.launch import finish, same_flags, tokens
from runs.opening import begin, make_room, resumable, write_config
from runs.place import find_temporary_folder, prepare_output, several_processes
from runs.predict import predict_files
from runs.process import OneProcess
from runs.reader import read_json
from runs.repeat import read_command
from runs.report import describe_part, print_accuracies
from runs.results import RunResults
from runs.seeds import train_seeds
from runs.signals import Stopped, StopSignals
from runs.size import expected_size
from runs.tensorboard import TensorBoard
from runs.versions import launch_id
from settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 another rank died, 2 bad input (one line on stderr), 130 and 143 signals."""
    # torch's own: forward-mode differentiation still loads code that it made with torch.jit.script
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    reuse_freed_memory()
    prepare_output()
    processes = processes_of_this_run()
    try:
        with StopSignals() as stops:
            if processes.first:
                run_command(argv, processes, stops)
            else:
                with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                    run_command(argv, processes, stops)
    except UserError as error:
        return fail(processes, printable(error))
    except OSError as error:
        return fail(processes, printable(f"{error}: the files written before are intact{getattr(error, 'note', '')}"))
    except MemoryError as error:
        return fail(processes, out_of_memory(error))
    except Stopped as stop:
        if processes.tells():
            print("main.py: stopped;", printable(stop.note), file=sys.stderr)
        return processes.leave(stop.code)
    except RuntimeError as error:
        if dead := processes.who_died():
            if processes.tells():
                print(f"main.py: error: {dead} died; the files saved before are intact", file=sys.stderr)
            return processes.leave(1)
        if not is_out_of_memory(error):
            raise
        return fail(processes, out_of_memory(error))
    return processes.leave(0)


def fail(processes: OneProcess, line: str) -> int:
    """Tell the user what is wrong, and return the exit code of bad input."""
    processes.report(line)
    return processes.leave(2)


def processes_of_this_run() -> OneProcess:
    """Return this process among those that torchrun started, if it did."""
    if not several_processes():
        return OneProcess()
    from parallel.ranks import Ranks

    return Ranks.from_environment()


def run_command(argv: list[str] | None, processes: OneProcess, stops: StopSignals) -> None:
    """Do what the command line says."""
    s, given = read_command(argv)
    s = name_files(s)
    find_temporary_folder(run_folder(s))
    if commands_in(s):
        check_ranks(s, processes.size)
    if s.evaluate:
        evaluate_checkpoint(s, given)
    elif s.predict:
        predict_files(s, given)
    elif s.export:
        export_model(s, given)
    elif s.merge:
        merge(s)
    elif s.compare:
        compare(s, given)
    elif s.seeds:
        train_seeds(run_folder(s), s.seeds, {name: getattr(s, name) for name in sorted(given)})
    else:
        processes.connect()
        with ExitStack() as folder:
            train(s, given, processes, stops, folder)


def train(s: Settings, given: set[str], processes: OneProcess, stops: StopSignals, folder: ExitStack) -> None:
    """Train a new model, or go on from a checkpoint; then test it once, with the best weights.

    The run folder stays locked until `folder` is closed.
    """
    run = run_folder(s)
    s, checkpoint, source = training_settings(s, given, processes)
    device = use_device(s, processes)
    s = replace(s, amp=bfloat16_wanted(s.amp, device))
    streams = Streams(s.seed, device)
    board = TensorBoard(run, lambda: draw_figures(run)) if s.tensorboard and processes.first else None
    data, test = load_data(s, checkpoint, streams, processes)
    if processes.first:
        folder.enter_context(open_run_folder(run))
    held = held_blocks(s, processes)
    size = expected_size(s, data.info, held, device, processes.size)
    set_threads(s.describe_network(data.info.image_shape), s.batch_size, checkpoint, processes.from_first)
    model = make_model(s, checkpoint, source, data, streams, held)
    trainer = make_trainer(s, model, data, streams, processes, test.to(streams.device) if s.test_every_epoch else None)
    take_up(trainer, s.checkpoint, checkpoint)
    results = RunResults(run, s, make_evaluator(s, model, streams, processes), trainer.W_embed_start, processes)
    add_callbacks(trainer, s, results, data, stops, board)
    if processes.first:
        begin(trainer, s, run, data, test, checkpoint, size, processes.size)
    with resumable(trainer, run, processes):
        with stops.held():
            trainer.fit()
        evaluation = results.test(test, trainer.row_of_best()) if test else None
        processes.close()
        if not processes.first:
            return
        drop_previous(run)
        draw_pictures(run)
        if board:
            board.close(trainer.epoch)
    if evaluation is None:
        print(describe_part(run / LAST, s.blocks, s.num_blocks))
        return
    print(f"tested: the weights of epoch {trainer.best['epoch']} of {trainer.epoch}")
    print_accuracies(evaluation, s.steps_report, s.counted, results.split)


def training_settings(s: Settings, given: set[str], processes: OneProcess) -> tuple[Settings, dict | None, dict | None]:
    """Return all settings; the checkpoint to continue and that of --embedding-from, None where there is none."""
    source = None
    path, checkpoint = processes.from_first(lambda: checkpoint_to_continue(s, processes))
    if checkpoint and (not s.auto_resume or fits(s, given, path, checkpoint, processes)):
        s = adopt(replace(s, checkpoint=path), given, checkpoint["config"])
        if s.epochs < (begun := checkpoint["epoch"] + bool(checkpoint.get("partial"))):
            raise UserError(f"{s.checkpoint} has {begun} epochs already: raise --epochs above that")
    else:
        checkpoint = None
        if s.embedding_from:
            source = processes.from_first(lambda: load_checkpoint(s.embedding_from))
            s = take_embedding_settings(s, given, source["config"])
        s = settle(s, given)
    check_ranks(s, processes.size)
    return s, checkpoint, source


def fits(s: Settings, given: set[str], path: str, checkpoint: dict, processes: OneProcess) -> bool:
    """Return whether --auto-resume can go on from a checkpoint; tells why where it starts anew."""
    try:
        adopt(replace(s, checkpoint=path), given, checkpoint["config"])
    except UserError as error:
        if processes.first:
            print(printable(f"main.py: starting anew, since {error}"), file=sys.stderr)
        return False
    return True


def checkpoint_to_continue(s: Settings, processes: OneProcess) -> tuple[str | None, dict | None]:
    """Return path and content of --checkpoint; after a restart by torchrun of last.pt. None for a new run."""
    path, run = s.checkpoint, run_folder(s)
    if processes.restarted and (run / LAST).exists():
        config = read_json(run / "config.json") or {}
        if config.get("versions", {}).get("launch") == launch_id():  # else last.pt is of an earlier run
            path = str(run / LAST)
    if s.auto_resume and any((run / name).exists() for name in (LAST, PREVIOUS)):
        path = str(run / LAST)
    if not path:
        return None, None
    checkpoint, instead = load_last(path)
    if instead:
        print(printable(f"main.py: {instead}"), file=sys.stderr)
    if "optimizers" not in checkpoint:
        raise UserError(f"{path} holds a model only: to continue training take last.pt of its folder")
    return path, checkpoint


def draw_figures(run: Path):
    """Yield the pictures of a run with their names."""
    from visualize import draw_figures

    return draw_figures(run)


def draw_pictures(run: Path) -> None:
    """Draw the pictures; whatever goes wrong, the result of the training is still to be printed."""
    try:
        from visualize import draw_run

        print(printable(f"drawn: {len(draw_run(run))} pictures in {run / 'plots'}"))
    except Exception as error:
        what = f"main.py: no pictures ({error}); try again with: python visualize.py {shlex.quote(str(run))}"
        print(printable(what), file=sys.stderr)


def evaluate_checkpoint(s: Settings, given: set[str]) -> None:
    """Print the accuracy of a checkpoint's model on the test images; its settings and data are the checkpoint's."""
    run = run_folder(s)
    s, checkpoint, model = model_to_use(s, given)
    test, device = load_tested(s, checkpoint), model.W_embed.device
    results = RunResults(run, s, make_evaluator(s, model, Streams(s.seed, device)), checkpoint["W_embed_start"])
    if (run / LAST).exists() and run.resolve() != Path(s.checkpoint).resolve().parent:
        raise UserError(f"{run} holds another training than {s.checkpoint}: name another --checkpoint-dir")
    with open_run_folder(run):
        if not (run / LAST).exists():
            write_config(run, s.as_dict(), device)
        begun = " and a part of the next" if checkpoint.get("partial") else ""
        source = f"{s.checkpoint}: epoch {checkpoint['epoch']}{begun}"
        print(printable(f"{source}, {len(test)} {s.dataset} {results.split} images; results go to {run}"))
        evaluation = results.test(test, checkpoint)
        draw_pictures(run)
    print_accuracies(evaluation, s.steps_report, s.counted, results.split)


def export_model(s: Settings, given: set[str]) -> None:
    """Write a checkpoint's model as a file that needs nothing of this program."""
    s, _, model = model_to_use(s, given)
    path = Path(s.export)
    write_atomic(path, lambda file: export(model, file, path.suffix, s.readout, s.mirror_test, **s.ways[-1]))
    shape = "x".join(map(str, ("N", *model.info.image_shape)))
    what = f"uint8 images {shape} -> probabilities Nx{len(model.info.classes)}, by --inference deterministic"
    print(printable(f"exported to {path}: {what}"))


def merge(s: Settings) -> None:
    """Join parts that hold every block once into a run that can be evaluated, used, drawn and continued."""
    from parallel.merge import merged

    run, parts = run_folder(s), [load_checkpoint(path) for path in s.merge]
    content = merged(s.merge, parts)
    content["config"] |= {"checkpoint": None, "checkpoint_dir": str(run)}
    restored("of the merged parts", content)  # its weights are as the settings say
    with open_run_folder(run):
        make_room(run)
        write_config(run, content["config"], torch.device("cpu"))
        save_run(run, content)
        draw_pictures(run)
    print(printable(f"merged into {run}: {', '.join(s.merge)}"))
    again = shlex.join(["python", "main.py", "--evaluate", "--checkpoint", str(run / BEST)])
    print(printable(f"evaluate it with: {again}"))


def compare(s: Settings, given: set[str]) -> None:
    """Train every method of --compare in a folder of its own, with the given flags; then write what they gave.

    Every training is a process of its own, so that its time and peak memory are its own; one that was stopped goes on.
    Raises UserError for a flag that no method knows, and for a folder that holds a comparison with other flags.
    """
    folder, flags = run_folder(s), {name: getattr(s, name) for name in sorted(given - {"compare", "checkpoint_dir"})}
    known = {m: {k: v for k, v in flags.items() if m in methods_with(k)} for m in s.compare}
    for name in flags:
        if not any(name in own for own in known.values()):
            raise UserError(f"{as_flag(name)} belongs to --method {' or '.join(methods_with(name))}: none is compared")
    for method, own in known.items():
        settle(*parse(tokens({"method": method, **own})))  # what one of them refuses is told before any is trained
    with open_run_folder(folder):
        same_flags(folder / FLAGS, flags)
        for method, own in known.items():
            looks = {"test_every_epoch": True} if s.eval_split == "test" else {}
            finish(method, folder / method, {"method": method, **looks, **own})
        from figures.comparison import write_comparison

        again = tokens({"compare": s.compare, **flags, "checkpoint_dir": str(folder)})
        write_comparison(folder, s.compare, s.dataset, shlex.join(["python", "main.py", *again]))


if __name__ == "__main__":
    sys.exit(main())

"""The beginning of a training, and what is told where it is stopped: opening lines, config.json, how to go on."""

from contextlib import contextmanager
from pathlib import Path

import torch

from data import Split, TrainingData
from errors import UserError, printable
from models.random_streams import kinds_of_devices
from runs.callbacks import describe_early_stop
from runs.checkpoint import LAST, PREVIOUS, save_best
from runs.files import write_json
from runs.folder import FLAGS, set_aside
from runs.process import OneProcess
from runs.report import describe_idle, describe_progress, describe_run, go_on
from runs.signals import Stopped
from runs.size import FEW_IMAGES, Size, describe_choice, describe_classes, describe_size
from runs.versions import versions
from settings import Settings


def begin(
    trainer,
    s: Settings,
    run: Path,
    data: TrainingData,
    test: Split | None,
    checkpoint: dict | None,
    size: Size,
    ranks: int,
) -> None:
    """Make the folder ready, and print what is going to be trained."""
    prepare_folder(trainer, s, run, checkpoint, ranks)
    print(describe_run(s, trainer.model, sizes_of(data, test, s), ranks))
    print(describe_size(size))
    print(describe_classes(data.train.labels, data.info.classes))
    if idle := trainer.model.idle(**s.ways[-1]):
        print(describe_idle(idle))
    if 0 < len(data.validation) < FEW_IMAGES and not s.blocks:
        print(describe_choice(len(data.validation)))
    if checkpoint:
        tell_differences(trainer, checkpoint, s)


def prepare_folder(trainer, s: Settings, run: Path, checkpoint: dict | None, ranks: int) -> None:
    """Set aside what the run would overwrite, and write its config.json, and best_model.pt where it goes on."""
    path = Path(s.checkpoint).resolve() if checkpoint else None
    if path is None or path.parent != run.resolve() or path.name not in (LAST, PREVIOUS):
        make_room(run, path)
    if checkpoint:
        save_best(run, checkpoint)
    going_on = checkpoint is None or trainer.epoch < s.epochs
    if going_on:
        (run / "results.json").unlink(missing_ok=True)  # of fewer epochs
    if going_on or not (run / "config.json").exists():  # else it is of what trained the run
        write_config(run, s.as_dict(), trainer.streams.device, ranks)


def sizes_of(data: TrainingData, test: Split | None, s: Settings) -> dict[str, int]:
    """Return the numbers of images of the splits that are read."""
    sizes = {"training": len(data.train), "validation": len(data.validation)}
    return {**sizes, "test": len(test)} if test and s.eval_split == "test" else sizes


def tell_differences(trainer, checkpoint: dict, s: Settings) -> None:
    """Print how a continued run stands, and where it will differ from one that was never stopped."""
    if trainer.running:
        print(f"going on in epoch {trainer.epoch + 1}, of which {trainer.running.done} steps are done")
    if trainer.stopped_early and trainer.epoch < s.epochs:
        print(describe_early_stop(trainer))
    elif trainer.finished:
        on = "start a new run with --init-from" if s.lr_schedule == "cosine" else "raise --epochs"
        print(f"all {s.epochs} epochs are trained: it is tested again; to train on {on}")
    threads, device = torch.get_num_threads(), trainer.streams.device.type
    if other := kinds_of_devices(checkpoint["streams"]) - {device}:
        print(
            f"trained on {other.pop()} so far, whose random states {device} cannot take over: noise and dropout begin "
            "new streams, so the run is no longer equal to the bit to one on one device"
        )
    if (before := checkpoint.get("threads", threads)) != threads:
        print(f"trained with {before} threads so far: from here on equal up to rounding, not to the bit")


def write_config(run: Path, config: dict, device: torch.device, ranks: int = 1) -> None:
    """Write every setting as used, and the versions."""
    write_json(run / "config.json", {**config, "versions": versions(device, ranks)})


def make_room(run: Path, keep: Path | None = None) -> None:
    """Set aside an earlier run in the folder, and tell the user where; keep: a checkpoint of it to go on from.

    Raises UserError for a folder of several runs, which are no earlier run of this one.
    """
    if (run / FLAGS).exists():
        raise UserError(f"{run} holds runs of --seeds or --compare: name another --checkpoint-dir")
    inside = keep is not None and keep.parent == run.resolve()
    aside = set_aside(run, run / keep.name if inside else None)
    if aside is not None:
        which = f"what is later than {keep.name}" if inside else "the earlier run"
        print(f"{which} in {printable(run)} is now in {printable(aside)}")


@contextmanager
def resumable(trainer, run: Path, processes: OneProcess):
    """Tell the user how to go on where a signal or a write that fails ends the training."""
    try:
        yield
    except (Stopped, OSError) as stop:
        last = run / LAST
        command = go_on(last, processes.size)
        if isinstance(stop, OSError):
            stop.note = f"; make room, then continue with: {command}" if last.exists() else ""
        elif last.exists():
            done = trainer.running.done if trainer.running else 0
            stop.note = f"{describe_progress(trainer.history, done)}, continue with: {command}"
        else:
            stop.note = "no step was finished, so nothing is saved"
        raise

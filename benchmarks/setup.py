"""The program's own trainer on random images, for the benchmarks and for Table 2."""

import os
from collections.abc import Callable

import torch

from assemble import held_blocks, make_trainer, new_model
from data import training_data
from hardware.device import set_numerics
from hardware.memory import reuse_freed_memory
from loaders import RawImages
from models.random_streams import Streams
from rules import parse, settle
from runs.process import OneProcess
from train import Trainer

BATCH, CLASSES, SHAPE = 128, 10, (32, 32, 3)


def make_benchmark_trainer(
    num_images: int,
    *flags: str,
    device: str | torch.device = "cpu",
    processes: OneProcess | None = None,
    shape: tuple[int, int, int] = SHAPE,
    classes: int = CLASSES,
) -> Trainer:
    """Return a trainer, in training mode, with the settings of main.py's flags and this process's blocks."""
    s = settle(*parse(["--batch-size", str(BATCH), "--val-fraction", "0", *flags]))
    device = torch.device(device)
    set_numerics(device, not s.no_deterministic)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, *shape), generator=generator).to(torch.uint8)
    raw = RawImages(images, torch.arange(num_images) % classes, [str(y) for y in range(classes)])
    streams = Streams(s.seed, device)
    data = training_data(raw, 0, streams)
    processes = processes or OneProcess()
    model = new_model(s, data, streams, held_blocks(s, processes)).to(device)
    model.train()
    return make_trainer(s, model, data, streams, processes)


def rank_cases(rank: int, size: int, port: int, num_images: int, *flags: str) -> dict[str, Callable[[], object]]:
    """Return an epoch of the blocks of one rank of one thread, in a process of its own, as torchrun starts main.py."""
    from parallel.ranks import Ranks

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    reuse_freed_memory()
    ranks = Ranks.from_environment()
    ranks.connect()
    trainer = make_benchmark_trainer(num_images, *flags, processes=ranks)

    def epoch() -> None:
        train_epoch(trainer)
        ranks.wait()

    return {"epoch": epoch, "close": ranks.close}


def train_epoch(trainer: Trainer) -> None:
    """Train a whole epoch: without `fit`, a trainer would go on with the one that is over."""
    trainer.running = None
    trainer.train_epoch()

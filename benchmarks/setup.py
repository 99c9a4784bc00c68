"""The program's own trainer on random images, for both benchmarks and for reproduce.py."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from build import new_model
from data import RawImages, training_data
from distributed import ALONE, Ranks
from epochs import Training
from options import parse_flags, settle
from resources import reuse_freed_memory
from streams import Streams
from train import Trainer, WholeTrainer

BATCH, CLASSES, SHAPE = 128, 10, (32, 32, 3)


def make_trainer(
    num_images: int, *flags: str, device: str = "cpu", ranks: Ranks = ALONE, shape=SHAPE, classes: int = CLASSES
) -> Training:
    """In training mode, with the settings of main.py's flags and the blocks that are dealt to this rank."""
    args, given = parse_flags(["--batch-size", str(BATCH), "--val-fraction", "0", *flags, "--save-every-minutes", "0"])
    settle(args, given)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, *shape), generator=generator).to(torch.uint8)
    raw = RawImages(images, torch.arange(num_images) % classes, [str(y) for y in range(classes)])
    streams = Streams(args.seed, device)
    data = training_data(raw, 0, streams)
    blocks_alone = args.method == "dt"
    held = ranks.deal(range(1, args.num_blocks + 1)) if blocks_alone else None
    model = new_model(args, data.info, data.train, streams, held).to(device)
    model.train()
    return (Trainer if blocks_alone else WholeTrainer)(model, data, args, streams, Path(os.devnull), ranks)


def rank_cases(rank: int, size: int, port: int, num_images: int, *flags: str) -> dict[str, Callable[[], object]]:
    """An epoch of the blocks of one rank of one thread, in a process of its own, as torchrun starts main.py."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    reuse_freed_memory()
    ranks = Ranks.from_environment()
    ranks.connect()
    trainer = make_trainer(num_images, *flags, ranks=ranks)

    def epoch() -> None:
        train_epoch(trainer)
        ranks.wait()

    return {"epoch": epoch, "close": ranks.close}


def train_epoch(trainer: Training) -> None:
    """A whole epoch: without `fit`, a trainer would go on with the one that is over."""
    trainer.running = None
    trainer.train_epoch()

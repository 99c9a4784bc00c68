"""Table 2 of the paper: memory of a training step of each method, measured as benchmarks/run.py does."""

import torch

from benchmarks.memory import memory_of_training
from benchmarks.setup import make_trainer
from report import versions
from reproduction.estimate import images_of
from reproduction.plan import Training, flags_of
from reproduction.records import ROW_KEY, VERSIONS


def measure(training: Training, command: str) -> dict:
    """A row of Table 2: bytes of a step of one batch of random images of the data's shape."""
    settings = training.settings
    images = images_of(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flags = flags_of(settings)
    trainer = make_trainer(settings["batch_size"], *flags, device=device, shape=images.shape, classes=images.classes)
    known = versions(device)
    return {
        **{name: getattr(training, name) for name in ROW_KEY},
        **memory_of_training(trainer),
        "batch_size": settings["batch_size"],
        "command": command,
        "date": known["date"],
        "versions": {name: known[name] for name in VERSIONS},
    }

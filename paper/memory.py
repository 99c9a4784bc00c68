"""Table 2 of the paper: memory of a training step of each method, measured as benchmarks/run.py does."""

import torch

from benchmarks.memory import memory_of_training
from benchmarks.setup import make_benchmark_trainer
from paper.plan import Training, flags_of
from paper.published import IMAGES
from paper.records import ROW_KEY, VERSIONS
from runs.launch import tokens
from runs.versions import versions


def measure(training: Training, paper_dataset: str, command: str) -> dict:
    """Return a row of Table 2: bytes of a step of one batch of random images of the data's shape."""
    settings, images = training.settings, IMAGES[paper_dataset]
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    flags = tokens(flags_of(settings))
    shape = {"shape": images.shape, "classes": images.classes}
    trainer = make_benchmark_trainer(settings["batch_size"], *flags, device=device, **shape)
    known = versions(device)
    return {
        **{name: getattr(training, name) for name in ROW_KEY},
        **memory_of_training(trainer),
        "batch_size": settings["batch_size"],
        "command": command,
        "date": known["date"],
        "versions": {name: known[name] for name in VERSIONS},
    }

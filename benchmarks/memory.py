"""Memory of a training step: what a forward pass leaves for its backward pass, and the peak of a whole step."""

import torch

from benchmarks.measure import memory_of
from benchmarks.setup import train_epoch
from train import BlockUpdates, Trainer


def memory_of_training(trainer: Trainer) -> dict[str, int]:
    """Return the bytes of an epoch of one batch, of a method's own order of updates.

    activations: what a forward pass leaves for its backward pass. kept: parameters and the optimizers' two moments.
    peak: most of a whole step above what stays.
    """
    train_epoch(trainer)  # now the optimizers have their states
    device = trainer.streams.device
    indices = torch.arange(len(trainer.batches.split), device=device)
    block = trainer.model.held[:1] if isinstance(trainer.updates, BlockUpdates) else []

    def forward():
        batch = trainer.batches.batch(indices, 0, 0)
        return batch.x, trainer.model.loss(*block, batch.x, batch.y)

    kept = 3 * 4 * sum(p.numel() for p in trainer.model.parameters())
    activations, peak = memory_of(forward, device)[0], memory_of(lambda: train_epoch(trainer), device)[1]
    return {"activations": activations, "peak": peak, "kept": kept, "total": kept + peak}

"""One optimizer for all parameters of a network, as every method needs whose blocks do not learn alone.

Several processes may share a batch: each takes a part of its images, and all take the same step.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from data import Batch
from models.classifier import Classifier
from models.random_streams import Streams
from models.shares import share
from optimizers.updater import MakeUpdater


class LossOf(nn.Module):
    """A network whose forward pass is its loss, as DistributedDataParallel wants it."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, *batch) -> tuple[Tensor, ...]:
        return self.model.loss(*batch)


class WholeUpdate:
    """Takes steps of the one optimizer.

    Args:
        average_gradients: makes of a network one whose gradients are the mean over the processes.
        average: gives the mean of a tensor over the processes.
        processes: how many share a batch.
    """

    rows, parts = 1, (1,)

    def __init__(
        self,
        model: Classifier,
        streams: Streams,
        num_batches: int,
        make_updater: MakeUpdater,
        amp: bool = False,
        average_gradients: Callable[[nn.Module], nn.Module] = lambda network: network,
        average: Callable[[Tensor], Tensor] = lambda values: values,
        processes: int = 1,
    ):
        self.model, self.streams, self.num_batches, self.amp = model, streams, num_batches, amp
        self.loss, self.average, self.processes = average_gradients(LossOf(model)), average, processes
        self.updaters = [make_updater(model.parameters(), num_batches, model.undecayed_parameters())]

    def steps(self, order: torch.Generator) -> list[tuple[int, list[int]]]:
        """Return the steps of an epoch."""
        return [(i, [1]) for i in range(self.num_batches)]

    def step(self, blocks: list[int], batch: Batch) -> dict[int, Tensor]:
        """Take one step of the optimizer; returns the terms of the loss, means over the whole batch."""
        noise, drop = (share(self.streams.get(name), batch.part) for name in ("noise", "dropout"))
        with torch.autocast(batch.y.device.type, torch.bfloat16, enabled=self.amp):
            terms = self.loss(batch.x, batch.y, noise, drop)  # means over the images that are here
        # The mean over the processes is that over the batch, also where their parts differ by an image.
        weight = self.processes * batch.part.fraction if batch.part else 1.0
        (weight * sum(terms)).backward()
        self.updaters[0].step()
        return {1: self.average(weight * torch.stack(terms).detach())}

    def load_state_dict(self, states: list[dict], state: dict[str, Tensor]) -> None:
        """Load the optimizer of a checkpoint."""
        for updater, own in zip(self.updaters, states, strict=True):
            updater.load_state_dict(own)

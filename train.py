"""Train a network: the loop over epochs, and the updates of blocks that learn alone.

BlockUpdates is Algorithm 1 of the paper: an update of block t sees a batch, draws its own noise and changes block t
only; gradients stay inside a block. What is trained as a whole is updated by optimizers/whole_update.py. Nothing is
printed or written here: callbacks do that.
Try: python main.py --dataset digits
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data import Batch, Batches
from hardware.memory import peak_memory, reset_peak_memory
from models.blocks import split_by_block
from models.blockwise import BlockwiseNet
from models.build import check_weights
from models.classifier import Classifier
from models.random_streams import Streams
from optimizers.divergence import check_finite, check_losses
from optimizers.offload import BlockOffload
from optimizers.shared_gradient import SharedGradient
from optimizers.updater import MakeUpdater, Updater
from optimizers.whole_update import WholeUpdate
from runs.callbacks import Callback
from runs.checkpoint import seconds_until

CHECK_EVERY = 20  # steps between two looks at the losses, each of which waits for the device

Step = tuple[int, list[int]]  # a batch of the epoch, and the blocks that learn from it


def update_order(order: str, num_blocks: int, num_batches: int, generator: torch.Generator) -> Iterator[Step]:
    """Yield the steps of an epoch; after each the shared parameters take one step.

    `interleaved`: every batch goes to all blocks. `sequential` (Algorithm 1): every block goes through all batches.
    `random`: as sequential, but the block of the next update is drawn. Every block sees every batch, in order.
    """
    blocks = list(range(1, num_blocks + 1))
    if order == "interleaved":
        yield from ((i, blocks) for i in range(num_batches))
    elif order == "sequential":
        yield from ((i, [t]) for t in blocks for i in range(num_batches))
    else:
        seen = [0] * num_blocks
        for k in torch.randperm(num_blocks * num_batches, generator=generator).tolist():
            t = k % num_blocks
            yield seen[t], [t + 1]
            seen[t] += 1


class BlockUpdates:
    """Algorithm 1: every block learns alone, with its own optimizer, noise and dropout.

    theta_out learns from every block's noise. With a fixed W_embed that needs no other block: the class loss of a block
    that is trained elsewhere is replayed from its noise stream, so theta_out is the same wherever it is trained. With a
    learned W_embed the processes sum their gradients (add_up).
    """

    def __init__(
        self,
        model: BlockwiseNet,
        streams: Streams,
        num_batches: int,
        make_updater: MakeUpdater,
        block_order: str = "interleaved",
        amp: bool = False,
        offload_blocks: bool = False,
        add_up: Callable[[Tensor], None] | None = None,
    ):
        self.model, self.streams, self.num_batches = model, streams, num_batches
        self.block_order, self.amp, self.add_up = block_order, amp, add_up
        self.by_block = {
            t: make_updater(block.parameters(), num_batches, clip_scale=model.loss_weights[t - 1])
            for t, block in model.networks.items()
        }
        # Their gradients from blocks 1 and T differ 40,000 times, and Adam forgets scales: where the shared parameters
        # take a step after every block, each block has an Adam state of them of its own.
        count = 1 if block_order == "interleaved" else model.num_blocks
        shared = model.shared_parameters(), num_batches, model.undecayed_parameters()
        self.shared = [make_updater(*shared) for _ in range(count)]
        self.shared_gradient = SharedGradient(model.shared_parameters())
        if offload_blocks:
            model.before_block = BlockOffload(model.networks, self.by_block, streams.device).bring
        self.learns_W_embed = model.W_embed.requires_grad
        self.learns_theta_out = model.theta_out.weight.requires_grad
        self.parts, self.rows = model.held, model.num_blocks  # blocks with a loss here, and of all processes

    @property
    def updaters(self) -> list[Updater]:
        """Return the optimizers of the blocks held, and after them those of the shared parameters."""
        return [*self.by_block.values(), *self.shared]

    def steps(self, order: torch.Generator) -> list[Step]:
        """Return the steps of an epoch; after each the run can be saved."""
        return list(update_order(self.block_order, self.model.num_blocks, self.num_batches, order))

    def step(self, blocks: list[int], batch: Batch) -> dict[int, Tensor]:
        """Update these blocks, then the shared parameters; returns the terms of the loss of each block held here."""
        losses = {}
        for t in blocks:
            if t in self.by_block:
                losses[t] = self.update_block(t, batch.x, batch.y)
            else:
                self.replay_block(t, batch.y)
        if self.learns_W_embed and self.add_up:
            self.add_up(self.shared_gradient.total)
        self.shared_gradient.give()
        self.shared[(blocks[0] - 1) % len(self.shared)].step()  # the only one, or that of the block
        return losses

    def update_block(self, t: int, x: Tensor, y: Tensor) -> Tensor:
        """Take one step of block t's optimizer; the shared parameters only gather their gradient. Returns (terms,)."""
        noise, drop = self.streams.get("noise", t), self.streams.get("dropout", t)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            terms = self.model.loss(t, x, y, noise, drop)  # eq. 8
        sum(terms).backward()
        self.shared_gradient.take()
        self.by_block[t].step()
        return torch.stack(terms).detach()

    def replay_block(self, t: int, y: Tensor) -> None:
        """Gather what block t, which is trained elsewhere, adds to the gradient of theta_out where W_embed is fixed."""
        if self.learns_theta_out and not self.learns_W_embed:
            with torch.autocast(y.device.type, torch.bfloat16, enabled=self.amp):
                class_nll = self.model.class_loss(t, y, self.streams.get("noise", t))
            class_nll.backward()
            self.shared_gradient.take()

    def load_state_dict(self, states: list[dict], state: dict[str, Tensor]) -> None:
        """Load the optimizers of a checkpoint, which may hold more blocks than this process; state: its model's."""
        by_block, shared = split_by_block(states, state)
        for t, updater in self.by_block.items():
            updater.load_state_dict(by_block[t])
        for updater, own in zip(self.shared, shared, strict=True):
            updater.load_state_dict(own)


@dataclass
class RunningEpoch:
    """An epoch as far as it has come: what it needs, beside the weights, to go on between two of its steps."""

    order: Tensor  # state of the generator before it drew this epoch
    losses: Tensor  # (rows, batches, terms)
    learning_rate: float  # at its start
    done: int = 0  # steps
    seconds: float = 0.0


def no_validation() -> tuple[dict, None]:
    """Return the accuracies of a network that is not looked at while it trains."""
    return {"train_accuracy": None, "val_accuracy": None}, None


class Trainer:
    """Trains a network epoch by epoch; `history` has one row per epoch, `best` the weights of the best one.

    Args:
        updates: BlockUpdates or WholeUpdate.
        validate: gives the accuracies after an epoch as entries of its row (val_accuracy chooses the best epoch; None:
            the last one counts), and what callbacks may want to see of them.
    """

    def __init__(
        self,
        model: Classifier,
        updates: BlockUpdates | WholeUpdate,
        batches: Batches,
        streams: Streams,
        validate: Callable[[], tuple[dict, object]] = no_validation,
        callbacks: Sequence[Callback] = (),
        *,
        epochs: int,
        early_stopping_patience: int = 0,
    ):
        self.model, self.updates, self.batches, self.streams = model, updates, batches, streams
        self.validate, self.callbacks = validate, list(callbacks)
        self.epoch, self.epochs, self.patience = 0, epochs, early_stopping_patience
        self.running: RunningEpoch | None = None
        self.history: list[dict] = []
        self.best: dict = {"epoch": 0, "accuracy": None, "model": None}
        self.W_embed_start = model.W_embed.detach().cpu().clone()

    def fit(self) -> None:
        """Train up to the last epoch, or to early stopping; then the model holds the best epoch's weights."""
        while not self.finished:
            self.epoch += 1
            row = self.train_epoch()
            entries, evaluation = self.validate()
            row |= entries
            self._keep_best(row["val_accuracy"])
            self.history.append(row)
            self.running = None
            for updater in self.updates.updaters:
                updater.end_epoch(row["val_accuracy"])
            for callback in self.callbacks:
                callback.after_epoch(self, evaluation)
        for callback in self.callbacks:
            callback.end(self)
        if self.best["model"] is not None:
            self.model.load_state_dict(self.best["model"])

    @property
    def finished(self) -> bool:
        """Return whether no epoch is left, by number or by early stopping."""
        return self.running is None and (self.epoch >= self.epochs or self.stopped_early)

    @property
    def stopped_early(self) -> bool:
        """Return whether the last epochs, as many as the patience, brought no better validation accuracy."""
        return bool(self.patience) and self.running is None and self.epoch - self.best["epoch"] >= self.patience

    def train_epoch(self) -> dict:
        """Make one pass over the training images, or the rest of one; returns the epoch's row of the history."""
        self.model.train()
        order, device = self.streams.get("order", device="cpu"), self.streams.device
        if self.running is None:
            shape = self.updates.rows, len(self.batches), len(self.model.loss_terms)
            losses = torch.zeros(shape, device=device)
            self.running = RunningEpoch(order.get_state(), losses, self.updates.updaters[0].lr)
        running = self.running
        order.set_state(running.order)
        indices, self.steps = self.batches.indices(order), self.updates.steps(order)
        for callback in self.callbacks:
            callback.begin_epoch(self)
        reset_peak_memory(device)  # the evaluation before does not count
        start, left = time.perf_counter() - running.seconds, self.steps[running.done :]
        for i, blocks in left:
            losses = self.updates.step(blocks, self.batches.batch(indices[i], self.epoch, i))
            for t, terms in losses.items():
                running.losses[t - 1, i] = terms
            running.done += 1
            running.seconds = time.perf_counter() - start
            if running.done % CHECK_EVERY == 0:
                check_losses(running.losses, self.epoch)
            for callback in self.callbacks:
                callback.after_step(self)
            start = time.perf_counter() - running.seconds  # a pause is no training
        self.check()
        if left:
            running.seconds = time.perf_counter() - start  # now that the device has done it all
        return self._row()

    def _row(self) -> dict:
        """Return losses, speed and memory of the running epoch; None where a block is trained elsewhere."""
        running, images = self.running, len(self.batches.split)
        mean = running.losses.double().mean(dim=1).cpu()  # (rows, terms)
        columns = {"loss": mean.sum(dim=1)}
        columns |= {f"loss_{name}": mean[:, i] for i, name in enumerate(self.model.loss_terms)}
        losses = {
            name: [value if t in self.updates.parts else None for t, value in enumerate(column.tolist(), 1)]
            for name, column in columns.items()
        }
        speed = {"seconds": running.seconds, "images_per_second": images / running.seconds}
        rate, memory = {"learning_rate": running.learning_rate}, peak_memory(self.streams.device)
        return {"epoch": self.epoch, **losses, **rate, **speed, **memory}

    def _keep_best(self, val_accuracy: float | None) -> None:
        """Without validation images the last epoch counts, whose weights are the model's."""
        if val_accuracy is None:
            self.best = {"epoch": self.epoch, "accuracy": None, "model": None}
        elif self.best["accuracy"] is None or val_accuracy > self.best["accuracy"]:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "accuracy": val_accuracy, "model": state}

    def row_of_best(self) -> dict:
        """Return what a report says of the weights that `fit` ends with."""
        epoch = self.best["epoch"]
        row = self.history[epoch - 1]
        return {
            "epoch": epoch,
            "val_accuracy": self.best["accuracy"],
            "train_accuracy_mean": row["train_accuracy"],
            "train_accuracy_sem": row.get("train_accuracy_sem"),
            "train_seconds": seconds_until(self.history, epoch),
        }

    def check(self) -> None:
        """Raise UserError where a loss or a weight is not finite."""
        check_losses(self.running.losses, self.epoch)
        check_finite(self.model.state_dict(), self.epoch)

    def state_dict(self) -> dict:
        """Return what continuing needs; `epoch` is the last full one, `partial` what was done of the next."""
        model, best = self.model.state_dict(), dict(self.best)
        if best["epoch"] == self.epoch and self.running is None:
            best["model"] = model  # one copy in the file
        return {
            "epoch": len(self.history),
            "partial": dict(vars(self.running)) if self.running else None,
            "val_accuracy": self.history[-1]["val_accuracy"] if self.history else None,
            "train_seconds": sum(row["seconds"] for row in self.history),
            "model": model,
            "W_embed_start": self.W_embed_start,
            "best": best,
            "history": self.history,
            "optimizers": [updater.state_dict() for updater in self.updates.updaters],
            "streams": self.streams.state_dict(),
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state; the model's weights are loaded already.

        Raises ValueError for a state that does not fit to the data and the model.
        """
        self.epoch, self.history, self.best = state["epoch"], list(state["history"]), dict(state["best"])
        own = self.model.state_dict()
        if self.best["model"] is not None:
            self.best["model"] = {name: value for name, value in self.best["model"].items() if name in own}
            check_weights(self.best["model"], own)
        if state.get("partial"):
            self.running = RunningEpoch(**state["partial"])
            if self.running.losses.shape != (self.updates.rows, len(self.batches), len(self.model.loss_terms)):
                raise ValueError("its part of an epoch is of another number of images")
            if self.running.done > len(self.updates.steps(torch.Generator())):
                raise ValueError("its part of an epoch has more steps than the epoch")
            self.running.losses = self.running.losses.to(self.streams.device)
        self.W_embed_start = state["W_embed_start"]
        self.updates.load_state_dict(state["optimizers"], state["model"])
        self.streams.load_state_dict(state["streams"])

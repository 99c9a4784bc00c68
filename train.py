"""Training of NoProp-DT (Algorithm 1 of the paper): every block with an optimizer of its own, alone.

An update of block t sees a batch, draws its own noise and changes block t only; the shared parameters theta_out and
W_embed have an optimizer of their own. Try: python main.py --dataset digits
"""

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from checkpoint import save_run
from data import NO_FLIP, TrainingData, augment, epoch_batches
from distributed import ALONE, Ranks
from errors import UserError
from evaluate import Evaluation, Evaluator
from models.NoProp_DT import BlockLoss, NoPropNetDT
from offload import BlockOffload
from optimizers import SharedGradient, Updater
from parts import join_parts, optimizers_by_block, select_blocks
from resources import peak_memory
from streams import Streams

CHECK_EVERY = 50  # block updates between two looks at the loss, each of which waits for the device


def update_order(
    order: str, num_blocks: int, num_batches: int, generator: torch.Generator
) -> Iterator[tuple[int, list[int]]]:
    """The updates of an epoch as (batch, blocks); after each the shared parameters take one step.

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


class Trainer:
    """Trains the blocks that the model holds and writes the run folder; `history` has one row per epoch.

    theta_out learns from every block's noise. With a fixed W_embed that needs no other block: the class loss of a block
    that is trained elsewhere is replayed from its noise stream, so theta_out is the same wherever it is trained. With a
    learned W_embed the ranks sum their gradients.
    """

    def __init__(
        self, model: NoPropNetDT, data: TrainingData, args: Namespace, streams: Streams, run: Path, ranks: Ranks = ALONE
    ):
        self.model, self.data, self.args, self.streams, self.run, self.ranks = model, data, args, streams, run, ranks
        self.evaluator = Evaluator(args, model, data.info, streams, ranks)
        self.epoch = 0
        self.history: list[dict] = []
        self.best: dict = {"epoch": 0, "accuracy": None, "model": None}
        self.W_embed_start = model.W_embed.detach().cpu().clone()
        batches = -(-len(data.train) // args.batch_size)
        shared_steps = batches * (1 if args.block_order == "interleaved" else args.num_blocks)
        self.updaters = {t: self._updater(model.block(t).parameters(), batches) for t in model.held}
        self.shared = self._updater(model.shared_parameters(), shared_steps)
        self.shared_gradient = SharedGradient(model.shared_parameters())
        if args.offload_blocks:
            BlockOffload(model, self.updaters, streams.device)
        self.learns_W_embed = model.W_embed.requires_grad
        self.learns_theta_out = model.theta_out.weight.requires_grad

    def _updater(self, parameters: Iterable[nn.Parameter], steps_per_epoch: int) -> Updater:
        args = self.args
        warmup_steps = args.warmup_epochs * steps_per_epoch
        return Updater(parameters, args.lr, args.weight_decay, warmup_steps, args.lr_scheduler_patience)

    def fit(self) -> None:
        """Epochs up to the number asked for, or to early stopping; then the model holds the best epoch's weights."""
        while self.epoch < self.args.epochs and not self._stopped_early():
            self.epoch += 1
            row = self.train_epoch()
            validation = self.validate(row)
            self.history.append(row)
            for updater in (*self.updaters.values(), self.shared):
                updater.end_epoch(row["val_accuracy"])
            self.save(validation)
        if self.best["model"] is not None:
            self.model.load_state_dict(self.best["model"])

    def _stopped_early(self) -> bool:
        patience = self.args.early_stopping_patience
        return bool(patience) and self.epoch - self.best["epoch"] >= patience

    def train_epoch(self) -> dict:
        """One pass of the blocks held over the training part; returns the epoch's row of the history."""
        self.model.train()
        start = time.perf_counter()
        T, device = self.model.num_blocks, self.streams.device
        order = self.streams.get("order", device="cpu")
        batches = epoch_batches(len(self.data.train), self.args.batch_size, order)
        batches = [indices.to(device, non_blocking=True) for indices in batches]
        held = set(self.model.held)
        losses = torch.zeros(T, len(batches), len(BlockLoss._fields), device=device)
        title = f"epoch {self.epoch}/{self.args.epochs}"
        lr = self.updaters[self.model.held[0]].lr

        total, done, hidden = len(held) * len(batches), 0, self.ranks.hides_bars
        with tqdm(total=total, desc=title, unit="step", disable=hidden, leave=False) as bar:
            for i, blocks in update_order(self.args.block_order, T, len(batches), order):
                x, y = self.batch(batches[i], i, images=not held.isdisjoint(blocks))
                for t in blocks:
                    if t not in held:
                        self.replay_block(t, y)
                        continue
                    losses[t - 1, i] = self.update_block(t, x, y)
                    done += 1
                    bar.update()
                    if done % CHECK_EVERY == 0:
                        self._check_losses(losses)
                        bar.set_postfix_str(f"loss {losses.sum().item() / done:.3f}")
                if self.learns_W_embed:
                    self.ranks.add_up(self.shared_gradient.total)
                self.shared_gradient.give()
                self.shared.step()
        self._check_losses(losses)
        self._check_weights()
        seconds = time.perf_counter() - start
        speed = {"seconds": seconds, "images_per_second": len(self.data.train) / seconds, **peak_memory(device)}
        return {"epoch": self.epoch, **summarise_losses(losses, self.model.held), "learning_rate": lr, **speed}

    def batch(self, indices: Tensor, number: int, images: bool = True) -> tuple[Tensor | None, Tensor]:
        """x (B, C, H, W) float32 and y (B,) of batch `number` of the epoch, the same for all blocks; x if asked for."""
        if not images:
            return None, self.data.train.labels[indices]
        part = self.data.train.subset(indices)
        if self.args.augment:
            generator = self.streams.fresh(f"augment/{self.epoch}", number)
            part.images = augment(part.images, generator, flip=self.args.dataset not in NO_FLIP)
        return self.data.info.normalise(part.images), part.labels

    def update_block(self, t: int, x: Tensor, y: Tensor) -> Tensor:
        """One step of block t's own optimizer; the shared parameters only gather their gradient. Returns (3,)."""
        noise, drop = self.streams.get("noise", t), self.streams.get("dropout", t)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.args.amp):
            terms = self.model.loss(t, x, y, noise, drop)
        sum(terms).backward()
        self.shared_gradient.take()
        self.updaters[t].step()
        return torch.stack(terms).detach()

    def replay_block(self, t: int, y: Tensor) -> None:
        """What block t, which is trained elsewhere, adds to the gradient of theta_out, where W_embed is fixed."""
        if self.learns_theta_out and not self.learns_W_embed:
            with torch.autocast(y.device.type, torch.bfloat16, enabled=self.args.amp):
                class_nll = self.model.class_loss(t, y, self.streams.get("noise", t))
            class_nll.backward()
            self.shared_gradient.take()

    def validate(self, row: dict) -> Evaluation | None:
        """Adds val_accuracy (None without a validation part) and train_accuracy to the row; keeps the best epoch.

        The accuracy on the training part is that of as many training images as there are validation images (a
        tenth of all without them), under the same conditions: no augmentation, no dropout. A part of the blocks has no
        accuracy: its last epoch counts, as without a validation part.
        """
        if self.args.blocks:
            row["train_accuracy"] = row["val_accuracy"] = None
            self.best = {"epoch": self.epoch, "accuracy": None, "model": None}
            return None
        train, validation = self.data.train, self.data.validation
        probe = len(validation) or max(1, len(train) // 10)
        on_train = self.evaluator.evaluate(train.subset(slice(probe)), "validation")
        row["train_accuracy"] = on_train.accuracy()[0]
        result = self.evaluator.evaluate(validation, "validation") if len(validation) else None
        row["val_accuracy"] = self.ranks.from_first(lambda: result.accuracy()[0] if result else None)
        if result is None:
            self.best = {"epoch": self.epoch, "accuracy": None, "model": None}
        elif self.best["accuracy"] is None or row["val_accuracy"] > self.best["accuracy"]:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "accuracy": row["val_accuracy"], "model": state}
        return result

    def _check_losses(self, losses: Tensor) -> None:
        """losses (T, batches, 3). Raises UserError naming the first block and batch that is not finite."""
        bad = ~losses.isfinite().all(dim=2)
        if bad.any():
            batch, block = bad.T.nonzero()[0].tolist()
            self._stop_diverged(f"the loss of block {block + 1} is not finite at epoch {self.epoch}, batch {batch + 1}")

    def _check_weights(self) -> None:
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                self._stop_diverged(f"the weights {name} are not finite after epoch {self.epoch}")

    def _stop_diverged(self, what: str) -> None:
        kept = f"the files of epoch {self.epoch - 1} are kept" if self.epoch > 1 else "nothing was saved yet"
        raise UserError(f"{what}: lower --lr (now {self.args.lr}) or raise --warmup-epochs; {kept}")

    def save(self, validation: Evaluation | None) -> None:
        """Rank 0 writes the files and tells of the epoch. A checkpoint is one file: it joins the parts on its CPU."""
        parts = self.ranks.gather(self.state_dict())
        if parts:
            content = join_parts(parts, seconds=max)
            save_run(self.run, content, self.args.save_every)
            print(describe(content["history"][-1], self.args.epochs), flush=True)
        if validation is not None and self.best["epoch"] == self.epoch:
            self.evaluator.write_examples(self.run, validation, self.data.validation, "validation", self.epoch)

    @property
    def train_seconds(self) -> float:
        return sum(row["seconds"] for row in self.history)

    def best_dict(self) -> dict:
        """What the report says of the weights that `fit` ends with."""
        best = self.best
        return {"epoch": best["epoch"], "val_accuracy": best["accuracy"], "train_seconds": self.train_seconds}

    def state_dict(self) -> dict:
        """What continuing needs of the blocks held; with all of them it is last.pt."""
        model, best = self.model.state_dict(), dict(self.best)
        if best["epoch"] == self.epoch:
            best["model"] = model  # one copy in the file
        return {
            "config": vars(self.args),
            "info": asdict(self.data.info),
            "epoch": self.epoch,
            "val_accuracy": self.history[-1]["val_accuracy"],
            "train_seconds": self.train_seconds,
            "model": model,
            "W_embed_start": self.W_embed_start,
            "best": best,
            "history": self.history,
            "optimizers": [updater.state_dict() for updater in (*self.updaters.values(), self.shared)],
            "streams": self.streams.state_dict(),
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from last.pt or checkpoint_epoch_N.pt; the model's weights are loaded already."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], dict(state["best"])
        if self.best["model"] is not None:
            self.best["model"] = select_blocks(self.best["model"], self.model.held)
        self.W_embed_start = state["W_embed_start"]
        by_block, shared = optimizers_by_block(state)
        for t, updater in self.updaters.items():
            updater.load_state_dict(by_block[t])
        self.shared.load_state_dict(shared)
        self.streams.load_state_dict(state["streams"])


def summarise_losses(losses: Tensor, held: list[int]) -> dict:
    """(T, batches, 3) -> the mean loss of every block held over the epoch, and of each of its terms; else None."""
    per_block = losses.double().mean(dim=1).cpu()  # (T, 3)
    columns = {"loss": per_block.sum(dim=1), **{f"loss_{n}": per_block[:, i] for i, n in enumerate(BlockLoss._fields)}}
    return {
        name: [value if t in held else None for t, value in enumerate(column.tolist(), 1)]
        for name, column in columns.items()
    }


def describe(row: dict, epochs: int) -> str:
    """One line for a row of the history."""
    losses = [loss for loss in row["loss"] if loss is not None]
    shown = (("train", row["train_accuracy"]), ("val", row["val_accuracy"]))
    accuracies = "".join(f"  {name} {value:.2f} %" for name, value in shown if value is not None)
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  loss {sum(losses) / len(losses):.4f}{accuracies}"
        f"  lr {row['learning_rate']:.2g}  {row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s"
    )

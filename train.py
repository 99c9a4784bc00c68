"""Training of NoProp-DT (Algorithm 1 of the paper): every block with an optimizer of its own, alone.

An update of block t sees a batch, draws its own noise and changes block t only; the shared parameters theta_out and
W_embed have an optimizer of their own. Try: python main.py --dataset digits
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint import save_checkpoint, write_json
from data import NO_FLIP, Split, TrainingData, augment, epoch_batches
from errors import UserError
from evaluate import Evaluation, evaluate, example_paths, inference_generators, write_examples
from models.NoProp_DT import BlockLoss, NoPropNetDT
from optimizers import Updater
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
    """Trains a model and writes its run folder; `history` has one row per epoch."""

    def __init__(self, model: NoPropNetDT, data: TrainingData, args: Namespace, streams: Streams, run: Path):
        self.model, self.data, self.args, self.streams, self.run = model, data, args, streams, run
        self.epoch = 0
        self.history: list[dict] = []
        self.best: dict = {"epoch": 0, "accuracy": -1.0, "model": None}
        self.W_embed_start = model.W_embed.detach().cpu().clone()
        batches = -(-len(data.train) // args.batch_size)
        shared_steps = batches * (1 if args.block_order == "interleaved" else args.num_blocks)
        self.updaters = [self._updater(model.block(t).parameters(), batches) for t in range(1, args.num_blocks + 1)]
        self.shared = self._updater(model.shared_parameters(), shared_steps)

    def _updater(self, parameters: Iterator, steps_per_epoch: int) -> Updater:
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
            for updater in (*self.updaters, self.shared):
                updater.end_epoch(row["val_accuracy"])
            self.save(validation)
            print(describe(row, self.args.epochs), flush=True)
        if self.best["model"] is not None:
            self.model.load_state_dict(self.best["model"])

    def _stopped_early(self) -> bool:
        patience = self.args.early_stopping_patience
        return bool(patience) and self.epoch - self.best["epoch"] >= patience

    def train_epoch(self) -> dict:
        """One pass of all blocks over the training part; returns the epoch's row of the history."""
        self.model.train()
        start = time.perf_counter()
        T, device = self.model.num_blocks, self.streams.device
        order = self.streams.get("order", device="cpu")
        batches = epoch_batches(len(self.data.train), self.args.batch_size, order)
        batches = [indices.to(device, non_blocking=True) for indices in batches]
        losses = torch.zeros(T, len(batches), len(BlockLoss._fields), device=device)
        title = f"epoch {self.epoch}/{self.args.epochs}"
        lr = self.updaters[0].lr

        done = 0
        with tqdm(total=T * len(batches), desc=title, unit="step", disable=None, leave=False) as bar:
            for i, blocks in update_order(self.args.block_order, T, len(batches), order):
                x, y = self.batch(batches[i], i)
                for t in blocks:
                    losses[t - 1, i] = self.update_block(t, x, y)
                    done += 1
                    bar.update()
                    if done % CHECK_EVERY == 0:
                        self._check_losses(losses)
                        bar.set_postfix_str(f"loss {losses.sum().item() / done:.3f}")
                self.shared.step()
        self._check_losses(losses)
        self._check_weights()
        seconds = time.perf_counter() - start
        return {
            "epoch": self.epoch,
            **summarise_losses(losses),
            "learning_rate": lr,
            "seconds": seconds,
            "images_per_second": len(self.data.train) / seconds,
            **peak_memory(device),
        }

    def batch(self, indices: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) float32 and y (B,) of batch `number` of this epoch, the same for every block."""
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
        self.updaters[t - 1].step()
        return torch.stack(terms).detach()

    def validate(self, row: dict) -> Evaluation | None:
        """Adds val_accuracy (None without a validation part) and train_accuracy to the row; keeps the best epoch.

        The accuracy on the training part is that of as many training images as there are validation images (a
        tenth of all without them), under the same conditions: no augmentation, no dropout.
        """
        train, validation = self.data.train, self.data.validation
        probe = len(validation) or max(1, len(train) // 10)
        on_train = self._evaluate(train.subset(slice(probe)))
        row["train_accuracy"] = on_train.accuracy()[0]
        result = self._evaluate(validation) if len(validation) else None
        row["val_accuracy"] = result.accuracy()[0] if result else None
        if result is None:
            self.best = {"epoch": self.epoch, "accuracy": None, "model": None}  # the last epoch counts
        elif row["val_accuracy"] > self.best["accuracy"]:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "accuracy": row["val_accuracy"], "model": state}
        return result

    def _evaluate(self, split: Split) -> Evaluation:
        """The same noise at every epoch, so that epochs differ by their weights only."""
        args = self.args
        generators = inference_generators(self.streams, "validation", args.eval_runs)
        stochastic = args.inference == "stochastic"
        return evaluate(self.model, self.data.info, split, generators, args.readout, stochastic)

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
        """last.pt first: all other files of the run can be made again from it."""
        save_checkpoint(self.run / "last.pt", self.state_dict())
        if self.best["epoch"] == self.epoch:
            save_checkpoint(self.run / "best_model.pt", self.model_dict())
            if validation is not None:
                self.save_examples(validation, "validation", self.data.validation)
        if self.args.save_every and self.epoch % self.args.save_every == 0:
            save_checkpoint(self.run / f"checkpoint_epoch_{self.epoch}.pt", self.state_dict())
        write_json(self.run / "logs" / "training_history.json", self.history)

    def save_examples(self, evaluation: Evaluation, split_name: str, split: Split) -> None:
        """logs/examples.npz: what the pictures need of an evaluation, so that they need neither data nor model."""
        generators = inference_generators(self.streams, "examples", self.args.eval_runs)
        stochastic = self.args.inference == "stochastic"
        content = example_paths(self.model, self.data.info, split, generators, stochastic)
        write_examples(self.run, content, evaluation, split_name, self.best["epoch"])

    @property
    def train_seconds(self) -> float:
        return sum(row["seconds"] for row in self.history)

    def model_dict(self) -> dict:
        """What using the model needs: best_model.pt."""
        return {
            "config": vars(self.args),
            "info": asdict(self.data.info),
            "epoch": self.epoch,
            "val_accuracy": self.history[-1]["val_accuracy"],
            "train_seconds": self.train_seconds,
            "model": self.model.state_dict(),
            "W_embed_start": self.W_embed_start,
        }

    def best_dict(self) -> dict:
        """What the report says of the weights that `fit` ends with."""
        best = self.best
        return {"epoch": best["epoch"], "val_accuracy": best["accuracy"], "train_seconds": self.train_seconds}

    def state_dict(self) -> dict:
        """What continuing needs: last.pt."""
        content = self.model_dict()
        best = dict(self.best)
        if best["epoch"] == self.epoch:
            best["model"] = content["model"]  # one copy in the file
        return {
            **content,
            "best": best,
            "history": self.history,
            "optimizers": [updater.state_dict() for updater in (*self.updaters, self.shared)],
            "streams": self.streams.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from last.pt or checkpoint_epoch_N.pt; the model's weights are loaded already."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        self.W_embed_start = state["W_embed_start"]
        for updater, updater_state in zip((*self.updaters, self.shared), state["optimizers"], strict=True):
            updater.load_state_dict(updater_state)
        self.streams.load_state_dict(state["streams"])


def summarise_losses(losses: Tensor) -> dict:
    """(T, batches, 3) -> the mean loss of every block over the epoch, and of each of its terms."""
    per_block = losses.double().mean(dim=1).cpu()  # (T, 3)
    terms = {f"loss_{name}": per_block[:, i].tolist() for i, name in enumerate(BlockLoss._fields)}
    return {"loss": per_block.sum(dim=1).tolist(), **terms}


def describe(row: dict, epochs: int) -> str:
    """One line for a row of the history."""
    loss = sum(row["loss"]) / len(row["loss"])
    val = "" if row["val_accuracy"] is None else f"  val {row['val_accuracy']:.2f} %"
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  loss {loss:.4f}  train {row['train_accuracy']:.2f} %{val}"
        f"  lr {row['learning_rate']:.2g}  {row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s"
    )

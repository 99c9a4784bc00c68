"""What the trainings of all methods share: epochs, batches, validation, the best epoch, stopping, saving, resuming.

How the weights are updated is in train.py. A run is saved after every epoch, from time to time between two steps of
one, and at the next step when a signal stops it; it goes on from any of these places to the bit.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from checkpoint import LAST, save_last, save_run
from data import NO_FLIP, Split, TrainingData, augment, count_batches, epoch_batches
from distributed import ALONE, Ranks
from errors import UserError
from evaluate import Evaluation, Evaluator
from models.classifier import Classifier
from optimizers import Updater
from parts import block_of
from progress import Progress, describe, summarise_losses
from resources import peak_memory, reset_peak_memory
from stops import Stopped, StopSignals
from streams import Streams

Step = tuple[int, list[int]]  # a batch of the epoch and the parts (blocks) that learn from it


@dataclass
class RunningEpoch:
    """An epoch as far as it has come: what it needs, beside the weights, to go on between two of its steps."""

    order: Tensor  # state of the generator before it drew this epoch
    losses: Tensor  # (rows, batches, terms)
    learning_rate: float  # at its start
    done: int = 0  # steps
    seconds: float = 0.0


class Training:
    """Trains a model epoch by epoch and writes the run folder; `history` has one row per epoch.

    A subclass has the optimizers (`updaters`) and says how they are used (`steps`, `train_step`).

    Args:
        watched: test images whose accuracy goes into the history; nothing is chosen by it.
        stops: the signals that stop the training between two steps.
    """

    updaters: list[Updater]  # whose learning rates follow the validation accuracy

    def __init__(
        self,
        model: Classifier,
        data: TrainingData,
        args: Namespace,
        streams: Streams,
        run: Path,
        ranks: Ranks = ALONE,
        watched: Split | None = None,
        stops: StopSignals | None = None,
    ):
        self.model, self.data, self.args, self.streams, self.run, self.ranks = model, data, args, streams, run, ranks
        self.watched = watched
        self.stops = stops or StopSignals()
        self.saved_at = time.monotonic()
        self.running: RunningEpoch | None = None
        self.evaluator = Evaluator(args, model, data.info, streams, ranks)
        self.epoch = 0
        self.history: list[dict] = []
        self.best: dict = {"epoch": 0, "accuracy": None, "model": None}
        self.W_embed_start = model.W_embed.detach().cpu().clone()
        self.num_batches = count_batches(len(data.train), args.batch_size)

    @property
    def trained_parts(self) -> list[int]:
        """What has a loss of its own: the numbers of the blocks, 1 for a network that is trained as a whole."""
        raise NotImplementedError

    def steps(self, order: torch.Generator) -> list[Step]:
        """The steps of an epoch. After each the shared parameters are up to date and the run can be saved."""
        return [(i, [1]) for i in range(self.num_batches)]

    def train_step(self, i: int, parts: list[int], indices: Tensor, progress: Progress) -> None:
        """The updates of these parts with batch i; their terms go into losses (rows, batches, terms) at [t - 1, i]."""
        raise NotImplementedError

    def updater(self, parameters: Iterable[nn.Parameter], steps_per_epoch: int) -> Updater:
        args = self.args
        falling_epochs = args.epochs - args.warmup_epochs if args.lr_schedule == "cosine" else 0
        return Updater(
            parameters,
            args.lr,
            args.weight_decay,
            warmup_steps=args.warmup_epochs * steps_per_epoch,
            plateau_patience=args.lr_scheduler_patience,
            cosine_steps=falling_epochs * steps_per_epoch,
            clip_norm=args.clip_grad_norm,
            adam_w=args.method not in ("ct", "fm"),  # Table 3 of the paper
        )

    def fit(self, after_epoch: Callable[[dict], None] | None = None) -> None:
        """Epochs up to the number asked for, or to early stopping; then the model holds the best epoch's weights.

        after_epoch is called with every finished row of the history, once it is saved. Raises Stopped after a signal,
        when the run is saved.
        """
        with self.stops.held():
            while self.epoch < self.args.epochs and not self._stopped_early():
                self.epoch += 1
                row = self.train_epoch()
                validation = self._validate_unless_stopped(row)
                self._keep_best(row["val_accuracy"])
                self.history.append(row)
                self.running = None
                for updater in self.updaters:
                    updater.end_epoch(row["val_accuracy"])
                self.save(validation)
                if after_epoch:
                    after_epoch(row)
                self.pause_if_asked()
            if code := self.ranks.largest(self.stops.code):  # ranks may have had no step left to pause at
                raise Stopped(code)
        if self.best["model"] is not None:
            self.model.load_state_dict(self.best["model"])

    def _stopped_early(self) -> bool:
        patience = self.args.early_stopping_patience
        return bool(patience) and self.running is None and self.epoch - self.best["epoch"] >= patience

    def train_epoch(self) -> dict:
        """One pass over the training part, or the rest of one; returns the epoch's row of the history."""
        self.model.train()
        device, parts, terms = self.streams.device, self.trained_parts, self.model.loss_terms
        order = self.streams.get("order", device="cpu")
        if self.running is None:
            losses = torch.zeros(self.rows, self.num_batches, len(terms), device=device)
            self.running = RunningEpoch(order.get_state(), losses, self.updaters[0].lr)
        running = self.running
        order.set_state(running.order)
        batches = epoch_batches(len(self.data.train), self.args.batch_size, order)
        batches = [indices.to(device, non_blocking=True) for indices in batches]
        steps, done_before = self.steps(order), running.done
        done, total = (sum(len(set(p) & set(parts)) for _, p in some) for some in (steps[: running.done], steps))
        title, hidden = f"epoch {self.epoch}/{self.args.epochs}", self.ranks.hides_bars
        reset_peak_memory(device)  # the evaluation before does not count
        start = time.perf_counter() - running.seconds
        with tqdm(total=total, initial=done, desc=title, unit="step", disable=hidden, leave=False) as bar:
            progress = Progress(bar, running.losses, self._check_losses, done)
            for i, which in steps[running.done :]:
                self.train_step(i, which, batches[i], progress)
                running.done += 1
                running.seconds = time.perf_counter() - start
                self.pause_if_asked()
                start = time.perf_counter() - running.seconds  # a pause is no training
        self._check_losses(running.losses)
        self._check_weights()
        if steps[done_before:]:
            running.seconds = time.perf_counter() - start  # now that the device has done it all
        speed = {"seconds": running.seconds, "images_per_second": len(self.data.train) / running.seconds}
        losses = summarise_losses(running.losses, parts, terms)
        rate = {"learning_rate": running.learning_rate}
        return {"epoch": self.epoch, **losses, **rate, **speed, **peak_memory(device)}

    def pause_if_asked(self) -> None:
        """Between two steps: save, where the clock or a signal wants it. Raises Stopped after a signal."""
        minutes = self.args.save_every_minutes
        due = bool(minutes) and self.ranks.first and time.monotonic() - self.saved_at > 60 * minutes
        if self.ranks.all_pause(due or self.stops.code > 0):
            code = self.ranks.largest(self.stops.code)
            self.save_here()
            if code:
                raise Stopped(code)

    def save_here(self) -> None:
        """last.pt in the middle of an epoch, or after one, where it is there already."""
        if self.running is not None:
            self._check_losses(self.running.losses)
            self._check_weights()
            content = self.whole_state()
            if content:
                save_last(self.run, content)
        self.saved_at = time.monotonic()

    def _validate_unless_stopped(self, row: dict) -> Evaluation | None:
        """A signal need not wait for the end of the validation, unless other ranks are in the midst of it."""
        try:
            with self.stops.held(self.ranks.size > 1):
                return self.validate(row)
        except Stopped:
            self.save_here()
            raise

    @property
    def rows(self) -> int:
        """Rows of the losses: T, or 1 for a network that is trained as a whole."""
        return 1

    def batch(self, indices: Tensor, number: int, images: bool = True) -> tuple[Tensor | None, Tensor]:
        """x (B, C, H, W) float32 and y (B,) of batch `number` of the epoch, the same for all blocks; x if asked for."""
        if not images:
            return None, self.data.train.labels[indices]
        part = self.data.train.subset(indices)
        if self.args.augment:
            generator = self.streams.fresh(f"augment/{self.epoch}", number)
            part.images = augment(part.images, generator, flip=self.args.dataset not in NO_FLIP)
        return self.data.info.normalise(part.images), part.labels

    def validate(self, row: dict) -> Evaluation | None:
        """Adds val_accuracy (None without a validation part) and train_accuracy to the row.

        The accuracy on the training part is that of as many training images as there are validation images (a
        tenth of all without them), under the same conditions: no augmentation, no dropout. A part of the blocks has no
        accuracy.
        """
        if self.args.blocks:
            row["train_accuracy"] = row["val_accuracy"] = None
            return None
        train, validation = self.data.train, self.data.validation
        probe = len(validation) or max(1, len(train) // 10)
        on_train = self.evaluator.validate(train.subset(slice(probe)))
        row["train_accuracy"], row["train_accuracy_sem"] = on_train.accuracy()
        result = self.evaluator.validate(validation) if len(validation) else None
        row["val_accuracy"] = self.ranks.from_first(lambda: result.accuracy()[0] if result else None)
        if self.watched:
            row["test_accuracy"] = self.evaluator.validate(self.watched).accuracy()[0]
        return result

    def _keep_best(self, val_accuracy: float | None) -> None:
        """Without a validation part the last epoch counts, whose weights are the model's."""
        if val_accuracy is None:
            self.best = {"epoch": self.epoch, "accuracy": None, "model": None}
        elif self.best["accuracy"] is None or val_accuracy > self.best["accuracy"]:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "accuracy": val_accuracy, "model": state}

    def _check_losses(self, losses: Tensor) -> None:
        """losses (T, batches, 3). Raises UserError naming the first block and batch that is not finite."""
        bad = ~losses.isfinite().all(dim=2)
        if bad.any():
            batch, block = bad.T.nonzero()[0].tolist()
            which = f" of block {block + 1}" if self.rows > 1 else ""
            self._stop_diverged(f"the loss{which} is not finite at epoch {self.epoch}, batch {batch + 1}")

    def _check_weights(self) -> None:
        state = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        if get_total_norm(state.values()).isfinite():  # looks at all of them at once
            return
        for name, value in state.items():
            if not value.isfinite().all():
                which = f" of block {t}" if (t := block_of(name)) else ""
                self._stop_diverged(f"the weights {name}{which} are not finite in epoch {self.epoch}")

    def _stop_diverged(self, what: str) -> None:
        kept = "what was saved before is kept" if (self.run / LAST).exists() else "nothing was saved yet"
        args = self.args
        raise UserError(
            f"{what}, most likely since the steps are too large: lower --lr (now {args.lr:g}), raise --warmup-epochs "
            f"(now {args.warmup_epochs}) or set --clip-grad-norm (now {args.clip_grad_norm:g}); {kept}"
        )

    def whole_state(self) -> dict | None:
        """The content of last.pt, where it is written."""
        return self.state_dict()

    def save(self, validation: Evaluation | None) -> None:
        """Rank 0 writes the files and tells of the epoch."""
        if validation is not None and self.best["epoch"] == self.epoch:
            self.evaluator.write_examples(self.run, validation, self.data.validation, "validation", self.epoch)
        content = self.whole_state()
        if content:
            save_run(self.run, content, self.args.save_every)
            print(describe(content["history"][-1], self.args.epochs), flush=True)
        self.saved_at = time.monotonic()

    @property
    def train_seconds(self) -> float:
        return sum(row["seconds"] for row in self.history)

    def best_dict(self) -> dict:
        """What the report says of the weights that `fit` ends with."""
        epoch = self.best["epoch"]
        row = self.history[epoch - 1]
        return {
            "epoch": epoch,
            "val_accuracy": self.best["accuracy"],
            "train_accuracy_mean": row["train_accuracy"],
            "train_accuracy_sem": row.get("train_accuracy_sem"),
            "train_seconds": self.train_seconds,
        }

    def state_dict(self) -> dict:
        """What continuing needs; `epoch` is the last full one, `partial` what was done of the next."""
        model, best = self.model.state_dict(), dict(self.best)
        if best["epoch"] == self.epoch and self.running is None:
            best["model"] = model  # one copy in the file
        return {
            "config": vars(self.args),
            "info": asdict(self.data.info),
            "epoch": len(self.history),
            "partial": vars(self.running) if self.running else None,
            "val_accuracy": self.history[-1]["val_accuracy"] if self.history else None,
            "train_seconds": self.train_seconds,
            "model": model,
            "W_embed_start": self.W_embed_start,
            "best": best,
            "history": self.history,
            "optimizers": [updater.state_dict() for updater in self.updaters],
            "streams": self.streams.state_dict(),
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from last.pt or checkpoint_epoch_N.pt; the model's weights are loaded already.

        Raises ValueError for a state that does not fit to the data and the model.
        """
        self.epoch, self.history, self.best = state["epoch"], state["history"], dict(state["best"])
        if state.get("partial"):
            self.running = RunningEpoch(**state["partial"])
            if self.running.losses.shape != (self.rows, self.num_batches, len(self.model.loss_terms)):
                raise ValueError("its part of an epoch is of another number of images")
            if self.running.done > len(self.steps(torch.Generator())):
                raise ValueError("its part of an epoch has more steps than the epoch")
            self.running.losses = self.running.losses.to(self.streams.device)
        self.W_embed_start = state["W_embed_start"]
        self.load_optimizers(state)
        self.streams.load_state_dict(state["streams"])

    def load_optimizers(self, state: dict) -> None:
        for updater, updater_state in zip(self.updaters, state["optimizers"], strict=True):
            updater.load_state_dict(updater_state)

"""Save a training, stop it at a signal, print its epochs, show its bar: what happens beside its steps."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from runs.checkpoint import save_checkpoint, save_run
from runs.files import write_json
from runs.process import OneProcess
from runs.signals import Stopped, StopSignals


class Callback:
    """Hears of what a Trainer does."""

    def begin_epoch(self, trainer) -> None:
        """Before the first step of an epoch, or of the rest of one."""

    def after_step(self, trainer) -> None:
        """After every step; what it raises stops the training, which can go on from here."""

    def after_epoch(self, trainer, evaluation) -> None:
        """When the row of an epoch is in the history; evaluation: of the validation split, or None."""

    def end(self, trainer) -> None:
        """After the last epoch, before the best weights are loaded."""


class SaveRun(Callback):
    """Saves a run when its interval has passed, when a signal stops it, and at its end.

    A run goes on from any of these places to the bit. Raises Stopped after a signal, when the run is saved.

    Args:
        constants: what every checkpoint of the run says: config, info, network, inference, images.
        minutes: between two saves, within an epoch too; 0: after every epoch.
        every: epochs between the checkpoint_epoch_N.pt that are kept; 0: none.
        write_examples: called with (evaluation, epoch) after the best epoch so far.
    """

    def __init__(
        self,
        run: Path,
        constants: dict,
        minutes: float,
        every: int,
        stops: StopSignals,
        processes: OneProcess,
        write_examples: Callable[[object, int], None],
    ):
        self.run, self.constants, self.seconds, self.every = run, constants, 60 * minutes, every
        self.stops, self.processes, self.write_examples = stops, processes, write_examples
        self.saved_at = time.monotonic()
        self.is_saved = True  # all that the trainer has done

    def after_step(self, trainer) -> None:
        self.is_saved = False
        self._pause(trainer, self.seconds > 0 and self._is_due())

    def after_epoch(self, trainer, evaluation) -> None:
        if evaluation is not None and trainer.best["epoch"] == trainer.epoch:
            self.write_examples(evaluation, trainer.epoch)
        keep = bool(self.every) and trainer.epoch % self.every == 0
        self.is_saved = False
        if self.processes.from_first(lambda: self._is_due() or trainer.finished or self.stops.code > 0) or keep:
            self.save(trainer, f"checkpoint_epoch_{trainer.epoch}.pt" if keep else None)
        elif self.processes.size == 1:  # else each process knows the losses of its own blocks only
            write_json(self.run / "logs" / "training_history.json", trainer.history)

    def end(self, trainer) -> None:
        if code := self.processes.largest(self.stops.code):  # there may have been no step left to pause at
            raise Stopped(code)

    def _is_due(self) -> bool:
        return self.processes.first and time.monotonic() - self.saved_at >= self.seconds

    def _pause(self, trainer, wish: bool) -> None:
        """Save between two steps, where the clock or a signal wants it, and stop after a signal."""
        if self.processes.all_pause(wish or self.stops.code > 0):
            code = self.processes.largest(self.stops.code)
            self.save(trainer)
            if code:
                raise Stopped(code)

    def save(self, trainer, also: str | None = None) -> None:
        """Write the run's files, where something has been done since the last time; also: a further checkpoint."""
        if self.is_saved and not also:
            return
        if trainer.running:
            trainer.check()
        content = self.processes.gather_checkpoint({**self.constants, **trainer.state_dict()})
        if content:
            if also:
                save_checkpoint(self.run / also, content)
            save_run(self.run, content)
        self.saved_at, self.is_saved = time.monotonic(), True

    def unless_stopped(self, validate: Callable, trainer) -> Callable:
        """Return a validation that need not be waited for after a signal, unless other processes are in it too."""

        def stoppable():
            try:
                with self.stops.held(self.processes.size > 1):
                    return validate()
            except Stopped:
                self.save(trainer)
                raise

        return stoppable


ERRORS = {"denoise": "mean of |u_hat - u_y|^2", "cross_entropy": "cross-entropy"}  # of a block, by the last term


class PrintEpochs(Callback):
    """Prints a line for every epoch, with the learning rate where it has changed, and how long all took.

    Args:
        rate: the learning rate that the opening lines tell.
        weights: of the error in the loss of each block; shown is the error of the first, middle and last block.
    """

    def __init__(self, rate: float, weights: dict[int, float]):
        self.rate, self.weights = rate, weights
        held = list(weights)
        self.shown = list(dict.fromkeys([held[0], held[(len(held) - 1) // 2], held[-1]])) if held else []
        self.explains = bool(held)

    def begin_epoch(self, trainer) -> None:
        if self.explains:
            where = f"block{'s' * (len(self.shown) > 1)} {', '.join(map(str, self.shown))}"
            loss = "loss: mean over the blocks, mostly that of the last"
            term = trainer.model.loss_terms[-1]
            error = ERRORS.get(term, term.replace("_", " "))
            print(f"{loss}; error: {error}, without its weight, in {where}", flush=True)
            self.explains = False

    def after_epoch(self, trainer, evaluation) -> None:
        row = trainer.history[-1]
        term = f"loss_{trainer.model.loss_terms[-1]}"
        errors = [row[term][t - 1] / self.weights[t] for t in self.shown]
        changed, self.rate = row["learning_rate"] != self.rate, row["learning_rate"]
        best = row["val_accuracy"] is not None and trainer.best["epoch"] == trainer.epoch
        print(describe(row, trainer.epochs, errors, changed, best), flush=True)
        if trainer.stopped_early:
            print(describe_early_stop(trainer), flush=True)

    def end(self, trainer) -> None:
        seconds = sum(row["seconds"] for row in trainer.history)
        print(f"trained for {describe_seconds(seconds)}, without the time for measuring accuracy", flush=True)


def describe_early_stop(trainer) -> str:
    """Return one line that says why a training has ended early, and how to go on."""
    return (
        f"stopped early: no better validation accuracy since epoch {trainer.best['epoch']} "
        f"(--early-stopping-patience {trainer.patience}; raise it, or set 0, to train on)"
    )


def describe(row: dict, epochs: int, errors: Sequence[float] = (), tells_rate: bool = False, best: bool = False) -> str:
    """Return one line for a row of the history; errors: of some blocks."""
    losses = [loss for loss in row["loss"] if loss is not None]
    shown = (("train", row["train_accuracy"]), ("val", row["val_accuracy"]))
    parts = [
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}",
        f"loss {sum(losses) / len(losses):.4f}",
        *([" ".join(["error", *(f"{error:.3g}" for error in errors)])] if errors else []),
        *(f"{name} {value:.2f} %" for name, value in shown if value is not None),
        *([f"lr {row['learning_rate']:.2g} at start"] if tells_rate else []),
        f"{row['seconds']:.1f} s",
        f"{row['images_per_second']:,.0f} images/s",
        *(["best so far"] if best else []),
    ]
    return "  ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Return a time in words: '46 s', '12.3 min', '3.4 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class ProgressBar(Callback):
    """Shows a bar for every epoch, with its mean loss so far and the time that is left."""

    LOOK_EVERY = 50  # steps between two looks at the loss, each of which waits for the device

    def __init__(self, hidden: bool | None):
        self.hidden, self.bar = hidden, None

    def begin_epoch(self, trainer) -> None:
        title, total = f"epoch {trainer.epoch}/{trainer.epochs}", len(trainer.steps)
        self.bar = tqdm(
            total=total, initial=trainer.running.done, desc=title, unit="step", disable=self.hidden, leave=False
        )

    def after_step(self, trainer) -> None:
        self.bar.update()
        running = trainer.running
        if not self.bar.disable and running.done % self.LOOK_EVERY == 0:
            held = running.losses[[t - 1 for t in trainer.updates.parts]]  # those of other processes are 0 here
            share = running.done / len(trainer.steps)
            self.bar.set_postfix_str(f"loss {held.sum(dim=2).mean().item() / share:.3f}")
        if running.done == len(trainer.steps):
            self.bar.close()

"""--tensorboard: scalars and pictures of a run as it goes, for: tensorboard --logdir RUN/tensorboard"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from errors import UserError
from runs.callbacks import Callback

DRAW_EVERY = 60  # seconds between two drawings of the pictures


class TensorBoard(Callback):
    """Writes every finished epoch; draw: gives (name, matplotlib figure) of the run's files so far.

    Raises UserError where tensorboard is not installed, or is broken.
    """

    def __init__(self, run: Path, draw: Callable[[], Iterator[tuple[str, object]]]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            if error.name in ("tensorboard", "torch.utils.tensorboard"):
                raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
            raise UserError(_broken(error)) from error
        except Exception as error:  # a package that does not fit to another raises what it likes
            raise UserError(_broken(error)) from error
        self.make_writer, self.writer = partial(SummaryWriter, str(run / "tensorboard")), None
        self.draw, self.drawn = draw, 0.0

    def after_epoch(self, trainer, evaluation) -> None:
        row = trainer.history[-1]
        epoch = row["epoch"]
        # now that the folder is the run's own; what an earlier run wrote of this epoch and later ones does not count
        self.writer = self.writer or self.make_writer(purge_step=epoch)
        for name, value in row.items():
            if isinstance(value, list):
                for t, part in enumerate(value, 1):
                    if part is not None:
                        self.writer.add_scalar(name if len(value) == 1 else f"{name}/block_{t}", part, epoch)
            elif isinstance(value, (int, float)) and name != "epoch":
                self.writer.add_scalar(name, value, epoch)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.add_pictures(epoch)
        self.writer.flush()

    def add_pictures(self, epoch: int) -> None:
        """Add the pictures; no training ends because of them."""
        try:
            for name, figure in self.draw():
                self.writer.add_figure(name, figure, epoch, close=False)
        except Exception as error:
            print(f"main.py: no pictures for tensorboard ({error})", file=sys.stderr)
        self.drawn = time.monotonic()

    def close(self, epoch: int) -> None:
        """Add the last pictures."""
        if self.writer:
            self.add_pictures(epoch)
            self.writer.close()


def _broken(error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"the package tensorboard does not load ({reason}): mend it with pip install -U tensorboard, or leave it out"

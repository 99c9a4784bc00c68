"""--tensorboard: scalars and pictures of a run as it goes, for: tensorboard --logdir RUN/tensorboard"""

import sys
import time
from pathlib import Path

from errors import UserError
from visualize import draw_figures

DRAW_EVERY = 60  # seconds between two drawings of the pictures


def require_tensorboard() -> None:
    """Raises UserError where tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from error


class LiveBoard:
    """Told of every finished epoch."""

    def __init__(self, run: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.writer = SummaryWriter(str(run / "tensorboard"))
        self.drawn = 0.0

    def after_epoch(self, row: dict) -> None:
        """row: of the history. Lists hold a value for each block."""
        epoch = row["epoch"]
        for name, value in row.items():
            if isinstance(value, list):
                for t, part in enumerate(value, 1):
                    if part is not None:
                        self.writer.add_scalar(name if len(value) == 1 else f"{name}/block_{t}", part, epoch)
            elif isinstance(value, (int, float)) and name != "epoch":
                self.writer.add_scalar(name, value, epoch)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw(epoch)
        self.writer.flush()

    def draw(self, epoch: int) -> None:
        """The pictures that visualize.py draws of the files written so far; no training ends because of them."""
        try:
            for name, figure in draw_figures(self.run):
                self.writer.add_figure(name, figure, epoch, close=False)
        except Exception as error:
            print(f"main.py: no pictures for tensorboard ({error})", file=sys.stderr)
        self.drawn = time.monotonic()

    def close(self, epoch: int) -> None:
        self.draw(epoch)
        self.writer.close()

"""Figures of a run, from the files in its folder alone: no data set, no network. Also: python visualize.py RUN

A run in progress works too; what its files do not hold yet is left out. The pictures go to RUN/plots.
"""

import argparse
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from checkpoint import write_atomic
from errors import UserError, printable, reading
from plot_inference import (
    calibration,
    confusion_matrix,
    denoising_accuracy,
    denoising_path,
    inference_steps,
    predictions,
)
from plot_training import learned_schedule, prototypes, schedule, training_curves
from run_files import read_run

FIGURES = (
    training_curves,
    schedule,
    learned_schedule,
    denoising_accuracy,
    inference_steps,
    calibration,
    confusion_matrix,
    predictions,
    denoising_path,
    prototypes,
)


def draw_figures(folder: Path) -> Iterator[tuple[str, Figure]]:
    """All figures the run's files allow, with their names. Raises UserError."""
    run = read_run(Path(folder))
    for make in FIGURES:
        with reading(f"what {make.__name__}.png is drawn from in {folder}", "make the files of the run again"):
            figure = make(run)
        if figure is not None:
            yield make.__name__, figure


def draw_run(folder: Path) -> list[Path]:
    """Draw all figures into folder/plots; returns their paths. Raises UserError."""
    drawn = []
    for name, figure in draw_figures(folder):
        path = Path(folder) / "plots" / f"{name}.png"
        save_figure(figure, path)
        drawn.append(path)
    return drawn


def save_figure(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a class in letters that the font has not
        figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, lambda file: file.write(buffer.getvalue()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="visualize.py", description="Draw the figures of a run into RUN/plots.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as checkpoints_run")
    args = parser.parse_args(argv)
    try:
        for path in draw_run(args.run):
            print(printable(path))
    except (UserError, OSError) as error:
        print("visualize.py: error:", printable(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

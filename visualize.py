"""Draw the figures of a run from the files in its folder: python visualize.py RUN

A run in progress works too; what its files do not hold yet is left out. The pictures go to RUN/plots.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from errors import UserError, printable
from figures import FIGURES
from figures.letters import fonts_for
from figures.style import save_figure
from runs.reader import read_run


def draw_figures(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield the names and matplotlib's figures that the run's files allow. Raises UserError."""
    run = read_run(Path(folder))
    with fonts_for(run.classes):
        for name, draw in FIGURES.items():
            figure = draw(run)
            if figure is not None:
                yield name, figure


def draw_run(folder: Path) -> list[Path]:
    """Draw all figures into folder/plots; returns their paths. Raises UserError."""
    drawn = []
    for name, figure in draw_figures(folder):
        path = Path(folder) / "plots" / f"{name}.png"
        save_figure(figure, path)
        drawn.append(path)
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 no run or files that cannot be read."""
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

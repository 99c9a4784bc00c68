"""Draw the figures of a run from the files in its folder, or the training curves of several runs in one picture.

python visualize.py RUN                                 all figures of a run, into RUN/plots
python visualize.py RUN1 RUN2 --out compare.png         the curves of both

A run in progress works too; what its files do not hold yet is left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from errors import UserError, printable
from figures import FIGURES
from figures.letters import fonts_for
from figures.side_by_side import curves_of_runs
from figures.style import FORMATS, save_figure
from figures.titles import fit_titles, name_run
from runs.reader import read_run


def draw_figures(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield the names and matplotlib's figures that the run's files allow. Raises UserError."""
    run = read_run(Path(folder))
    with fonts_for([*run.classes, run.name, run.dataset]):
        for name, draw in FIGURES.items():
            figure = draw(run)
            if figure is not None:
                name_run(figure, run)
                fit_titles(figure)
                yield name, figure


def draw_run(folder: Path, format: str = "png") -> list[Path]:
    """Draw all figures into folder/plots; returns their paths. Raises UserError. One that is no longer true goes."""
    paths = {name: Path(folder) / "plots" / f"{name}.{format}" for name in FIGURES}
    drawn = []
    for name, figure in draw_figures(folder):
        save_figure(figure, paths[name])
        drawn.append(paths[name])
    for path in set(paths.values()) - set(drawn):
        path.unlink(missing_ok=True)
    return drawn


def draw_together(folders: list[Path], path: Path) -> list[Path]:
    """Draw the training curves of several runs into one picture; returns its path in a list. Raises UserError."""
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not run.history:
            raise UserError(f"{run.folder} has no finished epoch yet: leave it out, or wait for its first")
    with fonts_for([name for run in runs for name in (run.name, run.dataset)]):
        figure = curves_of_runs(runs)
        fit_titles(figure)
        try:
            save_figure(figure, path)
        except OSError as error:
            raise UserError(f"--out {path} cannot be written ({error.strerror}): name another place") from error
    return [path]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        raise UserError(f"{message} (usage: python visualize.py --help)")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments. Raises UserError for what cannot be."""
    parser = Parser(
        prog="visualize.py",
        description="Draw the figures of a run into RUN/plots, or with --out the training curves of several runs (loss "
        "and validation accuracy, over epochs and over seconds) into one picture, whose legend says in which settings "
        "they differ. It needs the files of the run folders alone, and works while a run trains.",
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run, such as checkpoints_run")
    parser.add_argument("--format", choices=FORMATS, help="of the figures of a run (default: png)")
    endings = " or ".join(f".{name}" for name in FORMATS)
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"the picture of several runs; it ends in {endings}")
    args = parser.parse_args(argv)
    if args.out is None and len(args.runs) > 1:
        parser.error("several runs go into one picture: name it, such as --out compare.png")
    if args.out is not None:
        if len(args.runs) == 1:
            parser.error("--out compares several runs: name two at least, or leave it out and see RUN/plots")
        if args.out.suffix[1:].lower() not in FORMATS:
            parser.error(f"--out {args.out}: the name of the picture must end in {endings}")
        if args.format:
            parser.error("--format is for the figures of one run: the ending of --out says the format")
    return args


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong usage, no run or files that cannot be read."""
    try:
        args = parse(argv)
        drawn = draw_together(args.runs, args.out) if args.out else draw_run(args.runs[0], args.format or "png")
        for path in drawn:
            print(printable(path))
    except (UserError, OSError) as error:
        print("visualize.py: error:", printable(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

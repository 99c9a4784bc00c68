"""Train what a table or figure of the paper needs, and write results/ beside the paper's figures.

python -m paper table1 --dataset mnist --methods dt backprop --embeddings one-hot --seeds 0 1 2 --data-dir DIR
python -m paper figure3 --dataset digits --epochs 5 --dry-run       what it would train, its commands and hours
python -m paper record RUN ...                                      into Table 1: runs that main.py made
python -m paper report                                              results/README.md and README's table

Every training is a process of main.py in a folder of its own below --runs. What is done is skipped, what was stopped
goes on from its last.pt. Flags that are not named here go to main.py: --epochs 20 --train-size 5000 --lr 0.002 ...
"""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

from command_line import Parser, as_flag
from data import DATASETS
from errors import UserError, printable
from hardware.memory import reuse_freed_memory
from models.methods import METHODS, methods_with
from paper.board import write_board
from paper.plan import EMBEDDINGS, OURS, plan
from paper.published import IMAGES, SEEDS
from paper.runs import Order, measure_memory, print_plan, record, train_all
from runs.reader import OWN_IMAGES
from runs.signals import Stopped, StopSignals
from settings import make_parser

ROOT = Path(__file__).parent.parent
# Table or figure -> what it shows, its methods and embeddings where the command line names none.
PARTS = {
    "table1": ("test accuracy", tuple(METHODS), tuple(EMBEDDINGS)),
    "table2": ("memory of training", tuple(METHODS), ("one-hot",)),
    "figure2": ("prototypes before and after learning", ("dt",), ("prototype",)),
    "figure3": ("test accuracy over training time", tuple(METHODS), ("one-hot",)),
    "figure4": ("class probability by softmax or posterior", ("dt",), ("dim20",)),
    "figure5": ("starts of the prototypes", ("dt",), ("prototype",)),
}


def main(argv: list[str] | None = None) -> int:
    """Return the exit code, as main.py does."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # see main.py
    reuse_freed_memory()
    try:
        with StopSignals():
            run_command(sys.argv[1:] if argv is None else argv)
    except (UserError, OSError) as error:
        print("paper: error:", printable(error), file=sys.stderr)
        return 2
    except Stopped as stop:
        print("paper: stopped; the same command goes on from there", file=sys.stderr)
        return stop.code
    return 0


def run_command(argv: list[str]) -> None:
    """Do what the command line says."""
    args, budget = parse_command(argv)
    if args.what == "report":
        write_board(args.results, args.readme)
        print(f"written: {args.results / 'README.md'} and the table in {args.readme}")
        return
    if args.what == "record":
        record(args.folders, args.results, args.paper_dataset)
        return
    where = args.runs, args.results, args.torchrun
    order = Order(args.what, args.dataset, args.paper_dataset, *where, command_line(argv))
    trainings = plan(args.what, args.dataset, args.methods, args.embeddings, args.seeds, budget)
    if args.what == "table2":
        measure_memory(order, trainings, args.dry_run)
    elif args.dry_run:
        print_plan(order, trainings)
    else:
        train_all(order, trainings)


def command_line(argv: list[str]) -> str:
    """Return the command as it was typed, but for where things are: that is the reader's affair."""
    words = iter([part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])])
    kept, shown = ["python", "-m", "paper"], {"--runs": [], "--results": [], "--data-dir": ["--data-dir", "DIR"]}
    for word in words:
        if word in shown:
            next(words, None)
        kept += shown.get(word, [word])
    return shlex.join(kept)


def parse_command(argv: list[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """Return our settings, and the flags that go to main.py. Raises UserError."""
    parser = Parser(prog="paper", description=__doc__.split("\n")[0], epilog=__doc__.split("\n\n")[-1])
    parsers = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (about, methods, embeddings) in PARTS.items():
        _add_flags(parsers.add_parser(name, help=about, epilog=parser.epilog), methods, embeddings)
    for name, about in (("record", "take finished runs into Table 1"), ("report", "remake the board of results")):
        part = parsers.add_parser(name, help=about)
        _add_places(part)
        if name == "record":
            part.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folder of a run")
        else:
            part.add_argument("--readme", default=ROOT / "README.md", type=Path, help="file with the markers")
    args, rest = parser.parse_known_args(argv)
    if rest and args.what in ("record", "report"):
        raise UserError(f"{rest[0]} makes no sense here (all flags: python -m paper {args.what} --help)")
    budget = vars(make_parser().parse_args(rest))
    for name in sorted(budget.keys() & OURS):
        raise UserError(f"{as_flag(name)} is set here: leave it out")
    _check(args)
    return args, budget


def _add_flags(part: Parser, methods: tuple[str, ...], embeddings: tuple[str, ...]) -> None:
    part.add_argument("--dataset", default="mnist", choices=DATASETS, help="as of main.py (default: mnist)")
    part.add_argument("--methods", default=methods, nargs="+", choices=METHODS, help="default: all that it shows")
    part.add_argument("--embeddings", default=embeddings, nargs="+", choices=EMBEDDINGS, help="class embeddings")
    part.add_argument("--seeds", default=range(SEEDS), nargs="+", type=int, help="default: 0 1 2, 5 runs each")
    runs = ROOT / "checkpoints_run" / "paper"
    part.add_argument("--runs", default=runs, type=Path, help="folder of the runs (default: checkpoints_run/paper)")
    part.add_argument("--torchrun", default=1, type=int, help="processes of one thread for the blocks of dt")
    part.add_argument("--dry-run", default=False, action="store_true", help="print commands and hours, train nothing")
    _add_places(part)


def _add_places(part: Parser) -> None:
    part.add_argument("--results", default=ROOT / "results", type=Path, help="folder of the results")
    about = f"data set of the paper that the images of --dataset {' or '.join(OWN_IMAGES)} are from"
    part.add_argument("--paper-dataset", default=None, choices=IMAGES, help=about)


def _check(args: argparse.Namespace) -> None:
    if args.what in ("record", "report"):
        return
    for name in ("methods", "embeddings", "seeds"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))  # each counts once
    args.seeds = args.seeds[:1] if args.what == "table2" else args.seeds
    if args.paper_dataset and args.dataset not in OWN_IMAGES:
        raise UserError(f"--paper-dataset belongs to --dataset {' or '.join(OWN_IMAGES)}")
    if args.what in ("figure2", "figure5") and set(args.embeddings) != {"prototype"}:
        raise UserError(f"--embeddings: {args.what} is of prototype only, leave the flag out")
    unknown = set(args.methods) - set(methods_with("class_probability"))
    if args.what == "figure4" and unknown:
        raise UserError(f"--methods: {' and '.join(sorted(unknown))} has no class probability to choose")


if __name__ == "__main__":
    sys.exit(main())

"""The paper's tables and figures by one command: trains what is missing, then writes results/ with the paper's figures.

python reproduce.py table1 --dataset mnist --methods dt backprop --embeddings one-hot --seeds 0 1 2 --data-dir DIR
python reproduce.py figure3 --dataset digits --epochs 5 --dry-run       what it would train, and for how many hours
python reproduce.py record RUN ...                                      into Table 1: runs that main.py made
python reproduce.py report                                              README's results section from results/

Every training is a process of main.py in a folder of its own below --runs. What is done is skipped, what was stopped
goes on from its last.pt. Flags that are not named here go to main.py: --epochs 20 --train-size 5000 --lr 0.002 ...
"""

import shlex
import sys
import warnings
from argparse import Namespace
from pathlib import Path

from data import DATASETS
from defaults import METHODS
from errors import UserError
from flag_types import COUNT, POSITIVE, Parser
from flags import make_parser
from options import METHOD_FLAGS, as_flag
from reproduction.paper import IMAGES, SEEDS
from reproduction.plan import EMBEDDINGS, OURS, plan
from reproduction.report import write_markdown, write_readme
from reproduction.runs import measure_memory, print_plan, record, train_all
from resources import reuse_freed_memory
from stops import Stopped, StopSignals

ROOT = Path(__file__).parent
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
    """The exit code, as of main.py."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # see main.py
    reuse_freed_memory()
    try:
        with StopSignals():
            run_command(sys.argv[1:] if argv is None else argv)
    except (UserError, OSError) as error:
        print("reproduce.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Stopped as stop:
        print("reproduce.py: stopped; the same command goes on from there", file=sys.stderr)
        return stop.code
    return 0


def run_command(argv: list[str]) -> None:
    args, budget = parse(argv)
    args.command = command_line(argv)
    if args.what == "report":
        write_markdown(args.results)
        write_readme(args.readme, args.results)
        print(f"written: the results section of {args.readme}")
    elif args.what == "record":
        record(args)
    elif args.what == "table2":
        measure_memory(args, budget)
    elif args.dry_run:
        print_plan(args, plan(args.what, args, budget))
    else:
        train_all(args, plan(args.what, args, budget))


def command_line(argv: list[str]) -> str:
    """As it was typed, but for where things are: that is the reader's affair."""
    words = iter([part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])])
    kept, shown = ["python", "reproduce.py"], {"--runs": [], "--results": [], "--data-dir": ["--data-dir", "DIR"]}
    for word in words:
        if word in shown:
            next(words, None)
        kept += shown.get(word, [word])
    return shlex.join(kept)


def parse(argv: list[str]) -> tuple[Namespace, dict[str, object]]:
    """Our settings, and the flags that go to main.py. Raises UserError."""
    parser = Parser(prog="reproduce.py", description=__doc__.split("\n")[0], epilog=__doc__.split("\n\n")[-1])
    parsers = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    defaults = {}
    for name, (what, methods, embeddings) in PARTS.items():
        part = parsers.add_parser(name, help=what, epilog=parser.epilog)
        _add_flags(part, methods, embeddings)
        defaults[name] = part.defaults
    for name, what in (("record", "take finished runs into Table 1"), ("report", "write README's results section")):
        part = parsers.add_parser(name, help=what)
        flag = part.group("places")
        _add_results(flag)
        defaults[name] = part.defaults
        if name == "record":
            part.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folder of a run")
            _add_paper_dataset(flag)
        else:
            flag("--readme", ROOT / "README.md", "file with the markers of the results", type=Path, metavar="PATH")
    given, rest = parser.parse_known_args(argv)
    if rest and given.what in ("record", "report"):
        raise UserError(f"{rest[0]} makes no sense here (all flags: python reproduce.py {given.what} --help)")
    args = Namespace(**{**defaults[given.what], **vars(given)})
    budget = vars(make_parser().parse_args(rest))
    for name in sorted(budget.keys() & OURS):
        raise UserError(f"{as_flag(name)} is set by reproduce.py itself: leave it out")
    _check(args)
    return args, budget


def _add_flags(parser: Parser, methods: tuple[str, ...], embeddings: tuple[str, ...]) -> None:
    flag = parser.group("what is trained")
    flag("--dataset", "mnist", "as of main.py", choices=DATASETS)
    _add_paper_dataset(flag)
    flag("--methods", methods, "methods", nargs="+", choices=tuple(METHODS))
    flag("--embeddings", embeddings, "class embeddings", nargs="+", choices=tuple(EMBEDDINGS))
    flag("--seeds", tuple(range(SEEDS)), "seeds, each with 5 inference runs", nargs="+", type=COUNT, metavar="N")
    flag = parser.group("how and where")
    flag("--runs", ROOT / "checkpoints_run" / "reproduce", "folder of the runs", type=Path, metavar="DIR")
    _add_results(flag)
    flag("--torchrun", 1, "processes of one thread each for the blocks of dt", type=POSITIVE, metavar="N")
    flag("--dry-run", False, "print the plan with estimated hours: needs no data, trains nothing", action="store_true")


def _add_results(flag) -> None:
    flag("--results", ROOT / "results", "folder of the results", type=Path, metavar="DIR")


def _add_paper_dataset(flag) -> None:
    text = "data set of the paper that the images of --dataset folder are from: its figures stand beside ours"
    flag("--paper-dataset", None, text, shown="none", choices=tuple(IMAGES))


def _check(args: Namespace) -> None:
    if args.what in ("record", "report"):
        return
    for name in ("methods", "embeddings", "seeds"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))  # each counts once
    if args.paper_dataset and args.dataset != "folder":
        raise UserError("--paper-dataset belongs to --dataset folder")
    if args.what in ("figure2", "figure5") and set(args.embeddings) != {"prototype"}:
        raise UserError(f"--embeddings: {args.what} is of prototype only, leave the flag out")
    unknown = set(args.methods) - set(METHOD_FLAGS["class_probability"])
    if args.what == "figure4" and unknown:
        raise UserError(f"--methods: {' and '.join(sorted(unknown))} has no class probability to choose")


if __name__ == "__main__":
    sys.exit(main())

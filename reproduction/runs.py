"""The trainings of a table or figure done one after the other, and what they gave written to results/."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from checkpoint import LAST
from errors import UserError
from launch import run_main
from reproduction.estimate import Estimate
from reproduction.memory import measure
from reproduction.plan import (
    Training,
    decisive,
    find_run,
    flags_of,
    flags_to_go_on,
    is_finished,
    new_folder,
    plan,
    training_of,
)
from reproduction.plots import accuracy_figure, prototypes_figure
from reproduction.records import command_of, make_row, ranks_of, update_results
from reproduction.report import write_markdown
from run_files import RunFiles, read_run
from visualize import save_figure


def train_all(args: Namespace, trainings: list[Training]) -> None:
    """Train what is missing; results are written before the first training and after every one."""
    write_results(args, trainings)
    for i, training in enumerate(trainings, 1):
        run = find_run(training, args.runs)
        title = f"{args.what}, training {i} of {len(trainings)}: {training.name}"
        if run and is_finished(run):
            print(f"{title}: done already in {run.folder}", flush=True)
            continue
        folder = run.folder if run else new_folder(training, args.runs)
        print(f"\n{title}: in {folder}", flush=True)
        train(training, folder, args.torchrun)
        write_results(args, trainings)
    name = args.results / f"{args.what}_{args.dataset}"
    print(f"\nwritten: {name}.json and .md")


def train(training: Training, folder: Path, ranks: int) -> None:
    """Start or continue it. Raises UserError where main.py fails, which has told why by then."""
    last = folder / LAST
    if last.exists():
        flags = ["--checkpoint", str(last), *flags_to_go_on(training.settings)]
    else:
        flags = flags_of(training.settings)
    dealt = ranks if training.method == "dt" else 1
    code = run_main([*flags, "--checkpoint-dir", str(folder)], dealt)
    if code:
        raise UserError(f"{training.name} ended with code {code}; the same command goes on from there")


def write_results(args: Namespace, trainings: list[Training]) -> None:
    """JSON, Markdown and picture of what is finished so far."""
    finished = list(finished_rows(args, trainings))
    if not finished:
        return
    rows = [row for row, _ in finished]
    result = update_results(args.results, args.what, args.dataset, args.paper_dataset, rows)
    write_markdown(args.results)
    picture = args.results / f"{args.what}_{args.dataset}.png"
    if args.what == "figure2":
        row, runs = finished[0]
        save_figure(prototypes_figure(result, row, runs[0]), picture)
    elif args.what.startswith("figure"):
        save_figure(accuracy_figure(result), picture)


def finished_rows(args: Namespace, trainings: list[Training]) -> Iterator[tuple[dict, list[RunFiles]]]:
    """The rows of what is finished, and the runs of each: those of all seeds."""
    found = [(training, find_run(training, args.runs)) for training in trainings]
    for training, runs in by_row([(training, run) for training, run in found if run and is_finished(run)]):
        yield make_row(training, runs, args.command), runs


def by_row(pairs: list[tuple[Training, RunFiles]]) -> list[tuple[Training, list[RunFiles]]]:
    """Runs of trainings that differ in nothing but the seed, with the first of these trainings."""
    groups: dict[str, tuple[Training, list[RunFiles]]] = {}
    for training, run in pairs:
        key = json.dumps(decisive({**training.settings, "seed": None}), sort_keys=True)
        groups.setdefault(key, (training, []))[1].append(run)
    return list(groups.values())


def print_plan(args: Namespace, trainings: list[Training]) -> None:
    """Each training, whether it is done, and the hours that are left."""
    estimate, total = Estimate(args.torchrun), 0.0
    for training in trainings:
        run = find_run(training, args.runs) if args.runs.exists() else None
        if run and is_finished(run):
            print(f"{training.name}: done in {run.folder}")
            continue
        epochs, done = training.settings["epochs"], len(run.history or []) if run else 0
        hours = (epochs - done) * estimate.seconds_per_epoch(training) / 3600
        total += hours
        state = f"epoch {done} of {epochs} is done in {run.folder}" if run else f"epochs to do: {epochs}"
        print(f"{training.name}: {state}, about {in_hours(hours)}", flush=True)
    print(f"trainings: {len(trainings)}, about {in_hours(total)} to go, from a few steps and tests timed just now")


def in_hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours > 0.1 else f"{3600 * hours:.0f} s"


def measure_memory(args: Namespace, budget: dict[str, object]) -> None:
    """Table 2. Nothing is trained to its end, so there is one seed and no run."""
    args.seeds = args.seeds[:1]
    trainings = plan(args.what, args, budget)
    if args.dry_run:
        print(f"table2: a step of each of {', '.join(t.name for t in trainings)}: some minutes")
        return
    rows = []
    for training in trainings:
        rows.append(measure(training, args.command))
        print(f"{training.name}: {rows[-1]['total'] / 1e6:,.0f} MB", flush=True)
    update_results(args.results, args.what, args.dataset, args.paper_dataset, rows)
    write_markdown(args.results)


def why_not(run: RunFiles) -> str:
    """Why a run is not finished, and what to do."""
    if run.config.get("blocks"):
        return "holds a part of the blocks: join all parts with python main.py --merge"
    if not run.is_trained:
        return f"is not finished: go on with python main.py --checkpoint {run.folder / LAST}"
    state = "was last tested with other settings than its own" if run.results else "is not tested yet"
    return f"{state}: first run python main.py --checkpoint {run.folder / LAST}"


def record(args: Namespace) -> None:
    """Finished runs that main.py made go into Table 1, by their config.json; all seeds of a row in one call."""
    runs = [read_run(folder) for folder in args.folders]
    for run in runs:
        if not is_finished(run):
            raise UserError(f"{run.folder} {why_not(run)}")
    for training, same in by_row([(training_of(run.config), run) for run in runs]):
        if len({run.config["seed"] for run in same}) < len(same):
            raise UserError(f"of {', '.join(str(run.folder) for run in same)} two have the same settings and seed")
        if args.paper_dataset and training.settings["dataset"] != "folder":
            raise UserError("--paper-dataset belongs to --dataset folder")
        row = make_row(training, same, command_of(same[0].config, ranks_of(same[0])))
        update_results(args.results, "table1", training.settings["dataset"], args.paper_dataset, [row])
        name = f"table1_{training.settings['dataset']}"
        print(f"recorded: {training.method} {training.embedding} in {args.results / name}.json and .md")
    write_markdown(args.results)

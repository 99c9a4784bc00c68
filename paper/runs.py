"""The trainings of a table or figure done one after the other, and what they gave written to results/."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from figures.style import save_figure
from models.methods import METHODS
from paper.memory import measure
from paper.pictures import accuracy_figure, prototypes_figure
from paper.plan import Training, decisive, find_run, flags_of, flags_to_go_on, is_finished, new_folder, training_of
from paper.published import IMAGES
from paper.records import command_of, make_row, read_results, update_results
from runs.launch import start_or_continue
from runs.reader import RunFiles, read_run


@dataclass
class Order:
    """An order: a table or figure (what), its data, and where runs and results are."""

    what: str
    dataset: str
    paper_dataset: str | None
    runs: Path
    results: Path
    torchrun: int
    command: str


def train_all(order: Order, trainings: list[Training]) -> None:
    """Train what is missing; results are written before the first training and after every one."""
    write_results(order, trainings)
    for i, training in enumerate(trainings, 1):
        run = find_run(training, order.runs)
        title = f"{order.what}, training {i} of {len(trainings)}: {training.name}"
        if run and is_finished(run):
            print(f"{title}: done already in {run.folder}", flush=True)
            continue
        folder = run.folder if run else new_folder(training, order.runs)
        print(f"\n{title}: in {folder}", flush=True)
        ranks = order.torchrun if METHODS[training.method].blocks_alone else 1
        start_or_continue(training.name, folder, flags_of(training.settings), flags_to_go_on(training.settings), ranks)
        write_results(order, trainings)
    print(
        f"\nwritten: {order.results / f'{order.what}_{order.dataset}'}.json; python -m paper report remakes the board"
    )


def write_results(order: Order, trainings: list[Training]) -> None:
    """Write JSON and picture of what is finished so far."""
    found = [(training, find_run(training, order.runs)) for training in trainings]
    finished = by_row([(training, run) for training, run in found if run and is_finished(run)])
    if not finished:
        return
    rows = [make_row(training, runs, order.command) for training, runs in finished]
    result = update_results(order.results, order.what, order.dataset, order.paper_dataset, rows)
    picture = order.results / f"{order.what}_{order.dataset}.png"
    if order.what == "figure2":
        save_figure(prototypes_figure(result, rows[0], finished[0][1][0]), picture)
    elif order.what.startswith("figure"):
        save_figure(accuracy_figure(result), picture)


def by_row(pairs: list[tuple[Training, RunFiles]]) -> list[tuple[Training, list[RunFiles]]]:
    """Return runs of trainings that differ in nothing but the seed, with the first of these trainings."""
    groups: dict[str, tuple[Training, list[RunFiles]]] = {}
    for training, run in pairs:
        key = json.dumps(decisive({**training.settings, "seed": None}), sort_keys=True)
        groups.setdefault(key, (training, []))[1].append(run)
    return list(groups.values())


def print_plan(order: Order, trainings: list[Training]) -> None:
    """Print each training with command and hours, several seeds in one line, and the hours of each method."""
    hours: dict[str, float | None] = {}
    groups: dict[tuple, list[Training]] = {}
    for training in trainings:
        groups.setdefault((training.method, training.embedding, training.variant), []).append(training)
    for (method, *_), same in groups.items():
        left = [t for t in same if not ((run := find_run(t, order.runs)) and is_finished(run))]
        each = recorded_hours(order, same[0])
        known = hours.get(method, 0.0)
        hours[method] = None if each is None or known is None else known + each * len(left)
        seeds = f"seed{'s' * (len(same) > 1)} {', '.join(str(t.seed) for t in same)}"
        done = f", {len(same) - len(left)} of them done" if len(left) < len(same) else ""
        time = "time not recorded yet" if each is None else f"{each:.2f} h each"
        print(f"{same[0].name.rpartition(' seed')[0]}: {seeds}{done}, {time}\n    {command_of(same[0].settings)}")
    for method, total in hours.items():
        print(f"{method}: {'unknown' if total is None else f'{total:.2f}'} h to go, by the runs in {order.results}")


def recorded_hours(order: Order, training: Training) -> float | None:
    """Return the hours of a training by the seconds per image of such ones in results/; None without."""
    name = order.paper_dataset or training.settings["dataset"]
    found = read_results(order.results) if order.results.exists() else []
    rows = [row for result in found if name in (result["paper_dataset"], result["dataset"]) for row in result["rows"]]
    rows = [row for row in rows if row["method"] == training.method]
    rows = [row for row in rows if row["embedding"] == training.embedding] or rows
    seconds = [run["seconds"] / run["epochs"] / run["train_images"] for row in rows for run in row.get("runs", [])]
    if not seconds or name not in IMAGES:
        return None
    images = min(IMAGES[name].train, training.settings["train_size"] or IMAGES[name].train)
    return sorted(seconds)[len(seconds) // 2] * images * training.settings["epochs"] / 3600


def measure_memory(order: Order, trainings: list[Training], dry_run: bool) -> None:
    """Measure Table 2. Nothing is trained to its end, so there is one seed and no run."""
    if dry_run:
        print(f"table2: a step of each of {', '.join(t.name for t in trainings)}: some minutes")
        return
    rows, paper_dataset = [], order.paper_dataset or order.dataset
    if paper_dataset not in IMAGES:
        raise UserError(f"--dataset {paper_dataset} is not in the paper: name one with --paper-dataset")
    for training in trainings:
        rows.append(measure(training, paper_dataset, order.command))
        print(f"{training.name}: {rows[-1]['total'] / 1e6:,.0f} MB", flush=True)
    update_results(order.results, order.what, order.dataset, order.paper_dataset, rows)


def record(folders: list[Path], results: Path, paper_dataset: str | None) -> None:
    """Take finished runs that main.py made into Table 1, by their config.json; all seeds of a row in one call."""
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not is_finished(run):
            raise UserError(f"{run.folder} {why_not(run)}")
    pairs = [(training_of(run.config), run) for run in runs]
    for training, same in by_row(pairs):
        seeds = [run.config["seed"] for run in same]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{same[0].folder} and {same[1].folder} have the same settings and seed: name one of them")
        row = make_row(training, same, shlex.join(["python", "-m", "paper", "record", *(str(r.folder) for r in same)]))
        row["command"] = row["runs"][0]["command"]
        update_results(results, "table1", training.settings["dataset"], paper_dataset, [row])
        print(f"recorded: {training.name}")


def why_not(run: RunFiles) -> str:
    """Return why a run is not finished, and what to do."""
    last = run.folder / "last.pt"
    if run.config.get("blocks"):
        return "holds a part of the blocks: join all parts with python main.py --merge"
    if not run.is_trained:
        return f"is not finished: go on with python main.py --checkpoint {last}"
    if run.results and run.split != "test":
        best = run.folder / "best_model.pt"
        return f"is not tested yet: first run python main.py --evaluate --eval-split test --checkpoint {best}"
    state = "was last tested with other settings than its own" if run.results else "is not tested yet"
    return f"{state}: first run python main.py --checkpoint {last}"

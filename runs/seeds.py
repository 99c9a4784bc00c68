"""Train a run for each of several seeds; print and write mean and standard error over them."""

from pathlib import Path

from errors import UserError, printable
from evaluate import mean_and_error
from rules import parse, settle
from runs.files import write_json
from runs.folder import FLAGS, open_run_folder
from runs.launch import finish, same_flags, tokens
from runs.reader import RunFiles, finished_run
from runs.report import last_line
from runs.tables import markdown_table

OF_THE_WHOLE = ("seeds", "checkpoint_dir", "config")


def train_seeds(folder: Path, seeds: list[int], flags: dict[str, object]) -> None:
    """Train in folder/seed-N for each seed N, from where it was stopped, and write folder/seeds.json.

    Every training is a process of its own. Raises UserError for a single seed, for flags that do not go together, and
    for a folder that holds runs with other flags.
    """
    if len(seeds) < 2:
        raise UserError("--seeds needs two or more, such as 0,1,2: for one take --seed")
    flags = {name: value for name, value in flags.items() if name not in OF_THE_WHOLE}
    settle(*parse(tokens(flags)))  # what is refused is told before the folder is made
    with open_run_folder(folder):
        same_flags(folder / FLAGS, flags)
        for seed in seeds:
            finish(f"seed {seed}", _place(folder, seed), {**flags, "seed": seed})
        _tell(folder, [finished_run(_place(folder, seed)) for seed in seeds])


def _place(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _tell(folder: Path, runs: list[RunFiles]) -> None:
    """Print and write what came out."""
    rows, first = [_row(run) for run in runs], runs[0]
    readout, names = first.results["readout"], list(first.results["accuracy_by_readout"])
    mean, sem = mean_and_error([row["accuracy_mean"] for row in rows])
    by_readout = {name: mean_and_error([row["accuracy_by_readout"][name] for row in rows]) for name in names}
    content = {"method": first.config["method"], "dataset": first.dataset, "split": first.split, "readout": readout}
    content |= {"accuracy_mean": mean, "accuracy_sem": sem}
    content["accuracy_by_readout"] = {name: {"mean": m, "sem": e} for name, (m, e) in by_readout.items()}
    write_json(folder / "seeds.json", {**content, "runs": rows})
    others = [name for name in names if name != readout]
    whole = ["mean", _in_words(mean, sem), *(_in_words(*by_readout[name]) for name in others), "", ""]
    columns = ["seed", f"{first.split} accuracy (%)", *others, "epoch tested", "training (s)"]
    print("\n" + markdown_table(columns, [*(_cells(row, others) for row in rows), whole]))
    print(printable(f"+-: standard error of a seed over its runs, of the mean over the seeds; see {folder}/seeds.json"))
    print(last_line(mean, sem, len(rows), first.split, "seeds"))


def _row(run: RunFiles) -> dict:
    """Return what seeds.json says of a run."""
    results, (mean, sem) = run.results, run.accuracy
    return {
        "seed": run.config["seed"],
        "accuracy_mean": mean,
        "accuracy_sem": sem,
        "accuracy_by_readout": {name: part["mean"] for name, part in results["accuracy_by_readout"].items()},
        "epoch": results["epoch"],
        "seconds": sum(row["seconds"] for row in run.history),
    }


def _cells(row: dict, readouts: list[str]) -> list[str]:
    """Return a row of the table."""
    accuracies = (f"{row['accuracy_by_readout'][name]:.2f}" for name in readouts)
    first = str(row["seed"]), _in_words(row["accuracy_mean"], row["accuracy_sem"])
    return [*first, *accuracies, str(row["epoch"]), f"{row['seconds']:.0f}"]


def _in_words(mean: float, sem: float) -> str:
    return f"{mean:.2f} +- {sem:.2f}"

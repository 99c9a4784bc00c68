"""Train a run for each of several seeds; print and write mean and standard error over them."""

from pathlib import Path

from evaluate import mean_and_error
from rules import parse, settle
from runs.files import write_json
from runs.folder import FLAGS, open_run_folder
from runs.launch import finish, same_flags, tokens
from runs.reader import RunFiles, finished_run
from runs.report import last_line
from runs.tables import markdown_table
from settings import names_where

OF_THE_WHOLE = ("seeds", "checkpoint_dir", "config")


def train_seeds(folder: Path, seeds: list[int], flags: dict[str, object]) -> None:
    """Train in folder/seed-N for each seed N, from where it was stopped, and write folder/seeds.json.

    Every training is a process of its own. Raises UserError for flags that do not go together, and for a folder that
    holds runs with other flags.
    """
    flags = {name: value for name, value in flags.items() if name not in OF_THE_WHOLE}
    settle(*parse(tokens(flags)))  # what is refused is told before the folder is made
    free = names_where(lambda about: about["of_call"] and "resume" in about["may_change"])
    to_go_on = {name: value for name, value in flags.items() if name in free}
    with open_run_folder(folder):
        same_flags(folder / FLAGS, flags)
        for seed in seeds:
            finish(f"seed {seed}", _place(folder, seed), {**flags, "seed": seed}, to_go_on)
        _tell(folder, {seed: finished_run(_place(folder, seed)) for seed in seeds})


def _place(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _tell(folder: Path, runs: dict[int, RunFiles]) -> None:
    """Print and write what came out."""
    rows, first = [_row(seed, run) for seed, run in runs.items()], next(iter(runs.values()))
    mean, error = mean_and_error([row["accuracy_mean"] for row in rows])
    readouts = {name: mean_and_error([row["accuracy_by_readout"][name] for row in rows]) for name in _readouts(first)}
    write_json(
        folder / "seeds.json",
        {
            **{"method": first.config["method"], "dataset": first.dataset, "split": first.split},
            **{"readout": first.results["readout"], "accuracy_mean": mean, "accuracy_sem": error},
            "accuracy_by_readout": {
                name: dict(zip(("mean", "sem"), both, strict=True)) for name, both in readouts.items()
            },
            "runs": rows,
        },
    )
    print(f"\n{_table(rows, (mean, error), readouts, first)}")
    print(
        f"+- is the standard error: of a seed over its inference runs, of the mean over the seeds; {folder}/seeds.json"
    )
    print(last_line(mean, error, len(rows), first.split, "seeds"))


def _readouts(run: RunFiles) -> list[str]:
    return list(run.results["accuracy_by_readout"])


def _row(seed: int, run: RunFiles) -> dict:
    """Return what seeds.json says of a run."""
    mean, error = run.accuracy
    readouts = {name: part["mean"] for name, part in run.results["accuracy_by_readout"].items()}
    own = {"seed": seed, "accuracy_mean": mean, "accuracy_sem": error, "accuracy_by_readout": readouts}
    return {**own, "epoch": run.results["epoch"], "seconds": sum(row["seconds"] for row in run.history)}


def _table(rows: list[dict], whole: tuple[float, float], readouts: dict[str, tuple], run: RunFiles) -> str:
    """Return the seeds and their mean as a table in Markdown."""
    others = [name for name in readouts if name != run.results["readout"]]
    columns = ["seed", f"{run.split} accuracy (%)", *others, "epoch tested", "training (s)"]
    cells = [
        [
            str(row["seed"]),
            _in_words(row["accuracy_mean"], row["accuracy_sem"]),
            *(f"{row['accuracy_by_readout'][name]:.2f}" for name in others),
            str(row["epoch"]),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return markdown_table(
        columns, [*cells, ["mean", _in_words(*whole), *(_in_words(*readouts[n]) for n in others), "", ""]]
    )


def _in_words(mean: float, error: float) -> str:
    return f"{mean:.2f} +- {error:.2f}"

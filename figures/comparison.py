"""Several runs side by side: a table, their accuracy over the seconds of training, their calibration."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import COLOURS, STYLES, legend_below, plain, reliability, save_figure, with_grid
from figures.titles import fit_titles
from runs.files import write_atomic, write_json
from runs.reader import RunFiles, finished_run, read_json
from runs.tables import markdown_table

# Title, cell and meaning of each column.
COLUMNS = (
    ("method", "{method}", "what was trained (`--method`)"),
    (
        "{split} accuracy (%)",
        "{accuracy_mean:.2f} +- {accuracy_sem:.2f}",
        "on the {split} images, by the readout {readout}: mean and standard error over inference runs",
    ),
    ("vote", "{vote:.2f}", "the same by the most frequent class of the runs"),
    ("mean", "{mean:.2f}", "the same by the largest mean probability of the runs"),
    (
        "training images (%)",
        "{train_accuracy_mean:.2f} +- {train_accuracy_sem:.2f}",
        "accuracy on some of the training images at the epoch that was tested",
    ),
    ("ECE of mean (%)", "{ece:.1f}", "expected calibration error of the mean probability; 0 is best"),
    ("NLL of mean", "{nll:.3f}", "mean of -log of the mean probability of the true class; 0 is best"),
    ("epochs", "{epochs}", "that were trained; the one with the best validation accuracy was tested"),
    ("training (s)", "{seconds:.0f}", "seconds of training, without measuring accuracy"),
    ("images/s", "{images_per_second:,.0f}", "training images in a second"),
    ("peak memory (MB)", "{peak_megabytes:,.0f}", "largest memory of the process (of the GPU) while it trained"),
    ("parameters (M)", "{parameters_millions:.2f}", "millions of parameters, all blocks together"),
)


def summary(run: RunFiles) -> dict:
    """Return what the table and the figures show of a finished run."""
    results, history = run.results, run.history
    seconds, best = [row["seconds"] for row in history], history[run.best_epoch - 1]
    return {
        "method": run.config["method"],
        **dict(zip(("accuracy_mean", "accuracy_sem"), run.accuracy, strict=True)),
        **{"split": run.split, "readout": results["readout"]},
        "train_accuracy_mean": best["train_accuracy"],
        "train_accuracy_sem": best["train_accuracy_sem"],
        **{name: results["accuracy_by_readout"][name]["mean"] for name in ("vote", "mean")},
        **results["calibration"]["mean"],
        "epochs": len(history),
        "seconds": sum(seconds),
        "images_per_second": sum(row["images_per_second"] * row["seconds"] for row in history) / sum(seconds),
        "peak_megabytes": max(row["peak_memory_bytes"] or 0 for row in history) / 1e6,
        "parameters_millions": results["parameters"] / 1e6,
        "path": run.accuracy_path,
    }


def write_comparison(folder: Path, methods: list[str], dataset: str, command: str) -> None:
    """Write compare.md, compare.json and two figures of the finished runs in folder/METHOD, these methods first.

    command: that makes them.
    """
    found = {path.parent.name: read_json(path) for path in folder.glob("*/config.json")}
    of_method = {name for name, config in found.items() if isinstance(config, dict) and config.get("method") == name}
    earlier = sorted(of_method - set(methods))
    runs = {name: run for name in [*methods, *earlier] if (run := finished_run(folder / name))}
    if with_earlier := [name for name in earlier if name in runs]:
        print(f"\nwith what the folder holds of {', '.join(with_earlier)}")
    if left_out := [name for name in earlier if name not in runs]:
        print(f"\nleft out, since not finished or last tested otherwise: {', '.join(left_out)}; name them too")
    rows = [summary(run) for run in runs.values()]
    text, about = table(rows), {"data set": dataset, "command": f"`{command}`", **origin(list(runs.values()))}
    page = page_of(f"{', '.join(runs)} on {dataset}", about, text, rows[0])
    write_atomic(folder / "compare.md", lambda file: file.write(page.encode()))
    write_json(folder / "compare.json", {"about": about, "rows": rows})
    paths = [(row["method"], row["method"], [row["path"]]) for row in rows]
    split, names = rows[0]["split"], plain(f"comparison {folder.resolve().name}, data set {dataset}")
    title = f"{names}\n{split} accuracy over training time, a dot for each epoch"
    accuracy = accuracy_over(paths, title, rows[0]["readout"], split=split)
    for name, figure in (("accuracy", accuracy), ("calibration", calibration(rows, f"{names}, {split} images"))):
        fit_titles(figure)
        save_figure(figure, folder / f"compare_{name}.png")
    print(f"\n{text}\nwritten: compare.md, compare.json, compare_accuracy.png, compare_calibration.png in {folder}")


def table(rows: list[dict]) -> str:
    """Return the summaries as a table in Markdown."""
    titles = [title.format(**rows[0]) for title, _, _ in COLUMNS]
    return markdown_table(titles, [[cell.format(**row) for _, cell, _ in COLUMNS] for row in rows])


def origin(runs: list[RunFiles]) -> dict[str, str]:
    """Return images, seeds, machine, versions and date of runs in words."""
    versions = [run.results.get("versions", {}) for run in runs]

    def every(values) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))

    return {
        "images tested": every(run.results.get(f"{run.split}_images") for run in runs),
        "seed": every(run.config["seed"] for run in runs),
        "machine": every(v.get(name) for name in ("device", "cpu") for v in versions),
        "threads": every(v.get("threads") for v in versions),
        "torch": every(v.get("torch") for v in versions),
        "commit": every(v.get("commit") for v in versions),
        "date": every(str(v.get("date"))[:10] for v in versions),
    }


def page_of(title: str, about: dict[str, str], text: str, row: dict) -> str:
    """Return compare.md: what was compared, where and when, the table, and what its columns mean."""
    facts = "".join(f"- {name}: {value}\n" for name, value in about.items())
    legend = "".join(f"- {name}: {meaning}\n".format(**row) for name, _, meaning in COLUMNS)
    return f"# {title}\n\n{facts}\n{text}\n## Columns\n\n{legend}"


def accuracy_over(
    lines: list[tuple[str, str, list[dict]]], title: str, readout: str, by: str = "seconds", split: str = "test"
) -> Figure:
    """Draw the accuracy on a split over the seconds spent on training (Figure 3 of the paper), or by "epoch".

    lines: (label, group, RunFiles.accuracy_path of each seed); a colour for each group, a style for each line in it.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    groups = [group for _, group, _ in lines]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    for i, (label, group, paths) in enumerate(lines):
        again, colour = divmod(numbers[group], len(COLOURS))
        style = STYLES[(groups[:i].count(group) + again) % len(STYLES)]
        look = {"color": COLOURS[colour], "linestyle": style, "marker": "o", "markersize": 3}
        for path in paths:
            axes.plot(path[by], path[f"{split}_accuracy"], label=label if path is paths[0] else None, **look)
    x = {"seconds": "seconds of training", "epoch": "epoch"}[by]
    figure.suptitle(title)
    axes.set(xlabel=x, ylabel=f"{split} accuracy (%), readout {readout}")
    if by == "seconds":
        axes.set_xlim(left=0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure)
    return with_grid(figure, axes)


def calibration(rows: list[dict], source: str) -> Figure:
    """Draw accuracy by confidence of the runs' mean probability."""
    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    axes = figure.subplots()
    signs = zip(rows, COLOURS, "os^vDP", strict=False)
    reliability(axes, [(row["method"], row["bins"], row["ece"], colour, sign) for row, colour, sign in signs])
    figure.suptitle(f"{source}\ncalibration of the runs' mean probability")
    return with_grid(figure, axes)

"""Several runs side by side: a table, their accuracy over the seconds of training, their calibration."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import COLOURS, STYLES, legend_below, plain, reliability, save_figure, with_grid
from figures.titles import fit_titles
from runs.files import write_atomic, write_json
from runs.reader import RunFiles, finished_run
from runs.tables import markdown_table

COLUMNS = {
    "method": "{method}",
    "{split} accuracy (%)": "{accuracy_mean:.2f} +- {accuracy_sem:.2f}",
    "vote": "{vote:.2f}",
    "mean": "{mean:.2f}",
    "training images (%)": "{train_accuracy_mean:.2f} +- {train_accuracy_sem:.2f}",
    "ECE of mean (%)": "{ece:.1f}",
    "NLL of mean": "{nll:.3f}",
    "epochs": "{epochs}",
    "training (s)": "{seconds:.0f}",
    "images/s": "{images_per_second:,.0f}",
    "peak memory (MB)": "{peak_megabytes:,.0f}",
    "parameters (M)": "{parameters_millions:.2f}",
}


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


def write_comparison(folder: Path, methods: list[str], dataset: str) -> None:
    """Write compare.md, compare.json and two figures of the finished runs in folder/METHOD, these methods first."""
    earlier = sorted({path.parent.name for path in folder.glob("*/config.json")} - set(methods))
    runs = {name: run for name in [*methods, *earlier] if (run := finished_run(folder / name))}
    if with_earlier := [name for name in earlier if name in runs]:
        print(f"\nwith what the folder holds of {', '.join(with_earlier)}")
    if left_out := [name for name in earlier if name not in runs]:
        print(f"\nleft out, since not finished or last tested otherwise: {', '.join(left_out)}; name them too")
    rows = [summary(run) for run in runs.values()]
    text = table(rows)
    write_atomic(folder / "compare.md", lambda file: file.write(text.encode()))
    write_json(folder / "compare.json", {"rows": rows})
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
    titles = [title.format(**rows[0]) for title in COLUMNS]
    return markdown_table(titles, [[cell.format(**row) for cell in COLUMNS.values()] for row in rows])


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

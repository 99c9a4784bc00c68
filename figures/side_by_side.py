"""The training curves of several runs in one picture, named by what differs in their settings."""

import textwrap
from itertools import accumulate
from math import nan

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.differences import differences
from figures.style import COLOURS, STYLES, legend_below, plain, with_grid, with_log_scale
from runs.reader import RunFiles

SIGNS = "os^vDPX*"
LETTERS = 110  # of a line of the legend
MOST_SIGNS = 15  # on a curve


def curves_of_runs(runs: list[RunFiles]) -> Figure:
    """Draw loss and an accuracy of runs that have epochs, over epochs and over seconds of training.

    The accuracy is that on validation images; where no run has any, on test images, else on training images.
    """
    labels, (shown, images) = [_in_lines(label) for label in differences(runs)], _accuracy_of(runs)
    height = 7 + 0.17 * sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(12, height), layout="constrained")
    (loss, loss_by_time), (accuracy, accuracy_by_time) = figure.subplots(2, 2, sharex="col", sharey="row")
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        again, colour = divmod(i, len(COLOURS))
        look = {"color": COLOURS[colour], "linestyle": STYLES[again % len(STYLES)], "label": label}
        look |= {"marker": SIGNS[i % len(SIGNS)], "markersize": 5, "markevery": -(-len(run.history) // MOST_SIGNS)}
        seconds = list(accumulate(row["seconds"] for row in run.history))
        accuracies = [nan if row.get(shown) is None else row[shown] for row in run.history]
        for above, below, x in (
            (loss, accuracy, range(1, len(seconds) + 1)),
            (loss_by_time, accuracy_by_time, seconds),
        ):
            above.plot(x, run.mean_of("loss"), **look)
            below.plot(x, accuracies, **look)
    loss.set(ylabel="training loss (log scale)", title="over epochs")
    with_log_scale(loss)
    loss_by_time.set(title="over seconds of training")
    accuracy.set(ylabel=f"{images} accuracy (%)", xlabel="epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy_by_time.set(xlabel="seconds of training")
    accuracy_by_time.set_xlim(left=0)
    figure.suptitle(_title(runs))
    legend_below(figure)
    return with_grid(figure, *figure.axes)


def _accuracy_of(runs: list[RunFiles]) -> tuple[str, str]:
    """Return the column of the history that is shown, and of which images it is."""
    rows = [row for run in runs for row in run.history]
    columns = {"val_accuracy": "validation", "test_accuracy": "test", "train_accuracy": "training"}
    known = [pair for pair in columns.items() if any(row.get(pair[0]) is not None for row in rows)]
    return known[0] if known else ("val_accuracy", "validation")


def _in_lines(label: str) -> str:
    """Return a label in lines that break between two settings."""
    together = label.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
    lines = textwrap.wrap(together, LETTERS)
    return "\n".join(plain(line.replace("\N{NO-BREAK SPACE}", " ")) for line in lines)


def _title(runs: list[RunFiles]) -> str:
    """Return which runs are shown, of which methods and data sets."""
    methods, data = (dict.fromkeys(names) for names in ([r.config["method"] for r in runs], [r.dataset for r in runs]))
    lines = [f"training of {len(runs)} runs: method {', '.join(methods)}, data set {', '.join(data)}"]
    if len(methods) > 1:
        lines += ["the losses of different methods are different quantities"]
    return "\n".join(map(plain, lines))

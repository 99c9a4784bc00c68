"""Figures 2 to 5 of the paper from what was run here."""

from matplotlib.figure import Figure

from figures.comparison import accuracy_over
from figures.training import prototypes
from paper.board import DATA, FIGURES, label, unlike
from runs.reader import RunFiles


def accuracy_figure(result: dict) -> Figure:
    """Draw a line for each row and seed: over seconds where methods are compared, over epochs where a setting is."""
    lines = []
    for row in result["rows"]:
        name = f"{label(row)}, epochs {row['runs'][0]['epochs']}"
        lines.append((name, label(row), [run["path"] for run in row["runs"]]))
    return accuracy_over(lines, _title(result), "sample", by="seconds" if result["what"] == "figure3" else "epoch")


def prototypes_figure(result: dict, row: dict, run: RunFiles) -> Figure:
    """Draw the prototypes of one run of a row."""
    figure = prototypes(run)
    figure.suptitle(f"{_title(result)}\n{unlike(result, row)}; the change is added to grey", wrap=True)
    return figure


def _title(result: dict) -> str:
    name = DATA.get(result["paper_dataset"], result["dataset"])
    return f"{name}: {FIGURES[result['what']]} (figure {result['what'].removeprefix('figure')})"

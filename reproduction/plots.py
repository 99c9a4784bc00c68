"""Figures 2 to 5 of the paper from what was run here, each with the budget that it was made with."""

from matplotlib.figure import Figure

from plot_training import accuracy_over, prototypes
from reproduction.report import budget, heading, label, usual
from run_files import RunFiles


def accuracy_figure(result: dict) -> Figure:
    """A line for each row and seed; where the budgets differ they stand in the legend.

    Over seconds where methods are compared, over epochs where one of their settings is.
    """
    rows = result["rows"]
    budgets = [in_lines(row, result) for row in rows]
    same = len(set(budgets)) == 1
    title = f"{heading(result)}\n{budgets[0]}" if same else heading(result)
    names = [label(row) if same else f"{label(row)}, {text}" for row, text in zip(rows, budgets, strict=True)]
    lines = [(name, [run["path"] for run in row["runs"]]) for name, row in zip(names, rows, strict=True)]
    return accuracy_over(lines, title, "sample", by="seconds" if result["what"] == "figure3" else "epoch")


def prototypes_figure(result: dict, row: dict, run: RunFiles) -> Figure:
    """Of one run of a row of the result."""
    figure = prototypes(run)
    figure.suptitle(f"{heading(result)}\n{label(row)}, {in_lines(row, result)}")
    return figure


def in_lines(row: dict, result: dict) -> str:
    """The budget of a row, at most three differences in a line."""
    parts = budget(row, result).split(", ")
    lines = [", ".join(parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return f"unlike the {usual(result)}: " + ",\n".join(lines)

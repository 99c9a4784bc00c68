"""Figures 2 to 5 of the paper from what was run here, each with the budget that it was made with."""

from matplotlib.figure import Figure

from plot_training import accuracy_over, prototypes
from reproduction.report import budget_parts, heading, label, own_parts, shared_parts, usual
from run_files import RunFiles


def accuracy_figure(result: dict) -> Figure:
    """A line for each row and seed; what all budgets have in common stands in the title, the rest in the legend.

    Over seconds where methods are compared, over epochs where one of their settings is.
    """
    rows = result["rows"]
    common = shared_parts(result)
    title = "\n".join([heading(result), *([in_lines(common, result)] if common else [])])
    one_kind = len({(row["method"], row["embedding"]) for row in rows}) == 1
    lines = []
    for row in rows:
        name = row["variant"] if one_kind and row["variant"] else label(row)
        paths = [run["path"] for run in row["runs"]]
        lines.append((", ".join([name, *own_parts(row, result)]), label(row), paths))
    return accuracy_over(lines, title, "sample", by="seconds" if result["what"] == "figure3" else "epoch")


def prototypes_figure(result: dict, row: dict, run: RunFiles) -> Figure:
    """Of one run of a row of the result."""
    figure = prototypes(run)
    figure.suptitle(
        f"{heading(result)}\n{label(row)}, {in_lines(budget_parts(row, result), result)};\nthe change is added to grey"
    )
    return figure


def in_lines(parts: list[str], result: dict) -> str:
    """Parts of a budget, two in a line."""
    lines = [", ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return f"unlike the {usual(result)}: " + ",\n".join(lines)

"""The board of results: results/README.md and the table in README.md, both computed from results/*.json.

Above a table for each data set of the paper, below it a dated list of records, newest first.
"""

import os
from pathlib import Path

from command_line import show
from errors import UserError
from evaluate import mean_and_error
from models.methods import METHODS
from paper.published import COMBINATIONS, IMAGES, TABLE1, TABLE2
from paper.records import place_of, read_results
from runs.files import write_atomic
from runs.tables import markdown_table

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
FIGURES = {
    "figure2": "prototypes before and after learning",
    "figure3": "test accuracy over the seconds of training",
    "figure4": "class probability by softmax or posterior",
    "figure5": "starts of the prototypes",
}
BOARD = ["method", "network", "embedding", "unlike the paper", "paper", "here", "vote", "mean"]
OTHERS = {
    "ensemble": "ensemble",
    "mean-z": "mean-z",
    "one_step": "1 step",
    "block_1": "block 1",
}  # what a run has of them -> column
BOARD += [*OTHERS.values(), "time", "machine", "seeds", "commit"]
MEMORY_COLUMNS = ["data", "method", "paper (GB, share)", "here (MB, share)", "activations (MB)"]
MEMORY = """\
A training step of one batch: parameters, moments and the peak above them, and its share of back-propagation's. The
paper counts a whole process on a GPU, so neither sizes nor shares need agree.

"""
EXPLAINED = """\
Test accuracy in per cent. **paper** and **here**: mean over single inference runs (readout `sample`, the paper's), here
+- the standard error over the seeds, or of a single seed over its 5 runs. **vote**, **mean**: the runs of a seed
joined, which the paper does not do. **ensemble**: the mean of the blocks' own u_hat over blocks and runs. **mean-z**:
the embedding nearest to the mean z of the runs. **1 step**: as **here**, with 1 step of inference. **block 1**: the
class of its u_hat, from the image and mere noise. None of these is the paper's readout. The paper has the network
`paper` only. "Encoders alone" is no NoProp: T encoders with linear layers, trained as classifiers, are averaged; block
1 is the first of them. **time**: of training, on a machine that did other work beside it.

A row says how its settings differ from the paper's protocol (Table 3, all training images, last epoch, 3 seeds). In one
point no row of dt follows it: every batch goes through all blocks, where the paper's Algorithm 1 trains one block after
the other (`--block-order sequential`).
"""


def write_board(results: Path, readme: Path) -> None:
    """Write results/README.md, and the table between the markers of a README. Raises UserError where there are none."""
    found = read_results(results)
    text = board(found)
    write_atomic(results / "README.md", lambda file: file.write(text.encode()))
    page = readme.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise UserError(f"{readme} needs the lines {BEGIN} and {END}, once each: put them where the results belong")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    place = Path(os.path.relpath(results.resolve(), readme.resolve().parent)).as_posix()
    link = f"All rows, with commands and machines: [{place}/README.md]({place}/README.md)."
    new = f"{before}{BEGIN}\n{short_table(found)}\n{link}\n{END}{after}"
    write_atomic(readme, lambda file: file.write(new.encode()))


def board(found: list[dict]) -> str:
    """Return the board as Markdown."""
    parts = [f"# Results\n\nWritten by `python -m paper report`.\n\n{EXPLAINED}"]
    for dataset, name in DATA.items():
        if rows := rows_of(found, dataset):
            cells = [board_row(*pair) for pair in rows]
            parts.append(f"## {name}\n\n{markdown_table(BOARD, cells)}{missing(rows, dataset)}")
    memory = [memory_row(result, row) for result in found if result["what"] == "table2" for row in result["rows"]]
    if memory:
        parts.append(f"## Memory of training (Table 2)\n\n{MEMORY}{markdown_table(MEMORY_COLUMNS, memory)}")
    parts += [_figure(result) for result in found if result["what"] in FIGURES]
    return "\n".join([*parts, _records(found)])


def rows_of(found: list[dict], dataset: str) -> list[tuple[dict, dict]]:
    """Return (file's content, row) of Table 1 for a data set of the paper, in the paper's order."""
    rows = [(r, row) for r in found if r["what"] == "table1" and r["paper_dataset"] == dataset for row in r["rows"]]
    return sorted(rows, key=lambda pair: (network(pair[1]) != "paper", place_of(pair[1])))


def board_row(result: dict, row: dict) -> list[str]:
    """Return the cells of a row of the board."""
    runs = row["runs"]
    paper = published(result["paper_dataset"], row)
    machines = ", ".join(dict.fromkeys(_machine(run) for run in runs))
    commits = ", ".join(dict.fromkeys(run["versions"]["commit"] or "-" for run in runs))
    seconds = sum(run["seconds"] for run in runs) / len(runs)
    cells = [METHODS[row["method"]].title, network(row), row["embedding"], unlike(result, row)]
    cells += ["-" if paper is None else f"{paper:.2f}", in_words(row)]
    cells += [_mean_of(runs, name) for name in ("vote", "mean", *OTHERS)]
    return [*cells, f"{seconds:,.0f} s", machines, str(len(runs)), commits]


def published(dataset: str, row: dict) -> float | None:
    """Return the paper's accuracy of a row, on the paper's network."""
    return TABLE1[dataset].get((row["method"], row["embedding"])) if network(row) == "paper" else None


def _mean_of(runs: list[dict], name: str) -> str:
    """Return the mean over the seeds of a readout; '-' where it is not known of all."""
    values = [run.get(name) for run in runs]
    return "-" if None in values else f"{sum(values) / len(values):.2f}"


def label(row: dict) -> str:
    """Return the name of a row among others: 'dt one-hot'."""
    return " ".join(filter(None, (row["method"], row["embedding"], row["variant"])))


def accuracy(row: dict) -> tuple[float, float]:
    """Return mean and standard error: over the seeds, whose networks are independent; of one seed over its runs."""
    seeds = [run["per_run"] for run in row["runs"]]
    return mean_and_error([mean_and_error(values)[0] for values in seeds] if len(seeds) > 1 else seeds[0])


def in_words(row: dict) -> str:
    """Return the accuracy of a row, with its standard error where there is more than one run."""
    (mean, error), runs = accuracy(row), row["runs"]
    return f"{mean:.2f}" + (f" +- {error:.2f}" if len(runs) > 1 or len(runs[0]["per_run"]) > 1 else "")


def network(row: dict) -> str:
    """Return what a row trained: the image encoder of its blocks, or vit."""
    return row["runs"][0].get("network", "paper")


def unlike(result: dict, row: dict) -> str:
    """Return in words how a row's settings and images differ from the paper's."""
    pairs = {name.replace("_", "-"): ours for name, (ours, _) in row["differences"].items() if name != "encoder"}
    parts = [f"{name} {show(ours)}" for name, ours in pairs.items()]
    images, paper = row["runs"][0]["train_images"], IMAGES.get(result["paper_dataset"])
    part = [f"{images:,} of {paper.train:,} images"] if paper and images != paper.train else []
    return ", ".join(parts + part) or "-"


def _machine(run: dict) -> str:
    v = run["versions"]
    spread = f" x {run['ranks']} processes" if run["ranks"] > 1 else ""
    gpu = v["device"] not in (v["cpu"], "x86_64", "aarch64", "arm64")
    return f"{v['device'] if gpu else v['cpu'] or v['device']}, threads: {v['threads']}{spread}"


def missing(rows: list[tuple[dict, dict]], dataset: str) -> str:
    """Return which rows of the paper were not run."""
    done = {(row["method"], row["embedding"]) for _, row in rows if network(row) == "paper"}
    left = [f"{METHODS[m].title} {e} ({TABLE1[dataset][m, e]:.2f})" for m, e in COMBINATIONS if (m, e) not in done]
    return f"\nNot run (the paper's figure in brackets): {', '.join(left)}.\n" if left else ""


def memory_row(result: dict, row: dict) -> list[str]:
    """Return the cells of a row of Table 2."""
    base = next(other["total"] for other in result["rows"] if other["method"] == "backprop")
    paper = TABLE2[result["paper_dataset"]]
    theirs = f"{paper[row['method']]:.2f}, {paper[row['method']] / paper['backprop']:.2f}"
    ours = f"{row['total'] / 1e6:,.0f}, {row['total'] / base:.2f}"
    name = DATA[result["paper_dataset"]]
    return [name, METHODS[row["method"]].title, theirs, ours, f"{row['activations'] / 1e6:,.0f}"]


def _figure(result: dict) -> str:
    number, about = result["what"].removeprefix("figure"), FIGURES[result["what"]]
    rows = "; ".join(f"{label(row)} {accuracy(row)[0]:.2f}" for row in result["rows"])
    name = DATA.get(result["paper_dataset"], result["dataset"])
    picture = f"![{about}]({result['what']}_{result['dataset']}.png)"
    return f"## Figure {number}: {about} ({name})\n\n{picture}\n\nTest accuracy at the end: {rows}.\n"


def _records(found: list[dict]) -> str:
    """Return the dated list of runs, newest first; equal seeds of a row stand in it once."""
    lines = {}
    for result in found:
        for row in result["rows"]:
            for run in row.get("runs", []):
                v = run["versions"]
                cells = [run["date"][:10], v["commit"] or "-", _machine(run), f"`{run['command']}`"]
                cells += [run["last_line"].removeprefix("test accuracy: "), f"{run['seconds']:,.0f} s"]
                lines[run["date"], run["command"]] = cells
    columns = ["date", "commit", "machine", "command", "accuracy", "time"]
    ordered = [cells for _, cells in sorted(lines.items(), reverse=True)]
    return f"## Records\n\nNewest first.\n\n{markdown_table(columns, ordered)}"


def short_table(found: list[dict]) -> str:
    """Return the table of the README: a method a line, of each data set and network the best here.

    Runs on a part of the images, or that averaged answers to mirror images, do not count.
    """
    best: dict[tuple[str, str], dict[str, dict]] = {}  # of data set and network, a column each: rows by method
    for dataset in DATA:
        for _, row in rows_of(found, dataset):
            if row["runs"][0]["train_images"] != IMAGES[dataset].train or "mirror_test" in row["differences"]:
                continue
            column, title = best.setdefault((dataset, network(row)), {}), METHODS[row["method"]].title
            column[title] = max(column.get(title, row), row, key=lambda each: accuracy(each)[0])
    titles = dict.fromkeys(title for column in best.values() for title in column)
    names = [DATA[dataset] + ("" if encoder == "paper" else f", {encoder}") for dataset, encoder in best]
    cells = [[title, *(_short(best[key].get(title), key[0]) for key in best)] for title in titles]
    return markdown_table(["method", *names], cells)


def _short(row: dict | None, dataset: str) -> str:
    """Return a cell of the README's table: the accuracy, and in brackets the paper's."""
    if row is None:
        return "-"
    paper = published(dataset, row)
    return in_words(row) + (f" ({paper:.2f})" if paper else "")

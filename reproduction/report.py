"""results/*.json in words: Markdown tables with the paper's figures beside ours, and the results section of the README.

Every number is computed from results/*.json and paper.py; only the notes in results/notes.json are written by people:
{"table1_mnist": {"dt one-hot": "why it differs from the paper"}}. Where a combination has rows of several budgets, a
key may name the budget: "dt one-hot, epochs 20 instead of 100, seeds 1 instead of 3". The key "all" is for all rows.
"""

import os
from pathlib import Path

from checkpoint import write_atomic
from errors import UserError
from flag_types import show
from readout import mean_and_error
from report import TITLES, markdown_table
from reproduction.paper import COMBINATIONS, IMAGES, SEEDS, TABLE1, TABLE2
from run_files import read_json

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
HEADINGS = {
    "table1": "Test accuracy on {} (Table 1 of the paper)",
    "figure3": "Test accuracy over training time on {} (Figure 3)",
    "table2": "Memory of training on {} (Table 2)",
    "figure2": "Prototypes of {} before and after learning (Figure 2)",
    "figure4": "Class probability by softmax or posterior on {} (Figure 4)",
    "figure5": "Starts of the prototypes on {} (Figure 5)",
}
ACCURACY = """\
Test accuracy in per cent. The embedding of a class is a vector (one-hot, or 20 learned numbers: dim20) or an image
(prototype). Inference starts from noise, so two runs can give an image two classes. Here: mean accuracy of single runs,
+- the standard error over all runs of all seeds; vote and mean: the 5 runs of a seed joined by their most frequent
class or largest mean probability; train: single runs on training images.
"""
PAPER = "Paper: mean accuracy of single runs, from Table 1 of its version 1.\n"
MEMORY = """\
A training step of one batch, from the record of all allocations: activations that a forward pass leaves, peak of the
step above what stays, and what stays (parameters and the optimizers' two moments); here = peak + what stays. The paper
counts a whole process on a GPU, so neither sizes nor their ratios to back-propagation need agree.
"""
CURVES = """\
The curves are tests after every epoch: other noise than in the last test, and at most 50 steps for ct, fm and adjoint.
"""
EXPLAINED = {"table1": ACCURACY, "table2": MEMORY, "figure2": ACCURACY}
EXPLAINED |= dict.fromkeys(("figure3", "figure4", "figure5"), ACCURACY + CURVES)
COLUMNS = ["method", "embedding", "variant", "epochs", "lr-schedule", "paper", "here", "difference"]
COLUMNS += ["vote", "mean", "train", "note"]
MEMORY_COLUMNS = ["method", "embedding", "paper (GB)", "paper, ratio", "here (MB)", "here, ratio", "activations (MB)"]
MEMORY_COLUMNS += ["peak of a step (MB)", "what stays (MB)", "note"]


def write_markdown(results: Path) -> None:
    """results/NAME.md of every results/NAME.json."""
    for path, result, notes in read_results(results):
        text = f"# {heading(result)}\n\n{picture(result, '')}{explained_table(result, notes)}\n{remark(notes)}"
        text += f"{commands(result)}\n"
        text += details(result)
        write_atomic(path.with_suffix(".md"), lambda file, text=text: file.write(text.encode()))


def write_readme(readme: Path, results: Path) -> None:
    """Put the results section between the markers.

    Raises UserError where there are none, or no results, or results to which the file could not link.
    """
    base, folder = readme.resolve().parent, results.resolve()
    section = results_section(results, Path(os.path.relpath(folder, base)).as_posix())
    if not section:
        raise UserError(f"there are no results in {results}, and {readme} is left as it is: name them with --results")
    if base not in folder.parents:
        raise UserError(f"{readme} could not link to {results}, which is not below its folder: name another --readme")
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{readme} needs the lines {BEGIN} and {END}, once each: put them where the results belong")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    new = f"{before}{BEGIN}\n{section}{END}{after}"
    write_atomic(readme, lambda file: file.write(new.encode()))


def results_section(results: Path, place: str) -> str:
    """A table and a picture, with the commands that make them, and links to all else; empty where nothing was run.

    place: the folder of the results, seen from the text.
    """
    found = read_results(results)
    tables = [each for each in found if not picture(each[1], "")]
    shown = tables[:1] + [each for each in found if each not in tables][:1]
    parts = [_section(place, *each) for each in shown]
    rest = [each for each in found if each not in shown]
    if rest:
        links = [f"- {_link(place, path, heading(result))}\n" for path, result, _ in rest]
        parts.append("### More results\n\n" + "".join(links))
    return "\n".join(["## Results\n", *parts]) if parts else ""


def _section(place: str, path: Path, result: dict, notes: dict) -> str:
    shown = picture(result, f"{place}/") or f"{explained_table(result, notes)}\n"
    if result["what"] == "figure3":
        shown += f"{CURVES}\n"
    more = f"Every run with command, date, machine and last line: {_link(place, path, f'{path.stem}.md')}.\n"
    return f"### {heading(result)}\n\n{shown}{remark(notes)}{commands(result)}\n{more}"


def remark(notes: dict) -> str:
    """What is to be said of all rows."""
    return f"{notes['all']}\n\n" if "all" in notes else ""


def _link(place: str, path: Path, text: str) -> str:
    return f"[{text}]({place}/{path.stem}.md)"


def read_results(results: Path) -> list[tuple[Path, dict, dict]]:
    """(path, content, notes) of every file of results, in the order of HEADINGS, data sets of the paper first.

    Figure 3 shows rows of Table 1, and their notes where it has none of its own.
    """
    notes = read_json(results / "notes.json") or {}
    paths = [path for what in HEADINGS for path in sorted(results.glob(f"{what}_*.json"), key=_paper_first)]
    of_rows = {path: notes.get(path.stem.replace("figure3", "table1"), {}) for path in paths}
    return [(path, read_json(path), of_rows[path] | notes.get(path.stem, {})) for path in paths]


def _paper_first(path: Path) -> tuple[bool, str]:
    dataset = path.stem.partition("_")[2]
    return dataset not in IMAGES, dataset


def heading(result: dict) -> str:
    dataset, like = result["dataset"], result["paper_dataset"]
    return HEADINGS[result["what"]].format(DATA.get(dataset, f"images of {DATA[like]}" if like else dataset))


def picture(result: dict, folder: str) -> str:
    """folder: where it is, seen from the text. Tables have none."""
    name = f"{folder}{result['what']}_{result['dataset']}.png"
    return "" if result["what"].startswith("table") else f"![{heading(result)}]({name})\n\n"


def explained_table(result: dict, notes: dict) -> str:
    """Without the columns that hold nothing; below it what is unlike the paper, and why the figures differ."""
    texts = explanations(result, notes)
    numbers = {name: str(number) for number, name in enumerate(texts, 1)}
    memory = result["what"] == "table2"
    rows = memory_rows(result, numbers) if memory else accuracy_rows(result, numbers)
    names = MEMORY_COLUMNS if memory else COLUMNS
    filled = [i for i in range(len(names)) if any(cells[i] != "-" for cells in rows)]
    table = markdown_table([names[i] for i in filled], [[cells[i] for i in filled] for cells in rows])
    common = ", ".join(shared_parts(result))
    unlike = f"Unlike the {usual(result)}, in every row: {common}.\n" if common else ""
    numbered = "".join(f"{numbers[name]}. {text}\n" for name, text in texts.items())
    explained = EXPLAINED[result["what"]] + (PAPER if "| paper |" in table else "")
    return "\n".join(filter(None, (explained, table, unlike, numbered)))


def explanations(result: dict, notes: dict) -> dict[str, str]:
    """Of the rows that have one: full_name -> what is unlike the paper in this row only, and the note."""
    texts = {}
    for row in result["rows"]:
        own = ", ".join(own_parts(row, result))
        said = note(row, result, notes)
        if own or said:
            named = f"{label(row)} ({own})" if own else label(row)
            texts[full_name(row, result)] = f"{named}: {said}." if said else f"{named}."
    return texts


def commands(result: dict) -> str:
    different = dict.fromkeys(row["command"] for row in result["rows"])
    return "Made by:\n\n" + "".join(f"    {command}\n" for command in different)


def usual(result: dict) -> str:
    """What budgets are told against."""
    return "paper" if result["paper_dataset"] else "defaults"


def accuracy_rows(result: dict, numbers: dict[str, str]) -> list[list[str]]:
    """Our rows, with the numbers of their notes; of Table 1 also what was not run."""
    paper = TABLE1.get(result["paper_dataset"], {}) if result["what"] in ("table1", "figure3") else {}
    rates_differ = len({lr_schedule(row) for row in result["rows"]}) > 1
    rows = []
    for method, embedding in COMBINATIONS:
        ours = [row for row in result["rows"] if (row["method"], row["embedding"]) == (method, embedding)]
        theirs = paper.get((method, embedding))
        known = "-" if theirs is None else f"{theirs:.2f}"
        for row in ours:
            named = [TITLES[method], embedding, row["variant"] or "-", str(row["runs"][0]["epochs"])]
            rate = lr_schedule(row) if rates_differ else "-"
            rows.append([*named, rate, known, *_accuracy_cells(row, theirs), numbers.get(full_name(row, result), "-")])
        if not ours and theirs and result["what"] == "table1":
            rows.append([TITLES[method], embedding, "-", "-", "-", known, "not run", *["-"] * 5])
    return rows


def lr_schedule(row: dict) -> str:
    return row["differences"].get("lr_schedule", ["constant"])[0]  # the paper's


def _accuracy_cells(row: dict, theirs: float | None) -> list[str]:
    """Here, difference, vote, mean, train."""
    mean, error, count = accuracy(row)
    gap = "-" if theirs is None else f"{mean - theirs:+.2f}"
    return [
        f"{mean:.2f} +- {error:.2f} ({count} runs)",
        gap,
        *(over_seeds(row, name) for name in ("vote", "mean", "train")),
    ]


def accuracy(row: dict) -> tuple[float, float, int]:
    """Mean, standard error and number of the runs of all seeds."""
    values = [value for run in row["runs"] for value in run["per_run"]]
    return *mean_and_error(values), len(values)


def over_seeds(row: dict, name: str) -> str:
    """Of a figure of which every seed has one; "-" where one was not measured."""
    if any(run.get(name) is None for run in row["runs"]):
        return "-"
    mean, error = mean_and_error([run[name] for run in row["runs"]])
    return f"{mean:.2f} +- {error:.2f}" if len(row["runs"]) > 1 else f"{mean:.2f}"


def budget_parts(row: dict, result: dict) -> list[str]:
    """Whatever differs from the paper's protocol, in words."""
    pairs = differing(row, result).items()
    return [f"{name} {in_words(ours)} instead of {in_words(theirs)}" for name, (ours, theirs) in pairs]


def shared_parts(result: dict) -> list[str]:
    """Those of every row."""
    first, *others = [budget_parts(row, result) for row in result["rows"]] or [[]]
    return [part for part in first if all(part in parts for parts in others)]


def own_parts(row: dict, result: dict) -> list[str]:
    """Those that not every row has."""
    common = shared_parts(result)
    return [part for part in budget_parts(row, result) if part not in common]


def differing(row: dict, result: dict) -> dict[str, tuple]:
    """Settings, seeds and images: name -> (ours, the paper's)."""
    pairs = {name.replace("_", "-"): tuple(pair) for name, pair in row["differences"].items()}
    runs = row.get("runs")
    if runs and len(runs) != SEEDS:
        pairs["seeds"] = len(runs), SEEDS
    if runs and result["paper_dataset"] not in (None, result["dataset"]):
        paper = IMAGES[result["paper_dataset"]]
        pairs.pop("train-size", None)
        pairs["training images"] = runs[0]["train_images"], paper.train
        pairs["test images"] = runs[0]["test_images"], paper.test
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def in_words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "all" if value is None else f"{value:,}" if isinstance(value, int) else show(value)


def label(row: dict) -> str:
    """Of a row among others: 'dt one-hot'."""
    return " ".join(filter(None, (row["method"], row["embedding"], row["variant"])))


def full_name(row: dict, result: dict) -> str:
    """Of a row among those of other budgets."""
    return ", ".join([label(row), *budget_parts(row, result)])


def note(row: dict, result: dict, notes: dict) -> str:
    return notes.get(full_name(row, result), notes.get(label(row), ""))


def memory_rows(result: dict, numbers: dict[str, str]) -> list[list[str]]:
    """Our rows, with the numbers of their notes, and the paper's that were not measured."""
    paper = TABLE2.get(result["paper_dataset"], {})
    rows, done = [], {row["method"] for row in result["rows"]}
    for row in result["rows"]:
        base = next((other["total"] for other in result["rows"] if _is_base(other, row)), None)
        sizes = [f"{row[name] / 1e6:,.0f}" for name in ("activations", "peak", "kept")]
        ours = [f"{row['total'] / 1e6:,.0f}", f"{row['total'] / base:.2f}" if base else "-", *sizes]
        number = numbers.get(full_name(row, result), "-")
        rows.append([TITLES[row["method"]], row["embedding"], *_paper_memory(paper, row["method"]), *ours, number])
    missing = [method for method in paper if method not in done]
    return rows + [[TITLES[m], "-", *_paper_memory(paper, m), "not run", *["-"] * 5] for m in missing]


def _is_base(row: dict, other: dict) -> bool:
    return row["method"] == "backprop" and row["embedding"] == other["embedding"]


def _paper_memory(paper: dict, method: str) -> list[str]:
    return [f"{paper[method]:.2f}", f"{paper[method] / paper['backprop']:.2f}"] if paper else ["-", "-"]


def details(result: dict) -> str:
    """Every run: last line, epochs, time, machine, command."""
    if result["what"] == "table2":
        lines = [[label(row), *_where(row, 1)] for row in result["rows"]]
        return markdown_table(("row", "machine", "commit", "date"), lines)
    columns = ("row", "seed", "last line", "epochs", "training", "images", "machine", "commit", "date", "command")
    lines = [
        [
            label(row),
            str(run["seed"]),
            run["last_line"],
            str(run["epochs"]),
            f"{run['seconds']:,.0f} s",
            f"{run['train_images']:,} + {run['test_images']:,}",
            *_where(run, run["ranks"]),
            f"`{run['command']}`",
        ]
        for row in result["rows"]
        for run in row["runs"]
    ]
    return markdown_table(columns, lines)


def _where(run: dict, ranks: int) -> list[str]:
    """Machine, commit and date."""
    v = run["versions"]
    threads = f"threads: {v['threads']}" + (f" in each of {ranks} ranks" if ranks > 1 else "")
    machine = f"{v['cpu'] or v['device']}, {v['cores']} cores, {threads}, torch {v['torch']}, python {v['python']}"
    return [machine, v["commit"] or "not noted", run["date"][:10]]

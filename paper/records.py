"""results/*.json: what was run, in files of their own; one row for each method, embedding and budget.

{"what", "dataset", "paper_dataset", "rows": [...]}; only what was measured, means and differences follow from it.
"""

import shlex
from pathlib import Path

from errors import UserError
from evaluate import mean_and_error
from paper.plan import DEFAULTS, Training, completed, flags_of
from paper.published import COMBINATIONS, IMAGES
from runs.files import write_json
from runs.launch import MAIN, tokens
from runs.reader import RunFiles, read_json
from runs.report import last_line

ROW_KEY = ("method", "embedding", "variant", "differences")
VERSIONS = ("cpu", "cores", "threads", "device", "python", "torch", "noprop", "commit")


def record_run(run: RunFiles) -> dict:
    """Return what results/ keeps of a finished run."""
    config, results, history = run.config, run.results, run.history
    per_run, first = results["per_run"], history[0]
    trained = history[run.best_epoch - 1]["train_accuracy"]  # none where the blocks were trained apart
    merged = trained is None  # then config.json is of a merge, which needs no GPU
    versions = (
        {**config["versions"], **results["versions"]} if merged else {**results["versions"], **config["versions"]}
    )
    path, ranks = run.accuracy_path, config["versions"].get("ranks", results["ranks"])
    return {
        "seed": config["seed"],
        "command": command_of(config, ranks),
        "date": results["versions"]["date"],
        "versions": {name: versions.get(name) for name in VERSIONS},
        "network": network_of(config),
        "ranks": ranks,
        "train_images": round(first["images_per_second"] * first["seconds"]),
        "test_images": results["test_images"],
        "parameters": results["parameters"],
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "per_run": [round(value, 4) for value in per_run],
        **{name: round(by["mean"], 4) for name, by in results["accuracy_by_readout"].items() if name != "sample"},
        "one_step": next((way["accuracy_mean"] for way in results["by_inference"] if way.get("steps") == 1), None),
        "block_1": results.get("accuracy_u_hat_of_block_1"),
        "train": None if trained is None else round(trained, 4),
        "last_line": last_line(*mean_and_error(per_run), len(per_run)),
        "path": {name: [round(value, 2) for value in values] for name, values in path.items()},
    }


def network_of(config: dict) -> str:
    """Return which network a run trained: vit, or blocks with an encoder."""
    return "vit" if config.get("network") == "vit" else config.get("encoder", "paper")


def command_of(config: dict, ranks: int = 1) -> str:
    """Return the command that makes a run; where the data are is the reader's affair."""
    start = ["torchrun", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else ["python"]
    place = {"data_dir": "DIR"} if config["data_dir"] != DEFAULTS["data_dir"] else {}
    return shlex.join([*start, MAIN.name, *tokens(flags_of({**completed(config), **place}))])


def make_row(training: Training, runs: list[RunFiles], command: str) -> dict:
    """Return the row of runs that differ in nothing but the seed."""
    row = {name: getattr(training, name) for name in ROW_KEY}
    return {**row, "command": command, "runs": [record_run(run) for run in runs]}


def update_results(results: Path, what: str, dataset: str, paper_dataset: str | None, rows: list[dict]) -> dict:
    """Replace rows of the same method, embedding, variant and budget; returns the file's content."""
    path = results / f"{what}_{dataset}.json"
    before = read_json(path) or {"paper_dataset": dataset if dataset in IMAGES else None, "rows": []}
    new = [row_key(row) for row in rows]
    kept = [row for row in before["rows"] if row_key(row) not in new]
    content = {
        "what": what,
        "dataset": dataset,
        "paper_dataset": paper_dataset or before["paper_dataset"],
        "rows": sorted([*kept, *rows], key=place_of),
    }
    write_json(path, content)
    return content


def place_of(row: dict) -> int:
    """Return where a row stands among others: in the paper's order, what the paper does not have last."""
    pair = row["method"], row["embedding"]
    return COMBINATIONS.index(pair) if pair in COMBINATIONS else len(COMBINATIONS)


def row_key(row: dict) -> list:
    """Return what tells rows apart."""
    return [row[name] for name in ROW_KEY]


def read_results(results: Path) -> list[dict]:
    """Return the content of every file of results, by name. Raises UserError where there is none."""
    found = [read_json(path) for path in sorted(results.glob("*_*.json"))]
    if not found:
        raise UserError(f"there are no results in {results}: name their folder with --results")
    return found

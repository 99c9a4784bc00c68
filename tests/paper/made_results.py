"""Results as if they had been run, for the tests of paper."""

import json


def made_row(per_run=((99.0, 99.2), (99.4, 99.6)), differences=None, method="dt", embedding="one-hot"):
    """Return a row of results/*.json as if it had been run."""
    runs = [
        {
            "seed": seed,
            "command": "python main.py",
            "date": "2026-01-02T03:04:05+00:00",
            "versions": dict.fromkeys(
                ("cpu", "cores", "threads", "device", "python", "torch", "noprop", "commit"), "x"
            ),
            "ranks": 1,
            "train_images": 60000,
            "test_images": 10000,
            "parameters": 5,
            "epochs": (differences or {}).get("epochs", [100])[0],
            "seconds": 9.0,
            "per_run": list(values),
            "vote": 99.7 + seed,
            "mean": 99.8,
            "train": 99.9,
            "last_line": "test accuracy: ...",
            "path": {"epoch": [1], "seconds": [9.0], "test_accuracy": [99.0]},
        }
        for seed, values in enumerate(per_run)
    ]
    names = {"method": method, "embedding": embedding, "variant": None, "differences": differences or {}}
    return {**names, "command": "python -m paper table1", "runs": runs}


def put(folder, rows, what="table1", dataset="mnist", paper_dataset="mnist"):
    folder.mkdir(exist_ok=True)
    content = {"what": what, "dataset": dataset, "paper_dataset": paper_dataset, "rows": rows}
    (folder / f"{what}_{dataset}.json").write_text(json.dumps(content))


def cells(text, *first):
    """Return the cells of the table's row that begins so."""
    row = next(line for line in text.splitlines() if line.startswith("| " + " | ".join(first) + " |"))
    return [cell.strip() for cell in row.strip("|").split("|")]

"""The files of a run as the figures read them: no data set, no network."""

import json
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from errors import UserError


class RunFiles(NamedTuple):
    """What a run folder holds; None for what is not there (yet)."""

    folder: Path
    config: dict | None
    history: list[dict] | None
    results: dict | None
    examples: dict[str, np.ndarray] | None
    classes: list[str]

    @property
    def source(self) -> str:
        """Where the examples are from, in words."""
        return f"{self.config['dataset']} {self.examples['split']} images, epoch {self.examples['epoch']}"

    @property
    def accuracy_path(self) -> dict[str, list[float]]:
        """Test accuracy after every epoch that it was measured after, over the seconds of training until then.

        Without --test-every-epoch that is the last test alone.
        """
        seconds = accumulate(row["seconds"] for row in self.history)
        points = [
            (row["epoch"], passed, row["test_accuracy"])
            for row, passed in zip(self.history, seconds, strict=True)
            if "test_accuracy" in row
        ]
        if not points:
            passed = sum(row["seconds"] for row in self.history)
            points = [(len(self.history), passed, self.results["test_accuracy_mean"])]
        return dict(zip(("epoch", "seconds", "test_accuracy"), map(list, zip(*points, strict=True)), strict=True))


def read_run(folder: Path) -> RunFiles:
    """Raises UserError for a folder that is no run, and for a file in it that cannot be read."""
    config = read_json(folder / "config.json")
    if config is None:
        raise UserError(f"{folder} is not the folder of a run: it has no config.json")
    examples = None
    if (path := folder / "logs" / "examples.npz").exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                examples = dict(file)
        except (ValueError, OSError, BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it, or make it again with --evaluate") from error
    classes = [] if examples is None else [str(name) for name in examples["classes"]]
    history = read_json(folder / "logs" / "training_history.json")
    return RunFiles(folder, config, history, read_json(folder / "results.json"), examples, classes)


def read_json(path: Path):
    """None where there is no such file. Raises UserError for one that cannot be read."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): delete it") from error

"""The files of a run as the figures read them: no data set, no network."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np

from errors import UserError, reading, require
from untrusted import check_config, check_history

MAX_JSON = 2**28  # bytes
MAX_EXAMPLES = 2**31  # bytes, unpacked
MAX_IMAGES = 100  # pictures of a run have 24


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
    def best_epoch(self) -> int:
        """That of the weights which are tested: of the best validation accuracy; without any the last one."""
        accuracies = [row["val_accuracy"] for row in self.history]
        known = [accuracy for accuracy in accuracies if accuracy is not None]  # parts that were merged had none
        return accuracies.index(max(known)) + 1 if known else len(accuracies)

    @property
    def is_trained(self) -> bool:
        """Whether all epochs are done, or --early-stopping-patience ended them."""
        if not self.history:
            return False
        patience, epochs = self.config.get("early_stopping_patience"), len(self.history)
        return epochs >= self.config["epochs"] or bool(patience and epochs - self.best_epoch >= patience)

    @property
    def is_tested(self) -> bool:
        """Whether results.json is of the best epoch, by the inference of config.json: --evaluate may leave another."""
        if self.results is None:
            return False
        config, results = self.config, self.results
        last = results["by_inference"][-1]
        names = [name for name in ("method", "dataset", "seed", "inference", "readout") if name in results]
        same = all(results[name] == config[name] for name in names)
        same &= len(results["per_run"]) == config["eval_runs"] and results["epoch"] == self.best_epoch
        ways = [name for name in ("steps", "sampler", "solver") if config.get(name) and name in last]
        return same and all(last[name] == config[name][-1] for name in ways)

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
    config = read_json(folder / "config.json", "delete it, or make it again with --evaluate", _check_settings)
    if config is None:
        raise UserError(f"{folder} is not the folder of a run: it has no config.json")
    path = folder / "logs" / "examples.npz"
    with reading(path, "delete it, or make it again with --evaluate"):
        examples = _read_examples(path) if path.exists() else None
    classes = [] if examples is None else [str(name) for name in examples["classes"]]
    history = read_json(folder / "logs" / "training_history.json", "delete it", check_history)
    results = read_json(folder / "results.json", "delete it, or make it again with --evaluate", _check_results)
    return RunFiles(folder, config, history, results, examples, classes)


def read_json(path: Path, way_out: str = "delete it", check: Callable[[object], object] | None = None) -> object:
    """The content; None where there is no such file. Raises UserError where it is no JSON, or check raises anything."""
    if not path.exists():
        return None
    with reading(path, way_out):
        require(path.stat().st_size <= MAX_JSON, "it is absurdly large")
        content = json.loads(path.read_text())
        if check:
            check(content)
    return content


def _check_settings(config: dict) -> None:
    require(type(config) is dict, "it holds no settings")
    check_config({name: value for name, value in config.items() if name != "versions"})


def _check_results(results: dict) -> None:
    require(type(results) is dict and type(results.get("by_inference", [])) is list, "it holds no results")


def _read_examples(path: Path) -> dict[str, np.ndarray]:
    with ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    require(size <= MAX_EXAMPLES, f"it would take {size / 1e9:.1f} GB of memory")
    with np.load(path, allow_pickle=False) as file:
        examples = dict(file)
    require(examples["images"].ndim == 4 and len(examples["images"]) <= MAX_IMAGES, "its images are odd")
    require(examples["classes"].ndim == 1 and examples["classes"].dtype.kind == "U", "its classes are odd")
    return examples

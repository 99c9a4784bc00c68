"""The files of a run as figures and tables read them: no data set, no network, no settings of the program."""

import json
import math
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np

from errors import UserError, reading, require

MAX_JSON = 2**28  # bytes
MAX_EXAMPLES = 2**31  # bytes, unpacked
MAX_IMAGES = 100  # pictures of a run have 24
# What examples.npz holds, with shapes: a letter is a size, the same in all arrays. All have the first group.
ARRAYS = (
    {"images": "EHWC", "labels": "E", "probabilities": "Em", "W_embed": "md"}
    | {"classes": "m", "confusion": "mm", "split": "", "epoch": "", "readout": ""}
    | {"times": "t", "per_step_accuracy": "t", "per_step_u_hat": "u"},
    {"path_class": "E", "z_path": "sEd"},  # of methods that denoise
    {"by_runs_vote": "r", "by_runs_mean": "r", "calibration_vote": "3b", "calibration_mean": "3b"}
    | {"ece_vote": "", "ece_mean": ""},
    *({f"by_runs_{name}": "r", f"calibration_{name}": "3b", f"ece_{name}": ""} for name in ("ensemble", "mean-z")),
    {"alpha_bar": "l", "coefficients": "3k"},
    {"gamma_start": "g", "gamma": "g"},
    {"noise_density": "4", "noise_ends": "n", "noise_ranges": "k2", "noise_ladder": "i"},
    {"prototypes_start": "mHWC", "prototypes": "mHWC"},
)
TEXTS = {"classes", "split", "readout"}
OWN_IMAGES = ("folder", "npz")  # data sets whose name does not say which images they are
NEEDED_RESULTS = {"method", "dataset", "seed", "readout", "per_run", "by_inference", "epoch"}
SHOWN_SETTINGS = {"method": (str,), "dataset": (str,), "epochs": (int,), "seed": (int,), "readout": (str,)}
SHOWN_SETTINGS |= {"embedding_type": (str,), "num_blocks": (int, type(None)), "eval_runs": (int,)}


class RunFiles(NamedTuple):
    """The content of a run folder; None for what is not there (yet)."""

    folder: Path
    config: dict | None
    history: list[dict] | None
    results: dict | None
    examples: dict[str, np.ndarray] | None
    classes: list[str]

    @property
    def source(self) -> str:
        """Return where the examples are from, in words."""
        return f"{self.dataset} {self.examples['split']} images, epoch {self.examples['epoch']}"

    @property
    def name(self) -> str:
        """Return the end of the folder's path, by which its user knows the run."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def dataset(self) -> str:
        """Return what was learned; of own images with the name of their place."""
        name, place = self.config["dataset"], Path(str(self.config.get("data_dir", ""))).name
        return f"{name} {place}" if name in OWN_IMAGES else name

    def mean_of(self, loss: str) -> list[float]:
        """Return a loss, or a term of it, by epoch: the mean over the blocks of which it is known, NaN without any."""
        known = [[value for value in row[loss] if value is not None] for row in self.history]
        return [sum(values) / len(values) if values else math.nan for values in known]

    @property
    def best_epoch(self) -> int:
        """Return the epoch of the weights that are tested: of the best validation accuracy; without any the last."""
        accuracies = [row["val_accuracy"] for row in self.history]
        known = [accuracy for accuracy in accuracies if accuracy is not None]  # parts that were merged had none
        return accuracies.index(max(known)) + 1 if known else len(accuracies)

    @property
    def is_trained(self) -> bool:
        """Return whether all epochs are done, or --early-stopping-patience ended them."""
        if not self.history:
            return False
        patience, epochs = self.config.get("early_stopping_patience"), len(self.history)
        return epochs >= self.config["epochs"] or bool(patience and epochs - self.best_epoch >= patience)

    @property
    def is_tested(self) -> bool:
        """Return whether results.json is of the best epoch and of the run's inference: --evaluate may leave another."""
        if self.results is None:
            return False
        config, results = self.config, self.results
        last = results["by_inference"][-1]
        names = ("method", "dataset", "seed", "inference", "readout", "mirror_test")
        same = all(results[name] == config[name] for name in names if name in results and name in config)
        same &= self.split == ("validation" if config.get("eval_split") == "val" else "test")
        same &= len(results["per_run"]) == config["eval_runs"] and results["epoch"] == self.best_epoch
        ways = [name for name in ("steps", "sampler", "solver") if config.get(name) and name in last]
        return same and all(last[name] == config[name][-1] for name in ways)

    @property
    def split(self) -> str:
        """Return which images results.json is of, test or validation."""
        return self.results.get("split", "test")

    @property
    def accuracy(self) -> tuple[float, float]:
        """Return mean and standard error of results.json."""
        return tuple(self.results[f"{self.split}_accuracy_{name}"] for name in ("mean", "sem"))

    @property
    def accuracy_path(self) -> dict[str, list[float]]:
        """Return the accuracy after every epoch that it was measured after, over the seconds of training until then.

        Without --test-every-epoch that is the last test alone.
        """
        name = "test_accuracy" if self.split == "test" else "val_accuracy"
        seconds = accumulate(row["seconds"] for row in self.history)
        rows = zip(self.history, seconds, strict=True)
        points = [(row["epoch"], passed, row[name]) for row, passed in rows if name in row]
        if not points:
            points = [(len(self.history), sum(row["seconds"] for row in self.history), self.accuracy[0])]
        columns = ("epoch", "seconds", f"{self.split}_accuracy")
        return dict(zip(columns, map(list, zip(*points, strict=True)), strict=True))


def read_run(folder: Path) -> RunFiles:
    """Return the files of a run. Raises UserError for a folder that is none, and for a file that cannot be read."""
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


def finished_run(folder: Path) -> RunFiles | None:
    """Return the run in a folder if it is trained, and tested with its own settings; None otherwise."""
    if not (folder / "results.json").exists():
        return None
    run = read_run(folder)
    return run if run.is_trained and run.is_tested else None


def read_json(path: Path, way_out: str = "delete it", check: Callable[[object], object] | None = None) -> object:
    """Return the content; None where there is no such file. Raises UserError where it is no JSON, or check raises."""
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
    for name, kind in SHOWN_SETTINGS.items():
        require(type(config.get(name)) in kind, f"its setting {name} is odd")


def _check_results(results: dict) -> None:
    split = results.get("split", "test") if type(results) is dict else ""
    needed = NEEDED_RESULTS | {f"{split}_accuracy_mean", f"{split}_accuracy_sem"}
    require(split in ("test", "validation") and results.keys() >= needed, "it holds no results")
    for row in results["by_inference"]:
        numbers = is_accuracy(row["accuracy_mean"]) and is_accuracy(row["accuracy_sem"])
        require(numbers and is_whole_number(row.get("steps", 1), 1), "its accuracies by inference are odd")
    for part in results.get("calibration", {}).values():
        require(np.asarray(part["bins"], dtype=float).shape[:-1] == (3,), "its calibration is odd")


def check_history(rows: list[dict]) -> None:
    """Check the rows of a training's history. Raises ValueError, KeyError or TypeError."""
    require(type(rows) is list, "its history is no list")
    length = len(rows[0]["loss"]) if rows else 0
    losses = {name for name in rows[0] if name.startswith("loss")} if rows else set()
    for i, row in enumerate(rows, 1):
        require(row["epoch"] == i, "the epochs of its history do not count from 1")
        measured = is_number(row["learning_rate"]) and is_number(row["seconds"])
        require(measured and row["images_per_second"] > 0, f"row {i} of its history is odd")
        require(all(is_accuracy(row[name]) for name in ("train_accuracy", "val_accuracy")), f"row {i} has no accuracy")
        require(losses <= row.keys(), f"row {i} of its history lacks a loss")
        for name, value in row.items():
            values = value if type(value) is list else [value]
            fits = (len(values) == length) if name in losses else type(value) is not list
            require(fits and all(_in_history(part) for part in values), f"the {name} in row {i} of its history is odd")


def _in_history(value: object) -> bool:
    return value is None or type(value) is str or is_number(value, -math.inf)


def is_whole_number(value: object, low: int = 0) -> bool:
    """Return whether a value is a whole number of at least `low`."""
    return type(value) is int and value >= low


def is_number(value: object, low: float = 0) -> bool:
    """Return whether a value is a finite number of at least `low`."""
    return type(value) in (int, float) and math.isfinite(value) and value >= low


def is_accuracy(value: object) -> bool:
    """Return whether a value is a percentage, or None."""
    return value is None or (is_number(value) and value <= 100.001)  # rounded


def _read_examples(path: Path) -> dict[str, np.ndarray]:
    with ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    require(size <= MAX_EXAMPLES, f"it would take {size / 1e9:.1f} GB of memory")
    with np.load(path, allow_pickle=False) as file:
        examples = dict(file)
    require(examples["images"].ndim == 4 and len(examples["images"]) <= MAX_IMAGES, "its images are odd")
    _check_arrays(examples)
    return examples


def _check_arrays(examples: dict[str, np.ndarray]) -> None:
    """Check that all that is drawn is there, that numbers are finite numbers, and that the sizes fit together."""
    sizes: dict[str, int] = {number: int(number) for number in "234"}
    common, *others = ARRAYS
    shapes = common.copy()
    for group in others:
        shapes |= group if group.keys() & examples.keys() else {}
    for name, letters in shapes.items():
        array = examples[name]
        fits = [sizes.setdefault(letter, size) == size for letter, size in zip(letters, array.shape, strict=False)]
        require(array.ndim == len(letters) and all(fits), f"its {name} does not fit the other arrays")
        text, is_text = name in TEXTS, array.dtype.kind == "U"
        require(text == is_text and (text or np.isfinite(array).all()), f"its {name} is odd")
    for name in {"labels", "path_class"} & examples.keys():
        y = examples[name]
        require(y.dtype.kind == "i" and (y >= 0).all() and (y < sizes["m"]).all(), f"its {name} is odd")
    require(sizes["C"] in (1, 3) and sizes["E"] > 0, "its images are odd")
    require(sizes["m"] > 1, "its classes are odd")
    require(sizes["u"] in (0, sizes["t"]), "its per_step_u_hat does not fit the other arrays")
    require("l" not in sizes or sizes["l"] == sizes["k"] + 1, "its alpha_bar does not fit the other arrays")

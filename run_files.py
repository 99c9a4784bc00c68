"""The files of a run as the figures read them: no data set, no network."""

import json
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


def read_run(folder: Path) -> RunFiles:
    """Raises UserError for a folder that is no run, and for a file in it that cannot be read."""
    config = _read_json(folder / "config.json")
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
    history = _read_json(folder / "logs" / "training_history.json")
    return RunFiles(folder, config, history, _read_json(folder / "results.json"), examples, classes)


def _read_json(path: Path):
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): delete it") from error

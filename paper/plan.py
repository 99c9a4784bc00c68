"""Plan what a table or figure of the paper needs: its trainings, their settings as main.py settles them, their folders.

A run is recognised by the settings in its config.json, whatever its folder is called and whoever made it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from command_line import as_flag, show
from errors import UserError
from models.methods import methods_with
from paper.published import COMBINATIONS
from rules import parse, settle
from runs.launch import tokens
from runs.reader import RunFiles, finished_run, read_json, read_run
from settings import make_parser, names_where

EMBEDDINGS = {
    "one-hot": {"embedding_type": "one-hot"},
    "dim20": {"embedding_type": "learned", "embedding_dim": 20},
    "prototype": {"embedding_type": "prototype"},
}
# What a figure compares: name -> flags of main.py.
VARIANTS = {
    "figure4": {name: {"class_probability": name} for name in ("softmax", "posterior")},
    "figure5": {name: {"embedding_init": name} for name in ("prototype", "orthogonal", "random")},
}
DEFAULTS = make_parser().defaults
KINDS = ("dataset", "method", "embedding_type", "recipe")  # settings on which the defaults of others depend
OF_CALL = names_where(lambda about: about["of_call"])
CHANGEABLE = names_where(lambda about: "resume" in about["may_change"])
# What makes two runs different ones. A recipe does by the settings that it stands for.
DECISIVE = DEFAULTS.keys() - (CHANGEABLE - {"epochs"}) - OF_CALL - {"recipe"}
# Set here, so that they cannot be given.
OURS = {"dataset", "method", "seed", "embedding_type", "embedding_dim", "embedding_init", "class_probability"}
OURS |= {"checkpoint", "checkpoint_dir", "evaluate", "predict", "merge", "compare", "blocks", "embedding_from"}
OURS |= {"test_every_epoch", "early_stopping_patience", "eval_split"}


@dataclass
class Training:
    """A run of main.py. protocol: its settings in the paper; settings: those with the budget that is asked for."""

    method: str
    embedding: str
    variant: str | None
    seed: int
    protocol: dict
    settings: dict

    @property
    def name(self) -> str:
        return " ".join([self.method, self.embedding, *([self.variant] if self.variant else []), f"seed {self.seed}"])

    @property
    def differences(self) -> dict[str, list]:
        """Settings that are not the paper's: name -> [ours, the paper's]."""
        pairs = {name: [self.settings[name], self.protocol[name]] for name in sorted(DECISIVE - {"seed"})}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def plan(
    what: str, dataset: str, methods: Iterable[str], embeddings: Iterable[str], seeds: Iterable[int], budget: dict
) -> list[Training]:
    """Return the trainings of a table or figure, all of the first seed first. budget: further flags of main.py.

    A flag goes to the methods that know it. Raises UserError for flags that do not go together.
    """
    wanted = [(m, e) for m in methods for e in embeddings if (m, e) in COMBINATIONS]
    if not wanted:
        raise UserError("--method adjoint is trained with one-hot embeddings only, as in the paper")
    for name in budget:
        if not set(methods_with(name)) & set(methods):
            raise UserError(f"{as_flag(name)} belongs to --method {' or '.join(methods_with(name))}: none is trained")
    return [
        make_training(dataset, method, embedding, seed, variant, flags, budget)
        for seed in seeds
        for method, embedding in wanted
        for variant, flags in VARIANTS.get(what, {None: {}}).items()
    ]


def make_training(
    dataset: str, method: str, embedding: str, seed: int, variant: str | None, flags: dict, budget: dict
) -> Training:
    """Return a training by the paper's protocol, with a budget of flags that may differ from it."""
    paper = {"dataset": dataset, "method": method, **EMBEDDINGS[embedding], **flags, "val_fraction": 0}
    paper |= {"seed": seed, "test_every_epoch": True}
    known = {name: value for name, value in budget.items() if method in methods_with(name)}
    return Training(method, embedding, variant, seed, settings_of(paper), settings_of(paper | known))


def training_of(config: dict) -> Training:
    """Return the training that a config.json tells of. Raises UserError for an embedding that the paper has not."""
    settings = completed(config)
    for embedding, flags in EMBEDDINGS.items():
        if flags.items() <= settings.items():
            made = make_training(settings["dataset"], settings["method"], embedding, settings["seed"], None, {}, {})
            made.settings = settings
            return made
    raise UserError(f"--embedding-dim {settings['embedding_dim']} is not in Table 1 of the paper")


def settings_of(flags: dict[str, object]) -> dict:
    """Return all settings that main.py has with these flags, as config.json would hold them."""
    return json.loads(_settled(tuple(tokens(flags))))


@cache
def _settled(flags: tuple[str, ...]) -> str:
    return json.dumps(settle(*parse(list(flags))).as_dict())


def completed(config: dict) -> dict:
    """Return a config.json, maybe of an earlier version of the program, with the defaults of what it does not have."""
    return {**usual_settings(config), **config}


def usual_settings(settings: dict) -> dict:
    """Return the defaults of main.py, given those settings on which the defaults of others depend."""
    return settings_of({name: settings[name] for name in KINDS if settings.get(name) is not None})


def flags_of(settings: dict) -> dict[str, object]:
    """Return the flags of main.py that start a training with these settings, without the run's folder."""
    usual, kinds = usual_settings(settings), {name: settings[name] for name in KINDS}
    own = {name: settings[name] for name in DEFAULTS if name not in KINDS and settings[name] != usual[name]}
    left_out = ("checkpoint", "checkpoint_dir")
    return {name: value for name, value in {**kinds, **own}.items() if value is not None and name not in left_out}


def flags_to_go_on(settings: dict) -> dict[str, object]:
    """Return those flags that a checkpoint does not decide."""
    free = sorted(CHANGEABLE - {"checkpoint", "checkpoint_dir", "epochs", "early_stopping_patience"})
    return {name: settings[name] for name in free if settings[name] not in (None, DEFAULTS[name])}


def decisive(settings: dict) -> dict:
    """Return what two folders of the same training have in common."""
    same = {name: settings[name] for name in DECISIVE}
    return same | ({"data_dir": str(Path(settings["data_dir"]).resolve())} if settings["dataset"] == "folder" else {})


def find_run(training: Training, runs: Path) -> RunFiles | None:
    """Return the run of a training somewhere below `runs`, rather a finished one; None where there is none."""
    found = []
    for path in sorted(runs.rglob("config.json")):
        aside = any(part.startswith("previous-") for part in path.relative_to(runs).parts)
        if not aside and decisive(completed(read_json(path))) == decisive(training.settings):
            found.append(read_run(path.parent))
    return max(found, key=is_finished, default=None)


def is_finished(run: RunFiles) -> bool:
    """Return whether a run is trained, and tested on the test images."""
    finished = finished_run(run.folder)
    return finished is not None and finished.split == "test"


def new_folder(training: Training, runs: Path) -> Path:
    """Return a folder that holds no run; its name is for people."""
    budget = [f"{name}-{show(ours)}" for name, (ours, _) in training.differences.items()]
    words = [training.settings["dataset"], training.name, *budget]
    name = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in words)
    folder, number = runs / name, 1
    while (folder / "config.json").exists():
        number += 1
        folder = runs / f"{name}-{number}"
    return folder

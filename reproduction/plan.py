"""What a table or figure of the paper needs: its trainings, their settings as main.py settles them, and their folders.

A run is recognised by the settings in its config.json, whatever its folder is called and whoever made it.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from errors import UserError, reading
from flag_types import show
from flags import make_parser
from launch import tokens
from options import METHOD_FLAGS, RESUME_FLAGS, THIS_CALL, as_flag, parse_flags, settle
from reproduction.paper import COMBINATIONS
from run_files import RunFiles, read_json, read_run

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
# What makes two runs different ones. A recipe does by the settings that it stands for.
DECISIVE = DEFAULTS.keys() - (RESUME_FLAGS - {"epochs"}) - THIS_CALL - {"recipe"}
OURS = {"dataset", "method", "seed", "embedding_type", "embedding_dim", "embedding_init", "class_probability"}
OURS |= {"checkpoint", "checkpoint_dir", "evaluate", "predict", "merge", "compare", "blocks", "embedding_from"}
OURS |= {"test_every_epoch", "early_stopping_patience"}


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


def plan(what: str, args: Namespace, budget: dict[str, object]) -> list[Training]:
    """The trainings of a table or figure, all of the first seed first. budget: further flags of main.py.

    A flag goes to the methods that know it. Raises UserError for flags that do not go together.
    """
    wanted = [(m, e) for m in args.methods for e in args.embeddings if (m, e) in COMBINATIONS]
    if not wanted:
        raise UserError("--method adjoint is trained with one-hot embeddings only, as in the paper")
    for name in budget:
        if not set(METHOD_FLAGS.get(name, args.methods)) & set(args.methods):
            raise UserError(f"{as_flag(name)} belongs to --method {' or '.join(METHOD_FLAGS[name])}: none is trained")
    return [
        make_training(args.dataset, method, embedding, seed, variant, flags, budget)
        for seed in args.seeds
        for method, embedding in wanted
        for variant, flags in VARIANTS.get(what, {None: {}}).items()
    ]


def make_training(
    dataset: str, method: str, embedding: str, seed: int, variant: str | None, flags: dict, budget: dict
) -> Training:
    paper = {"dataset": dataset, "method": method, **EMBEDDINGS[embedding], **flags, "val_fraction": 0}
    paper |= {"seed": seed, "test_every_epoch": True}
    known = {name: value for name, value in budget.items() if method in METHOD_FLAGS.get(name, (method,))}
    return Training(method, embedding, variant, seed, settings_of(paper), settings_of(paper | known))


def training_of(config: dict) -> Training:
    """What a run's config.json tells of. Raises UserError for an embedding that the paper does not have."""
    settings = completed(config)
    for embedding, flags in EMBEDDINGS.items():
        if flags.items() <= settings.items():
            made = make_training(settings["dataset"], settings["method"], embedding, settings["seed"], None, {}, {})
            made.settings = settings
            return made
    raise UserError(f"--embedding-dim {settings['embedding_dim']} is not in Table 1 of the paper")


def settings_of(flags: dict[str, object]) -> dict:
    """All settings that main.py has with these flags, as config.json would hold them."""
    return json.loads(_settled(tuple(tokens(flags))))


@cache
def _settled(flags: tuple[str, ...]) -> str:
    args, given = parse_flags(list(flags))
    settle(args, given)
    return json.dumps(vars(args))


def completed(config: dict) -> dict:
    """A config.json, maybe of an earlier version of the program, with the defaults of what it does not have."""
    return {**usual_settings(config), **config}


def usual_settings(settings: dict) -> dict:
    """What main.py has by default, given those settings on which the defaults of others depend."""
    return settings_of({name: settings[name] for name in KINDS if settings.get(name) is not None})


def flags_of(settings: dict) -> list[str]:
    """The flags of main.py that start a training with these settings, without the run's folder."""
    usual = usual_settings(settings)
    kinds = {name: settings[name] for name in KINDS}
    own = {name: settings[name] for name in DEFAULTS if name not in KINDS and settings[name] != usual[name]}
    left_out = ("checkpoint", "checkpoint_dir")
    return tokens({k: v for k, v in {**kinds, **own}.items() if v is not None and k not in left_out})


def flags_to_go_on(settings: dict) -> list[str]:
    """Those that a checkpoint does not decide."""
    free = sorted(RESUME_FLAGS - {"checkpoint", "checkpoint_dir", "epochs"})
    return tokens({name: settings[name] for name in free if settings[name] not in (None, DEFAULTS[name])})


def decisive(settings: dict) -> dict:
    """What two folders of the same training have in common."""
    same = {name: settings[name] for name in DECISIVE}
    return same | ({"data_dir": str(Path(settings["data_dir"]).resolve())} if settings["dataset"] == "folder" else {})


def find_run(training: Training, runs: Path) -> RunFiles | None:
    """The run of a training somewhere below `runs`, rather a finished one; None where there is none."""
    found = []
    for path in sorted(runs.rglob("config.json")):
        aside = any(part.startswith("previous-") for part in path.relative_to(runs).parts)
        if not aside and decisive(completed(read_json(path))) == decisive(training.settings):
            found.append(read_run(path.parent))
    return max(found, key=is_finished, default=None)


def is_finished(run: RunFiles) -> bool:
    with reading(run.folder / "results.json", "delete it, or make it again with --evaluate"):
        return run.is_trained and run.is_tested


def new_folder(training: Training, runs: Path) -> Path:
    """A folder that holds no run; its name is for people."""
    budget = [f"{name}-{show(ours)}" for name, (ours, _) in training.differences.items()]
    words = [training.settings["dataset"], training.name, *budget]
    name = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in words)
    folder, number = runs / name, 1
    while (folder / "config.json").exists():
        number += 1
        folder = runs / f"{name}-{number}"
    return folder

"""METHODS: what can be trained, and all that the program needs to know of a method beside its network.

A new method is a file with its network and an entry here. Epochs and rates are those of Table 3 of the paper; digits
and other data are ours.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from torch.optim import Adam, AdamW, Optimizer

from models.adjoint import AdjointNet
from models.backprop import BackpropNet
from models.classifier import Classifier
from models.diffusion_blocks import DiffusionBlocksNet
from models.ensemble import EnsembleNet
from models.NoProp_CT import NoPropNetCT
from models.NoProp_DT import NoPropNetDT
from models.NoProp_FM import NoPropNetFM

POSTERIOR = ("class_probability", "posterior_sigma")
OF_BLOCKS = ("num_blocks", "block_order", "blocks", "offload_blocks")  # that learn alone
NETWORK = ("network", "vit_layers", "vit_width", "vit_heads", "vit_patch")
# Other values than the paper's, for a good result in fewer epochs; what was tried: benchmarks/README.md.
FAST = {"lr_schedule": "cosine", "lr": 0.004, "warmup_epochs": 1, "epochs": 16}
# For images like those of CIFAR-10 in minutes on a GPU; what was tried: docs/recipes.md.
LONG = {"lr_schedule": "cosine", "lr": 0.004, "warmup_epochs": 1, "batch_size": 512, "amp": "auto", "epochs": 60}
LONG_WHOLE = LONG | {"lr": 0.002, "batch_size": 256, "weight_decay": 0.0}
# Of an encoder that learns CIFAR-10 in a few epochs; what was tried: docs/encoders.md.
STRONG = {"encoder": "airbench", "embedding_type": "one-hot", "batch_size": 256, "augment": [], "amp": "auto"}
STRONG |= {"lr_schedule": "cosine", "lr": 0.004, "warmup_epochs": 1}
STRONG_BLOCKS = STRONG | {"num_blocks": 4, "epochs": 8}
# Noise levels centred where the image matters; what was tried: docs/methods.md.
CENTRED = {"p_mean": 0.5, "noise_levels": 4, "steps": [2]}
EPOCHS_OF_BLOCKS = {"mnist": 100, "fashion-mnist": 100, "digits": 14, "other": 150}


@dataclass(frozen=True)
class Method:
    """A method of training.

    Args:
        network: its class; the arguments of `__init__` and of `ways` that have a setting's name get its value.
        title, text: its name in tables, and what --help says of it.
        settings: those that only some methods know.
        epochs: by data set, "other" for those not named.
        defaults: of settings whose default depends on the method.
        optimizer: AdamW or Adam.
        blocks_alone: every block has an optimizer of its own (Algorithm 1); else the network is trained as a whole.
        recipes: by name, other defaults of settings.
    """

    network: type[Classifier]
    title: str
    text: str
    settings: tuple[str, ...]
    epochs: dict[str, int]
    defaults: dict[str, object] = field(default_factory=dict)
    optimizer: type[Optimizer] = AdamW
    blocks_alone: bool = False
    recipes: dict[str, dict] = field(default_factory=dict)


METHODS = {
    "dt": Method(
        NoPropNetDT,
        title="NoProp-DT",
        text="NoProp in discrete time",
        settings=(*OF_BLOCKS, "noise_levels", "schedule", "alpha_bar_clip", "eta", *POSTERIOR, "embedding_from"),
        epochs=EPOCHS_OF_BLOCKS,
        defaults={"num_blocks": 10, "eta": 0.1},
        blocks_alone=True,
        recipes={"fast": FAST, "long": LONG | {"noise_levels": 4}, "strong": STRONG_BLOCKS | {"noise_levels": 4}},
    ),
    "ct": Method(
        NoPropNetCT,
        title="NoProp-CT",
        text="NoProp in continuous time",
        settings=("eta", "loss", "noise_levels", *POSTERIOR, "stratified_time", "steps", "sampler", "solver"),
        epochs={"mnist": 100, "fashion-mnist": 100, "cifar100": 1000, "digits": 50, "other": 500},
        defaults={"eta": 1.0, "loss": "squared", "steps": [1000], "sampler": ["ancestral"]},
        optimizer=Adam,
        recipes={
            "long": LONG_WHOLE | {"noise_levels": 16, "epochs": 50},
            "strong": STRONG | {"loss": "cross-entropy", "weight_decay": 0.0, "noise_levels": 4, "epochs": 12},
        },
    ),
    "fm": Method(
        NoPropNetFM,
        title="NoProp-FM",
        text="NoProp as flow matching",
        settings=("loss", "anchor", "noise_levels", "flow_sigma", "stratified_time", "steps", "solver"),
        epochs={"mnist": 100, "fashion-mnist": 100, "cifar100": 1000, "digits": 40, "other": 500},
        defaults={"loss": "squared", "steps": [1000]},
        optimizer=Adam,
        recipes={
            "long": LONG_WHOLE | {"noise_levels": 4},
            "strong": STRONG
            | {"anchor": True, "flow_sigma": 0.01, "weight_decay": 0.0, "noise_levels": 4, "epochs": 12},
        },
    ),
    "diffusionblocks": Method(
        DiffusionBlocksNet,
        title="DiffusionBlocks",
        text="blocks that each own a range of noise, and may be pieces of one network (Shing, Koyama, Akiba)",
        settings=(*OF_BLOCKS, *NETWORK, "loss", "noise_levels", "noise_range", "p_mean", "p_std", "overlap")
        + ("steps", "sampler"),
        epochs=EPOCHS_OF_BLOCKS,
        defaults={"num_blocks": 3, "loss": "cross-entropy", "steps": [4], "sampler": ["ode"]},
        blocks_alone=True,
        recipes={"fast": FAST | CENTRED, "long": LONG | CENTRED, "strong": STRONG | CENTRED | {"epochs": 8}},
    ),
    "backprop": Method(
        BackpropNet,
        title="back-propagation",
        text="the blocks of dt trained end to end",
        settings=("num_blocks", *POSTERIOR),
        epochs=EPOCHS_OF_BLOCKS,
        defaults={"num_blocks": 10},
        recipes={"fast": FAST, "long": LONG | {"lr": 0.002}, "strong": STRONG_BLOCKS},
    ),
    "classifier": Method(
        EnsembleNet,
        title="encoders alone",
        text="T encoders, each with a linear layer, trained as ordinary classifiers and averaged",
        settings=("num_blocks", *NETWORK),
        epochs=EPOCHS_OF_BLOCKS,
        defaults={"num_blocks": 1, "embedding_type": "one-hot", "eval_runs": 1},
        recipes={"fast": FAST, "strong": STRONG_BLOCKS},
    ),
    "adjoint": Method(
        AdjointNet,
        title="neural ODE (adjoint)",
        text="a neural ODE",
        settings=("steps",),
        epochs={"mnist": 2, "fashion-mnist": 2, "other": 4},
        defaults={"steps": [1000]},
        recipes={"fast": FAST, "long": LONG | {"lr": 0.002, "batch_size": 256, "epochs": 20, "steps": [50]}},
    ),
}


def arguments_for(function: Callable, values: dict[str, object]) -> dict[str, object]:
    """Return those of the values whose names are arguments of a function."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in known}


def methods_with(setting: str) -> list[str]:
    """Return the methods that know a setting: all, unless some name it as their own."""
    owners = [name for name, method in METHODS.items() if setting in method.settings]
    return owners or list(METHODS)

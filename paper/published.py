"""The paper's figures as data (Li, Teh and Pascanu 2025, arXiv 2503.24322v1), for comparison with what was run here.

Hyperparameters (Table 3) are the program's defaults: models/methods.py, data.py, settings.py.
"""

from typing import NamedTuple


class Images(NamedTuple):
    """The images of a data set: shape (H, W, C), and how many."""

    shape: tuple[int, int, int]
    train: int
    test: int
    classes: int


IMAGES = {
    "mnist": Images((28, 28, 1), 60000, 10000, 10),
    "cifar10": Images((32, 32, 3), 50000, 10000, 10),
    "cifar100": Images((32, 32, 3), 50000, 10000, 100),
}
SEEDS = 3  # of Table 1, with 5 inference runs each

_TABLE1 = {
    ("backprop", "one-hot"): (99.46, 79.92, 45.85),
    ("backprop", "dim20"): (99.43, 79.30, 46.57),
    ("backprop", "prototype"): (99.44, 79.58, 47.80),
    ("dt", "one-hot"): (99.47, 79.25, 45.93),
    ("dt", "dim20"): (99.49, 79.12, 45.19),
    ("dt", "prototype"): (99.54, 80.54, 46.06),
    ("adjoint", "one-hot"): (98.62, 66.78, 25.03),
    ("ct", "one-hot"): (97.84, 73.35, 33.66),
    ("ct", "dim20"): (97.70, 71.77, 33.99),
    ("ct", "prototype"): (97.17, 66.54, 21.31),
    ("fm", "one-hot"): (99.21, 73.14, 6.38),
    ("fm", "dim20"): (99.29, 73.50, 31.14),
    ("fm", "prototype"): (98.52, 75.18, 37.57),
}
_TABLE2 = {
    "backprop": (0.87, 1.17, 1.73),
    "dt": (0.49, 0.64, 1.23),
    "adjoint": (2.32, 6.23, 6.45),
    "ct": (1.05, 0.45, 0.50),
    "fm": (1.06, 0.44, 0.49),
}

COMBINATIONS = tuple(_TABLE1)  # of method and embedding, in the order of Table 1
# Test accuracy in per cent by data set, method and embedding.
TABLE1 = {name: {key: row[i] for key, row in _TABLE1.items()} for i, name in enumerate(IMAGES)}
# Memory of the process on a GPU in GB by data set and method.
TABLE2 = {name: {key: row[i] for key, row in _TABLE2.items()} for i, name in enumerate(IMAGES)}

"""Defaults that depend on the method and the data set: the hyperparameters of the paper, and recipes of our own."""

METHODS = {
    "dt": "NoProp in discrete time",
    "ct": "NoProp in continuous time",
    "fm": "NoProp as flow matching",
    "backprop": "the blocks of dt trained end to end",
    "adjoint": "a neural ODE",
}
# Table 3 of the paper; digits and folder are ours.
EPOCHS = {
    "mnist": {"dt": 100, "ct": 100, "fm": 100, "backprop": 100, "adjoint": 2},
    "fashion-mnist": {"dt": 100, "ct": 100, "fm": 100, "backprop": 100, "adjoint": 2},
    "cifar10": {"dt": 150, "ct": 500, "fm": 500, "backprop": 150, "adjoint": 4},
    "cifar100": {"dt": 150, "ct": 1000, "fm": 1000, "backprop": 150, "adjoint": 4},
    "folder": {"dt": 150, "ct": 500, "fm": 500, "backprop": 150, "adjoint": 4},
    "digits": {"dt": 14, "ct": 50, "fm": 40, "backprop": 14, "adjoint": 4},
}
BATCH_SIZE = {name: 32 if name == "digits" else 128 for name in EPOCHS}  # few digits: more steps an epoch
ETA = {"dt": 0.1, "ct": 1.0}
LR_SCHEDULES = ("constant", "cosine", "plateau")
PLATEAU_PATIENCE = 5
# Other defaults than the paper's, for a good result in fewer epochs; what each was tried against: benchmarks/README.md.
RECIPES = {"fast": {"lr_schedule": "cosine", "lr": 0.004, "warmup_epochs": 1, "epochs": 16}}

"""FIGURES: what is drawn of a run, one function each, from the files in its folder alone: no data set, no network.

A figure is a function of runs.reader.RunFiles that returns a matplotlib Figure, or None where the files that it is
drawn from are not there. A new one is a function and an entry here.
"""

import os
import sys
from contextlib import suppress

if os.environ.get("MPLBACKEND") and "matplotlib" not in sys.modules:
    # a notebook's, which need not be installed here: matplotlib would not start, though figures are files and need none
    backend = os.environ.pop("MPLBACKEND")
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

from figures.inference import (
    calibration,
    confusion_matrix,
    denoising_accuracy,
    denoising_path,
    inference_steps,
    predictions,
)
from figures.noise_ranges import noise_ranges
from figures.training import learned_schedule, prototypes, schedule, training_curves

FIGURES = {
    "training_curves": training_curves,
    "schedule": schedule,
    "learned_schedule": learned_schedule,
    "noise_ranges": noise_ranges,
    "denoising_accuracy": denoising_accuracy,
    "inference_steps": inference_steps,
    "calibration": calibration,
    "confusion_matrix": confusion_matrix,
    "predictions": predictions,
    "denoising_path": denoising_path,
    "prototypes": prototypes,
}

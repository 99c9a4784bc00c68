"""FIGURES: what is drawn of a run, one function each, from the files in its folder alone: no data set, no network.

A figure is a function of runs.reader.RunFiles that returns a matplotlib Figure, or None where the files that it is
drawn from are not there. A new one is a function and an entry here.
"""

from figures.inference import (
    calibration,
    confusion_matrix,
    denoising_accuracy,
    denoising_path,
    inference_steps,
    predictions,
)
from figures.training import learned_schedule, prototypes, schedule, training_curves

FIGURES = {
    "training_curves": training_curves,
    "schedule": schedule,
    "learned_schedule": learned_schedule,
    "denoising_accuracy": denoising_accuracy,
    "inference_steps": inference_steps,
    "calibration": calibration,
    "confusion_matrix": confusion_matrix,
    "predictions": predictions,
    "denoising_path": denoising_path,
    "prototypes": prototypes,
}

"""Three ways to read the answer of R inference runs: every run by itself, the most frequent class, the mean."""

import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

READOUTS = ("sample", "vote", "mean")


def joined_answers(probabilities: Tensor) -> dict[str, Tensor]:
    """What the first r runs answer together, r = 1..R: (R, B, m) -> (R, B) for `vote` and for `mean`.

    vote: the most frequent class, ties to the larger mean probability.
    """
    runs, _, m = probabilities.shape
    votes = F.one_hot(probabilities.argmax(dim=2), m).cumsum(dim=0)
    count = torch.arange(1, runs + 1, device=probabilities.device).view(-1, 1, 1)
    mean = probabilities.cumsum(dim=0) / count
    return {"vote": (votes + mean / 2).argmax(dim=2), "mean": mean.argmax(dim=2)}


def read_out(probabilities: Tensor, readout: str) -> Tensor:
    """Predicted classes, one row for each counted run: (R, B, m) -> (R, B) for sample, else (1, B)."""
    if readout == "sample":
        return probabilities.argmax(dim=2)
    return joined_answers(probabilities)[readout][-1:]


def answer(probabilities: Tensor, readout: str) -> tuple[int, float]:
    """Class of one image by R runs, and how sure it is: (R, m) -> y and a number of at most 1.

    That is y's probability in the first run for sample, its share of the votes for vote, its mean probability for mean.
    """
    if readout == "sample":
        probabilities = probabilities[:1]
    y = read_out(probabilities.unsqueeze(1), readout).item()
    sure = probabilities.argmax(dim=1) == y if readout == "vote" else probabilities[:, y]
    return y, sure.float().mean().item()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; a single value has an error of 0."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error

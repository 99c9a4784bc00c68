"""Calibration: do answers given with probability p come true in p of all cases?

NoProp's runs draw classes from p(y given x), so R runs estimate that distribution: by the mean of their class
probabilities, or by the share of the runs that end in a class.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
LEAST = 1e-12  # a smaller probability counts as this one in the log-likelihood


def vote_shares(probabilities: Tensor) -> Tensor:
    """(R, B, m) -> (B, m): the share of the R runs that end in a class, with one more run spread over all classes."""
    runs, _, m = probabilities.shape
    votes = F.one_hot(probabilities.argmax(dim=2), m).sum(dim=0)
    return (votes + 1 / m) / (runs + 1)


def expected_error(bins: Tensor | np.ndarray) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over the answers, in per cent."""
    count, confidence, accuracy = bins
    return (100 * (count * abs(confidence - accuracy)).sum() / count.sum()).item()


@dataclass
class Calibration:
    """nll: mean of -log p(true class). bins (3, BINS): count, mean confidence and accuracy (0 to 1) by confidence."""

    nll: float
    bins: Tensor

    @property
    def ece(self) -> float:
        """See expected_error."""
        return expected_error(self.bins)


class CalibrationSum:
    """Gathers the calibration of one way to estimate p(y given x) batch by batch, on the device."""

    def __init__(self, device: torch.device):
        self.nll = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, p: Tensor, labels: Tensor) -> None:
        """p (B, m), labels (B,)."""
        self.nll -= p.gather(1, labels.unsqueeze(1)).clamp(min=LEAST).log().double().sum()
        confidence, predicted = p.max(dim=1)
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(p.dtype)])
        place = (confidence * BINS).long().clamp(max=BINS - 1)
        self.bins.index_add_(1, place, values.double())

    def finish(self) -> Calibration:
        count, confidence, correct = self.bins.cpu()
        share = count.clamp(min=1)
        return Calibration(
            (self.nll.cpu() / count.sum()).item(), torch.stack([count, confidence / share, correct / share])
        )

"""Calibration: whether answers that are given with probability p come true in p of all cases."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
LEAST = 1e-12  # a smaller probability counts as this one in the log-likelihood


@dataclass
class Calibration:
    """Holds what came of the answers of an evaluation.

    nll: mean of -log p(true class). bins (3, BINS): count, mean confidence and accuracy (0 to 1) by confidence.
    """

    nll: float
    bins: Tensor

    @property
    def ece(self) -> float:
        """Return the expected calibration error in per cent: mean distance of confidence and accuracy."""
        count, confidence, accuracy = self.bins
        return (100 * (count * (confidence - accuracy).abs()).sum() / count.sum()).item()


class CalibrationSum:
    """Gathers the calibration of one way to estimate p(y given x) batch by batch, on the device."""

    def __init__(self, device: torch.device):
        self.nll = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, p: Tensor, answers: Tensor, labels: Tensor) -> None:
        """Count answers (B,), given with the probabilities p (B, m), against labels (B,)."""
        self.nll -= p.gather(1, labels.unsqueeze(1)).clamp(min=LEAST).log().double().sum()
        confidence = p.gather(1, answers.unsqueeze(1)).squeeze(1)
        values = torch.stack([torch.ones_like(confidence), confidence, (answers == labels).to(p.dtype)])
        place = (confidence * BINS).long().clamp(max=BINS - 1)
        self.bins.index_add_(1, place, values.double())

    def finish(self) -> Calibration:
        count, confidence, correct = self.bins.cpu()
        share = count.clamp(min=1)
        bins = torch.stack([count, confidence / share, correct / share])
        return Calibration((self.nll.cpu() / count.sum()).item(), bins)

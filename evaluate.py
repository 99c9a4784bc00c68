"""Accuracy by carrying noise to an answer: R inference runs, read out in three ways, and how far to trust them.

The model sees images only; labels are compared with its finished answers here, outside of it.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data import Split, TrainingData
from models.classifier import Classifier
from models.random_streams import Streams
from settings import READOUTS

EVAL_BATCH = 500  # images at a time
EXAMPLES = 24  # images kept for the pictures
VALIDATION_STEPS = 50  # at most, of the methods that take many, while they train and for the examples
BINS = 15  # of a calibration
LEAST = 1e-12  # a smaller probability counts as this one in the log-likelihood


def joined_answers(probabilities: Tensor) -> dict[str, Tensor]:
    """Return what the first r runs answer together, r = 1..R: (R, B, m) -> (R, B) for `vote` and for `mean`.

    vote: the most frequent class, ties to the larger mean probability.
    """
    runs, _, m = probabilities.shape
    votes = F.one_hot(probabilities.argmax(dim=2), m).cumsum(dim=0)
    count = torch.arange(1, runs + 1, device=probabilities.device).view(-1, 1, 1)
    mean = probabilities.cumsum(dim=0) / count
    return {"vote": (votes + mean / 2).argmax(dim=2), "mean": mean.argmax(dim=2)}


def answer(probabilities: Tensor, readout: str) -> tuple[int, float]:
    """Return the class y of one image by R runs (R, m), and how sure it is, a number of at most 1.

    That is y's probability in the first run for sample, its share of the votes for vote, its mean probability for mean.
    """
    if readout == "sample":
        probabilities = probabilities[:1]
        y = probabilities[0].argmax().item()
    else:
        y = joined_answers(probabilities.unsqueeze(1))[readout][-1].item()
    sure = probabilities.argmax(dim=1) == y if readout == "vote" else probabilities[:, y]
    return y, sure.float().mean().item()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error; a single value has an error of 0."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def vote_shares(probabilities: Tensor) -> Tensor:
    """Return the share of the runs that end in a class, with one more run spread over all: (R, B, m) -> (B, m)."""
    runs, _, m = probabilities.shape
    votes = F.one_hot(probabilities.argmax(dim=2), m).sum(dim=0)
    return (votes + 1 / m) / (runs + 1)


@dataclass
class Calibration:
    """Return whether answers given with probability p come true in p of all cases.

    nll: mean of -log p(true class). bins (3, BINS): count, mean confidence and accuracy (0 to 1) by confidence.
    """

    nll: float
    bins: Tensor

    @property
    def ece(self) -> float:
        """The expected calibration error in per cent: mean distance of confidence and accuracy over the answers."""
        count, confidence, accuracy = self.bins
        return (100 * (count * (confidence - accuracy).abs()).sum() / count.sum()).item()


class CalibrationSum:
    """Gathers the calibration of one way to estimate p(y given x) batch by batch, on the device."""

    def __init__(self, device: torch.device):
        self.nll = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, p: Tensor, labels: Tensor) -> None:
        """Count p (B, m) against labels (B,)."""
        self.nll -= p.gather(1, labels.unsqueeze(1)).clamp(min=LEAST).log().double().sum()
        confidence, predicted = p.max(dim=1)
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(p.dtype)])
        place = (confidence * BINS).long().clamp(max=BINS - 1)
        self.bins.index_add_(1, place, values.double())

    def finish(self) -> Calibration:
        count, confidence, correct = self.bins.cpu()
        share = count.clamp(min=1)
        bins = torch.stack([count, confidence / share, correct / share])
        return Calibration((self.nll.cpu() / count.sum()).item(), bins)


@dataclass
class Evaluation:
    """Accuracies in per cent. per_step_*: at `times` on the way (after block t, or at time t), mean over the runs."""

    readout: str
    per_run: list[float]
    by_runs: dict[str, list[float]]  # vote and mean of the first r runs, r = 1..R
    times: list[float]
    per_step_accuracy: list[float]  # class of theta_out(z_t)
    per_step_u_hat: list[float] | None  # class of block t's own u_hat
    confusion: Tensor  # (m, m) counts of (true, predicted) by the readout
    calibration: dict[str, Calibration]  # of the runs' mean probability and of the share of their votes

    def accuracy(self, readout: str | None = None) -> tuple[float, float]:
        """Return mean and standard error of a readout (default: the one asked for); joined runs have no error."""
        readout = readout or self.readout
        if readout != "sample":
            return self.by_runs[readout][-1], 0.0
        return mean_and_error(self.per_run)


class _Sums:
    """Counts what an evaluation needs, batch by batch, on the device."""

    def __init__(self, runs: int, steps: int, m: int, readout: str, device: torch.device):
        self.readout, self.m, self.images = readout, m, 0
        self.per_run = torch.zeros(runs, device=device)
        self.by_runs = {name: torch.zeros(runs, device=device) for name in ("vote", "mean")}
        self.by_step = torch.zeros(2, steps, device=device)
        self.confusion = torch.zeros(m * m, dtype=torch.int64, device=device)
        self.calibration = {name: CalibrationSum(device) for name in ("mean", "vote")}

    def add_step(self, step: int, log_prob: Tensor, weights: Tensor | None, labels: Tensor) -> None:
        """Count a step on the way; log_prob and weights (R, B, m)."""
        self.by_step[0, step] += (log_prob.argmax(dim=2) == labels).sum()
        if weights is not None:
            self.by_step[1, step] += (weights.argmax(dim=2) == labels).sum()

    def add_answers(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count the probabilities (R, B, m) at the end."""
        self.images += len(labels)
        answers, joined = probabilities.argmax(dim=2), joined_answers(probabilities)
        self.per_run += (answers == labels).sum(dim=1)
        for name, correct in self.by_runs.items():
            correct += (joined[name] == labels).sum(dim=1)
        counted = answers if self.readout == "sample" else joined[self.readout][-1:]
        self.confusion += torch.bincount((labels * self.m + counted).flatten(), minlength=self.m**2)
        self.calibration["mean"].add(probabilities.mean(dim=0), labels)
        self.calibration["vote"].add(vote_shares(probabilities), labels)

    def finish(self, times: list[float], with_u_hat: bool) -> Evaluation:
        per_cent = 100 / self.images
        by_step = (self.by_step * per_cent / len(self.per_run)).tolist()
        return Evaluation(
            readout=self.readout,
            per_run=(self.per_run * per_cent).tolist(),
            by_runs={name: (correct * per_cent).tolist() for name, correct in self.by_runs.items()},
            times=times,
            per_step_accuracy=by_step[0],
            per_step_u_hat=by_step[1] if with_u_hat else None,
            confusion=self.confusion.view(self.m, self.m).cpu(),
            calibration={name: part.finish() for name, part in self.calibration.items()},
        )


@dataclass
class Evaluator:
    """Evaluates a model by inference runs.

    Args:
        ways: arguments of model.denoise, one dict for each way of inference; the last one counts.
        runs, readout: inference runs, and which answer of theirs counts.
        relay: see NoPropNetDT.denoise.
        hides_bars: tqdm's `disable`.
    """

    model: Classifier
    streams: Streams
    ways: list[dict]
    runs: int = 5
    readout: str = READOUTS[0]
    relay: Callable | None = None
    hides_bars: bool | None = True

    def evaluate(self, split: Split, purpose: str = "inference", way: dict | None = None) -> Evaluation:
        """Return the accuracies on a split. The noise is that of `purpose`, the same at every call.

        Run r always draws the same noise, however many runs there are and whatever was evaluated before.
        Leaves the model in eval mode.
        """
        self.model.eval()
        generators, how = self._generators(purpose), self.ways[-1] if way is None else way
        times, m = self.model.times(**how), len(self.model.info.classes)
        sums = _Sums(self.runs, len(times), m, self.readout, split.labels.device)
        batches = list(zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True))
        for images, labels in tqdm(batches, desc="evaluate", unit="batch", disable=self.hides_bars, leave=False):
            path = self._path(images, generators, how)
            next(path)  # z_0, mere noise
            for step, (z, weights) in enumerate(path):
                log_prob = self._log_prob(z)
                sums.add_step(step, log_prob, weights, labels)
            sums.add_answers(log_prob.exp(), labels)
        return sums.finish(times, with_u_hat=weights is not None)

    def quick(self) -> dict:
        """Return the way of inference that counts, with fewer steps where it takes many."""
        way = self.ways[-1]
        return {**way, "steps": min(way["steps"], VALIDATION_STEPS)} if "steps" in way else way

    def examples(self, split: Split) -> dict[str, np.ndarray]:
        """Return some images spread over a split, with what the model makes of them: material for the pictures.

        images (E, H, W, C) uint8, labels (E,), probabilities (E, m) mean over the runs, z_path (1 + steps shown, E, d)
        of the first run and path_class (E,) that it ends in, W_embed (m, d), classes (m,), and the model's curves.
        """
        self.model.eval()
        count = min(EXAMPLES, len(split))
        chosen = split.subset(torch.linspace(0, len(split) - 1, count).long().to(split.labels.device))
        path = [z for z, _ in self._path(chosen.images, self._generators("examples"), self.quick())]
        content = {
            "images": chosen.images,
            "labels": chosen.labels,
            "probabilities": self._log_prob(path[-1]).exp().mean(dim=0),
            "path_class": self._log_prob(path[-1][0]).argmax(dim=1),
            "z_path": torch.stack([z[0] for z in path]),
            "W_embed": self.model.W_embed,
            **self.model.curves(),
        }
        arrays = {name: value.detach().cpu().numpy() for name, value in content.items()}
        return {**arrays, "classes": np.array(self.model.info.classes)}

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [self.streams.fresh(purpose, r) for r in range(self.runs)]

    def _path(self, images: Tensor, generators: list[torch.Generator], how: dict):
        relay = {"relay": self.relay} if self.relay else {}
        return self.model.denoise(self.model.info.normalise(images), generators, **how, **relay)

    @torch.no_grad()
    def _log_prob(self, z: Tensor) -> Tensor:
        return self.model.log_prob(z)


def accuracies_after_epoch(
    evaluator: Evaluator,
    data: TrainingData,
    watched: Split | None = None,
    from_first: Callable[[Callable[[], object]], object] = lambda make: make(),
) -> tuple[dict, Evaluation | None]:
    """Return the accuracies of an epoch's row, and the evaluation of the validation split (None where it is empty).

    The accuracy on training images is that of as many as there are validation images (a tenth of all without them),
    without augmentation and dropout. watched: test images, looked at for curves only. from_first: the number that
    chooses the best epoch is that of the first of several processes.
    """
    train, validation = data.train, data.validation
    look = partial(evaluator.evaluate, purpose="validation", way=evaluator.quick())
    probe = len(validation) or max(1, len(train) // 10)
    row = dict(zip(("train_accuracy", "train_accuracy_sem"), look(train.subset(slice(probe))).accuracy(), strict=True))
    result = look(validation) if len(validation) else None
    row["val_accuracy"] = from_first(lambda: result.accuracy()[0] if result else None)
    if watched:
        row["test_accuracy"] = look(watched).accuracy()[0]
    return row, result

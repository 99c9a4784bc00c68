"""Accuracy by carrying noise to an answer: R inference runs, the readouts, and how far to trust them.

The model sees images only; labels are compared with its finished answers here, outside of it.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data import Split, TrainingData
from models.calibration import Calibration, CalibrationSum
from models.classifier import Classifier
from models.image_info import images_at_a_time
from models.random_streams import Streams

EXAMPLES = 24  # images kept for the pictures
VALIDATION_STEPS = 50  # at most, of the methods that take many, while they train and for the examples
TOP = 5  # of the top-5 accuracy


class Answers(NamedTuple):
    """Holds what R inference runs say of a batch of images."""

    probabilities: Tensor  # (R, B, m), p(y | z) at the end
    z: Tensor  # (R, B, d), at the end
    u_hat: Tensor | None  # (R, B, m), class weights of the blocks' own u_hat, mean over the blocks


@torch.no_grad()
def ask(
    model: Classifier,
    x: Tensor,
    generators: Sequence[torch.Generator],
    see: Callable[[int, Tensor, Tensor | None], None] | None = None,
    mirrored: Tensor | None = None,
    **how,
) -> Answers:
    """Return what one run for each generator says of images x (B, C, H, W); how: arguments of model.infer.

    see: is shown (step, p(y | z), class weights of u_hat or None) on the way, (R, B, m). mirrored: x of the mirror
    images; what is said of them is averaged with what is said of x, on the way too.
    """
    if mirrored is not None:
        seen = []
        one = ask(model, x, generators, see and (lambda step, *of_x: seen.append(of_x)), **how)
        both = see and (lambda step, *of_mirrored: see(step, *_means(seen[step], of_mirrored)))
        return Answers(*_means(one, ask(model, mirrored, generators, both, **how)))
    path, answering = model.infer(x, generators, **how), model.answering(**how)
    next(path)  # z_0, mere noise
    total: Tensor | float = 0.0
    for step, (z, weights) in enumerate(path):
        if see:
            see(step, model.log_prob(z).exp(), weights)
        if step in answering:
            total = None if weights is None else total + weights
    return Answers(model.answer(z, weights), z, None if total is None else total / len(answering))


def _means(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if a is None else (a + b) / 2 for a, b in zip(some, others, strict=True)]


def running_mean(values: Tensor) -> Tensor:
    """Return the mean of the first r, r = 1..R: (R, ...) -> the same."""
    count = torch.arange(1, len(values) + 1, device=values.device).view(-1, *[1] * (values.ndim - 1))
    return values.cumsum(dim=0) / count


@torch.no_grad()
def joined(answers: Answers, readout: str, model: Classifier) -> Tensor:
    """Return what the first r runs together say, r = 1..R: (R, B, m), of which the largest counts.

    Probabilities, but for `vote`, the number of votes (ties go to the larger mean probability).
    ensemble and mean-z average answers of networks that see the image: the paper's readout is `sample`.
    """
    if readout == "vote":
        p = answers.probabilities
        return F.one_hot(p.argmax(dim=2), p.shape[2]).cumsum(dim=0) + running_mean(p) / 2
    if readout == "mean":
        return running_mean(answers.probabilities)
    if readout == "ensemble":
        return running_mean(answers.u_hat)
    if readout == "mean-z":
        return model.log_prob(running_mean(answers.z)).exp()
    raise ValueError(f"no readout {readout!r} of several runs")


def best_answers(answers: Answers, readout: str, model: Classifier, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return the k best classes of each image, the best one first, and how sure each is, at most 1: both (B, k).

    That is its probability in the first run for sample, its vote_shares for vote, else its joined probability.
    """
    p = answers.probabilities[0] if readout == "sample" else joined(answers, readout, model)[-1]
    y = p.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return y, (vote_shares(answers.probabilities) if readout == "vote" else p).gather(1, y)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error; a single value has an error of 0.

    The mean is rounded far below a single image, so that as many right answers are equal however they are spread.
    """
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return round(statistics.fmean(values), 9), error


def vote_shares(probabilities: Tensor) -> Tensor:
    """Return the share of the runs that end in a class, with one more run spread over all: (R, B, m) -> (B, m)."""
    runs, _, m = probabilities.shape
    votes = F.one_hot(probabilities.argmax(dim=2), m).sum(dim=0)
    return (votes + 1 / m) / (runs + 1)


@dataclass
class Evaluation:
    """Accuracies in per cent. per_step_*: at `times` on the way (after block t, or at time t), mean over the runs."""

    readout: str
    per_run: list[float]
    by_runs: dict[str, list[float]]  # the other readouts, of the first r runs, r = 1..R
    times: list[float]
    per_step_accuracy: list[float]  # class of theta_out(z_t)
    per_step_u_hat: list[float] | None  # class of block t's own u_hat
    confusion: Tensor  # (m, m) counts of (true, predicted) by the readout
    top5: float | None  # how often the true class is among the five that the readout ranks first; of more than five
    calibration: dict[str, Calibration]  # by readout of all runs; for vote of the share of the votes

    @property
    def block_1_alone(self) -> float | None:
        """Return the accuracy of block 1's own u_hat, from the image and mere noise, where blocks answer alone."""
        return self.per_step_u_hat[0] if "ensemble" in self.by_runs else None

    @property
    def by_class(self) -> list[float | None]:
        """Return the accuracy on the images of each class by the readout; None for a class without any."""
        pairs = zip(self.confusion.diag().tolist(), self.confusion.sum(dim=1).tolist(), strict=True)
        return [100 * right / count if count else None for right, count in pairs]

    def accuracy(self, readout: str | None = None) -> tuple[float, float]:
        """Return mean and standard error of a readout (default: the one asked for); joined runs have no error."""
        readout = readout or self.readout
        if readout != "sample":
            return self.by_runs[readout][-1], 0.0
        return mean_and_error(self.per_run)


class _Sums:
    """Counts what an evaluation needs, batch by batch, on the device."""

    def __init__(self, model: Classifier, runs: int, steps: int, readout: str, device: torch.device):
        self.model, self.readout, self.m, self.images = model, readout, len(model.W_embed), 0
        self.per_run = torch.zeros(runs, device=device)
        several = [name for name in model.readouts if name != "sample"]
        self.by_runs = {name: torch.zeros(runs, device=device) for name in several}
        self.by_step = torch.zeros(2, steps, device=device)
        self.confusion = torch.zeros(self.m**2, dtype=torch.int64, device=device)
        self.in_top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.calibration = {name: CalibrationSum(device) for name in several}

    def add_step(self, step: int, p: Tensor, weights: Tensor | None, labels: Tensor) -> None:
        """Count a step on the way; p(y | z) and weights (R, B, m)."""
        self.by_step[0, step] += (p.argmax(dim=2) == labels).sum()
        if weights is not None:
            self.by_step[1, step] += (weights.argmax(dim=2) == labels).sum()

    def add_answers(self, answers: Answers, labels: Tensor) -> None:
        """Count the answers at the end."""
        self.images += len(labels)
        ranked = answers.probabilities  # (R, B, m)
        self.per_run += (ranked.argmax(dim=2) == labels).sum(dim=1)
        for name, correct in self.by_runs.items():
            p = joined(answers, name, self.model)
            correct += (p.argmax(dim=2) == labels).sum(dim=1)
            sure = vote_shares(answers.probabilities) if name == "vote" else p[-1]
            self.calibration[name].add(sure, p[-1].argmax(dim=1), labels)
            if name == self.readout:
                ranked = p[-1:]
        pairs = labels * self.m + ranked.argmax(dim=2)
        self.confusion += torch.bincount(pairs.flatten(), minlength=self.m**2)
        if self.m > TOP:
            self.in_top5 += (ranked.topk(TOP, dim=2).indices == labels[:, None]).sum()

    def finish(self, times: list[float], with_u_hat: bool) -> Evaluation:
        def per_cent(correct: Tensor, runs: int = 1) -> list:
            return (100 * correct.double().cpu() / (self.images * runs)).tolist()

        by_step = per_cent(self.by_step, len(self.per_run))
        return Evaluation(
            readout=self.readout,
            per_run=per_cent(self.per_run),
            by_runs={name: per_cent(correct) for name, correct in self.by_runs.items()},
            times=times,
            per_step_accuracy=by_step[0],
            per_step_u_hat=by_step[1] if with_u_hat else None,
            confusion=self.confusion.view(self.m, self.m).cpu(),
            top5=100 * self.in_top5.item() / self.confusion.sum().item() if self.m > TOP else None,
            calibration={name: part.finish() for name, part in self.calibration.items()},
        )


@dataclass
class Evaluator:
    """Evaluates a model by inference runs.

    Args:
        ways: arguments of model.infer, one dict for each way of inference; the last one counts.
        runs, readout: inference runs, and which answer of theirs counts.
        relay: see NoPropNetDT.denoise.
        hides_bars: tqdm's `disable`.
        batch_size: images at a time; None: images_at_a_time.
        mirror: whether answers to an image and to its mirror image are averaged.
    """

    model: Classifier
    streams: Streams
    ways: list[dict]
    runs: int = 5
    readout: str = "sample"
    relay: Callable | None = None
    hides_bars: bool | None = True
    batch_size: int | None = None
    mirror: bool = False

    def evaluate(self, split: Split, purpose: str = "inference", way: dict | None = None) -> Evaluation:
        """Return the accuracies on a split. The noise is that of `purpose`, the same at every call.

        Run r always draws the same noise, however many runs there are and whatever was evaluated before.
        Leaves the model in eval mode.
        """
        self.model.eval()
        generators, how = self._generators(purpose), self.ways[-1] if way is None else way
        times = self.model.times(**how)
        sums = _Sums(self.model, self.runs, len(times), self.readout, split.labels.device)
        size = self.batch_size or images_at_a_time(*split.images.shape[1:3])
        batches = list(zip(split.images.split(size), split.labels.split(size), strict=True))
        for images, labels in tqdm(batches, desc="evaluate", unit="batch", disable=self.hides_bars, leave=False):
            images, see = images[:], partial(sums.add_step, labels=labels)
            mirrored = self.model.see(images.flip(2)) if self.mirror else None
            answers = ask(self.model, self.model.see(images), generators, see, mirrored, **how, **self._relay())
            sums.add_answers(answers, labels)
        return sums.finish(times, with_u_hat=answers.u_hat is not None)

    def quick(self) -> dict:
        """Return the way of inference that counts, with fewer steps where it takes many."""
        way = self.ways[-1]
        return {**way, "steps": min(way["steps"], VALIDATION_STEPS)} if "steps" in way else way

    @torch.no_grad()
    def examples(self, split: Split) -> dict[str, np.ndarray]:
        """Return some images spread over a split, with what the model makes of them: material for the pictures.

        images (E, H, W, C) uint8, labels (E,), probabilities (E, m) mean over the runs, W_embed (m, d) as noise is
        mixed into it, classes (m,), the model's curves, and where it denoises z_path (1 + steps shown, E, d) of the
        first run and path_class (E,) that it ends in.
        """
        self.model.eval()
        count = min(EXAMPLES, len(split))
        chosen = split.subset(torch.linspace(0, len(split) - 1, count).long().to(split.labels.device))
        generators, how = self._generators("examples"), self.quick()
        images = chosen.images[:]
        x = self.model.see(images)
        path = list(self.model.infer(x, generators, **how, **self._relay()))
        p = self.model.answer(*path[-1])
        content = {
            "images": images,
            "labels": chosen.labels,
            "probabilities": p.mean(dim=0),
            "W_embed": self.model.u,
            **self.model.curves(**how),
        }
        if self.model.denoises:
            content |= {"path_class": p[0].argmax(dim=1), "z_path": torch.stack([z[0] for z, _ in path])}
        arrays = {name: value.detach().cpu().numpy() for name, value in content.items()}
        return {**arrays, "classes": np.array(self.model.info.classes)}

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [self.streams.fresh(purpose, r) for r in range(self.runs)]

    def _relay(self) -> dict:
        return {"relay": self.relay} if self.relay else {}


def accuracies_after_epoch(
    evaluator: Evaluator,
    data: TrainingData,
    watched: Split | None = None,
    from_first: Callable[[Callable[[], object]], object] = lambda make: make(),
) -> tuple[dict, Evaluation | None]:
    """Return the accuracies of an epoch's row, and the evaluation of the validation split (None where it is empty).

    The accuracy on training images is that of as many as there are validation images (a tenth of all without them),
    the last of them, which are a fair draw (see training_data); without augmentation and dropout. watched: test
    images, looked at for curves only. from_first: the number that chooses the best epoch is that of the first of
    several processes.
    """
    train, validation = data.train, data.validation
    look = partial(evaluator.evaluate, purpose="validation", way=evaluator.quick())
    probe = len(validation) or max(1, len(train) // 10)
    seen = look(train.subset(slice(-probe, None))).accuracy()
    row = dict(zip(("train_accuracy", "train_accuracy_sem"), seen, strict=True))
    result = look(validation) if len(validation) else None
    row["val_accuracy"] = from_first(lambda: result.accuracy()[0] if result else None)
    if watched:
        row["test_accuracy"] = look(watched).accuracy()[0]
    return row, result

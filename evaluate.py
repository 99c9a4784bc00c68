"""Accuracy by carrying noise to an answer: R inference runs, read out in three ways, and their calibration."""

from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from calibration import Calibration, CalibrationSum, vote_shares
from checkpoint import write_atomic
from data import DataInfo, Split
from distributed import ALONE, Ranks
from models.classifier import Classifier
from readout import joined_answers, mean_and_error
from streams import Streams

EVAL_BATCH = 500  # images at a time
EXAMPLES = 24  # images kept for the pictures
VALIDATION_STEPS = 50  # at most, of ct, fm and adjoint while they train and for the examples


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
        """Mean and standard error of the readout (default: the one asked for); joined runs have no error."""
        readout = readout or self.readout
        if readout != "sample":
            return self.by_runs[readout][-1], 0.0
        return mean_and_error(self.per_run)


def inference_generators(streams: Streams, purpose: str, runs: int) -> list[torch.Generator]:
    """Run r always draws the same noise, however many runs there are and whatever was evaluated before."""
    return [streams.fresh(purpose, r) for r in range(runs)]


class _Sums:
    """What an evaluation counts batch by batch, on the device."""

    def __init__(self, runs: int, steps: int, m: int, readout: str, device: torch.device):
        self.readout, self.m, self.images = readout, m, 0
        self.per_run = torch.zeros(runs, device=device)
        self.by_runs = {name: torch.zeros(runs, device=device) for name in ("vote", "mean")}
        self.by_step = torch.zeros(2, steps, device=device)
        self.confusion = torch.zeros(m * m, dtype=torch.int64, device=device)
        self.calibration = {name: CalibrationSum(device) for name in ("mean", "vote")}

    def add_step(self, step: int, log_prob: Tensor, weights: Tensor | None, labels: Tensor) -> None:
        """log_prob and weights (R, B, m)."""
        self.by_step[0, step] += (log_prob.argmax(dim=2) == labels).sum()
        if weights is not None:
            self.by_step[1, step] += (weights.argmax(dim=2) == labels).sum()

    def add_answers(self, probabilities: Tensor, labels: Tensor) -> None:
        """probabilities (R, B, m) at the end."""
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


@torch.no_grad()
def evaluate(
    model: Classifier,
    info: DataInfo,
    split: Split,
    generators: list[torch.Generator],
    readout: str = "sample",
    how: dict | None = None,
    hides_bar: bool | None = None,
) -> Evaluation:
    """Accuracy on a split, one inference run for each generator. The model sees images only.

    Labels are compared with the finished predictions here, outside the model. Leaves the model in eval mode.
    how: settings of model.denoise.
    """
    model.eval()
    how = how or {}
    times = model.times(**how)
    sums = _Sums(len(generators), len(times), len(info.classes), readout, split.labels.device)
    batches = zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True)
    total = -(-len(split) // EVAL_BATCH)
    for images, labels in tqdm(batches, total=total, desc="evaluate", unit="batch", disable=hides_bar, leave=False):
        path = model.denoise(info.normalise(images), generators, **how)
        next(path)  # z_0, mere noise
        for step, (z, weights) in enumerate(path):
            log_prob = model.log_prob(z)
            sums.add_step(step, log_prob, weights, labels)
        sums.add_answers(log_prob.exp(), labels)
    return sums.finish(times, with_u_hat=weights is not None)


@torch.no_grad()
def example_paths(
    model: Classifier, info: DataInfo, split: Split, generators: list[torch.Generator], how: dict
) -> dict[str, np.ndarray]:
    """Some images spread over the split, with what the model makes of them: material for the pictures.

    images (E, H, W, C) uint8, labels (E,), probabilities (E, m) mean over the runs, z_path (1 + steps shown, E, d)
    of the first run and path_class (E,) that it ends in, W_embed (m, d), classes (m,).
    """
    model.eval()
    count = min(EXAMPLES, len(split))
    chosen = split.subset(torch.linspace(0, len(split) - 1, count).long().to(split.labels.device))
    path = [z for z, _ in model.denoise(info.normalise(chosen.images), generators, **how)]
    content = {
        "images": chosen.images,
        "labels": chosen.labels,
        "probabilities": model.log_prob(path[-1]).exp().mean(dim=0),
        "path_class": model.log_prob(path[-1][0]).argmax(dim=1),
        "z_path": torch.stack([z[0] for z in path]),
        "W_embed": model.W_embed,
    }
    arrays = {name: value.detach().cpu().numpy() for name, value in content.items()}
    return {**arrays, "classes": np.array(info.classes)}


def inference_settings(args: Namespace) -> list[dict]:
    """All ways of inference that the settings ask for, as settings of model.denoise; the last one is the result's."""
    if args.method == "dt":
        return [{"stochastic": args.inference == "stochastic"}]
    if args.method == "backprop":
        return [{}]
    if args.method == "adjoint":
        return [{"steps": n} for n in args.steps]
    ode = {"sampler": "ode"} if args.method == "ct" else {}
    ways = []
    for sampler in args.sampler or ["ode"]:
        if sampler == "ancestral":
            ways += [{"sampler": "ancestral", "steps": n} for n in args.steps]
            continue
        for solver in args.solver:
            steps = args.steps if solver != "dopri5" else [VALIDATION_STEPS]
            ways += [{**ode, "solver": solver, "steps": n} for n in steps]
    return ways


@dataclass
class Evaluator:
    """Evaluates a model as the settings of its run say."""

    args: Namespace
    model: Classifier
    info: DataInfo
    streams: Streams
    ranks: Ranks = ALONE

    @cached_property
    def ways(self) -> list[dict]:
        """See inference_settings. With torchrun the class weights of the blocks go round."""
        relay = {"relay": self.ranks.relay} if self.ranks.size > 1 else {}
        return [way | relay for way in inference_settings(self.args)]

    def evaluate(self, split: Split, purpose: str, way: dict | None = None) -> Evaluation:
        """The noise is that of `purpose`, the same at every call: evaluations differ by the weights only."""
        generators = inference_generators(self.streams, purpose, self.args.eval_runs)
        how = self.ways[-1] if way is None else way
        return evaluate(self.model, self.info, split, generators, self.args.readout, how, self.ranks.hides_bars)

    def validate(self, split: Split) -> Evaluation:
        """As `evaluate`, with fewer steps where it takes many: it is done after every epoch."""
        return self.evaluate(split, "validation", self._quick(self.ways[-1]))

    def _quick(self, way: dict) -> dict:
        return {**way, "steps": min(way["steps"], VALIDATION_STEPS)} if "steps" in way else way

    def write_examples(self, run: Path, evaluation: Evaluation, split: Split, split_name: str, epoch: int) -> None:
        """logs/examples.npz: what the pictures need of an evaluation, so that they need neither data nor model."""
        generators = inference_generators(self.streams, "examples", self.args.eval_runs)
        content = {
            **example_paths(self.model, self.info, split, generators, self._quick(self.ways[-1])),
            "split": np.array(split_name),
            "epoch": np.array(epoch),
            "readout": np.array(evaluation.readout),
            "times": np.array(evaluation.times),
            "per_step_accuracy": np.array(evaluation.per_step_accuracy),
            "per_step_u_hat": np.array(evaluation.per_step_u_hat or []),
            "confusion": evaluation.confusion.numpy(),
            **{f"calibration_{name}": part.bins.numpy() for name, part in evaluation.calibration.items()},
            **{f"by_runs_{name}": np.array(values) for name, values in evaluation.by_runs.items()},
        }
        if self.ranks.first:
            write_atomic(run / "logs" / "examples.npz", lambda file: np.savez_compressed(file, **content))

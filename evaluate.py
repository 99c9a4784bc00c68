"""Accuracy by sequential denoising: R inference runs, three ways to read the answer out (sample, vote, mean)."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint import write_atomic
from data import DataInfo, Split
from distributed import ALONE, Ranks
from models.NoProp_DT import NoPropNetDT
from streams import Streams

READOUTS = ("sample", "vote", "mean")
EVAL_BATCH = 500  # images at a time
EXAMPLES = 24  # images kept for the pictures


@dataclass
class Evaluation:
    """Accuracies in per cent. per_step_*: after every block t = 1..T, mean over the runs."""

    readout: str
    per_run: list[float]
    vote: float
    mean: float
    per_step_accuracy: list[float]  # class of theta_out(z_t)
    per_step_u_hat: list[float]  # class of block t's own u_hat
    confusion: Tensor  # (m, m) counts of (true, predicted) by the readout

    def accuracy(self, readout: str | None = None) -> tuple[float, float]:
        """Mean and standard error of the readout (default: the one asked for); joined runs have no error."""
        readout = readout or self.readout
        if readout != "sample":
            return getattr(self, readout), 0.0
        runs = np.array(self.per_run)
        error = runs.std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else 0.0
        return float(runs.mean()), float(error)


def inference_generators(streams: Streams, purpose: str, runs: int) -> list[torch.Generator]:
    """Run r always draws the same noise, however many runs there are and whatever was evaluated before."""
    return [streams.fresh(purpose, r) for r in range(runs)]


def vote(probabilities: Tensor) -> Tensor:
    """The most frequent class of the runs, ties to the larger mean probability: (R, B, m) -> (B,)."""
    runs, _, m = probabilities.shape
    votes = torch.nn.functional.one_hot(probabilities.argmax(dim=2), m).sum(dim=0)
    return (votes + probabilities.mean(dim=0) / 2).argmax(dim=1)


def read_out(probabilities: Tensor, readout: str) -> Tensor:
    """Predicted classes, one row for each counted run: (R, B, m) -> (R, B) for sample, else (1, B)."""
    if readout == "sample":
        return probabilities.argmax(dim=2)
    if readout == "vote":
        return vote(probabilities).unsqueeze(0)
    return probabilities.mean(dim=0, keepdim=True).argmax(dim=2)


@torch.no_grad()
def evaluate(
    model: NoPropNetDT,
    info: DataInfo,
    split: Split,
    generators: list[torch.Generator],
    readout: str = "sample",
    stochastic: bool = True,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Accuracy on a split, one inference run for each generator. The model sees images only.

    Labels are compared with the finished predictions here, outside the model. Leaves the model in eval mode. Every rank
    computes the image features of its own blocks, nearly all of the work; of the chain only class weights travel.
    """
    model.eval()
    T, m, runs = model.num_blocks, len(info.classes), len(generators)
    device = split.labels.device
    correct = {name: torch.zeros(runs if name == "sample" else 1, device=device) for name in READOUTS}
    by_step = torch.zeros(2, T + 1, device=device)
    confusion = torch.zeros(m * m, dtype=torch.int64, device=device)

    batches = zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True)
    total = -(-len(split) // EVAL_BATCH)
    bar = tqdm(batches, total=total, desc="evaluate", unit="batch", disable=ranks.hides_bars, leave=False)
    for images, labels in bar:
        for t, (z, weights) in enumerate(model.denoise(info.normalise(images), generators, stochastic, ranks.relay)):
            log_prob = model.log_prob(z)
            by_step[0, t] += (log_prob.argmax(dim=2) == labels).sum()
            by_step[1, t] += (weights.argmax(dim=2) == labels).sum()
        probabilities = log_prob.exp()
        predicted = {name: read_out(probabilities, name) for name in READOUTS}  # (R or 1, B) each
        for name in READOUTS:
            correct[name] += (predicted[name] == labels).sum(dim=1)
        cell = labels * m + predicted[readout]
        confusion += torch.bincount(cell.flatten(), minlength=m * m)

    per_cent = 100 / len(split)
    return Evaluation(
        readout=readout,
        per_run=(correct["sample"] * per_cent).tolist(),
        vote=correct["vote"].item() * per_cent,
        mean=correct["mean"].item() * per_cent,
        per_step_accuracy=(by_step[0, 1:] * per_cent / runs).tolist(),
        per_step_u_hat=(by_step[1, 1:] * per_cent / runs).tolist(),
        confusion=confusion.view(m, m).cpu(),
    )


@torch.no_grad()
def example_paths(
    model: NoPropNetDT,
    info: DataInfo,
    split: Split,
    generators: list[torch.Generator],
    stochastic: bool = True,
    ranks: Ranks = ALONE,
) -> dict[str, np.ndarray]:
    """Some images spread over the split, with what the model makes of them: material for the pictures.

    images (E, H, W, C) uint8, labels (E,), probabilities (E, m) mean over the runs, z_path (T+1, E, d) of the
    first run and path_class (E,) that it ends in, W_embed (m, d), classes (m,).
    """
    model.eval()
    count = min(EXAMPLES, len(split))
    chosen = split.subset(torch.linspace(0, len(split) - 1, count).long().to(split.labels.device))
    path = [z for z, _ in model.denoise(info.normalise(chosen.images), generators, stochastic, ranks.relay)]
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


@dataclass
class Evaluator:
    """Evaluates a model as the settings of its run say."""

    args: Namespace
    model: NoPropNetDT
    info: DataInfo
    streams: Streams
    ranks: Ranks = ALONE

    @property
    def stochastic(self) -> bool:
        return self.args.inference == "stochastic"

    def evaluate(self, split: Split, purpose: str) -> Evaluation:
        """The noise is that of `purpose`, the same at every call: evaluations differ by the weights only."""
        generators = inference_generators(self.streams, purpose, self.args.eval_runs)
        return evaluate(self.model, self.info, split, generators, self.args.readout, self.stochastic, self.ranks)

    def write_examples(self, run: Path, evaluation: Evaluation, split: Split, split_name: str, epoch: int) -> None:
        """logs/examples.npz: what the pictures need of an evaluation, so that they need neither data nor model."""
        generators = inference_generators(self.streams, "examples", self.args.eval_runs)
        content = {
            **example_paths(self.model, self.info, split, generators, self.stochastic, self.ranks),
            "split": np.array(split_name),
            "epoch": np.array(epoch),
            "readout": np.array(evaluation.readout),
            "per_step_accuracy": np.array(evaluation.per_step_accuracy),
            "per_step_u_hat": np.array(evaluation.per_step_u_hat),
            "confusion": evaluation.confusion.numpy(),
        }
        if self.ranks.first:
            write_atomic(run / "logs" / "examples.npz", lambda file: np.savez_compressed(file, **content))

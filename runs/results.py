"""Write what an evaluation leaves in a run folder: results.json, and logs/examples.npz for the pictures."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import Split
from evaluate import Evaluation, Evaluator
from hardware.memory import peak_memory, reset_peak_memory
from runs.files import write_atomic, write_json
from runs.process import OneProcess
from runs.report import parameters_of, print_ways
from runs.versions import versions
from settings import SPLITS, Settings


class RunResults:
    """Tests the model of a run, and writes what came out.

    Args:
        W_embed_start: (m, d) class embeddings before training, for the picture of prototypes.
    """

    def __init__(
        self, run: Path, s: Settings, evaluator: Evaluator, W_embed_start: Tensor, processes: OneProcess | None = None
    ):
        self.run, self.settings, self.evaluator = run, s, evaluator
        self.W_embed_start, self.processes = W_embed_start, processes or OneProcess()
        self.split = SPLITS[s.eval_split]

    def test(self, test: Split, trained: dict) -> Evaluation:
        """Evaluate on the images of --eval-split in all ways of inference; the last one counts and is returned.

        trained: epoch, val_accuracy, train_seconds and, where known, train_accuracy of the weights.
        """
        device, by_way = self.evaluator.streams.device, []
        test = test.to(device)
        reset_peak_memory(device)
        for way in self.evaluator.ways:
            start = time.perf_counter()
            result = self.evaluator.evaluate(test, "inference", way)
            (mean, sem), calibration = result.accuracy(), result.calibration["mean"]
            seconds = time.perf_counter() - start
            adaptive = way.get("solver") == "dopri5"  # chooses its own steps
            shown = {name: value for name, value in way.items() if not (adaptive and name == "steps")}
            readouts = {name: result.accuracy(name)[0] for name in self.evaluator.model.readouts}
            row = {
                "accuracy_by_readout": readouts,
                "accuracy_mean": mean,
                "accuracy_sem": sem,
                "ece": calibration.ece,
                "nll": calibration.nll,
            }
            by_way.append({**shown, **row, "seconds": seconds})
        self.write_examples(result, test, self.split, trained["epoch"])
        if self.processes.first:
            kept = ("epoch", "val_accuracy", "train_accuracy_mean", "train_accuracy_sem")
            content = {
                **self._content(result, by_way),
                **{name: trained.get(name) for name in kept},
                "seconds": {"training": trained["train_seconds"], "evaluation": seconds},
                f"{self.split}_images": len(test),
                "ranks": self.processes.size,
                "all_reduced_bytes": self.processes.bytes_reduced,  # by each rank since it started
            }
            write_json(self.run / "results.json", content)
            if self.settings.mirror_test:
                print("every answer is the mean of those to an image and to its mirror image")
            print_ways(by_way)
        return result

    def _content(self, result: Evaluation, by_way: list[dict]) -> dict:
        """Return the part of results.json that follows from the model and its evaluation."""
        s, model = self.settings, self.evaluator.model
        mean, sem = result.accuracy()
        return {
            **{name: getattr(s, name) for name in ("method", "dataset", "seed", "readout", "inference", "mirror_test")},
            "split": self.split,
            f"{self.split}_accuracy_mean": mean,
            f"{self.split}_accuracy_sem": sem,
            "accuracy_by_readout": {
                name: dict(zip(("mean", "sem"), result.accuracy(name), strict=True)) for name in model.readouts
            },
            "top5_accuracy": result.top5,
            "accuracy_by_class": dict(zip(model.info.classes, result.by_class, strict=True)),
            "accuracy_u_hat_of_block_1": result.block_1_alone,
            "per_run": result.per_run,
            "accuracy_by_runs": result.by_runs,
            "calibration": {
                name: {"nll": part.nll, "ece": part.ece, "bins": part.bins.tolist()}
                for name, part in result.calibration.items()
            },
            "per_step_times": result.times,
            "per_step_accuracy": result.per_step_accuracy,
            "per_step_accuracy_u_hat": result.per_step_u_hat,
            "by_inference": by_way,
            **parameters_of(s, model),
            **peak_memory(self.evaluator.streams.device),
            "versions": versions(self.evaluator.streams.device),
        }

    def write_examples(self, evaluation: Evaluation, split: Split, split_name: str, epoch: int) -> None:
        """Write logs/examples.npz: what the pictures need, so that they need neither data nor model."""
        content = {
            **self.evaluator.examples(split),
            "split": np.array(split_name),
            "epoch": np.array(epoch),
            "readout": np.array(evaluation.readout),
            "times": np.array(evaluation.times),
            "per_step_accuracy": np.array(evaluation.per_step_accuracy),
            "per_step_u_hat": np.array(evaluation.per_step_u_hat or []),
            "confusion": evaluation.confusion.numpy(),
            **{f"by_runs_{name}": np.array(values) for name, values in evaluation.by_runs.items()},
        }
        for name, part in evaluation.calibration.items():
            content |= {f"calibration_{name}": part.bins.numpy(), f"ece_{name}": np.array(part.ece)}
        if self.settings.embedding_type == "prototype":
            content |= self._prototypes()
        if self.processes.first:
            path = self.run / "logs" / "examples.npz"
            write_atomic(path, lambda file: np.savez_compressed(file, **content))

    def _prototypes(self) -> dict[str, np.ndarray]:
        """Return the embeddings as images (m, H, W, C) of pixel values, before training and now."""
        info, model = self.evaluator.model.info, self.evaluator.model
        both = torch.stack([self.W_embed_start, model.W_embed.detach().cpu()]).unflatten(2, tuple(info.image_shape))
        images = both.permute(0, 1, 3, 4, 2).numpy() * np.array(info.std) + np.array(info.mean)
        return {"prototypes_start": images[0], "prototypes": images[1]}

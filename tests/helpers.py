"""What several test files share: settings, small trainings with files, comparison to the bit, calls of the programs."""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from conftest import SHAPE

import assemble
import main
import visualize
from data import training_data
from loaders import RawImages
from models.random_streams import Streams
from rules import parse, settle
from runs.checkpoint import load_checkpoint
from runs.process import OneProcess
from runs.results import RunResults
from runs.signals import StopSignals

# Times, places and memory, in which runs that are equal to the bit differ.
MEASURED = {"seconds", "train_seconds", "images_per_second", "peak_memory_bytes", "checkpoint", "checkpoint_dir"}
MEASURED |= {"by_inference", "date", "commit"}


def as_if_on_cuda(content):
    """Return a checkpoint as of a GPU: random states of 16 bytes, but for the order, which is drawn on the CPU."""
    of_cuda, states = ("cuda", torch.zeros(16, dtype=torch.uint8)), content["streams"]["states"]
    moved = {key: state if key.startswith("order/") else of_cuda for key, state in states.items()}
    return {**content, "streams": {**content["streams"], "device": "cuda", "states": moved}}


def settings(*flags):
    """Return the settings of a training on digits, with three blocks where the method has blocks."""
    continuous = {"ct", "fm", "adjoint"} & set(flags)
    blocks = [] if continuous else ["--num-blocks", "3"]
    return settle(*parse(["--dataset", "digits", *blocks, *map(str, flags)]))


def small_data(s, streams, count=128):
    """Return random images of 4 classes, the brightness of whose corner tells the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = torch.randint(60, (count, *SHAPE[1:], 1), generator=generator)
    images[:, :4, :4] += labels[:, None, None, None] * 60
    raw = RawImages(images.to(torch.uint8), labels, list("abcd"))
    return training_data(raw, s.val_fraction, streams)


def make_trainer(run, *flags, content=None):
    """Return a trainer on 96 small images that saves into a folder as main.py does; content: a checkpoint to go on."""
    s = settings("--batch-size", 32, "--val-fraction", 0.25, "--save-every-minutes", 0, *flags)
    streams = Streams(s.seed)
    data = small_data(s, streams)
    model = assemble.restored("x", content) if content else assemble.new_model(s, data, streams)
    trainer = assemble.make_trainer(s, model, data, streams)
    if content:
        trainer.load_state_dict(content)
    results = RunResults(run, s, assemble.make_evaluator(s, model, streams), trainer.W_embed_start, OneProcess())
    trainer.stops = StopSignals()
    assemble.add_callbacks(trainer, s, results, data, trainer.stops, board=None)
    trainer.fit_all = lambda: fit(trainer)
    return trainer


def fit(trainer):
    """Train as main.py does: signals wait for the end of a step."""
    with trainer.stops.held():
        trainer.fit()


def assert_equal(first, second):
    """Compare two states to the bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def differences(one, two, where=""):
    """Return where two nested contents differ, times and places aside."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = (one.keys() | two.keys()) - MEASURED
        return [d for k in sorted(keys, key=str) for d in differences(one.get(k), two.get(k), f"{where}/{k}")]
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        return [d for i, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    arrays = isinstance(one, (torch.Tensor, np.ndarray))
    same = type(one) is type(two) and np.array_equal(one, two) if arrays else one == two
    return [] if same else [where]


def weights(run, name="last.pt"):
    """Return the model's state in a checkpoint of a run."""
    return load_checkpoint(run / name)["model"]


def call(words: list, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of main.py, or of visualize.py where a path comes first."""
    program = visualize if isinstance(words[0], Path) else main
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.main([str(word) for word in words])
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))

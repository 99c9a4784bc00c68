"""On a CUDA device every method trains, stops, goes on, and gives the same bits: python -m pytest -m gpu"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers import assert_equal

from main import main
from runs.checkpoint import load_checkpoint
from runs.signals import Stopped
from train import BlockUpdates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("without_pictures"),
]
SMALL = ["--dataset", "digits", "--train-size", "200", "--device", "cuda", "--save-every-minutes", "0"]
ONE_HOT = [*SMALL, "--embedding-type", "one-hot", "--num-blocks", "4", "--epochs", "2"]
METHODS = {
    "dt": ["--num-blocks", "2"],
    "ct": ["--steps", "10"],
    "fm": ["--steps", "10"],
    "backprop": ["--num-blocks", "2"],
    "adjoint": ["--steps", "4"],
    "diffusionblocks": ["--num-blocks", "2", "--steps", "2"],
}


def train(run, *flags):
    assert main([*map(str, flags), "--checkpoint-dir", str(run)]) == 0
    return load_checkpoint(run / "last.pt")["model"]


def blocks(state):
    return {name: value for name, value in state.items() if name.startswith("blocks.")}


@pytest.mark.parametrize("extra", [[], ["--amp"], ["--augment"], ["--embedding-type", "prototype"]])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_tested(tmp_path, method, extra):
    train(tmp_path, *SMALL, "--method", method, "--epochs", 1, *METHODS[method], *extra)


@pytest.mark.parametrize(
    "flags",
    [
        ["--num-blocks", 2, "--offload-blocks"],
        ["--num-blocks", 1, "--compile"],
        ["--method", "fm", "--solver", "dopri5"],
        ["--num-blocks", 2, "--no-deterministic"],
    ],
)
def test_what_only_some_runs_use(tmp_path, flags):
    train(tmp_path, *SMALL, "--epochs", 1, *flags)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gives_the_same_bits_again(tmp_path, method):
    flags = [*SMALL, "--method", method, "--epochs", 1, *METHODS[method]]
    assert_equal(train(tmp_path / "one", *flags), train(tmp_path / "two", *flags))


@pytest.mark.parametrize("extra", [[], ["--amp"]])
def test_pieces_of_a_transformer_get_the_same_bits_again(tmp_path, extra):
    flags = [*SMALL, "--method", "diffusionblocks", "--network", "vit", "--vit-layers", 2, "--num-blocks", 2]
    flags += ["--embedding-type", "one-hot", "--epochs", 1, *extra]
    assert_equal(train(tmp_path / "one", *flags), train(tmp_path / "two", *flags))


def test_a_run_stopped_within_an_epoch_and_continued_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    whole, step, done = train(tmp_path / "whole", *ONE_HOT), BlockUpdates.step, []

    def interrupted(updates, *args):
        done.append(1)
        if len(done) == 9:  # of 7 steps an epoch
            raise Stopped(143)
        return step(updates, *args)

    monkeypatch.setattr(BlockUpdates, "step", interrupted)
    flags = [*ONE_HOT, "--save-every-minutes", "1e-9", "--checkpoint-dir", str(tmp_path / "run")]
    assert main(flags) == 143
    assert load_checkpoint(tmp_path / "run" / "last.pt")["partial"]["done"] == 1
    monkeypatch.undo()
    assert_equal(train(tmp_path / "run", "--checkpoint", tmp_path / "run" / "last.pt"), whole)


def test_blocks_alone_merged_and_in_sequence_are_those_of_one_run(tmp_path):
    whole = train(tmp_path / "whole", *ONE_HOT)
    assert_equal(blocks(train(tmp_path / "order", *ONE_HOT, "--block-order", "sequential")), blocks(whole))
    parts = []
    for t in ("1-2", "3", "4"):
        train(tmp_path / t, *ONE_HOT, "--blocks", t)
        parts.append(str(tmp_path / t / "last.pt"))
    assert main(["--merge", *parts, "--checkpoint-dir", str(tmp_path / "merged")]) == 0
    assert_equal(load_checkpoint(tmp_path / "merged" / "last.pt")["model"], whole)


def test_two_ranks_share_a_gpu_and_train_the_network_of_one_process(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "main.py"]
    command = [*launch, *ONE_HOT, "--checkpoint-dir", str(tmp_path / "ranks")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    assert_equal(load_checkpoint(tmp_path / "ranks" / "last.pt")["model"], train(tmp_path / "one", *ONE_HOT))


def test_too_little_memory_is_one_line(run_main, tmp_path):
    torch.cuda.empty_cache()  # what tests before have freed would do
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        code, _, err = run_main(*ONE_HOT, "--batch-size", 1000, "--checkpoint-dir", tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (code, len(err)) == (2, 1) and "not enough memory" in err[0]

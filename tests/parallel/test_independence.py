"""Ranks of torchrun: the network of one process, to the bit where blocks are dealt out; one dies, or all pause."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import FOUR_BLOCKS, start, train
from helpers import assert_equal, weights

from errors import UserError
from main import checkpoint_to_continue
from rules import check_ranks, parse, settle
from runs.checkpoint import load_checkpoint
from runs.process import OneProcess
from runs.versions import launch_id

LEARNED = ["--dataset", "digits", "--num-blocks", "4", "--batch-size", "26", "--epochs", "1"]  # 50 steps
AIRBENCH = ["--dataset", "digits", "--image-size", "16", "--train-size", "300", "--epochs", "1", "--num-blocks", "2"]
AIRBENCH += ["--embedding-type", "one-hot", "--encoder", "airbench", "--encoder-width", "16", "--noise-levels", "2"]
# A whole network: 109 images, so that the last batch of 13 has parts of 6 and 7.
SHARED = ["--method", "fm", "--dataset", "digits", "--train-size", "109", "--noise-levels", "2", "--augment", "crop"]


def start_torchrun(ranks, run, *flags, restarts=0):
    """Start main.py with so many ranks; see conftest.start."""
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
    ]
    return start(*torchrun, "main.py", *flags, "--checkpoint-dir", run)


@pytest.fixture(scope="module", autouse=True)
def launched(tmp_path_factory):
    """Start torchrun by names; all start together, since most of their time is imports. Gives (folder, process)."""
    folder = tmp_path_factory.mktemp("torchrun")
    calls = {str(n): (n, *FOUR_BLOCKS, "--epochs", 2, "--save-every", 1) for n in (2, 3)}
    calls["learned"], calls["airbench"] = (2, *LEARNED), (2, *AIRBENCH)
    calls["shared"] = (2, *SHARED, "--epochs", 2, "--save-every", 1)
    with ExitStack() as processes:
        yield {
            name: (folder / name, processes.enter_context(start_torchrun(n, folder / name, *flags)))
            for name, (n, *flags) in calls.items()
        }


def finished(launched, name):
    """Return the folder of a run of torchrun, its results, and what rank 0 has printed; there is no other output."""
    folder, process = launched[name]
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0 and not err, err
    return folder, json.loads((folder / "results.json").read_text()), out.splitlines()


def test_a_rank_that_dies_is_named_and_a_restart_goes_on_from_the_last_epoch(tmp_path):
    run, flags = tmp_path / "run", [*FOUR_BLOCKS, "--epochs", 4, "--save-every-minutes", 0]
    with start_torchrun(2, run, *flags, restarts=1) as process:
        while not process.stdout.readline().startswith("epoch 1"):
            assert process.poll() is None
        os.kill(rank_process(process.pid, 1), signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and "rank 1 (process" in err and "died" in err
    epochs = [line[:7] for line in out.splitlines() if line.startswith("epoch")]
    assert epochs[-3:] == [f"epoch {n}" for n in (2, 3, 4)]
    assert_equal(weights(run), weights(train(tmp_path / "whole", *flags)))


@pytest.mark.parametrize("embedding", ["one-hot", "learned"])
def test_ranks_pause_at_the_same_step_and_one_process_goes_on_from_it(tmp_path, embedding):
    flags = ["--dataset", "digits", "--num-blocks", 3, "--embedding-type", embedding, "--batch-size", 8, "--epochs", 8]
    flags += ["--train-size", 400]
    run = tmp_path / "run"
    with start_torchrun(2, run, *flags, "--save-every-minutes", 0.001) as process:
        while not ((run / "last.pt").exists() and load_checkpoint(run / "last.pt")["partial"]):
            assert process.poll() is None  # the clock of rank 0 calls for saves within the epochs
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=100)[1]
    assert re.search("saved, continue with: .*main.py --checkpoint .* torchrun", err)
    assert load_checkpoint(run / "last.pt")["epoch"] < 8
    train(run, "--checkpoint", run / "last.pt", "--save-every-minutes", 10)
    assert_equal(weights(run), weights(train(tmp_path / "whole", *flags)))


def rank_process(torchrun_pid, rank):
    """Return the process of a rank, found by its environment."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == torchrun_pid and f"\0RANK={rank}\0" in (path / "environ").read_text():
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no rank {rank}")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_of_torchrun_train_the_network_of_one_process(whole, launched, tmp_path, ranks):
    run, results, lines = finished(launched, str(ranks))
    assert len([line for line in lines if line.startswith("epoch")]) == 2  # rank 0 alone prints
    assert re.fullmatch(r"test accuracy: .* \(5 runs\)", lines[-1])
    assert_equal(weights(run), weights(whole))
    assert_equal(weights(run, "best_model.pt"), weights(whole, "best_model.pt"))
    assert results["all_reduced_bytes"] == 0
    if ranks == 3:  # stopped after an epoch, one process goes on
        resumed = train(tmp_path / "resumed", "--checkpoint", run / "checkpoint_epoch_1.pt", "--epochs", 2)
        assert_equal(weights(resumed), weights(whole))


def test_ranks_agree_with_one_process_where_the_embeddings_are_learned(launched, tmp_path):
    one = train(tmp_path / "one", *LEARNED)
    two, results, _ = finished(launched, "learned")
    assert_equal(weights(two), weights(one))
    m, d, steps = 10, 20, 50
    assert results["all_reduced_bytes"] == steps * (m * d + d * m + m) * 8
    assert not torch.equal(weights(one)["W_embed"], load_checkpoint(one / "last.pt")["W_embed_start"])


def test_ranks_agree_with_one_process_whatever_the_encoder(launched, tmp_path):
    one, (two, _, _) = train(tmp_path / "one", *AIRBENCH), finished(launched, "airbench")
    assert_equal(weights(two), weights(one))


def test_ranks_that_share_batches_agree_with_one_process_and_it_can_go_on(launched, tmp_path):
    two, results, _ = finished(launched, "shared")
    one = train(tmp_path / "one", *SHARED, "--epochs", 2, "--save-every", 1)
    first = "checkpoint_epoch_1.pt"
    assert_close(weights(two, first), weights(one, first))
    assert_close(weights(train(tmp_path / "resumed", "--checkpoint", two / first, "--epochs", 2)), weights(two))
    losses = [json.loads((run / "logs" / "training_history.json").read_text())[0]["loss"] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    learned = sum(value.numel() for value in weights(one).values())
    assert results["all_reduced_bytes"] == 4 * learned * 2 * 4  # float32, epochs, steps


def assert_close(first, second):
    """Compare two states after a few steps, in which Adam has hardly spread what rounding makes of them."""
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-4) for name in first)


def test_a_restart_takes_over_the_last_pt_of_its_own_launch_only(digits_run, tmp_path, monkeypatch):
    run = shutil.copytree(digits_run, tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    s, _ = parse(["--dataset", "digits", "--checkpoint-dir", str(run)])
    assert checkpoint_to_continue(s, OneProcess()) == (None, None)  # an earlier run's
    config = json.loads((run / "config.json").read_text())
    config["versions"]["launch"] = launch_id()
    (run / "config.json").write_text(json.dumps(config))
    assert checkpoint_to_continue(s, OneProcess())[0] == str(run / "last.pt")


@pytest.mark.parametrize(
    "flags, ranks, word",
    [
        (["--num-blocks", "2"], 3, "at most 2"),
        (["--device", "cuda:0"], 2, "each takes its own"),
        (["--num-blocks", "2", "--block-order", "sequential"], 2, "interleaved"),
        (["--evaluate", "--checkpoint", "x.pt"], 2, "python main.py"),
        (["--method", "fm", "--batch-size", "4"], 3, "two images each"),
    ],
)
def test_what_ranks_cannot_do_is_refused(flags, ranks, word):
    with pytest.raises(UserError, match=word):
        check_ranks(settle(*parse(flags)), ranks)

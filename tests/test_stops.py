"""Runs that are stopped, killed or cannot write: nothing is lost, and they go on to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soak
import torch
from conftest import start_main
from faults import check_failing_saves
from test_train import assert_equal, make_trainer

import checkpoint
from checkpoint import load_checkpoint, load_last
from errors import UserError
from run_folder import open_run_folder
from stops import Stopped, StopSignals

ROOT = Path(__file__).parent.parent
MEASURED = {"seconds", "images_per_second", "peak_memory_bytes"}
SMALL = ["--dataset", "digits", "--embedding-type", "one-hot", "--num-blocks", "2", "--epochs", "2"]


def unmeasured(history):
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in history]


def signal_after(trainer, steps):
    """As a signal that arrives in the midst of that step of this process."""
    train_step, done = trainer.train_step, []

    def counted(*args):
        train_step(*args)
        done.append(1)
        if len(done) == steps:
            trainer.stops.code = 143

    trainer.train_step = counted


def finish_with_stops(run, flags, steps):
    """Train, stopped after so many steps each time and continued by a new trainer; how often it was stopped."""
    for stopped in range(100):
        trainer = make_trainer(run, *flags)
        if stopped:
            content = load_checkpoint(run / "last.pt")
            trainer.model.load_state_dict(content["model"])
            trainer.load_state_dict(content)
        signal_after(trainer, steps)
        try:
            trainer.fit()
            return stopped
        except Stopped:
            continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    "flags",
    [
        ["--embedding-type", "one-hot", "--block-order", "sequential"],
        ["--block-order", "random", "--augment", "--warmup-epochs", 1, "--lr-schedule", "cosine"],
        ["--val-fraction", 0, "--clip-grad-norm", 1, "--amp"],
        ["--lr", 1e-12],  # no better epoch than the first
        ["--method", "ct"],
        ["--method", "fm"],
        ["--method", "backprop", "--lr-schedule", "plateau", "--early-stopping-patience", 1],
        ["--method", "adjoint", "--steps", 2],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_a_run_stopped_again_and_again_within_its_epochs_equals_the_uninterrupted_one_to_the_bit(tmp_path, flags):
    flags = [*flags, "--epochs", 3, "--batch-size", 20]
    whole = make_trainer(tmp_path / "whole", *flags)
    whole.fit()
    assert finish_with_stops(tmp_path / "parts", flags, steps=4) >= 3
    for name in ("last.pt", "best_model.pt"):
        one, many = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        assert_equal(one["model"], many["model"])
        assert soak.differences(one, many) == []
        assert one["epoch"] == many["epoch"] and one["val_accuracy"] == many["val_accuracy"]
    histories = [json.loads((tmp_path / run / "logs/training_history.json").read_text()) for run in ("whole", "parts")]
    assert unmeasured(histories[0]) == unmeasured(histories[1])


def test_a_signal_in_the_validation_keeps_the_whole_epoch(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 1)
    validate = trainer.evaluator.validate

    def interrupted(split):
        trainer.evaluator.validate = validate
        trainer.stops._arrive(signal.SIGTERM, None)

    trainer.evaluator.validate = interrupted
    with pytest.raises(Stopped):
        trainer.fit()
    content = load_checkpoint(tmp_path / "last.pt")
    assert (content["epoch"], content["partial"]["done"]) == (0, trainer.num_batches)


def test_last_pt_is_written_within_an_epoch_after_the_minutes_asked_for(tmp_path):
    for minutes, saves in ((0, 1), (1e-9, 1 + 3)):  # after the epoch, and after each of its steps
        trainer, written = make_trainer(tmp_path / str(minutes), "--epochs", 1, "--save-every-minutes", minutes), []
        whole_state = trainer.whole_state
        trainer.whole_state = lambda written=written, state=whole_state: written.append(1) or state()
        trainer.fit()
        assert (trainer.num_batches, len(written)) == (3, saves)


def test_a_state_that_is_not_finite_is_never_saved_within_an_epoch(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 1, "--save-every-minutes", 1e-9)
    train_step = trainer.train_step

    def poisoned(i, *args):
        train_step(i, *args)
        if i == 1:
            with torch.no_grad():
                trainer.model.block(2).fuse[0].weight[0, 0] = float("nan")

    trainer.train_step = poisoned
    with pytest.raises(UserError, match="blocks.1.fuse.0.weight of block 2 .*--lr .*--clip-grad-norm"):
        trainer.fit()
    assert load_checkpoint(tmp_path / "last.pt")["partial"]["done"] == 1


def test_a_save_that_fails_at_any_of_its_writes_leaves_good_files(tmp_path):
    assert check_failing_saves(tmp_path, every=50) > 40


@pytest.mark.usefixtures("without_pictures")
def test_a_full_disk_ends_the_run_with_one_line_that_says_how_to_go_on(run_main, tmp_path, monkeypatch):
    save_last, saves = checkpoint.save_last, []

    def full(*args):
        saves.append(1)
        if len(saves) == 2:
            raise OSError(28, "No space left on device")
        save_last(*args)

    monkeypatch.setattr("checkpoint.save_last", full)
    code, _, err = run_main(*SMALL, "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert "No space left" in err[0] and err[0].endswith(f"main.py --checkpoint {tmp_path / 'last.pt'}")


def test_too_little_memory_is_one_line(run_main, tmp_path, monkeypatch):
    def hungry(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("train.Trainer.update_block", hungry)
    code, _, err = run_main(*SMALL, "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and "not enough memory" in err[0] and "--batch-size" in err[0]


def test_runs_killed_at_random_instants_end_as_the_uninterrupted_one(tmp_path):
    done = soak.kill_again_and_again("dt", tmp_path, kills=3, seed=0)
    assert done["runs"] >= 1 and done.total() - done["runs"] >= 3


def test_a_last_pt_that_does_not_load_falls_back_to_the_one_before(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 2)
    trainer.fit()
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    content, why = load_last(last)
    assert content["epoch"] == 1 and "last.pt is damaged" in why and why.endswith("last_previous.pt instead")
    with pytest.raises(UserError):
        load_last(tmp_path / "best_model.txt")


def test_a_second_run_in_a_folder_is_refused_and_the_lock_of_a_dead_one_is_not_in_the_way(tmp_path):
    code = "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
    code += "from run_folder import open_run_folder\n"
    code += "with open_run_folder(Path(sys.argv[2])): print('in', flush=True); time.sleep(60)"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".examples.npz.tmp").write_text("of one that died")
    (tmp_path / ".mine.tmp").write_text("not ours")
    process = subprocess.Popen([sys.executable, "-c", code, ROOT, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in\n" and [path.name for path in tmp_path.rglob("*.tmp")] == [".mine.tmp"]
        with pytest.raises(UserError, match=f"process {process.pid} on .*--checkpoint-dir"), open_run_folder(tmp_path):
            pass
    finally:
        process.kill()
    process.wait()
    with open_run_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def wait_for(path, process):
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None
        time.sleep(0.02)
    raise AssertionError(f"no {path}")


@pytest.mark.parametrize("number, code", [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_stop_within_an_epoch_saves_and_names_the_command_to_go_on(tmp_path, number, code):
    process = start_main(tmp_path, *SMALL, "--epochs", 500, "--save-every-minutes", 1e-9)
    try:
        wait_for(tmp_path / "last.pt", process)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1].splitlines()
    finally:
        process.kill()
    assert process.returncode == code and len(err) == 1
    assert "continue with: " in err[0] and err[0].endswith(f"main.py --checkpoint {tmp_path / 'last.pt'}")
    partial = load_checkpoint(tmp_path / "last.pt")["partial"]
    assert (f"{partial['done']} steps of epoch" if partial else "is saved") in err[0]


def test_a_second_signal_ends_at_once(tmp_path):
    stops = StopSignals()
    with stops.held():
        stops._arrive(signal.SIGTERM, None)
        child = os.fork()
        if child == 0:
            stops._arrive(signal.SIGINT, None)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130

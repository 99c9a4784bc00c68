"""Runs that are stopped, killed or cannot write: nothing is lost, and they go on to the bit."""

import errno
import json
import os
import shlex
import signal
import stat

import pytest
import soak
import torch
from conftest import start, start_main, train
from faults import check_failing_saves
from helpers import differences, make_trainer

from data import Batches
from errors import UserError
from evaluate import Evaluator
from main import main
from runs import checkpoint
from runs.checkpoint import load_checkpoint, load_last
from runs.files import write_json
from runs.folder import open_run_folder
from runs.signals import Stopped, StopSignals

SMALL = ["--dataset", "digits", "--embedding-type", "one-hot", "--num-blocks", "2", "--epochs", "2"]
SMALL += ["--save-every-minutes", "0"]
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def signal_after(trainer, steps):
    """Let a signal arrive in the midst of that step of this process, which must be its last."""
    step, done = trainer.updates.step, []

    def counted(*args):
        assert len(done) < steps
        losses = step(*args)
        done.append(1)
        if len(done) == steps:
            trainer.stops.code = 143
        return losses

    trainer.updates.step = counted


def finish_with_stops(run, flags, steps):
    """Train, stopped after so many steps each time and continued by a new trainer; returns how often it was stopped."""
    for stopped in range(100):
        content = load_checkpoint(run / "last.pt") if stopped else None
        trainer = make_trainer(run, *flags, content=content)
        signal_after(trainer, steps)
        try:
            trainer.fit_all()
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
    whole.fit_all()
    assert finish_with_stops(tmp_path / "parts", flags, steps=4) >= 3
    for name in ("last.pt", "best_model.pt"):
        one, many = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        assert one["epoch"] and differences(one, many) == []
    histories = [json.loads((tmp_path / run / "logs/training_history.json").read_text()) for run in ("whole", "parts")]
    assert len(histories[0]) > 1 and differences(*histories) == []


def test_a_signal_in_the_validation_keeps_the_whole_epoch(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "--epochs", 1)
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_, **__: trainer.stops._arrive(signal.SIGTERM, None))
    with pytest.raises(Stopped):
        trainer.fit_all()
    content = load_checkpoint(tmp_path / "last.pt")
    assert (content["epoch"], content["partial"]["done"]) == (0, len(trainer.batches))


@pytest.mark.parametrize("minutes, saves", [(0, 2), (1e-9, 2 + 6), (10, 1)])
def test_one_interval_decides_when_a_run_is_saved(tmp_path, monkeypatch, minutes, saves):
    """Every epoch; every step and epoch; at the end only."""
    trainer, written = make_trainer(tmp_path, "--epochs", 2, "--save-every-minutes", minutes), []
    monkeypatch.setattr("runs.callbacks.save_run", lambda run, content: written.append(content["epoch"]))
    trainer.fit_all()
    assert len(trainer.batches) == 3 and len(written) == saves and written[-1] == 2


def test_a_state_that_is_not_finite_is_never_saved_within_an_epoch(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 1, "--save-every-minutes", 1e-9)
    step, done = trainer.updates.step, []

    def poisoned(*args):
        losses = step(*args)
        done.append(1)
        if len(done) == 2:
            with torch.no_grad():
                trainer.model.block(2).fuse[0].weight[0, 0] = float("nan")
        return losses

    trainer.updates.step = poisoned
    with pytest.raises(UserError, match="blocks.1.fuse.0.weight of block 2 .*--lr.*--clip-grad-norm"):
        trainer.fit_all()
    assert load_checkpoint(tmp_path / "last.pt")["partial"]["done"] == 1


def test_a_save_that_fails_at_any_of_its_writes_leaves_good_files(tmp_path):
    assert check_failing_saves(tmp_path, every=50) > 40


@pytest.mark.usefixtures("without_pictures")
def test_a_full_disk_ends_the_run_with_one_line_that_says_how_to_go_on(run_main, tmp_path, monkeypatch):
    save_run, saves = checkpoint.save_run, []

    def full(*args):
        saves.append(1)
        if len(saves) == 2:
            raise OSError(28, "No space left on device")
        save_run(*args)

    monkeypatch.setattr("runs.callbacks.save_run", full)
    code, _, err = run_main(*SMALL, "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert "No space left" in err[0] and err[0].endswith(f"main.py --checkpoint {tmp_path / 'last.pt'}")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_a_folder_ends_no_run(tmp_path, monkeypatch, number):
    def fsync(opened, flush=os.fsync):
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(number, os.strerror(number))
        flush(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_a_rename_that_is_refused_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    replace, refused = os.replace, []

    def busy(*names):
        if len(refused) < 3:
            refused.append(names)
            raise PermissionError(13, "in use")
        replace(*names)

    monkeypatch.setattr(os, "replace", busy)
    write_json(tmp_path / "x.json", 1)
    assert len(refused) == 3 and (tmp_path / "x.json").read_text() == "1"


def test_a_link_goes_on_leading_to_its_file_and_a_pipe_stays_one(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target.json", "link.json", "pipe"))
    target.write_text("0")
    link.symlink_to(target)
    write_json(link, 1)
    assert link.is_symlink() and target.read_text() == "1"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, 2)
    assert os.read(reader, 10) == b"2" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_too_little_memory_is_one_line(run_main, tmp_path, monkeypatch):
    def hungry(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("train.BlockUpdates.update_block", hungry)
    code, _, err = run_main(*SMALL, "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and "not enough memory" in err[0] and "--batch-size" in err[0]


def test_runs_killed_at_random_instants_end_as_the_uninterrupted_one(tmp_path):
    done = soak.kill_again_and_again("dt", tmp_path, kills=2, seed=0)
    assert done["runs"] >= 1 and done.total() - done["runs"] >= 2


def test_a_last_pt_that_does_not_load_falls_back_to_the_one_before(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 2)
    trainer.fit_all()
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    content, why = load_last(last)
    assert content["epoch"] == 1 and "last.pt is damaged" in why and why.endswith("last_previous.pt instead")
    with pytest.raises(UserError):
        load_last(tmp_path / "best_model.txt")


def test_the_one_before_is_dropped_only_where_last_pt_is_whole(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "last_previous.pt"
    for path in (last, previous):
        checkpoint.save_checkpoint(path, {"model": torch.ones(1000)})
    whole = last.read_bytes()
    for bad in (b"", whole[:-1000], whole[:1500] + b"x" + whole[1501:]):
        last.write_bytes(bad)
        checkpoint.drop_previous(tmp_path)
        assert previous.exists()
    last.write_bytes(whole)
    checkpoint.drop_previous(tmp_path)
    assert last.exists() and not previous.exists()


def test_a_second_run_in_a_folder_is_refused_and_the_lock_of_a_dead_one_is_not_in_the_way(tmp_path):
    code = "import sys, time; from pathlib import Path; from runs.folder import open_run_folder\n"
    code += "with open_run_folder(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".examples.npz.tmp").write_text("of one that died")
    (tmp_path / ".mine.tmp").write_text("not ours")
    with start("-c", code, tmp_path) as process:
        assert process.stdout.readline() == "in\n" and [path.name for path in tmp_path.rglob("*.tmp")] == [".mine.tmp"]
        refused = pytest.raises(UserError, match="another process works in the run folder .*--checkpoint-dir")
        with refused, open_run_folder(tmp_path):
            pass
    process.wait()
    with open_run_folder(tmp_path):
        pass


def test_the_warnings_of_schedulers_are_heard_as_sigterm_is():
    with StopSignals():
        assert len({signal.getsignal(number) for number in WARNINGS}) == 1


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR2, 143), (signal.SIGINT, 130)])
def test_a_stop_within_an_epoch_saves_and_names_the_command_that_goes_on(run_main, tmp_path, number, code):
    with start_main(tmp_path, *SMALL[:-2], "--epochs", 500) as process:
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(number)
        err = process.communicate(timeout=60)[1].splitlines()
    assert (process.returncode, len(err)) == (code, 1)
    content = load_checkpoint(tmp_path / "last.pt")
    partial = content["partial"]
    assert (f"{partial['done']} steps of epoch" if partial else "is saved") in err[0]
    _, *command = shlex.split(err[0].partition("continue with: ")[2])
    assert command == ["main.py", "--checkpoint", str(tmp_path / "last.pt")]
    code, out, _ = run_main(*command[1:], "--epochs", content["epoch"] + 1)
    assert code == 0 and out[-1].startswith("test accuracy")


@pytest.mark.usefixtures("without_pictures")
def test_with_auto_resume_one_command_starts_goes_on_and_ends(run_main, tmp_path, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert run_main(*SMALL, "--checkpoint-dir", whole)[0] == 0
    command = [*SMALL, "--auto-resume", "--checkpoint-dir", run]
    with monkeypatch.context() as patch:  # the job is ended in its second epoch
        stop_in_epoch(patch, 2)
        assert run_main(*[flag for flag in command if flag != "--auto-resume"])[0] == 143
    assert len(load_checkpoint(run / "last.pt")["history"]) == 1
    code, out, err = run_main(*command)
    assert (code, err) == (0, []) and "going on in epoch 2" in "\n".join(out)
    assert differences(load_checkpoint(run / "last.pt")["model"], load_checkpoint(whole / "last.pt")["model"]) == []
    code, out, _ = run_main(*command)  # and once more: nothing is left to train
    assert code == 0 and any("all 2 epochs are trained" in line for line in out)
    code, out, err = run_main(*command, "--lr", 0.5)
    assert code == 0 and "starting anew, since --lr 0.5 contradicts" in err[0] and "previous-1" in "\n".join(out)
    assert err[0].endswith("which has 0.001")


def stop_in_epoch(patch, epoch):
    """Let SIGTERM arrive after some steps of an epoch."""
    batch = Batches.batch

    def counted(self, indices, now, number):
        if (now, number) == (epoch, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, indices, now, number)

    patch.setattr(Batches, "batch", counted)


def test_a_second_signal_ends_at_once(tmp_path):
    stops = StopSignals()
    with stops.held():
        stops._arrive(signal.SIGTERM, None)
        child = os.fork()
        if child == 0:
            stops._arrive(signal.SIGINT, None)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


@pytest.mark.usefixtures("without_pictures")
def test_going_on_from_an_earlier_checkpoint_sets_what_is_later_aside(run_main, tmp_path):
    train(tmp_path, *SMALL, "--epochs", 3, "--save-every", 1)
    kept = load_checkpoint(tmp_path / "last.pt")
    code, out, _ = run_main("--checkpoint", tmp_path / "checkpoint_epoch_2.pt")
    (told,) = [line for line in out if line.startswith("what is later than checkpoint_epoch_2.pt")]
    assert code == 0 and told.endswith("previous-1")
    aside, epochs = tmp_path / "previous-1", "checkpoint_epoch_*.pt"
    assert [path.name for path in aside.glob(epochs)] == ["checkpoint_epoch_3.pt"]
    assert {path.name for path in tmp_path.glob(epochs)} == {f"checkpoint_epoch_{n}.pt" for n in (1, 2, 3)}
    assert differences(load_checkpoint(aside / "last.pt"), kept) == []
    assert differences(load_checkpoint(tmp_path / "last.pt"), kept) == []


@pytest.mark.parametrize("broken", ["make_alpha_bar", "NoPropNetDT.shared_parameters"])
def test_an_error_of_our_own_code_is_not_told_as_a_damaged_file(tmp_path, monkeypatch, broken):
    def fault(*_):
        raise KeyError("of ours")

    train(tmp_path, *SMALL)
    monkeypatch.setattr(f"models.NoProp_DT.{broken}", fault)
    with pytest.raises(KeyError, match="of ours"):
        main(["--checkpoint", str(tmp_path / "last.pt"), "--epochs", "3"])

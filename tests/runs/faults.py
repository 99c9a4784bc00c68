"""Saves whose writes fail, one after the other: in the suite some of them, in soak.py all."""

import json
import os
import shutil

import pytest
from helpers import make_trainer

from runs import files
from runs.checkpoint import load_checkpoint, load_last, save_checkpoint, save_run


class Faults:
    """Makes the n-th writing operation fail, as a full disk does: writes, flushes to disk, links and renames."""

    def __init__(self, monkeypatch, fail_at):
        self.names, self.fail_at = [], fail_at
        monkeypatch.setattr(files, "open", self._open, raising=False)
        for name in ("fsync", "link", "replace"):
            monkeypatch.setattr(files.os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name, operation):
        def call(*args):
            self.names.append(name)
            if len(self.names) == self.fail_at:
                raise OSError(28, "No space left on device")
            return operation(*args)

        return call

    def _open(self, path, mode):
        file = path.open(mode, buffering=0)
        return _Writer(file, self._counted("write", file.write))


class _Writer:
    def __init__(self, file, write):
        self.file, self.write = file, write
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def save_with_fault(run, content, fail_at):
    """Return whether the save of an epoch failed, and the names of its writing operations up to then."""
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, fail_at)
        try:
            save_checkpoint(run / "checkpoint_epoch_2.pt", content)
            save_run(run, content)
        except OSError as error:
            assert error.errno == 28
            return True, faults.names
    return False, faults.names


def states_of_two_epochs(run):
    """Train one epoch in a folder; returns the checkpoint of the second epoch, which is its best one."""
    trainer = make_trainer(run, "--epochs", 2, "--num-blocks", 1, "--embedding-type", "one-hot")
    trainer.epochs = 1
    trainer.fit()
    trainer.best["accuracy"] = -1
    constants = next(callback.constants for callback in trainer.callbacks if hasattr(callback, "constants"))
    trainer.callbacks, trainer.epochs = [], 2
    trainer.fit()
    return {**constants, **trainer.state_dict()}


def check_failing_saves(folder, every):
    """Let every n-th write of a save fail, and every flush, link and rename: what is there loads. Returns how many."""
    content = states_of_two_epochs(folder / "start")
    shutil.copytree(folder / "start", folder / "all")
    names = save_with_fault(folder / "all", content, 0)[1]
    assert load_checkpoint(folder / "all" / "last.pt")["epoch"] == 2
    chosen = [n for n, name in enumerate(names, 1) if name != "write" or n % every == 0]
    for fail_at in chosen:
        run = folder / "run"
        shutil.copytree(folder / "start", run)
        without_links = names[fail_at - 1] == "link"  # as on file systems that know none
        assert save_with_fault(run, content, fail_at)[0] != without_links
        last, why = load_last(run / "last.pt")
        assert why is None and last["epoch"] in (1, 2)
        assert load_checkpoint(run / "best_model.pt")["epoch"] >= last["epoch"]
        assert len(json.loads((run / "logs" / "training_history.json").read_text())) >= last["epoch"]
        assert not list(run.rglob("*.tmp"))
        shutil.rmtree(run)
    return len(chosen)

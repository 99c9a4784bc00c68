"""Where the program is started: notebooks, closed outputs, variables that are left over, broken packages."""

import io
import os
import subprocess
import sys

import pytest
from conftest import ROOT

SMALL = ["--dataset", "digits", "--num-blocks", "1", "--epochs", "1", "--train-size", "64", "--eval-runs", "1"]


def started(run, *flags, shell="", **environment):
    """Return what is left of main.py as a process of its own, with a redirection of a shell."""
    command = [sys.executable, "main.py", *SMALL, *flags, "--checkpoint-dir", str(run)]
    line = " ".join(f"'{word}'" for word in command) + " " + shell
    place = {"cwd": ROOT, "env": {**os.environ, **environment}}
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, **place)


@pytest.mark.parametrize("shell", [">&-", "<&- >&- 2>&-"])
def test_closed_outputs_end_no_run(tmp_path, shell):
    done = started(tmp_path / "run", shell=shell)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_a_reader_that_goes_away_ends_no_run(tmp_path):
    done = started(tmp_path / "run", shell="2>&1 | head -1")
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "run" / "results.json").exists()


def test_a_notebooks_output_is_printed_to(tmp_path, run_main, monkeypatch):
    class Cell(io.TextIOBase):  # cannot be reconfigured
        def write(self, text):
            written.append(text)

    written = []
    monkeypatch.setattr("main.draw_pictures", lambda run: None)
    monkeypatch.setattr(sys, "stdout", Cell())
    from main import main

    assert main([*SMALL, "--checkpoint-dir", str(tmp_path)]) == 0
    assert "test accuracy" in "".join(written)


def test_variables_that_are_left_over_change_nothing(tmp_path):
    left = {"RANK": "1", "WORLD_SIZE": "4", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = started(tmp_path / "run", **left)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("test accuracy")
    assert done.stderr == "main.py: WORLD_SIZE is set, but not by torchrun: one process trains all blocks\n"
    assert (tmp_path / "run" / "plots" / "predictions.png").exists()


def test_without_a_writable_home_and_temporary_folder_it_trains_and_draws(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import tempfile\ntempfile._candidate_tempdir_list = list\n")
    nowhere = str(tmp_path / "sitecustomize.py" / "below")  # a folder that root cannot make either
    left = {name: nowhere for name in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
    done = started(tmp_path / "run", PYTHONPATH=str(tmp_path), **left)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("test accuracy")
    assert (tmp_path / "run" / "plots" / "predictions.png").exists()


def test_a_broken_tensorboard_is_one_line_with_the_reason(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise TypeError('incompatible protobuf')")
    done = started(tmp_path / "run", "--tensorboard", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "incompatible protobuf" in done.stderr


def test_home_and_variables_in_paths_are_replaced_also_behind_an_equals_sign(monkeypatch, tmp_path):
    from rules import parse

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    s, _ = parse(["--checkpoint-dir=~/$PLACE/run"])
    assert s.checkpoint_dir == f"{tmp_path}/here/run"
    (tmp_path / "$x").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse(["--checkpoint-dir", "$x"])[0].checkpoint_dir == "$x"  # a folder with that very name


def test_a_method_that_is_compared_twice_is_told(run_main):
    code, _, err = run_main("--compare", "dt,dt", "--dataset", "digits")
    assert (code, len(err)) == (2, 1) and "names something twice" in err[0]

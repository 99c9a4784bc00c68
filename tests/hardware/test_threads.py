"""The number of threads follows from network, cores and cgroups; one that somebody gave stays."""

import math
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import differences

from hardware import threads
from loaders import image_folder
from runs.checkpoint import load_checkpoint

SMALL = ["--dataset", "digits", "--num-blocks", "2", "--train-size", "64", "--eval-runs", "1", "--embedding-type"]
SMALL += ["one-hot"]
# Trains with the number for little work, goes on where much more is worth it, and tells what main.py sets as a program.
TWO_RUNS = """
import os, runpy, sys, main
from hardware import threads
threads.usable_cores = threads._number_of_torch = lambda: 2
run, small = sys.argv[1], sys.argv[2:]
main.draw_pictures = lambda run: None
main.main([*small, "--epochs", "1", "--checkpoint-dir", run])
threads.WORK_PER_THREAD = 1
main.main(["--checkpoint", run + "/last.pt", "--epochs", "2"])
main.main([*small, "--epochs", "1", "--checkpoint-dir", run + "-2"])
before, sys.argv = os.environ.get("GOMP_SPINCOUNT"), ["main.py", "--merge"]
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit:
    print(before, os.environ["GOMP_SPINCOUNT"])
"""


def python(*words, **variables):
    """Return the lines of a process for which nobody has set OpenMP."""
    clean = {name: value for name, value in os.environ.items() if "OMP" not in name}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=clean | variables, capture_output=True, text=True, check=True).stdout


def test_a_number_is_chosen_once_taken_over_by_continuing_and_has_the_bits_of_the_same_number_given(tmp_path):
    told = python("-c", TWO_RUNS, tmp_path / "free", *SMALL)
    assert re.findall(r"threads: (\d)", told) == ["1", "1", "2"] and told.splitlines()[-1] == "None 1000"
    given = python("main.py", *SMALL, "--epochs", 2, "--checkpoint-dir", tmp_path / "given", OMP_NUM_THREADS="1")
    free, given, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("free", "given", "free-2"))
    assert free["threads"] == given["threads"] == 1 and two["threads"] == 2
    assert differences(free["model"], given["model"]) == differences(free["optimizers"], given["optimizers"]) == []


def test_a_number_that_the_user_or_a_program_around_gave_stays():
    network = {"arguments": {"encoder": "paper", "image_shape": (1, 8, 8)}}
    call, show = (
        f"import main, torch; main.set_threads({network}, 10**6, {{'threads': 2}})",
        "print(torch.get_num_threads())",
    )
    assert python("-c", f"{call}; {show}", OMP_NUM_THREADS="1") == "1\n"
    assert python("-c", f"import torch; torch.set_num_threads(1); {call}; {show}") == "1\n"


@pytest.mark.parametrize(
    "before, work, cores, number",
    [(None, 2e8, 2, 1), (None, 9e9, 64, 9), (None, math.inf, 64, 32), (3, 2e8, 4, 3), (8, 9e9, 4, 4)],
)
def test_threads_by_work_cores_and_the_number_of_a_checkpoint(monkeypatch, before, work, cores, number):
    monkeypatch.setattr(threads, "FREE", True)
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(threads, "_number_of_torch", lambda: 32)
    assert threads.choose_threads(before, work) == number


@pytest.mark.parametrize(
    "groups, files, cores",
    [
        ("0::/job/step", {"job/cpu.max": "250000 100000", "job/step/cpu.max": "max 100000"}, 2.5),
        ("0::/of/the/host", {"cpu.max": "50000 100000"}, 0.5),
        ("3:cpu,cpuacct:/a\n2:cpuset:/b", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_limits_of_cgroups_of_both_versions(tmp_path, groups, files, cores):
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.cgroup_cores(tmp_path) == cores


@pytest.mark.parametrize("cores, number", [(1, 1), (3, 3), (64, 4)])
def test_images_are_decoded_by_few_threads_whatever_the_cores_of_the_host(monkeypatch, cores, number):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(image_folder, "usable_cores", lambda: cores)
    assert image_folder._decoding_threads() == number

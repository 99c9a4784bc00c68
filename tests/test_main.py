"""The command line as a user meets it: train, continue, evaluate, predict, and what it says to bad input."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import images_of, start_main
from PIL import Image
from test_data import make_folder

from data import Split
from evaluate import Evaluator
from models.image_info import ImageInfo
from models.random_streams import Streams
from rules import describe_flags
from runs.checkpoint import load_checkpoint
from runs.files import write_atomic
from settings import make_parser

ROOT = Path(__file__).parent.parent
LAST_LINE = re.compile(r"test accuracy: \d+\.\d\d \+- \d+\.\d\d % \(\d+ runs\)")
SPEC_FLAGS = [
    "--method",
    "--dataset",
    "--data-dir",
    "--embedding-type",
    "--embedding-dim",
    "--embedding-init",
    "--class-probability",
    "--schedule",
    "--num-blocks",
    "--eta",
    "--block-order",
    "--batch-size",
    "--epochs",
    "--lr",
    "--weight-decay",
    "--warmup-epochs",
    "--lr-scheduler-patience",
    "--early-stopping-patience",
    "--save-every",
    "--val-fraction",
    "--eval-runs",
    "--readout",
    "--seed",
    "--checkpoint-dir",
    "--checkpoint",
    "--evaluate",
    "--predict",
    "--device",
    "--no-cuda",
    "--amp",
    "--compile",
    "--inference",
    "--steps-report",
    "--image-size",
    "--augment",
]


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for flag in SPEC_FLAGS:
        assert f"{flag} " in text or f"{flag}]" in text
    assert text.count("(default:") == len(make_parser().defaults)
    assert set(SPEC_FLAGS) <= {"--" + name.replace("_", "-") for name in make_parser().defaults}


def test_a_training_leaves_the_files_of_a_run(digits_run):
    names = {str(p.relative_to(digits_run)) for p in digits_run.rglob("*") if p.is_file()}
    assert {
        "config.json",
        "best_model.pt",
        "last.pt",
        "checkpoint_epoch_1.pt",
        "checkpoint_epoch_2.pt",
        "logs/training_history.json",
        "results.json",
        "plots/training_curves.png",
    } <= names
    assert not [name for name in names if "tmp" in name]
    config = json.loads((digits_run / "config.json").read_text())
    assert config["num_blocks"] == 3 and config["versions"]["torch"] == torch.__version__
    results = json.loads((digits_run / "results.json").read_text())
    assert results["method"] == "dt" and results["dataset"] == "digits"
    assert len(results["per_run"]) == 5 and len(results["per_step_accuracy"]) == 3
    assert results["test_accuracy_mean"] == pytest.approx(np.mean(results["per_run"]))
    assert results["test_accuracy_sem"] == pytest.approx(np.std(results["per_run"], ddof=1) / 5**0.5)
    assert results["per_step_accuracy"][-1] == pytest.approx(results["test_accuracy_mean"], abs=1e-3)
    assert set(results["accuracy_by_readout"]) == {"sample", "vote", "mean"}
    history = json.loads((digits_run / "logs" / "training_history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    row = history[0]
    terms = zip(row["loss_class_nll"], row["loss_kl"], row["loss_denoise"], strict=True)
    assert row["loss"] == pytest.approx([sum(t) for t in terms])
    assert row["peak_memory_bytes"] > 1e7


def test_the_names_in_a_checkpoint(digits_run):
    state = load_checkpoint(digits_run / "last.pt")["model"]
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    assert blocks == {"0", "1", "2"} and {"W_embed", "theta_out.weight", "alpha_bar"} <= set(state)


def test_evaluate_repeats_the_result_of_the_training(digits_run, run_main, tmp_path):
    expected = json.loads((digits_run / "results.json").read_text())
    code, out, err = run_main(
        "--evaluate", "--checkpoint", digits_run / "best_model.pt", "--checkpoint-dir", tmp_path, "--steps-report"
    )
    assert (code, err) == (0, [])
    assert LAST_LINE.fullmatch(out[-1])
    assert f"{expected['test_accuracy_mean']:.2f} +- {expected['test_accuracy_sem']:.2f} %" in out[-1]
    steps = next(i for i, line in enumerate(out, 1) if line.startswith("after block"))
    assert [line.split()[0] for line in out[steps : steps + 3]] == ["1", "2", "3"]
    assert (tmp_path / "plots" / "confusion_matrix.png").exists()  # of this test
    assert json.loads((tmp_path / "results.json").read_text())["per_run"] == expected["per_run"]


@pytest.mark.parametrize(
    "flags, runs",
    [
        (["--readout", "vote", "--eval-runs", "3"], "+- 0.00 % (3 runs)"),
        (["--readout", "mean"], "+- 0.00 % (5 runs)"),
        (["--inference", "deterministic"], "+- 0.00 % (1 runs)"),
        (["--eval-runs", "1"], "+- 0.00 % (1 runs)"),
    ],
)
def test_joined_or_single_runs_have_no_error(digits_run, run_main, tmp_path, flags, runs):
    where = ["--checkpoint", digits_run / "last.pt", "--checkpoint-dir", tmp_path]
    code, out, _ = run_main("--evaluate", *where, *flags)
    assert code == 0 and LAST_LINE.fullmatch(out[-1]) and out[-1].endswith(runs)


@pytest.mark.usefixtures("without_pictures")
def test_resuming_through_main_equals_the_longer_run(digits_run, run_main, tmp_path):
    flags = ["--dataset", "digits", "--embedding-type", "one-hot", "--num-blocks", "3", "--epochs", "3"]
    assert run_main(*flags, "--checkpoint-dir", tmp_path / "whole")[0] == 0
    code, out, _ = run_main(
        "--checkpoint", digits_run / "checkpoint_epoch_1.pt", "--epochs", 3, "--checkpoint-dir", tmp_path / "on"
    )
    assert code == 0 and LAST_LINE.fullmatch(out[-1])
    states = [load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("whole", "on")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (tmp_path / "on" / "best_model.pt").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_new_run_sets_the_earlier_one_aside(run_main, tmp_path):
    flags = ["--dataset", "digits", "--num-blocks", "1", "--epochs", "1"]
    assert run_main(*flags, "--checkpoint-dir", tmp_path)[0] == 0
    kept = (tmp_path / "last.pt").read_bytes()
    code, out, _ = run_main(*flags, "--seed", 1, "--checkpoint-dir", tmp_path)
    assert code == 0 and "previous-1" in out[0]
    assert (tmp_path / "previous-1" / "last.pt").read_bytes() == kept


def test_own_images_train_evaluate_predict(run_main, tmp_path):
    root = make_folder(tmp_path / "data", counts=(12, 12))
    run = tmp_path / "run"
    flags = ["--dataset", "folder", "--data-dir", root, "--num-blocks", 2, "--epochs", 1, "--checkpoint-dir", run]
    code, out, err = run_main(*flags, "--embedding-type", "prototype")
    assert code == 0 and LAST_LINE.fullmatch(out[-1])
    assert (run / "plots" / "prototypes.png").exists()
    picture = root / "test" / "cat" / "1.png"
    code, out, err = run_main("--predict", picture, picture, "--checkpoint", run / "best_model.pt")
    assert (code, err, len(out)) == (0, [], 2) and out[0] == out[1]
    name, label, share = out[0].split("\t")
    assert name == str(picture) and label in ("cat", "dog") and 50 <= float(share.split()[0]) <= 100
    (root / "test" / "dog").rename(root / "test" / "emu")
    code, _, err = run_main("--evaluate", "--checkpoint", run / "best_model.pt")
    assert code == 2 and "dog" in err[0] and "emu" in err[0]


def test_predictions_do_not_depend_on_the_labels():
    from conftest import make_model

    model = make_model(m=4)
    y = torch.arange(40) % 4
    images = (images_of(y) + torch.randn(40, 1, 8, 8)).mul(20).byte().permute(0, 2, 3, 1)
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [0.0], [1.0])
    evaluator = Evaluator(model, Streams(0), ways=[{}], runs=3)
    results = [evaluator.evaluate(Split(images, labels)) for labels in (y, y.flip(0), y[torch.randperm(40)])]
    predicted = [result.confusion.sum(0) for result in results]  # how often each class is predicted
    assert torch.equal(predicted[0], predicted[1]) and torch.equal(predicted[0], predicted[2])


def test_data_that_cannot_be_downloaded_names_the_place_and_two_ways_out(run_main, tmp_path, monkeypatch):
    import torchvision

    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    code, _, err = run_main("--dataset", "cifar10", "--data-dir", tmp_path)
    assert (code, len(err)) == (2, 1)
    assert str(tmp_path) in err[0] and "--data-dir" in err[0] and "--dataset digits" in err[0]


def test_a_failing_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"good"))

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomic(path, fail)
    assert path.read_bytes() == b"good" and os.listdir(tmp_path) == ["file"]


def test_as_a_process_it_is_quiet_on_stderr(digits_run, tmp_path):
    command = [sys.executable, "main.py", "--evaluate", "--checkpoint", digits_run / "best_model.pt"]
    done = subprocess.run(
        [*command, "--checkpoint-dir", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stop, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_says_how_to_go_on(run_main, tmp_path, stop, code):
    flags = ["--dataset", "digits", "--embedding-type", "one-hot", "--num-blocks", "1", "--epochs", "500"]
    process = start_main(tmp_path, *flags)
    try:
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(stop)
        lines = process.communicate(timeout=60)[1].splitlines()
    finally:
        process.kill()
    assert (process.returncode, len(lines)) == (code, 1)
    go_on = shlex.split(lines[0].partition("continue with: ")[2])[2:]  # without python main.py
    epoch = load_checkpoint(tmp_path / "last.pt")["epoch"]
    code, out, _ = run_main(*go_on, "--epochs", epoch + 1)
    assert code == 0 and LAST_LINE.fullmatch(out[-1])


def test_pictures_that_fail_do_not_cost_the_result(run_main, tmp_path, monkeypatch):
    def broken(folder):
        raise RuntimeError("no ink")

    monkeypatch.setattr("visualize.draw_run", broken)
    flags = ["--dataset", "digits", "--embedding-type", "one-hot", "--num-blocks", "1", "--epochs", "1"]
    code, out, err = run_main(*flags, "--checkpoint-dir", tmp_path)
    assert code == 0 and LAST_LINE.fullmatch(out[-1]) and "no ink" in err[0]


def test_the_page_of_flags_is_made_from_the_settings():
    assert (ROOT / "docs" / "flags.md").read_text() == describe_flags(make_parser())


def test_an_image_of_another_size_and_mode_is_predicted(digits_run, run_main, tmp_path):
    Image.new("RGBA", (50, 31), "navy").save(tmp_path / "big.png")
    code, out, _ = run_main("--predict", tmp_path / "big.png", "--checkpoint", digits_run / "best_model.pt")
    assert code == 0 and out[0].split("\t")[1] in "0123456789"

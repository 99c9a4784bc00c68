"""The command line as a user meets it: train, continue, evaluate, predict, and what it says to bad input."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, train
from helpers import assert_equal, weights
from pictures import make_folder
from PIL import Image

from errors import UserError
from figures import FIGURES
from runs.command import main as command
from runs.folder import open_run_folder

ONE_HOT = ["--dataset", "digits", "--embedding-type", "one-hot"]
LAST_LINE = re.compile(r"test accuracy: \d+\.\d\d \+- \d+\.\d\d % \(\d+ runs\)")


def test_a_training_leaves_the_files_of_a_run(digits_run):
    names = {str(path.relative_to(digits_run)) for path in digits_run.rglob("*") if path.is_file()}
    checkpoints = "best_model.pt last.pt checkpoint_epoch_1.pt checkpoint_epoch_2.pt"
    others = "config.json results.json logs/training_history.json logs/examples.npz plots/training_curves.png"
    assert {*checkpoints.split(), *others.split()} <= names
    assert not [name for name in names if "tmp" in name or "last_previous" in name]
    config = json.loads((digits_run / "config.json").read_text())
    assert config["num_blocks"] == 3 and config["versions"]["torch"] == torch.__version__
    results = json.loads((digits_run / "results.json").read_text())
    assert results["method"] == "dt" and results["dataset"] == "digits"
    assert len(results["per_run"]) == 5 and len(results["per_step_accuracy"]) == 3
    assert results["test_accuracy_mean"] == pytest.approx(np.mean(results["per_run"]))
    assert results["test_accuracy_sem"] == pytest.approx(np.std(results["per_run"], ddof=1) / 5**0.5)
    assert results["per_step_accuracy"][-1] == pytest.approx(results["test_accuracy_mean"], abs=1e-3)
    assert set(results["accuracy_by_readout"]) == {"sample", "vote", "mean", "ensemble"}
    assert list(results["accuracy_by_class"]) == list("0123456789")
    assert max(results["accuracy_by_class"].values()) > results["test_accuracy_mean"]
    assert results["test_accuracy_mean"] <= results["top5_accuracy"] <= 100
    history = json.loads((digits_run / "logs" / "training_history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    row = history[0]
    terms = zip(row["loss_class_nll"], row["loss_kl"], row["loss_denoise"], strict=True)
    assert row["loss"] == pytest.approx([sum(t) for t in terms])
    assert row["peak_memory_bytes"] > 1e7


def test_the_names_in_a_checkpoint(digits_run):
    state = weights(digits_run)
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    assert blocks == {"0", "1", "2"} and {"W_embed", "theta_out.weight", "alpha_bar"} <= state.keys()


def test_evaluate_repeats_the_result_of_the_training(digits_run, run_main, tmp_path):
    expected = json.loads((digits_run / "results.json").read_text())
    where = ["--checkpoint", digits_run / "best_model.pt", "--checkpoint-dir", tmp_path]
    code, out, err = run_main("--evaluate", *where, "--steps-report")
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
    spread = {line.split()[1]: "+-" in line for line in out if line.startswith("readout ")}
    assert spread == {name: name == "sample:" and "(1 runs)" not in runs for name in spread}


@pytest.mark.usefixtures("without_pictures")
def test_resuming_through_main_equals_the_longer_run(digits_run, run_main, tmp_path):
    whole = train(tmp_path / "whole", *ONE_HOT, "--num-blocks", 3, "--epochs", 3)
    on = ["--checkpoint", digits_run / "checkpoint_epoch_1.pt", "--epochs", 3, "--checkpoint-dir", tmp_path / "on"]
    code, out, _ = run_main(*on)
    assert code == 0 and LAST_LINE.fullmatch(out[-1])
    assert_equal(weights(tmp_path / "on"), weights(whole))
    assert (tmp_path / "on" / "best_model.pt").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_new_run_sets_the_earlier_one_aside(run_main, tmp_path):
    flags = [*ONE_HOT, "--num-blocks", "1", "--epochs", "1", "--checkpoint-dir", tmp_path]
    assert run_main(*flags)[0] == 0
    kept = (tmp_path / "last.pt").read_bytes()
    code, out, _ = run_main(*flags, "--seed", 1)
    assert code == 0 and "previous-1" in out[0]
    assert (tmp_path / "previous-1" / "last.pt").read_bytes() == kept != (tmp_path / "last.pt").read_bytes()


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
    (root / "test" / "notes.txt").touch()
    code, out, err = run_main("--predict", root / "test", picture, "--top-k", 2, "--checkpoint", run)
    pictures = [str(path) for path in sorted((root / "test").rglob("*.png"))] + [str(picture)]
    rows = [line.split("\t") for line in out]
    assert (code, [row[0] for row in rows]) == (0, pictures) and rows[-1][1:3] == [label, share]
    assert all({first, second} == {"cat", "dog"} for _, first, _, second, _ in rows)
    assert err == [f"main.py: {root / 'test'}: files that are no images are left out (1 .txt)"]
    table = tmp_path / "predictions.csv"
    code, out, _ = run_main("--predict", *pictures, "--top-k", 2, "--output", table, "--checkpoint", run)
    assert (code, len(out)) == (0, 1)
    head, *written = csv.reader(table.read_text().splitlines())
    assert head == ["file", "class", "probability", "class_2", "probability_2"]
    assert [[row[0], row[1], f"{100 * float(row[2]):.2f} %", row[3]] for row in written] == [row[:4] for row in rows]
    (root / "test" / "dog").rename(root / "test" / "emu")
    code, _, err = run_main("--evaluate", "--checkpoint", run / "best_model.pt")
    assert code == 2 and "dog" in err[0] and "emu" in err[0]


@pytest.mark.usefixtures("without_pictures")
def test_with_the_validation_split_no_test_image_is_read(run_main, tmp_path):
    data, run = make_folder(tmp_path / "data", counts=(20, 20)), tmp_path / "run"
    shutil.rmtree(data / "test")
    flags = ["--dataset", "folder", "--data-dir", data, "--num-blocks", 2, "--epochs", 1, "--val-fraction", 0.3]
    code, out, _ = run_main(*flags, "--eval-split", "val", "--checkpoint-dir", run)
    assert code == 0 and re.fullmatch(LAST_LINE.pattern.replace("test", "validation"), out[-1])
    results = json.loads((run / "results.json").read_text())
    assert results["validation_images"] == 12 and not [name for name in results if name.startswith("test")]
    code, again, _ = run_main("--evaluate", "--checkpoint", run / "best_model.pt")
    assert (code, again[-1]) == (0, out[-1])
    code, _, err = run_main("--evaluate", "--checkpoint", run / "best_model.pt", "--eval-split", "test")
    assert code == 2 and "there is no folder" in err[0]


@pytest.mark.usefixtures("without_pictures")
def test_a_run_does_not_go_on_with_other_images(run_main, tmp_path):
    data, run = make_folder(tmp_path / "data", counts=(10, 10)), tmp_path / "run"
    flags = ["--dataset", "folder", "--data-dir", data, "--num-blocks", 2, "--epochs", 1, "--val-fraction", 0.3]
    assert run_main(*flags, "--checkpoint-dir", run)[0] == 0
    Image.new("RGB", (8, 8), "red").save(data / "train" / "cat" / "new.png")
    before = (run / "last.pt").read_bytes()
    for how in (["--epochs", 2], ["--evaluate", "--eval-split", "val"]):
        code, out, err = run_main("--checkpoint", run / "last.pt", *how)
        assert (code, out, len(err)) == (2, [], 1) and "the training images are not those that" in err[0]
    assert (run / "last.pt").read_bytes() == before
    assert run_main("--checkpoint", run / "last.pt", "--evaluate")[0] == 0  # on the test images


@pytest.mark.usefixtures("without_pictures")
def test_a_checkpoint_of_before_the_stratified_split_is_used_but_not_trained_on(
    digits_run, run_main, tmp_path, monkeypatch
):
    content = torch.load(digits_run / "last.pt", weights_only=True)
    del content["images"]
    torch.save(content, tmp_path / "old.pt")
    with monkeypatch.context() as patch:
        patch.setattr("assemble.load_images", lambda *_, **__: pytest.fail("images are read before it is refused"))
        code, out, err = run_main("--checkpoint", tmp_path / "old.pt", "--epochs", 3)
    assert (code, out, len(err)) == (2, [], 1) and "held out other validation images" in err[0]
    assert run_main("--checkpoint", tmp_path / "old.pt", "--evaluate")[0] == 0


@pytest.mark.parametrize("dataset, files", [("cifar10", "cifar-10-batches-py"), ("mnist", "MNIST/raw")])
def test_data_that_cannot_be_downloaded_is_one_line_with_two_ways_out_and_leaves_no_folder(
    run_main, tmp_path, monkeypatch, dataset, files
):
    def no_network(url, root, **_):
        Path(root).mkdir(parents=True, exist_ok=True)
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    monkeypatch.setattr(
        "torchvision.datasets.mnist.download_and_extract_archive",
        lambda url, download_root, **_: no_network(url, download_root),
    )
    place = tmp_path / "a" / "data"
    code, out, err = run_main("--dataset", dataset, "--data-dir", place, "--checkpoint-dir", tmp_path / "run")
    assert (code, out, len(err)) == (2, [], 1) and str(place / files) in err[0] and "--dataset digits" in err[0]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_comes_to_nothing_leaves_no_folder_and_no_lock(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(UserError), open_run_folder(tmp_path / name):
            (tmp_path / name / "flags.json").write_text("{}")
            raise UserError("no data")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with open_run_folder(tmp_path / "new"):
        (tmp_path / "new" / "last.pt").touch()
    assert (tmp_path / "new" / "last.pt").exists()


def test_the_command_noprop_is_main(monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # as in a program of its own: Ctrl-C ends it
    monkeypatch.setattr(sys, "argv", ["noprop", "--evaluate"])
    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == 2 and "--evaluate needs --checkpoint" in capsys.readouterr().err


def test_as_a_process_it_is_quiet_on_stderr(digits_run, tmp_path):
    flags = ["--evaluate", "--checkpoint", digits_run / "best_model.pt", "--checkpoint-dir", tmp_path]
    done = subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])


def test_a_figure_that_fails_costs_no_result_and_is_no_damaged_file(run_main, tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "confusion_matrix", lambda run: {}["no ink"])
    code, out, err = run_main(*ONE_HOT, "--num-blocks", 1, "--epochs", 1, "--checkpoint-dir", tmp_path)
    assert code == 0 and LAST_LINE.fullmatch(out[-1])
    assert len(err) == 1 and "no ink" in err[0] and "damaged" not in err[0]
    assert (tmp_path / "results.json").exists()


def test_an_image_of_another_size_and_mode_is_predicted(digits_run, run_main, tmp_path):
    Image.new("RGBA", (50, 31), "navy").save(tmp_path / "big.png")
    code, out, _ = run_main("--predict", tmp_path / "big.png", "--checkpoint", digits_run / "best_model.pt")
    assert code == 0 and out[0].split("\t")[1] in "0123456789"

"""Several runs in one picture: what it shows, how the legend names them."""

import json
import shutil
from dataclasses import fields

import pytest

from figures.differences import MAY_BE_NONE, WITHOUT_EFFECT, differences
from figures.side_by_side import curves_of_runs
from models.methods import METHODS, methods_with
from rules import parse, settle
from runs.reader import RunFiles, read_run
from settings import Settings
from visualize import main

BLOCKS_AND_FM = ["dt, num blocks 10", "dt, num blocks 2", "fm"]


def run_with(folder, *flags):
    """Return a run with nothing but the settings of these flags."""
    return RunFiles(folder, settle(*parse(["--dataset", "digits", *flags])).as_dict(), None, None, None, [])


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--lr 0.001|--lr 0.004", ["lr 0.001", "lr 0.004"]),
        ("--lr 0.004|--lr 0.004 --checkpoint-dir x --eval-split val", ["", ""]),
        ("--train-size 64|", ["train size 64", "no train size"]),
        ("--stratified-time --method ct|--method ct", ["stratified time on", "stratified time off"]),
        ("--epochs 9|--epochs 9 --num-blocks 2|--epochs 9 --method fm", BLOCKS_AND_FM),
        ("--seed 1|--seed 2|--seed 2", ["seed 1", "seed 2", "seed 2"]),
        ("--alpha-bar-clip 0.1 0.9|", ["alpha bar clip 0.1 0.9", "no alpha bar clip"]),
    ],
)
def test_the_legend_says_what_differs(tmp_path, flags, expected):
    runs = [run_with(tmp_path / "there" / f"run{i}", *each.split()) for i, each in enumerate(flags.split("|"))]
    assert differences(runs) == [f"there/run{i}{': ' * bool(label)}{label}" for i, label in enumerate(expected)]


def test_settings_that_every_method_knows_and_that_may_be_none_are_those_of_the_program():
    common = {each.name for each in fields(Settings) if len(methods_with(each.name)) == len(METHODS)}
    s = [settle(*parse(["--method", method])) for method in METHODS]
    none = {name for name in common - {"recipe"} if any(getattr(each, name) is None for each in s)}
    assert none - WITHOUT_EFFECT == MAY_BE_NONE
    assert {each.name for each in fields(Settings)} | {"versions"} >= WITHOUT_EFFECT


@pytest.mark.parametrize("count", [2, 8])
def test_loss_and_validation_accuracy_are_drawn_over_epochs_and_seconds(digits_run, count):
    run = read_run(digits_run)
    runs = [run._replace(config={**run.config, "lr": 0.001 * (i + 1)}) for i in range(count)]
    figure = curves_of_runs(runs)
    loss, loss_by_time, accuracy, accuracy_by_time = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [f"{run.name}: lr {r.config['lr']}" for r in runs]
    looks = {(line.get_color(), line.get_linestyle()) for line in loss.lines}
    assert len(looks) == count and len({line.get_marker() for line in loss.lines}) == count
    seconds = [run.history[0]["seconds"], run.history[0]["seconds"] + run.history[1]["seconds"]]
    for axes in (loss, accuracy):
        assert list(axes.lines[-1].get_xdata()) == [1, 2]
    for axes in (loss_by_time, accuracy_by_time):
        assert list(axes.lines[-1].get_xdata()) == seconds
    assert list(accuracy.lines[0].get_ydata()) == [row["val_accuracy"] for row in run.history]
    assert loss.lines[0].get_ydata()[1] == pytest.approx(sum(run.history[1]["loss"]) / 3)


def test_without_validation_images_another_accuracy_is_drawn(digits_run):
    run = read_run(digits_run)
    rows = [{**row, "val_accuracy": None} for row in run.history]
    tested = [{**row, "test_accuracy": 50.0} for row in rows]
    for history, images, values in (
        (rows, "training", [row["train_accuracy"] for row in rows]),
        (tested, "test", [50.0, 50.0]),
    ):
        accuracy = curves_of_runs([run._replace(history=history)] * 2).axes[2]
        assert list(accuracy.lines[0].get_ydata()) == values and accuracy.get_ylabel() == f"{images} accuracy (%)"


def test_the_command_line_draws_several_runs_into_one_file(digits_run, tmp_path, capsys):
    other = tmp_path / "other"
    (other / "logs").mkdir(parents=True)
    history = json.loads((digits_run / "logs" / "training_history.json").read_text())
    rows = [{**row, "val_accuracy": None} for row in history[:1]]  # in progress, and nothing is held out
    (other / "logs" / "training_history.json").write_text(json.dumps(rows))
    shutil.copy(digits_run / "config.json", other)
    out = tmp_path / "new" / "both.SVG"
    assert main([str(digits_run), str(other), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and b"<svg" in out.read_bytes()

"""Every picture is drawn from a real run, also from a run in progress and one that was copied elsewhere."""

import json
import shutil

import numpy as np
import pytest
from conftest import train
from matplotlib.figure import Figure
from matplotlib.text import Text

from errors import UserError
from figures import FIGURES
from figures.comparison import accuracy_over
from figures.inference import calibration, predictions
from figures.style import DPI, short_names, with_log_scale
from figures.training import training_curves
from runs.reader import RunFiles, read_run
from visualize import draw_figures, draw_run, main

NAMES = set(FIGURES)
OTHERS = {"prototypes", "learned_schedule", "noise_ranges", "inference_steps"}  # of other runs: test_main, test_methods


def test_a_training_draws_all_pictures(digits_run):
    assert {path.stem for path in (digits_run / "plots").glob("*.png")} == NAMES - OTHERS


def test_a_copied_run_is_drawn_without_data_and_without_models(digits_run, tmp_path, capsys):
    run = tmp_path / "copy"
    shutil.copytree(digits_run, run, ignore=shutil.ignore_patterns("*.pt", "plots"))
    assert main([str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(NAMES - OTHERS)


def test_a_run_in_progress_is_drawn_as_far_as_it_is(digits_run, tmp_path):
    (tmp_path / "logs").mkdir()
    shutil.copy(digits_run / "config.json", tmp_path)
    assert draw_run(tmp_path) == []
    shutil.copy(digits_run / "logs" / "training_history.json", tmp_path / "logs")
    assert {path.stem for path in draw_run(tmp_path)} == {"training_curves"}


def test_curves_of_fifty_blocks_without_validation(digits_run):
    run = read_run(digits_run)
    rows = json.loads(json.dumps(run.history))
    for row in rows:
        row["val_accuracy"] = None
        for key in ("loss", "loss_denoise"):
            row[key] = [row[key][0] * (t + 1) for t in range(50)]
    assert len(training_curves(run._replace(history=rows)).axes[0].lines) == 50


def test_a_test_after_every_epoch_has_its_curve(digits_run):
    run = read_run(digits_run)
    rows = [{**row, "test_accuracy": 50 + row["epoch"]} for row in run.history]
    lines = panel(training_curves(run._replace(history=rows)), "accuracy").lines
    curves = {line.get_label(): list(line.get_ydata()) for line in lines}
    assert curves["test images"] == [50 + row["epoch"] for row in run.history]
    assert "test images" not in [line.get_label() for line in panel(training_curves(run), "accuracy").lines]


def test_the_epoch_that_is_tested_is_ringed_where_validation_chose_it(digits_run):
    run = read_run(digits_run)
    rows = [{**row, "val_accuracy": accuracy} for row, accuracy in zip(run.history, (70.0, 60.0), strict=True)]
    ring = panel(training_curves(run._replace(history=rows)), "accuracy").lines[-1]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1], [70.0]) and "epoch 1" in ring.get_label()
    last = [{**row, "val_accuracy": None} for row in run.history]
    labels = [line.get_label() for line in panel(training_curves(run._replace(history=last)), "accuracy").lines]
    assert labels == ["training images"]


def panel(figure, title):
    """Return the panel whose title begins so, None without one."""
    return next((axes for axes in figure.axes if axes.get_title().startswith(title)), None)


def test_a_learning_rate_that_never_changes_is_told_in_words_and_any_other_is_drawn(digits_run):
    run = read_run(digits_run)
    flat = training_curves(run)
    assert (
        panel(flat, "learning rate") is None
        and flat.get_suptitle() == "learning rate 0.001 at the start of every epoch"
    )
    rows = [{**row, "learning_rate": rate} for row, rate in zip(run.history, (0.004, 0.001), strict=True)]
    changed = panel(training_curves(run._replace(history=rows)), "learning rate")
    assert list(changed.lines[0].get_ydata()) == [0.004, 0.001]


def test_a_log_axis_below_a_decade_has_plain_numbers():
    axes = Figure().subplots()
    axes.plot([1, 2], [20, 90])
    with_log_scale(axes)
    axes.figure.draw_without_rendering()
    labels = [text.get_text() for text in axes.get_yticklabels(which="both")]
    assert {"20", "40"} <= set(labels) and not any("$" in label for label in labels)


def test_the_terms_of_the_loss_have_their_meaning_in_the_legend(digits_run):
    texts = panel(training_curves(read_run(digits_run)), "its terms").get_legend().get_texts()
    assert [text.get_text().split(":\n")[1].split(" (")[0] for text in texts] == [
        r"how far $\hat u$ is from the embedding of the class",
        "how badly $z$ tells the class",
        "how far $z_0$ is from mere noise",
    ]


def test_wrong_predictions_come_first(digits_run):
    run = read_run(digits_run)
    labels = run.examples["probabilities"].argmax(axis=1)
    labels[[7, 20]] = (labels[[7, 20]] + 1) % 10
    figure = predictions(run._replace(examples={**run.examples, "labels": labels}))
    titles = [axes.get_title() for axes in figure.axes]
    assert ["WRONG" in title for title in titles] == [True] * 2 + [False] * 22
    assert "2 wrong, shown first" in figure.get_suptitle()


def test_an_image_more_or_less_is_small_beside_the_axis_of_wrong_answers(digits_run):
    run = read_run(digits_run)
    one_less = 100 * np.array([359, 358, 359, 359, 359]) / 360
    changed = {name: one_less for name in run.examples if name.startswith("by_runs_")}
    axes = calibration(run._replace(examples={**run.examples, **changed})).axes[1]
    assert list(axes.lines[0].get_ydata().round(6)) == [1, 2, 1, 1, 1] and axes.get_ylim() == (0, 10)


def test_a_method_without_noise_has_no_picture_of_noise(tmp_path):
    flags = "--dataset digits --method classifier --train-size 64 --epochs 1 --num-blocks"
    folder = train(tmp_path / "run", *flags.split(), 1)
    figures = dict(draw_figures(folder))
    assert figures.keys() == {"training_curves", "calibration", "confusion_matrix", "predictions"}
    texts = [text.get_text() for figure in figures.values() for text in figure.findobj(Text)]
    said = [text for text in texts if not text.startswith("run ")]  # the folder's name holds that of the test
    assert [text for text in said if any(word in text for word in ("nois", "z_", "block", "runs"))] == []


def test_nothing_leaves_the_page_however_long_the_names(digits_run, tmp_path):
    folder = tmp_path / ("a folder with $x_1$ in its name " * 7) / ("without_a_space_" * 15)
    shutil.copytree(digits_run, folder, ignore=shutil.ignore_patterns("*.pt", "plots"))
    examples = dict(np.load(folder / "logs" / "examples.npz"))
    names = [f"{'rose' * 30} {y} of the family {y % 3} with a $name$" for y in range(10)]
    labels = (examples["labels"] + 1) % 10  # every title names two classes
    np.savez(folder / "logs" / "examples.npz", **{**examples, "classes": np.array(names), "labels": labels})
    for name, figure in draw_figures(folder):
        figure.set_dpi(DPI)  # as it is saved
        figure.draw_without_rendering()
        lowest, highest = figure.get_tightbbox().get_points()
        assert (lowest >= 0).all() and (highest <= figure.get_size_inches()).all(), name
        assert all(
            part in figure.get_supxlabel().replace("\n", "") for part in ("without_a_space_", "method dt", "digits")
        )


def test_the_pictures_of_a_run_in_another_format(digits_run, tmp_path):
    shutil.copytree(digits_run / "logs", tmp_path / "logs", ignore=shutil.ignore_patterns("*.npz"))
    shutil.copy(digits_run / "config.json", tmp_path)
    assert main([str(tmp_path), "--format", "pdf"]) == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["training_curves.pdf"]
    assert (tmp_path / "plots" / "training_curves.pdf").read_bytes().startswith(b"%PDF")


def made_run(accuracies, patience=0, **results):
    """Return a run of 5 epochs and lists of ways of inference; results: what of its own test an evaluation changed."""
    config = {"epochs": 5, "early_stopping_patience": patience, "eval_runs": 1, "readout": "sample", "seed": 0}
    config |= {
        "inference": "stochastic",
        "mirror_test": False,
        "eval_split": "val",
        "steps": [5, 10],
        "sampler": ["ode"],
        "solver": ["heun", "euler"],
    }
    history = [{"epoch": i, "val_accuracy": accuracy} for i, accuracy in enumerate(accuracies, 1)]
    way = {"steps": 10, "sampler": "ode", "solver": "euler"} | {n: results.pop(n) for n in list(results) if n in config}
    own = {"epoch": 5, "per_run": [1.0], "readout": "sample", "seed": 0, "inference": "stochastic"}
    own |= {"mirror_test": False, "split": "validation"}
    own |= {name: way.pop(name) for name in ("readout", "seed", "inference", "mirror_test") if name in way}
    return RunFiles(None, config, history, {**own, **results, "by_inference": [{}, way]}, None, [])


@pytest.mark.parametrize(
    "accuracies, patience, trained, best",
    [
        ([1, 2, 3, 4, 5], 0, True, 5),
        ([1, 3, 2, 3, 1], 0, True, 2),
        ([1, 3, 2], 0, False, 2),
        ([1, 3, 2], 2, False, 2),
        ([1, 3, 2, 3], 2, True, 2),
        ([None] * 5, 0, True, 5),
        ([None, 1, 3, 2, 1], 0, True, 3),  # parts, merged after one epoch
    ],
)
def test_the_best_epoch_and_the_end_of_a_training(accuracies, patience, trained, best):
    run = made_run(accuracies, patience)
    assert (run.is_trained, run.best_epoch) == (trained, best)


@pytest.mark.parametrize(
    "changed",
    [{"steps": 5}, {"solver": "heun"}, {"seed": 1}, {"readout": "vote"}, {"inference": "deterministic"}]
    + [{"epoch": 4}, {"per_run": [1.0, 2.0]}, {"mirror_test": True}, {"split": "test"}],
)
def test_a_test_with_other_settings_than_the_run_has_is_told_apart(changed):
    accuracies = [1, 2, 3, 4, 5]
    assert made_run(accuracies).is_tested and not made_run(accuracies, **changed).is_tested


def test_a_solver_that_chooses_its_steps_has_none_to_compare():
    run = made_run([1, 2, 3, 4, 5])
    del run.results["by_inference"][-1]["steps"]
    assert run.is_tested


def test_an_error_in_drawing_is_no_damaged_file_and_shows_itself(digits_run, monkeypatch):
    monkeypatch.setitem(FIGURES, "training_curves", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(digits_run)])


@pytest.mark.parametrize("odd", [None, np.array("x"), np.zeros((2, 2)), np.nan], ids=["none", "a word", "2x2", "nan"])
def test_an_array_that_is_missing_or_odd_is_told_before_anything_is_drawn(digits_run, tmp_path, odd):
    """Whatever read_run lets pass is drawn."""
    (tmp_path / "logs").mkdir()
    shutil.copy(digits_run / "config.json", tmp_path)
    examples = dict(np.load(digits_run / "logs" / "examples.npz"))
    for name, array in examples.items():
        if odd is np.nan and array.dtype.kind != "f" or array.dtype.kind == "U" and np.shape(odd) == array.shape:
            continue  # it has no nan; or any word will do
        changed = {} if odd is None else {name: np.full_like(array, odd) if odd is np.nan else odd}
        np.savez(tmp_path / "logs" / "examples.npz", **{k: v for k, v in examples.items() if k != name} | changed)
        with pytest.raises(UserError, match=rf"examples.npz is damaged \(.*\b{name}\b"):
            read_run(tmp_path)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["a class with the number 1", "a class with the number 2"], ["a cla…number 1", "a cla…number 2"]),
        (["class 012 with a long name", "class 013 with a long name"], ["…2…", "…3…"]),
    ],
)
def test_names_are_shortened_so_that_they_stay_different(names, expected):
    assert short_names(names) == expected


def test_a_comparison_on_the_validation_split_is_not_called_test(digits_run):
    run = read_run(digits_run)
    run = run._replace(results={**run.results, "split": "validation"})
    path = run.accuracy_path
    assert path["validation_accuracy"] == [row["val_accuracy"] for row in run.history] and "test_accuracy" not in path
    figure = accuracy_over([("dt", "dt", [path])], "title", "sample", split=run.split)
    assert figure.axes[0].get_ylabel().startswith("validation accuracy")

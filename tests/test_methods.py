"""Every method on the command line: train, resume, evaluate, predict, draw; --compare and --tensorboard."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import in_this_process
from helpers import assert_equal, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_main import LAST_LINE

from assemble import load_test
from benchmarks.setup import make_benchmark_trainer
from data import Split
from figures import FIGURES
from figures.inference import inference_steps
from main import main
from models.methods import METHODS
from rules import parse, settle
from runs.reader import read_run

FLAGS = {
    "ct": ["--stratified-time", "--steps", "30"],
    "fm": ["--embedding-type", "one-hot", "--steps", "30"],
    "backprop": ["--num-blocks", "2", "--class-probability", "posterior"],
    "adjoint": ["--steps", "5"],
    "diffusionblocks": ["--num-blocks", "2", "--p-mean", "-0.5", "--embedding-type", "one-hot"],
}


@pytest.fixture(scope="module", params=FLAGS)
def run(request, tmp_path_factory):
    """The folder of a two-epoch training on digits; its name is the method."""
    folder = tmp_path_factory.mktemp("run") / request.param
    flags = ["--dataset", "digits", "--method", request.param, "--epochs", "2", "--save-every", "1", "--seed", "3"]
    assert main([*flags, *FLAGS[request.param], "--checkpoint-dir", str(folder)]) == 0
    return folder


def test_a_training_leaves_results_and_pictures(run):
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == run.name and len(results["per_run"]) == 5
    assert results["test_accuracy_mean"] == pytest.approx(np.mean(results["per_run"]))
    assert set(results["accuracy_by_readout"]) == set(METHODS[run.name].network.readouts)
    assert results["per_step_accuracy"][-1] == pytest.approx(results["test_accuracy_mean"], abs=1e-3)
    assert len(results["per_step_times"]) == len(results["per_step_accuracy"])
    for part in results["calibration"].values():
        assert part["nll"] > 0 and 0 <= part["ece"] <= 100 and sum(part["bins"][0]) == 360
    assert results["accuracy_by_runs"]["vote"][-1] == results["accuracy_by_readout"]["vote"]["mean"]
    row = json.loads((run / "logs" / "training_history.json").read_text())[0]
    terms = [value[0] for name, value in row.items() if name.startswith("loss_")]
    assert row["loss"][0] == pytest.approx(sum(terms))
    drawn = {path.stem for path in (run / "plots").glob("*.png")}
    of_one = {"ct": {"learned_schedule"}, "diffusionblocks": {"noise_ranges"}}
    of_others = set().union(*(names for method, names in of_one.items() if method != run.name))
    assert drawn == FIGURES.keys() - of_others - {"schedule", "prototypes", "inference_steps"}


@pytest.mark.usefixtures("without_pictures")
def test_resuming_equals_the_uninterrupted_run_to_the_bit(run, run_main, tmp_path):
    code, out, err = run_main("--checkpoint", run / "checkpoint_epoch_1.pt", "--checkpoint-dir", tmp_path)
    assert (code, err) == (0, []) and LAST_LINE.fullmatch(out[-1])
    assert_equal(weights(tmp_path), weights(run))


def test_evaluate_repeats_the_result_and_predict_names_a_class(run, run_main, tmp_path):
    expected = json.loads((run / "results.json").read_text())
    model = ["--checkpoint", run / "best_model.pt"]
    code, out, err = run_main("--evaluate", *model, "--checkpoint-dir", tmp_path, "--steps-report")
    assert (code, err) == (0, [])
    assert json.loads((tmp_path / "results.json").read_text())["per_run"] == expected["per_run"]
    Image.new("L", (8, 8), 40).save(tmp_path / "x.png")
    code, out, err = run_main("--predict", tmp_path / "x.png", *model)
    assert (code, err) == (0, []) and out[0].split("\t")[1] in "0123456789"


@pytest.mark.parametrize("method", FLAGS)
def test_an_untrained_network_scores_chance(method):
    flags = ["--method", method, *FLAGS[method]]
    model, how = make_benchmark_trainer(10, *flags, shape=(8, 8, 1)).model.eval(), settle(*parse(flags)).ways[0]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2000, 1, 8, 8, generator=generator), torch.arange(2000) % 10
    answers = model.sample(x, [generator], **how)[0].argmax(1)
    assert (answers == y).float().mean().item() == pytest.approx(0.1, abs=0.04)


@pytest.mark.usefixtures("without_pictures")
def test_wrong_test_labels_change_no_prediction(run, run_main, tmp_path, monkeypatch):
    def shifted(settings, info):
        test = load_test(settings, info)
        return Split(test.images, (test.labels + 1) % 10)

    counts = []
    for name, load in (("right", load_test), ("wrong", shifted)):
        monkeypatch.setattr("assemble.load_test", load)
        folder = tmp_path / name
        assert run_main("--evaluate", "--checkpoint", run / "best_model.pt", "--checkpoint-dir", folder)[0] == 0
        counts.append(read_run(folder).examples["confusion"])  # (true, predicted), over all runs and images
    right, wrong = counts
    assert np.array_equal(np.roll(right, 1, axis=0), wrong) and np.trace(wrong) < 0.6 * np.trace(right)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "run, flags, count",
    [
        ("ct", ["--steps", "4,8", "--sampler", "ancestral,ode", "--solver", "heun,dopri5"], 5),
        ("fm", ["--steps", "4,8", "--solver", "euler,heun"], 4),
        ("adjoint", ["--steps", "4,8"], 2),
    ],
    indirect=["run"],
)
def test_inference_in_several_ways(run, run_main, tmp_path, flags, count):
    where = ["--checkpoint", run / "best_model.pt", "--checkpoint-dir", tmp_path]
    code, out, err = run_main("--evaluate", *where, *flags)
    rows = json.loads((tmp_path / "results.json").read_text())["by_inference"]
    assert (code, err, len(rows)) == (0, [], count)
    settings = [tuple(row.get(name) for name in ("sampler", "solver", "steps")) for row in rows]
    assert len(set(settings)) == count
    for row, line in zip(rows, out[1:], strict=False):
        assert f": {row['accuracy_mean']:.2f} +- {row['accuracy_sem']:.2f} % (" in line
    assert f"{rows[-1]['accuracy_mean']:.2f} +- {rows[-1]['accuracy_sem']:.2f} %" in out[-1]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("run", ["ct"], indirect=True)
def test_inference_steps_are_drawn(run_main, run, tmp_path):
    where = ["--checkpoint", run / "best_model.pt", "--checkpoint-dir", tmp_path]
    assert run_main("--evaluate", *where, "--steps", "4,2", "--sampler", "ancestral,ode", "--solver", "dopri5")[0] == 0
    figure = inference_steps(read_run(tmp_path))
    legend = {text.get_text() for text in figure.axes[-1].get_legend().get_texts()}
    assert legend == {"ancestral", "ode dopri5, adaptive steps"}
    assert list(figure.axes[0].lines[0].get_xdata()) == [2, 4]  # a line goes from left to right


@pytest.mark.parametrize("run", ["fm"], indirect=True)
def test_what_needs_the_blocks_of_dt_refuses_other_checkpoints(run, run_main, tmp_path):
    last = run / "last.pt"
    for flags in (["--merge", last, last], ["--embedding-from", last, "--dataset", "digits"]):
        code, _, err = run_main(*flags, "--checkpoint-dir", tmp_path)
        assert (code, len(err)) == (2, 1) and "--method fm" in err[0]


@pytest.mark.usefixtures("without_pictures")
def test_compare_writes_a_table_and_figures_and_goes_on_where_it_was(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.launch.run_main", in_this_process)
    flags = ["--compare", "dt,fm", "--dataset", "digits", "--epochs", "1", "--num-blocks", "1", "--steps", "5"]
    code, out, err = run_main(*flags, "--checkpoint-dir", tmp_path)
    assert (code, err) == (0, [])
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dt", "fm"]
    for row in rows:
        results = json.loads((tmp_path / row["method"] / "results.json").read_text())
        assert row["accuracy_mean"] == results["test_accuracy_mean"]
        assert len(row["path"]["test_accuracy"]) == 1 and row["peak_megabytes"] > 10
    table = (tmp_path / "compare.md").read_text()
    assert table.count("\n| ") == 4 and f"{rows[1]['accuracy_mean']:.2f} +- " in table
    assert table.startswith("# dt, fm on digits\n") and "- seed: 0\n" in table and "- images tested: 360\n" in table
    command = table.partition("- command: `python main.py ")[2].partition("`")[0]
    assert parse(command.split()) == parse([*flags, "--checkpoint-dir", str(tmp_path)])
    columns = [cell.strip() for cell in table.partition("\n| ")[2].partition("\n")[0].strip("|").split("|")]
    assert [line[2:].partition(":")[0] for line in table.partition("## Columns")[2].split("\n") if line] == columns
    assert {p.name for p in tmp_path.glob("*.png")} == {"compare_accuracy.png", "compare_calibration.png"}
    (tmp_path / "fm" / "results.json").unlink()  # as if it had been stopped
    code, out, err = run_main(*flags, "--checkpoint-dir", tmp_path)
    assert code == 0 and any(line.startswith("dt: done already") for line in out)
    assert json.loads((tmp_path / "compare.json").read_text())["rows"][1]["accuracy_mean"] == pytest.approx(
        rows[1]["accuracy_mean"]
    )
    code, _, err = run_main(*flags, "--seed", "1", "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and "--checkpoint-dir" in err[0]


@pytest.mark.usefixtures("without_pictures")
def test_compare_tests_again_what_evaluate_tested_otherwise_and_keeps_other_methods(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.launch.run_main", in_this_process)
    flags = ["--dataset", "digits", "--epochs", "1", "--steps", "5", "--checkpoint-dir", tmp_path]
    assert run_main("--compare", "ct,fm", *flags)[0] == 0
    before = json.loads((tmp_path / "compare.json").read_text())["rows"]
    model = tmp_path / "fm" / "best_model.pt"
    assert run_main("--evaluate", "--checkpoint", model, "--readout", "vote", "--steps", "2")[0] == 0
    code, out, err = run_main("--compare", "ct", *flags)
    assert (code, err) == (0, []) and any("left out" in line and "fm;" in line for line in out)
    shutil.copytree(tmp_path / "ct", tmp_path / "mine")  # another run, which is no part of the comparison
    code, out, err = run_main("--compare", "fm", *flags)
    assert (code, err) == (0, []) and not any("done already" in line for line in out)
    after = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert [row["method"] for row in after] == ["fm", "ct"] and any("holds of ct" in line for line in out)
    for name in ("accuracy_mean", "vote", "train_accuracy_mean", "readout"):
        assert after[0][name] == before[1][name] and after[1][name] == before[0][name]
    assert run_main("--evaluate", "--checkpoint", model)[0] == 0  # as the run was tested itself
    code, out, err = run_main("--compare", "fm", *flags)
    assert (code, err) == (0, []) and any("fm: done already" in line for line in out)


def test_tensorboard_gets_scalars_and_pictures(run_main, tmp_path):
    flags = ["--dataset", "digits", "--method", "fm", "--epochs", "2", "--steps", "2", "--tensorboard"]
    code, _, err = run_main(*flags, "--checkpoint-dir", tmp_path)
    assert (code, err) == (0, [])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    history = json.loads((tmp_path / "logs" / "training_history.json").read_text())
    assert [e.value for e in events.Scalars("val_accuracy")] == pytest.approx([row["val_accuracy"] for row in history])
    assert [e.step for e in events.Scalars("loss")] == [1, 2]
    assert {"training_curves", "confusion_matrix"} <= set(events.Tags()["images"])


@pytest.mark.usefixtures("without_pictures")
def test_after_going_on_from_an_earlier_state_tensorboard_has_every_step_once(run_main, tmp_path):
    flags = ["--dataset", "digits", "--method", "fm", "--epochs", "3", "--steps", "2", "--train-size", "64"]
    run = ["--tensorboard", "--save-every", "1", "--checkpoint-dir", tmp_path]
    assert run_main(*flags, *run)[0] == 0
    shutil.copy(tmp_path / "checkpoint_epoch_1.pt", tmp_path / "last.pt")  # as after a kill before the next save
    assert run_main("--checkpoint", tmp_path / "last.pt", "--epochs", "3", *run)[0] == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]


def test_without_tensorboard_a_line_says_how_to_install_it(run_main, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = run_main("--dataset", "digits", "--tensorboard", "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and "pip install tensorboard" in err[0]

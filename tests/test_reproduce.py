"""The paper's tables and figures by reproduce.py: plan, stop and go on, what is written."""

import json
import os
import signal
import time
from threading import Thread

import pytest
from conftest import in_this_process
from made_results import cells, made_row, put

from defaults import METHODS
from epochs import Training
from launch import run_main
from main import main as train_main
from reproduce import PARTS, command_line, main
from reproduction import paper
from reproduction.plan import EMBEDDINGS, completed, decisive, flags_of, make_training, settings_of
from reproduction.report import results_section
from stops import Stopped

SMALL = ["--dataset", "digits", "--methods", "dt", "--embeddings", "one-hot", "--epochs", "1", "--num-blocks", "1"]
SMALL += ["--train-size", "100"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run reproduce.py on folders of its own, trainings in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr("reproduction.runs.run_main", in_this_process)
    monkeypatch.setattr("main.draw_run", lambda folder: [])
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]

    def run(what, *flags):
        own = {"report": places[2:], "record": places[2:]}.get(what, places)
        code = main([what, *map(str, flags), *own])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_what_is_done_is_skipped_and_seeds_are_joined(call, tmp_path):
    code, out, err = call("table1", *SMALL, "--seeds", "0", "1")
    assert (code, err) == (0, "") and out.count("test accuracy:") == 2
    path = tmp_path / "results" / "table1_digits.json"
    result = json.loads(path.read_text())
    (row,) = result["rows"]
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    assert row["differences"] == {"epochs": [1, 14], "num_blocks": [1, 10], "train_size": [100, None]}
    for run in row["runs"]:
        assert run["last_line"] in out and len(run["per_run"]) == 5 and run["train_images"] == 100
        assert run["command"].startswith("python main.py ") and run["versions"]["cpu"] and run["versions"]["commit"]
        assert len(run["path"]["test_accuracy"]) == 1
    folders = sorted((tmp_path / "runs").iterdir())
    code, again, _ = call("table1", *SMALL, "--seeds", "0", "1", "0")
    assert code == 0 and again.count("done already") == 2 and "test accuracy:" not in again
    again_result = json.loads(path.read_text())
    assert again_result["rows"][0]["runs"] == row["runs"] and sorted((tmp_path / "runs").iterdir()) == folders
    text = path.with_suffix(".md").read_text()
    assert "epochs 1 instead of 14, num-blocks 1 instead of 10, train-size 100 instead of all, seeds 2" in text


def test_a_run_that_main_made_is_found_by_its_settings_and_recorded(call, tmp_path, capsys):
    run = tmp_path / "runs" / "by-hand" / "some name"
    flags = "--dataset digits --embedding-type one-hot --epochs 1 --num-blocks 1 --train-size 100 --seed 7"
    assert train_main([*flags.split(), "--val-fraction", "0", "--checkpoint-dir", str(run)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    code, out, _ = call("table1", *SMALL, "--seeds", "7")
    assert code == 0 and f"done already in {run}" in out
    path = tmp_path / "results" / "table1_digits.json"
    found = json.loads(path.read_text())["rows"]
    assert found[0]["runs"][0]["last_line"] == last
    path.unlink()
    assert call("record", run)[0] == 0
    recorded = json.loads(path.read_text())["rows"]
    assert recorded[0]["runs"] == found[0]["runs"] and recorded[0]["differences"] == found[0]["differences"]
    code, _, err = call("record", run, run)
    assert code == 2 and "same settings and seed" in err
    code, out, _ = call("table1", *SMALL, "--seeds", "7", "--lr", "0.002", "--dry-run")
    assert code == 0 and "epochs to do: 1," in out  # another learning rate is another run
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "per_run": [1.0]}))  # --evaluate --eval-runs 1
    code, _, err = call("record", run)
    assert code == 2 and "tested with other settings" in err and "not finished" not in err
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "epochs": 2}))  # stopped after the first
    code, _, err = call("record", run)
    assert code == 2 and "not finished" in err


def test_a_stopped_training_goes_on_from_its_last_epoch(call, tmp_path):
    flags = [*SMALL, "--seeds", "0", "--epochs", "4"]

    def stop_after_two(training, row):
        if row["epoch"] == 3:
            raise Stopped(130)
        return validate(training, row)

    validate = Training.validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "validate", stop_after_two)
        code, out, err = call("table1", *flags)
    assert code == 2 and "ended with code 130" in err and not (tmp_path / "results").exists()
    code, out, _ = call("table1", *flags, "--dry-run")
    assert code == 0 and "epoch 2 of 4 is done" in out
    code, out, _ = call("table1", *flags)
    assert code == 0 and "epoch 3/4" in out and "epoch 2/4" not in out
    (row,) = json.loads((tmp_path / "results" / "table1_digits.json").read_text())["rows"]
    assert row["runs"][0]["epochs"] == 4 and row["runs"][0]["path"]["epoch"] == [1, 2, 3, 4]


def test_a_signal_reaches_the_training(tmp_path, monkeypatch, capsys):
    fake = tmp_path / "main.py"
    fake.write_text(
        "import pathlib, signal, sys, time\n"
        "told = pathlib.Path(__file__).with_name('told')\n"
        "signal.signal(signal.SIGTERM, lambda *_: (told.write_text(' '.join(sys.argv[1:])), sys.exit(143)))\n"
        "told.with_name('started').touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr("launch.MAIN", fake)

    def stop():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=stop).start()
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    code = main(["table1", *SMALL, *places])
    assert code == 143 and "the same command goes on" in capsys.readouterr().err
    told = (tmp_path / "told").read_text()
    assert "--dataset digits --method dt --embedding-type one-hot" in told and "--train-size 100" in told


def test_torchrun_starts_ranks_of_one_thread(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, env, start_new_session):
            started.append((command, env))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            return 0

    monkeypatch.setattr("launch.subprocess.Popen", Process)
    assert run_main(["--dataset", "digits"], ranks=2) == 0
    command, env = started[0]
    assert "torch.distributed.run" in command and env["OMP_NUM_THREADS"] == "1"
    assert command[command.index("--nproc-per-node") + 1] == "2" and command[-2:] == ["--dataset", "digits"]


def test_the_budget_stands_with_every_figure(call, tmp_path):
    flags = ["--dataset", "digits", "--epochs", "1", "--num-blocks", "1", "--train-size", "100", "--seeds", "0"]
    wanted = "epochs 1 instead of 14, num-blocks 1 instead of 10, train-size 100 instead of all, seeds 1 instead of 3"
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reproduction.runs.save_figure", lambda figure, path: drawn.append((figure, path.name)))
        for what in ("figure2", "figure4", "figure5"):
            assert call(what, *flags)[0] == 0
        assert call("figure3", *flags, "--methods", "dt", "fm", "--steps", "2")[0] == 0
    assert {name for _, name in drawn} == {f"figure{n}_digits.png" for n in (2, 3, 4, 5)}
    last = {name: figure for figure, name in drawn}
    for name, figure in last.items():
        texts = [*figure.texts, figure._suptitle, *(axes.title for axes in figure.axes)]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        words = " ".join(text.get_text().replace("\n", " ") for text in texts if text is not None)
        text = (tmp_path / "results" / name).with_suffix(".md").read_text()
        assert all(part in words and part in text for part in wanted.split(", ")), name
        assert wanted in text or name == "figure3_digits.png"  # whose fm has no blocks
    labels = [text.get_text() for text in last["figure5_digits.png"].legends[0].get_texts()]
    assert [label.split()[-1] for label in labels] == ["prototype", "orthogonal", "random"]
    # the dt prototype run of figure 2 is one of figure 5's
    assert len([f for f in (tmp_path / "runs").iterdir() if "prototype" in f.name]) == 3


def test_table2_has_ratios_beside_those_of_the_paper(call, tmp_path):
    flags = ["--methods", "dt", "backprop", "--num-blocks", "3"]
    assert call("table2", "--dataset", "digits", *flags)[0] == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "results" / "table2_digits.json").read_text())["rows"]}
    assert rows["backprop"]["activations"] > 2.5 * rows["dt"]["activations"]
    for row in rows.values():
        assert row["peak"] > row["activations"] > 0
    assert rows["dt"]["total"] == rows["dt"]["kept"] + rows["dt"]["peak"]
    put(tmp_path / "results", list(rows.values()), what="table2")
    text = results_section(tmp_path / "results", "results")
    ratio = f"{rows['dt']['total'] / rows['backprop']['total']:.2f}"
    assert cells(text, "NoProp-DT", "one-hot", "0.49", "0.56")[5] == ratio
    assert cells(text, "NoProp-CT", "-", "1.05", "1.21", "not run")


def test_rows_of_other_budgets_stay_and_the_same_one_is_replaced(call, tmp_path):
    other = made_row(differences={"epochs": [20, 14]})
    same = made_row(differences={"epochs": [1, 14], "num_blocks": [1, 10], "train_size": [100, None]})
    put(tmp_path / "results", [other, same], dataset="digits", paper_dataset=None)
    assert call("table1", *SMALL, "--seeds", "0")[0] == 0
    rows = json.loads((tmp_path / "results" / "table1_digits.json").read_text())["rows"]
    assert rows[0] == other and len(rows) == 2 and len(rows[1]["runs"][0]["per_run"]) == 5


def test_the_command_beside_a_result_names_no_place_of_this_machine():
    words = ["table1", "--runs", "/a", "--data-dir=/b c", "--results=/d", "--seeds", "0", "1", "--epochs=3"]
    assert command_line(words) == "python reproduce.py table1 --data-dir DIR --seeds 0 1 --epochs 3"


def test_the_plan_is_the_papers_protocol():
    for method in METHODS:
        settings = make_training("mnist", method, "one-hot", 2, None, {}, {}).settings
        assert settings["epochs"] == (2 if method == "adjoint" else 100) and settings["batch_size"] == 128
        assert (settings["val_fraction"], settings["eval_runs"], settings["readout"]) == (0, 5, "sample")
        assert (settings["lr"], settings["weight_decay"], settings["seed"]) == (0.001, 0.001, 2)
    assert make_training("mnist", "dt", "dim20", 0, None, {}, {}).differences == {}
    assert {e for _, e in paper.COMBINATIONS} == set(EMBEDDINGS) and len(paper.COMBINATIONS) == 13
    assert paper.TABLE1["cifar100"]["fm", "one-hot"] == 6.38 and paper.TABLE2["cifar10"]["adjoint"] == 6.23


def test_a_recipe_is_the_settings_that_it_stands_for(call, tmp_path):
    given = {"recipe": "fast"}
    recipe = make_training("mnist", "dt", "one-hot", 0, None, {}, given)
    assert recipe.differences["lr_schedule"] == ["cosine", "constant"] and "recipe" not in recipe.differences
    spelt = {name: ours for name, (ours, _) in recipe.differences.items()}
    by_hand = make_training("mnist", "dt", "one-hot", 0, None, {}, spelt)
    assert decisive(by_hand.settings) == decisive(recipe.settings)
    assert "--recipe fast" in " ".join(flags_of(recipe.settings)) and "--lr-schedule" not in flags_of(recipe.settings)
    assert settings_of({"dataset": "mnist", "recipe": "fast"})["epochs"] == spelt["epochs"]


def test_a_run_of_an_earlier_version_is_known(tmp_path):
    settings = make_training("mnist", "ct", "one-hot", 0, None, {}, {}).settings
    config = {name: value for name, value in settings.items() if name not in ("train_size", "lr_schedule", "recipe")}
    assert completed(config) == settings


def test_dry_run_trains_and_writes_nothing(call, tmp_path):
    code, out, err = call("table1", *SMALL[:6], "--seeds", "0", "1", "--dry-run")
    assert (code, err) == (0, "")
    assert out.count("epochs to do: 14, about") == 2 and "trainings: 2, about" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


def test_bad_input_gets_one_line_and_exit_code_2(call, tmp_path):
    cases = [
        (["table1", "--methods", "cnn"], "cnn"),
        (["table9"], "table9"),
        (["table1", "--seed", "3"], "--seed"),
        (["table1", "--method", "dt"], "--method"),
        (["table1", "--checkpoint-dir", "x"], "--checkpoint-dir"),
        (["table1", "--wavelets", "3"], "--wavelets"),
        (["table1", "--dataset", "digits", "--epochs", "-1"], "--epochs"),
        (["table1", "--methods", "ct", "--num-blocks", "3"], "--num-blocks"),
        (["table1", "--methods", "adjoint", "--embeddings", "dim20"], "adjoint"),
        (["table1", "--paper-dataset", "cifar10"], "--paper-dataset"),
        (["figure4", "--methods", "fm"], "fm"),
        (["figure5", "--embeddings", "one-hot"], "--embeddings"),
        (["record", tmp_path / "nothing"], "nothing"),
        (["report", "--epochs", "3"], "--epochs"),
        (["report", "--results", tmp_path / "nothing"], "no results"),
        (["table1", *SMALL, "--train-size", "5000", "--seeds", "0"], "ended with code 2"),
    ]
    for flags, word in cases:
        code, _, err = call(*flags)
        assert code == 2 and word in err.splitlines()[-1], (flags, err)
        assert len([line for line in err.splitlines() if line.startswith("reproduce.py: error:")]) == 1
    assert set(PARTS) == {"table1", "table2", "figure2", "figure3", "figure4", "figure5"}

"""The paper's tables and figures by python -m paper: plan, stop and go on, what is written."""

import json
import os
import signal
import time
from threading import Thread

import pytest
from conftest import in_this_process
from made_results import cells, made_row, put

import main as program
from models.methods import METHODS
from paper import published
from paper.__main__ import PARTS, command_line, main
from paper.board import board
from paper.plan import EMBEDDINGS, completed, decisive, flags_of, make_training, settings_of
from paper.records import read_results
from runs.launch import run_main
from runs.signals import Stopped
from train import Trainer

SMALL = ["--dataset", "digits", "--methods", "dt", "--embeddings", "one-hot", "--epochs", "1", "--num-blocks", "1"]
SMALL += ["--train-size", "100"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run python -m paper on folders of its own, trainings in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr("runs.launch.run_main", in_this_process)
    monkeypatch.setattr("main.draw_pictures", lambda run: None)
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


def test_a_run_that_main_made_is_found_by_its_settings_and_recorded(call, tmp_path, capsys):
    run = tmp_path / "runs" / "by-hand" / "some name"
    flags = "--dataset digits --embedding-type one-hot --epochs 1 --num-blocks 1 --train-size 100 --seed 7"
    assert program.main([*flags.split(), "--val-fraction", "0", "--checkpoint-dir", str(run)]) == 0
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
    assert code == 0 and "done" not in out  # another learning rate is another run
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "per_run": [1.0]}))  # --evaluate --eval-runs 1
    code, _, err = call("record", run)
    assert code == 2 and "tested with other settings" in err and "not finished" not in err
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "epochs": 2}))  # stopped after the first
    code, _, err = call("record", run)
    assert code == 2 and "not finished" in err


def test_a_stopped_training_goes_on_from_its_last_save(call, tmp_path):
    flags = [*SMALL, "--seeds", "0", "--epochs", "4", "--save-every-minutes", "0"]

    def stop_in_the_third(trainer):
        if trainer.epoch == 3:
            raise Stopped(130)
        return train_epoch(trainer)

    train_epoch = Trainer.train_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stop_in_the_third)
        code, out, err = call("table1", *flags)
    assert code == 2 and "ended with code 130" in err and not (tmp_path / "results").exists()
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
    monkeypatch.setattr("runs.launch.MAIN", fake)

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

    monkeypatch.setattr("runs.launch.subprocess.Popen", Process)
    assert run_main(["--dataset", "digits"], ranks=2) == 0
    command, env = started[0]
    assert "torch.distributed.run" in command and env["OMP_NUM_THREADS"] == "1"
    assert command[command.index("--nproc-per-node") + 1] == "2" and command[-2:] == ["--dataset", "digits"]
    assert command[command.index("--local-addr") + 1] == "127.0.0.1"  # the machine's name need not resolve


def test_every_figure_is_drawn_with_what_it_compares(call, tmp_path):
    flags = ["--dataset", "digits", "--epochs", "1", "--num-blocks", "1", "--train-size", "100", "--seeds", "0"]
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paper.runs.save_figure", lambda figure, path: drawn.update({path.name: figure}))
        for what in ("figure4", "figure5"):
            assert call(what, *flags)[0] == 0
        assert call("figure3", *flags, "--methods", "dt", "fm", "--steps", "2")[0] == 0
    labels = {name: [text.get_text() for text in figure.legends[0].get_texts()] for name, figure in drawn.items()}
    assert labels["figure3_digits.png"] == ["dt one-hot, epochs 1", "fm one-hot, epochs 1"]
    assert [label.split(",")[0].split()[-1] for label in labels["figure4_digits.png"]] == ["softmax", "posterior"]
    starts = [label.split(",")[0].split()[-1] for label in labels["figure5_digits.png"]]
    assert starts == ["prototype", "orthogonal", "random"]


def test_figure_2_takes_the_run_that_is_there_and_shows_the_change(call, tmp_path):
    flags = ["--dataset", "digits", "--epochs", "1", "--num-blocks", "1", "--train-size", "100", "--seeds", "0"]
    flags += ["--methods", "dt"]
    assert call("table1", *flags, "--embeddings", "prototype")[0] == 0
    code, out, _ = call("figure2", *flags[:-2])
    assert code == 0 and "done already" in out and (tmp_path / "results" / "figure2_digits.png").exists()


def test_table2_measures_what_a_step_leaves_and_its_peak(call, tmp_path):
    flags = ["--methods", "dt", "backprop", "--num-blocks", "3"]
    assert call("table2", "--dataset", "mnist", *flags)[0] == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "results" / "table2_mnist.json").read_text())["rows"]}
    assert rows["backprop"]["activations"] > 2.5 * rows["dt"]["activations"]
    for row in rows.values():
        assert row["peak"] > row["activations"] > 0
    assert rows["dt"]["total"] == rows["dt"]["kept"] + rows["dt"]["peak"]
    text = board(read_results(tmp_path / "results"))
    ratio = f"{rows['dt']['total'] / rows['backprop']['total']:.2f}"
    assert cells(text, "MNIST", "NoProp-DT")[2:4] == ["0.49, 0.56", f"{rows['dt']['total'] / 1e6:,.0f}, {ratio}"]


def test_rows_of_other_budgets_stay_and_the_same_one_is_replaced(call, tmp_path):
    other = made_row(differences={"epochs": [20, 14]})
    same = made_row(differences={"epochs": [1, 14], "num_blocks": [1, 10], "train_size": [100, None]})
    put(tmp_path / "results", [other, same], dataset="digits", paper_dataset=None)
    assert call("table1", *SMALL, "--seeds", "0")[0] == 0
    rows = json.loads((tmp_path / "results" / "table1_digits.json").read_text())["rows"]
    assert rows[0] == other and len(rows) == 2 and len(rows[1]["runs"][0]["per_run"]) == 5


def test_the_command_beside_a_result_names_no_place_of_this_machine():
    words = ["table1", "--runs", "/a", "--data-dir=/b c", "--results=/d", "--seeds", "0", "1", "--epochs=3"]
    assert command_line(words) == "python -m paper table1 --data-dir DIR --seeds 0 1 --epochs 3"


def test_the_plan_is_the_papers_protocol():
    for method in METHODS.keys() - {"classifier"}:  # which is ours
        settings = make_training("mnist", method, "one-hot", 2, None, {}, {}).settings
        assert settings["epochs"] == (2 if method == "adjoint" else 100) and settings["batch_size"] == 128
        assert (settings["val_fraction"], settings["eval_runs"], settings["readout"]) == (0, 5, "sample")
        assert (settings["lr"], settings["weight_decay"], settings["seed"]) == (0.001, 0.001, 2)
    assert make_training("mnist", "dt", "dim20", 0, None, {}, {}).differences == {}
    assert {e for _, e in published.COMBINATIONS} == set(EMBEDDINGS) and len(published.COMBINATIONS) == 13
    assert published.TABLE1["cifar100"]["fm", "one-hot"] == 6.38 and published.TABLE2["cifar10"]["adjoint"] == 6.23


def test_a_recipe_is_the_settings_that_it_stands_for(call, tmp_path):
    given = {"recipe": "fast"}
    recipe = make_training("mnist", "dt", "one-hot", 0, None, {}, given)
    assert recipe.differences["lr_schedule"] == ["cosine", "constant"] and "recipe" not in recipe.differences
    spelt = {name: ours for name, (ours, _) in recipe.differences.items()}
    by_hand = make_training("mnist", "dt", "one-hot", 0, None, {}, spelt)
    assert decisive(by_hand.settings) == decisive(recipe.settings)
    flags = flags_of(recipe.settings)
    assert flags["recipe"] == "fast" and "lr_schedule" not in flags
    assert settings_of({"dataset": "mnist", "recipe": "fast"})["epochs"] == spelt["epochs"]


def test_a_run_of_an_earlier_version_is_known(tmp_path):
    settings = make_training("mnist", "ct", "one-hot", 0, None, {}, {}).settings
    config = {name: value for name, value in settings.items() if name not in ("train_size", "lr_schedule", "recipe")}
    assert completed(config) == settings


def test_dry_run_prints_commands_and_hours_and_trains_nothing(call, tmp_path):
    row = made_row(differences={"epochs": [20, 14]})  # 20 epochs of 60,000 images in 9 s
    put(tmp_path / "results", [row])
    code, out, err = call(
        "table1", *SMALL[2:6], "--dataset", "mnist", "--epochs", "400", "--dry-run", "--seeds", "0", "1"
    )
    assert (code, err) == (0, "") and not (tmp_path / "runs").exists()
    assert "dt one-hot: seeds 0, 1, 0.05 h each" in out and out.count("python main.py") == 1
    assert "--epochs 400" in out and "dt: 0.10 h to go" in out
    assert "time not recorded yet" in call("table1", *SMALL, "--seeds", "0", "--dry-run")[1]


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
        assert len([line for line in err.splitlines() if line.startswith("paper: error:")]) == 1
    assert set(PARTS) == {"table1", "table2", "figure2", "figure3", "figure4", "figure5"}

"""Blocks trained alone, in any order, by any number of processes: the same network, compared to the bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import assert_equal

from errors import UserError
from main import checkpoint_to_continue, main
from paper.__main__ import main as paper
from rules import check_ranks, parse
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.process import OneProcess
from runs.versions import launch_id

ROOT = Path(__file__).parents[2]
ONE_HOT = ["--dataset", "digits", "--embedding-type", "one-hot", "--num-blocks", "4"]
LEARNED = ["--dataset", "digits", "--num-blocks", "4", "--batch-size", "26", "--epochs", "1"]  # 50 steps


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("main.draw_pictures", lambda run: None)
        yield


def train(run, *flags):
    assert main([*map(str, flags), "--checkpoint-dir", str(run)]) == 0
    return run


def start_torchrun(ranks, run, *flags, torchrun_flags=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [*torchrun_flags, "main.py", *map(str, flags), "--checkpoint-dir", str(run)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def launched(tmp_path_factory):
    """Runs of torchrun by name: (folder, process); they start together, since most of their time is imports."""
    folder = tmp_path_factory.mktemp("torchrun")
    calls = {n: (n, *ONE_HOT, "--epochs", 2, "--save-every", 1) for n in (1, 2, 3)} | {"learned": (2, *LEARNED)}
    runs = {
        name: (folder / f"{name}", start_torchrun(n, folder / f"{name}", *flags)) for name, (n, *flags) in calls.items()
    }
    yield runs
    for _, process in runs.values():
        process.kill()


def finished(launched, name):
    """The folder of a run of torchrun, and what rank 0 has printed; there is no other output."""
    folder, process = launched[name]
    out, err = process.communicate(timeout=250)
    assert (process.returncode, err) == (0, "")
    return folder, out.splitlines()


def model(run, name="last.pt"):
    return load_checkpoint(run / name)["model"]


def results(run):
    return json.loads((run / "results.json").read_text())


def blocks(run):
    return {name: value for name, value in model(run).items() if name.startswith("blocks.")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, interleaved."""
    return train(tmp_path_factory.mktemp("whole") / "run", *ONE_HOT, "--epochs", 2, "--save-every", 1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Each block alone: the last.pt of four runs."""
    folder = tmp_path_factory.mktemp("parts")
    return [
        train(folder / f"{t}", *ONE_HOT, "--epochs", 2, "--save-every", 1, "--blocks", t) / "last.pt"
        for t in (1, 2, 3, 4)
    ]


@pytest.fixture(scope="module")
def merged(parts, tmp_path_factory):
    run = tmp_path_factory.mktemp("merged") / "run"
    assert main(["--merge", *map(str, parts), "--checkpoint-dir", str(run)]) == 0
    return run


def test_a_rank_that_dies_is_named_and_a_restart_goes_on_from_the_last_epoch(tmp_path):
    run = tmp_path / "run"
    flags = [*ONE_HOT, "--epochs", 5, "--save-every-minutes", 0]
    process = start_torchrun(2, run, *flags, torchrun_flags=["--max-restarts=1"])
    try:
        while not process.stdout.readline().startswith("epoch 1"):
            assert process.poll() is None
        os.kill(rank_process(process.pid, 1), signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0 and "rank 1 (process" in err and "died" in err
    assert [line[:7] for line in out.splitlines() if line.startswith("epoch")][-4:] == [
        f"epoch {n}" for n in (2, 3, 4, 5)
    ]
    uninterrupted = train(tmp_path / "whole", *ONE_HOT, "--epochs", 5)
    assert_equal(model(run), model(uninterrupted))


@pytest.mark.parametrize("embedding", ["one-hot", "learned"])
def test_ranks_pause_at_the_same_step_and_one_process_goes_on_from_it(tmp_path, embedding):
    flags = [*ONE_HOT[:2], "--num-blocks", 3, "--embedding-type", embedding, "--batch-size", 8, "--epochs", 8]
    run = tmp_path / "run"
    process = start_torchrun(2, run, *flags, "--save-every-minutes", 0.001)
    try:
        while not ((run / "last.pt").exists() and load_checkpoint(run / "last.pt")["partial"]):
            assert process.poll() is None  # the clock of rank 0 calls for saves within the epochs
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert re.search("saved, continue with: .*main.py --checkpoint .* torchrun", err)
    assert load_checkpoint(run / "last.pt")["epoch"] < 8
    train(run, "--checkpoint", run / "last.pt", "--save-every-minutes", 10)
    assert_equal(model(run), model(train(tmp_path / "whole", *flags)))


def rank_process(torchrun_pid, rank):
    """The process of a rank, by its environment."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == torchrun_pid and f"\0RANK={rank}\0" in (path / "environ").read_text():
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no rank {rank}")


def test_in_sequence_the_blocks_are_those_of_interleaved_training(whole, tmp_path):
    run = train(tmp_path / "run", *ONE_HOT, "--epochs", 2, "--block-order", "sequential")
    assert_equal(blocks(run), blocks(whole))


def test_blocks_trained_alone_and_merged_are_the_network_of_one_process(whole, parts, merged):
    held = {name.split(".")[1] for name in model(parts[2].parent) if name.startswith("blocks.")}
    assert held == {"2"}  # each part holds its own block only
    assert_equal(model(merged), model(whole))
    assert_equal(model(merged, "best_model.pt"), model(whole))


def test_a_merged_run_evaluates_resumes_and_draws_as_any_other(whole, merged, run_main, tmp_path):
    code, out, err = run_main(
        "--evaluate", "--checkpoint", merged / "best_model.pt", "--checkpoint-dir", tmp_path / "e"
    )
    _, expected, _ = run_main("--evaluate", "--checkpoint", whole / "last.pt", "--checkpoint-dir", tmp_path / "w")
    assert (code, err) == (0, []) and out[-1] == expected[-1]
    tested = shutil.copytree(merged, tmp_path / "tested")
    assert run_main("--evaluate", "--checkpoint", tested / "best_model.pt")[0] == 0
    assert paper(["record", str(tested), "--results", str(tmp_path / "results")]) == 0
    (row,) = json.loads((tmp_path / "results" / "table1_digits.json").read_text())["rows"]
    assert row["runs"][0]["train"] is None  # parts have no accuracy
    runs = []
    for name, start in (("one", whole), ("merged", merged)):
        runs.append(train(tmp_path / name, "--checkpoint", start / "last.pt", "--epochs", 3))
    assert_equal(model(runs[1]), model(runs[0]))
    from visualize import draw_run

    assert "training_curves.png" in {path.name for path in draw_run(runs[1])}


def test_a_part_is_continued_as_a_part(parts, run_main, tmp_path):
    first = parts[1].parent / "checkpoint_epoch_1.pt"
    run = train(tmp_path / "on", "--checkpoint", first, "--epochs", 2)
    assert_equal(model(run), load_checkpoint(parts[1])["model"])
    code, _, err = run_main("--checkpoint", first, "--blocks", "1")
    assert code == 2 and "--blocks" in err[0]


def test_embeddings_of_a_checkpoint_are_kept_as_they_are(tmp_path):
    source = train(tmp_path / "source", *LEARNED)
    fixed = [*ONE_HOT[:2], "--num-blocks", 2, "--epochs", 1, "--embedding-from", source / "last.pt"]
    whole = train(tmp_path / "whole", *fixed)
    parts = [train(tmp_path / f"{t}", *fixed, "--blocks", t) for t in (1, 2)]
    assert main(["--merge", *(str(p / "last.pt") for p in parts), "--checkpoint-dir", str(tmp_path / "merged")]) == 0
    for name in ("W_embed", "theta_out.weight", "theta_out.bias"):
        assert torch.equal(model(whole)[name], model(source)[name])
    assert_equal(model(tmp_path / "merged"), model(whole))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_of_torchrun_train_the_network_of_one_process(whole, launched, tmp_path, ranks):
    run, lines = finished(launched, ranks)
    assert len([line for line in lines if line.startswith("epoch")]) == 2  # rank 0 alone prints
    assert re.fullmatch(r"test accuracy: .* \(5 runs\)", lines[-1])
    assert_equal(model(run), model(whole))
    assert_equal(model(run, "best_model.pt"), model(whole, "best_model.pt"))
    assert results(run)["all_reduced_bytes"] == 0
    if ranks == 3:  # stopped after an epoch, one process goes on
        resumed = train(tmp_path / "resumed", "--checkpoint", run / "checkpoint_epoch_1.pt", "--epochs", 2)
        assert_equal(model(resumed), model(whole))


def test_ranks_agree_with_one_process_where_the_embeddings_are_learned(launched, tmp_path):
    one = train(tmp_path / "one", *LEARNED)
    two, _ = finished(launched, "learned")
    assert_equal(model(two), model(one))
    m, d, steps = 10, 20, 50
    assert results(two)["all_reduced_bytes"] == steps * (m * d + d * m + m) * 8
    assert not torch.equal(model(one)["W_embed"], load_checkpoint(one / "last.pt")["W_embed_start"])


def bad_merges(parts, tmp_path):
    """Bad calls and words that their line must hold."""
    one, two, three, four = parts
    changed = {}
    for name, change in {
        "lr": lambda c: c["config"].update(lr=0.5),
        "data": lambda c: c["info"].update(mean=[1.0]),
        "W_embed": lambda c: c["model"].update(W_embed=2 * c["model"]["W_embed"]),
        "theta_out": lambda c: c["model"].update({"theta_out.bias": c["model"]["theta_out.bias"] + 1}),
    }.items():
        content = load_checkpoint(two)
        change(content)
        changed[name] = tmp_path / f"{name}.pt"
        save_checkpoint(changed[name], content)
    part = [*ONE_HOT, "--epochs", "1", "--blocks"]
    return {
        "missing": (["--merge", one, two, four], "--blocks 3"),
        "doubled": (["--merge", one, two, three, four, two], "block 2"),
        "other flags": (["--merge", one, changed["lr"], three, four], "--lr (0.001 and 0.5)"),
        "other epoch": (["--merge", one, two.parent / "checkpoint_epoch_1.pt", three, four], "(2 and 1)"),
        "other images": (["--merge", one, changed["data"], three, four], "training images"),
        "other embeddings": (["--merge", one, changed["W_embed"], three, four], "W_embed"),
        "other theta_out": (["--merge", one, changed["theta_out"], three, four], "theta_out"),
        "merge and another flag": (["--merge", one, "--epochs", "3"], "--epochs"),
        "evaluate a part": (["--evaluate", "--checkpoint", one], "blocks 1 of 1-4"),
        "predict with a part": (["--predict", "x.png", "--checkpoint", one], "--merge"),
        "learned": (["--dataset", "digits", "--blocks", "1"], "--embedding-from"),
        "no list": ([*part, "1;3"], "--blocks"),
        "upside down": ([*part, "3-1"], "3-1"),
        "beyond T": ([*part, "2-5"], "--num-blocks 4"),
        "plateau": ([*part, "1", "--lr-scheduler-patience", "2"], "accuracy of all blocks"),
        "early stopping": ([*part, "1", "--early-stopping-patience", "2"], "accuracy of all blocks"),
        "other embedding type": (
            ["--dataset", "digits", "--embedding-from", one, "--embedding-type", "learned"],
            "one-hot",
        ),
        "missing embedding": (["--dataset", "digits", "--embedding-from", tmp_path / "none.pt"], "none.pt"),
    }


def test_parts_that_differ_in_inference_only_are_merged(parts, run_main, tmp_path):
    content = load_checkpoint(parts[1])
    content["config"] |= {"eval_runs": 9, "readout": "mean", "inference": "deterministic"}
    changed = tmp_path / "part.pt"
    save_checkpoint(changed, content)
    code, _, err = run_main("--merge", parts[0], changed, *parts[2:], "--checkpoint-dir", tmp_path / "run")
    assert (code, err) == (0, [])


def test_a_restart_takes_over_the_last_pt_of_its_own_launch_only(digits_run, tmp_path, monkeypatch):
    run = shutil.copytree(digits_run, tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    s, _ = parse(["--dataset", "digits", "--checkpoint-dir", str(run)])
    assert checkpoint_to_continue(s, OneProcess()) == (None, None)  # an earlier run's
    config = json.loads((run / "config.json").read_text())
    config["versions"]["launch"] = launch_id()
    (run / "config.json").write_text(json.dumps(config))
    assert checkpoint_to_continue(s, OneProcess())[0] == str(run / "last.pt")


@pytest.mark.parametrize(
    "flags, ranks, word",
    [
        (["--num-blocks", "2"], 3, "at most 2"),
        (["--device", "cuda:0"], 2, "each takes its own"),
        (["--block-order", "sequential"], 2, "interleaved"),
        (["--evaluate", "--checkpoint", "x.pt"], 2, "python main.py"),
    ],
)
def test_what_ranks_cannot_do_is_refused(flags, ranks, word):
    with pytest.raises(UserError, match=word):
        check_ranks(parse(flags)[0], ranks)


def test_parts_that_do_not_fit_are_refused_in_one_line(parts, run_main, tmp_path):
    for case, (flags, word) in bad_merges(parts, tmp_path).items():
        code, _, err = run_main(*flags, *([] if "--predict" in flags else ["--checkpoint-dir", tmp_path / "run"]))
        assert (case, code, len(err)) == (case, 2, 1), (case, err)
        assert word in err[0], (case, err)
    assert not (tmp_path / "run").exists()

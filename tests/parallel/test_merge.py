"""Blocks trained in parts and merged: the network of one process to the bit; parts that do not fit are refused."""

import json
import shutil

import pytest
import torch
from conftest import FOUR_BLOCKS, train
from helpers import as_if_on_cuda, assert_equal, weights

from main import main
from paper.__main__ import main as paper
from runs.checkpoint import load_checkpoint, save_checkpoint
from visualize import draw_run

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Train each block alone, and return the last.pt of the four runs."""
    folder, flags = tmp_path_factory.mktemp("parts"), [*FOUR_BLOCKS, "--epochs", 2, "--save-every", 1, "--blocks"]
    return [train(folder / str(t), *flags, t) / "last.pt" for t in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def merged(parts, tmp_path_factory):
    run = tmp_path_factory.mktemp("merged") / "run"
    assert main(["--merge", *map(str, parts), "--checkpoint-dir", str(run)]) == 0
    return run


def test_blocks_trained_alone_and_merged_are_the_network_of_one_process(whole, parts, merged):
    held = {name.split(".")[1] for name in weights(parts[2].parent) if name.startswith("blocks.")}
    assert held == {"2"}  # each part holds its own block only
    assert_equal(weights(merged), weights(whole))
    assert_equal(weights(merged, "best_model.pt"), weights(whole))


def test_a_merged_run_evaluates_resumes_and_draws_as_any_other(whole, merged, run_main, tmp_path):
    tested = shutil.copytree(merged, tmp_path / "tested")
    code, out, err = run_main("--evaluate", "--checkpoint", tested / "best_model.pt")
    _, expected, _ = run_main("--evaluate", "--checkpoint", whole / "last.pt", "--checkpoint-dir", tmp_path / "w")
    assert (code, err, out[-1]) == (0, [], expected[-1])
    assert paper(["record", str(tested), "--results", str(tmp_path / "results")]) == 0
    (row,) = json.loads((tmp_path / "results" / "table1_digits.json").read_text())["rows"]
    assert row["runs"][0]["train"] is None  # parts have no accuracy
    one, joined = (
        train(tmp_path / run.parent.name, "--checkpoint", run / "last.pt", "--epochs", 3) for run in (whole, merged)
    )
    assert_equal(weights(joined), weights(one))
    assert "training_curves.png" in {path.name for path in draw_run(joined)}


def test_a_part_is_continued_as_a_part(parts, run_main, tmp_path):
    first = parts[1].parent / "checkpoint_epoch_1.pt"
    run = train(tmp_path / "on", "--checkpoint", first, "--epochs", 2)
    assert_equal(weights(run), weights(parts[1].parent))
    code, _, err = run_main("--checkpoint", first, "--blocks", "1")
    assert code == 2 and "--blocks" in err[0]


def test_embeddings_of_a_checkpoint_are_kept_as_they_are(tmp_path):
    source = train(tmp_path / "source", "--dataset", "digits", "--num-blocks", 1, "--epochs", 1)
    flags = ["--dataset", "digits", "--num-blocks", 2, "--epochs", 1, "--embedding-from", source / "last.pt"]
    whole = train(tmp_path / "whole", *flags)
    parts = [train(tmp_path / f"{t}", *flags, "--blocks", t) for t in (1, 2)]
    assert main(["--merge", *(str(p / "last.pt") for p in parts), "--checkpoint-dir", str(tmp_path / "merged")]) == 0
    for name in ("W_embed", "theta_out.weight", "theta_out.bias"):
        assert torch.equal(weights(whole)[name], weights(source)[name])
    assert_equal(weights(tmp_path / "merged"), weights(whole))


def test_parts_that_differ_in_inference_device_or_threads_only_are_merged_and_the_last_two_are_told(
    parts, merged, run_main, tmp_path
):
    content = as_if_on_cuda(load_checkpoint(parts[1]))
    content["config"] |= {"eval_runs": 9, "readout": "mean", "inference": "deterministic"}
    content["threads"] = 8
    save_checkpoint(tmp_path / "part.pt", content)
    files = parts[0], tmp_path / "part.pt", *parts[2:]
    code, out, err = run_main("--merge", *files, "--checkpoint-dir", tmp_path / "run")
    assert (code, err) == (0, []) and any("trained on cpu and cuda" in line for line in out)
    assert any("different numbers of threads" in line and "not to the bit" in line for line in out)
    assert_equal(weights(tmp_path / "run"), weights(merged))
    code, out, err = run_main("--checkpoint", tmp_path / "run" / "last.pt", "--epochs", 3)  # on the CPU
    assert (code, err) == (0, []) and any("trained on cuda so far" in line for line in out)


def bad_merges(parts, tmp_path):
    """Return bad calls and the words that their line must hold."""
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
    part = [*FOUR_BLOCKS, "--epochs", "1", "--blocks"]
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


def test_parts_that_do_not_fit_are_refused_in_one_line(parts, run_main, tmp_path):
    for case, (flags, word) in bad_merges(parts, tmp_path).items():
        code, _, err = run_main(*flags, *([] if "--predict" in flags else ["--checkpoint-dir", tmp_path / "run"]))
        assert (case, code, len(err)) == (case, 2, 1), (case, err)
        assert word in err[0], (case, err)
    assert not (tmp_path / "run").exists()

"""New runs from earlier ones: their weights (--init-from), their settings (--config), their seeds (--seeds)."""

import json
from statistics import mean, stdev

import pytest
import torch
from conftest import FOUR_BLOCKS, in_this_process, train
from helpers import assert_equal, settings, weights
from pictures import make_folder

from errors import UserError
from rules import settle
from runs.repeat import read_command

pytestmark = pytest.mark.usefixtures("without_pictures")
QUICK = ["--epochs", 1, "--train-size", 64, "--num-blocks", 2, "--eval-runs", 2]
STILL = ["--lr", 1e-30, "--weight-decay", 0]  # weights stay as they start


def test_what_fits_is_taken_and_other_classes_start_anew(digits_run, run_main, tmp_path):
    data = make_folder(tmp_path / "data", counts=(9, 9), size=(8, 8), mode="L")
    flags = ["--dataset", "folder", "--data-dir", data, *QUICK[:2], "--num-blocks", 4, "--embedding-type", "one-hot"]
    anew = weights(train(tmp_path / "anew", *flags, *STILL))
    where = ["--init-from", digits_run, "--checkpoint-dir", tmp_path / "run"]
    code, out, _ = run_main(*flags, *STILL, *where)
    source, state = weights(digits_run, "best_model.pt"), weights(tmp_path / "run")
    own = "theta_out, blocks.*.label_path.embed.0, blocks.*.fuse.6; anew, since not in it: blocks 4"
    assert code == 0 and f"start as in {digits_run}/best_model.pt; anew, since other classes: {own}" in "\n".join(out)
    for name in ("blocks.0.image_path.conv1.weight", "blocks.2.fuse.3.bias"):
        assert torch.equal(state[name], source[name]) and not torch.equal(anew[name], source[name])
    for name in ("blocks.0.fuse.6.weight", "blocks.3.image_path.conv1.weight", "W_embed", "alpha_bar"):
        assert torch.equal(state[name], anew[name])


def test_blocks_that_start_from_a_run_and_learn_alone_are_those_of_one_process(digits_run, run_main, tmp_path):
    flags = [*FOUR_BLOCKS, "--epochs", 1, "--train-size", 64, "--init-from", digits_run]
    whole = train(tmp_path / "whole", *flags)
    parts = [train(tmp_path / blocks, *flags, "--blocks", blocks) / "last.pt" for blocks in ("1-3", "4")]
    assert run_main("--merge", *parts, "--checkpoint-dir", tmp_path / "merged")[0] == 0
    assert_equal(weights(tmp_path / "merged"), weights(whole))


@pytest.mark.parametrize(
    "flags",
    [
        "--recipe strong --freeze-encoder --augment off",
        "--method ct --recipe strong --lr 0.5 --amp auto",
        "--method diffusionblocks --network vit --embedding-type one-hot --blocks 1",
        "--embedding-type prototype --lr-scheduler-patience 3 --inference deterministic",
        "--alpha-bar-clip 0.1 0.9 --class-probability posterior --val-fraction 0",
    ],
)
def test_a_run_is_repeated_with_its_settings_and_given_flags_win(flags, capsys, tmp_path):
    config = settings(*flags.split()).as_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "device": "cuda:9", "versions": {}, "checkpoint_dir": "x", "wavelets": 3}))
    repeated = settle(*read_command(["--config", str(tmp_path)])).as_dict()
    assert "of another version, left out: wavelets" in capsys.readouterr().out
    assert repeated == config | {"config": str(tmp_path)}
    other = settle(*read_command(["--weight-decay", "7", "--config", str(path)]))
    assert other.as_dict() == repeated | {"config": str(path), "weight_decay": 7.0}


def test_a_config_may_be_changed_by_hand(tmp_path):
    path = tmp_path / "config.json"
    config = settings("--method", "fm").as_dict()
    path.write_text(json.dumps(config | {"lr": 1, "steps": 10, "augment": "crop"}))
    s, _ = read_command(["--config", str(path)])
    assert (s.lr, s.steps, s.augment) == (1.0, [10], ["crop"]) and type(s.lr) is float
    path.write_text(json.dumps(config | {"lr": "fast"}))
    with pytest.raises(UserError, match="--config .*config.json: .*--lr: 'fast' is not a number"):
        read_command(["--config", str(path)])


def test_what_another_method_does_not_know_of_the_repeated_settings_is_left_out(digits_run, capsys):
    s, given = read_command(["--config", str(digits_run), "--method", "fm"])
    assert (s.method, s.embedding_type) == ("fm", "one-hot") and "num_blocks" not in given
    assert capsys.readouterr().out.startswith("--num-blocks 3 of ")


def test_given_flags_that_do_not_go_with_the_repeated_settings_are_refused_in_a_line(run_main, tmp_path):
    config = settings("--class-probability", "posterior", "--posterior-sigma", "2").as_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--class-probability", "softmax", "--checkpoint-dir", tmp_path / "run"]
    code, _, err = run_main("--config", tmp_path, *flags)
    assert (code, len(err)) == (2, 1) and "--posterior-sigma belongs to" in err[0] and str(tmp_path) in err[0]


def test_seeds_are_trained_each_in_its_folder_and_go_on_where_they_were(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.launch.run_main", in_this_process)
    flags = ["--dataset", "digits", *QUICK, "--augment", "off", "--checkpoint-dir", tmp_path]
    code, out, err = run_main(*flags, "--seeds", "3,5")
    results = [json.loads((tmp_path / f"seed-{seed}" / "results.json").read_text()) for seed in (3, 5)]
    assert (code, err, [one["seed"] for one in results]) == (0, [], [3, 5])
    accuracies = [one["test_accuracy_mean"] for one in results]
    error = stdev(accuracies) / 2**0.5
    assert out[-1] == f"test accuracy: {mean(accuracies):.2f} +- {error:.2f} % (2 seeds)"
    written = json.loads((tmp_path / "seeds.json").read_text())
    assert (written["accuracy_mean"], written["accuracy_sem"]) == pytest.approx((mean(accuracies), error))
    assert [row["accuracy_mean"] for row in written["runs"]] == accuracies
    assert [line.split(" | ")[1].split()[0] for line in out[-6:-4]] == [f"{value:.2f}" for value in accuracies]
    (tmp_path / "seed-5" / "results.json").unlink()  # as if it had been stopped
    code, again, _ = run_main(*flags, "--seeds", "3,5")
    assert (code, again[0], again[-1]) == (0, f"seed 3: done already in {tmp_path / 'seed-3'}", out[-1])
    code, _, err = run_main(*flags, "--seeds", "3,5", "--lr", 1)
    assert (code, len(err)) == (2, 1) and "holds runs with no --lr" in err[0]


def test_a_run_and_the_runs_of_several_seeds_do_not_share_a_folder(run_main, tmp_path):
    small = ["--dataset", "digits", "--train-size", "64", "--num-blocks", "1", "--epochs", "1"]
    for name in ("config.json", "flags.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
    code, _, err = run_main(*small, "--seeds", "0,1", "--checkpoint-dir", tmp_path / "config.json")
    assert (code, len(err)) == (2, 1) and "holds a single run" in err[0]
    code, _, err = run_main(*small, "--checkpoint-dir", tmp_path / "flags.json")
    assert (code, len(err)) == (2, 1) and "holds runs of --seeds or --compare" in err[0]

"""Training: orders of the updates, independence of the blocks, schedulers, resuming to the bit, divergence."""

import json
import math

import pytest
import torch
from conftest import SHAPE

from build import new_model
from checkpoint import load_checkpoint
from data import RawImages, training_data
from errors import UserError
from offload import BlockOffload
from optimizers import Updater
from options import parse_flags, settle
from streams import Streams
from train import Trainer, WholeTrainer, update_order


def settings(*flags):
    continuous = {"ct", "fm", "adjoint"} & set(flags)
    args, given = parse_flags(["--dataset", "digits", *([] if continuous else ["--num-blocks", "3"]), *map(str, flags)])
    settle(args, given)
    return args


def make_trainer(run, *flags):
    """A trainer on 96 random images of 4 classes, the brightness of whose corner tells the class."""
    args = settings("--batch-size", 32, "--val-fraction", 0.25, *flags)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 4
    images = torch.randint(60, (128, *SHAPE[1:], 1), generator=generator)
    images[:, :4, :4] += labels[:, None, None, None] * 60
    raw = RawImages(images.to(torch.uint8), labels, list("abcd"))
    streams = Streams(args.seed)
    data = training_data(raw, args.val_fraction, streams)
    model = new_model(args, data.info, data.train, streams)
    return (Trainer if args.method == "dt" else WholeTrainer)(model, data, args, streams, run)


def block_weights(trainer):
    return {k: v for k, v in trainer.model.state_dict().items() if k.startswith("blocks.")}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.mark.parametrize("order", ["interleaved", "sequential", "random"])
def test_every_block_sees_every_batch_once_in_order(order):
    updates = list(update_order(order, 3, 4, torch.Generator().manual_seed(0)))
    for t in (1, 2, 3):
        assert [i for i, blocks in updates if t in blocks] == [0, 1, 2, 3]
    if order == "sequential":
        assert [blocks for _, blocks in updates] == [[1]] * 4 + [[2]] * 4 + [[3]] * 4
    if order == "interleaved":
        assert len(updates) == 4  # one step of the shared parameters for each batch


@pytest.mark.parametrize("precision", [[], ["--amp"]])
def test_blocks_do_not_depend_on_the_order_of_training_to_the_bit(tmp_path, precision):
    weights = []
    for order in ("interleaved", "sequential", "random"):
        trainer = make_trainer(tmp_path / order, "--embedding-type", "one-hot", "--block-order", order, *precision)
        trainer.model.train()
        start = block_weights(trainer)
        start = {k: v.clone() for k, v in start.items()}
        trainer.epoch = 1
        trainer.train_epoch()
        weights.append(block_weights(trainer))
        assert not torch.equal(start["blocks.0.fuse.0.weight"], weights[-1]["blocks.0.fuse.0.weight"])
    assert_equal(weights[0], weights[1])
    assert_equal(weights[0], weights[2])


def test_an_update_changes_its_block_and_the_shared_parameters_only(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    x, y = trainer.batch(torch.arange(32), 0)
    trainer.update_block(2, x, y)
    trainer.shared_gradient.give()
    trainer.shared.step()
    after = trainer.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k for k in changed if not k.startswith("blocks.1.")} == {"W_embed", "theta_out.weight", "theta_out.bias"}
    parameters = {k for k, _ in trainer.model.named_parameters() if k.startswith("blocks.1.")}
    assert parameters <= changed


def test_training_lowers_the_loss_and_learns_the_classes(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 12, "--lr", 0.005, "--block-order", "sequential")
    trainer.fit()
    first, last = trainer.history[0], trainer.history[-1]
    assert all(b < a for a, b in zip(first["loss"], last["loss"], strict=True))
    assert trainer.best["accuracy"] > 60  # chance is 25


@pytest.mark.parametrize("embedding", ["one-hot", "learned", "prototype"])
@pytest.mark.parametrize("order", ["interleaved", "random"])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, embedding, order):
    flags = ["--embedding-type", embedding, "--block-order", order, "--augment", "--warmup-epochs", 2]
    flags += ["--lr-scheduler-patience", 1] if order == "random" else ["--lr-schedule", "cosine"]
    flags += ["--clip-grad-norm", 1]
    whole = make_trainer(tmp_path / "whole", *flags, "--epochs", 4)
    whole.fit()
    part = make_trainer(tmp_path / "part", *flags, "--epochs", 4)
    part.args.epochs = 2
    part.fit()
    resumed = make_trainer(tmp_path / "part", *flags, "--epochs", 4)
    checkpoint = load_checkpoint(tmp_path / "part" / "last.pt")
    resumed.model.load_state_dict(checkpoint["model"])
    resumed.load_state_dict(checkpoint)
    resumed.fit()

    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    last = [load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "part")]
    assert_equal(last[1]["model"], last[0]["model"])
    assert last[0]["best"]["epoch"] == last[1]["best"]["epoch"]
    measured = {"seconds", "images_per_second", "peak_memory_bytes"}
    rows = [[{k: v for k, v in row.items() if k not in measured} for row in c["history"]] for c in last]
    assert rows[0] == rows[1]


def test_the_model_ends_with_the_best_epoch_which_is_in_best_model(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 4)
    trainer.fit()
    accuracies = [row["val_accuracy"] for row in trainer.history]
    best = load_checkpoint(tmp_path / "best_model.pt")
    assert best["epoch"] == accuracies.index(max(accuracies)) + 1
    assert_equal(trainer.model.state_dict(), best["model"])


def test_without_validation_the_last_epoch_counts(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 2)
    trainer.data.validation = trainer.data.validation.subset(slice(0))
    trainer.fit()
    assert trainer.history[0]["val_accuracy"] is None
    assert load_checkpoint(tmp_path / "best_model.pt")["epoch"] == 2


def test_early_stopping_ends_after_its_patience(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 9, "--early-stopping-patience", 2, "--lr", 1e-12)
    trainer.fit()
    assert trainer.epoch == trainer.best["epoch"] + 2 < 9


def test_a_loss_that_is_not_finite_names_block_epoch_and_batch_and_keeps_the_files(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 1)
    trainer.fit()
    kept = (tmp_path / "last.pt").read_bytes()
    trainer.args.epochs = 2
    original, calls = trainer.model.loss, []

    def loss(t, *args):
        terms = original(t, *args)
        calls.append(t)
        return terms._replace(denoise=terms.denoise * float("nan")) if calls.count(2) == 3 and t == 2 else terms

    trainer.model.loss = loss
    with pytest.raises(UserError, match="block 2 is not finite at epoch 2, batch 3"):
        trainer.fit()
    assert (tmp_path / "last.pt").read_bytes() == kept
    assert len(json.loads((tmp_path / "logs" / "training_history.json").read_text())) == 1


def test_bfloat16_autocast_keeps_the_loss(tmp_path):
    losses = []
    for amp in (False, True):
        trainer = make_trainer(tmp_path, *["--amp"] * amp)
        trainer.model.train()
        x, y = trainer.batch(torch.arange(32), 0)
        losses.append(trainer.update_block(2, x, y))
    assert not torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=1e-3)


def test_offloaded_blocks_train_alike_with_one_on_the_device_at_a_time(tmp_path, monkeypatch):
    moves, move = [], BlockOffload._move

    def record(offload, t, device):
        moves.append((t, device == offload.device))
        move(offload, t, device)

    monkeypatch.setattr(BlockOffload, "_move", record)
    flags = ["--embedding-type", "one-hot", "--block-order", "sequential", "--epochs", 2]
    plain = make_trainer(tmp_path / "plain", *flags)
    plain.fit()
    trainer = make_trainer(tmp_path / "offload", *flags)
    offload = BlockOffload(trainer.model, trainer.by_block, torch.device("cpu:0"))  # "the GPU"; home is plain "cpu"
    assert moves == [(1, False), (2, False), (3, False)]
    moves.clear()
    trainer.epoch = 1
    trainer.train_epoch()
    assert moves == [(1, True), (1, False), (2, True), (2, False), (3, True)]  # once per epoch
    assert offload.current == 3
    again = make_trainer(tmp_path / "again", *flags)
    BlockOffload(again.model, again.by_block, torch.device("cpu:0"))
    again.fit()
    assert_equal(again.model.state_dict(), plain.model.state_dict())


def parameter():
    return torch.nn.Parameter(torch.ones(1))


def test_warm_up_rises_linearly_to_the_rate():
    updater, rates = Updater([parameter()], 0.1, 0.0, warmup_steps=5), []
    for _ in range(7):
        rates.append(updater.lr)
        updater.step()
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])


def test_cosine_falls_to_zero_at_the_last_step_after_the_warm_up():
    updater, rates = Updater([parameter()], 0.1, 0.0, warmup_steps=2, cosine_steps=4), []
    for _ in range(6):
        rates.append(updater.lr)
        updater.step()
    half_cosine = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.05, 0.1, *half_cosine], abs=1e-9)


def test_clipping_shortens_long_gradients_only():
    long, short = parameter(), parameter()
    updaters = [Updater([p], 0.1, 0.0, clip_norm=2.0) for p in (long, short)]
    long.grad, short.grad = torch.tensor([50.0]), torch.tensor([1.5])
    seen = []
    for p, updater in zip((long, short), updaters, strict=True):
        updater.optimizer.step = lambda p=p: seen.append(p.grad.item())
        updater.step()
    assert seen == pytest.approx([2.0, 1.5])


def test_plateau_halves_the_rate_after_its_patience():
    updater, rates = Updater([parameter()], 0.1, 0.0, plateau_patience=2), []
    for accuracy in (50, 60, 60, 60, 60, 60):
        updater.end_epoch(accuracy)
        rates.append(updater.lr)
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05])

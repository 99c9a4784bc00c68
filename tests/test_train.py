"""Training: orders of the updates, independence of the blocks, resuming to the bit, divergence, offloading."""

import json

import pytest
import torch
from helpers import assert_equal, differences, make_trainer

from errors import UserError
from optimizers.offload import BlockOffload
from runs.checkpoint import load_checkpoint
from train import update_order


def block_weights(trainer):
    return {k: v for k, v in trainer.model.state_dict().items() if k.startswith("blocks.")}


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
        start = {k: v.clone() for k, v in block_weights(trainer).items()}
        trainer.epoch = 1
        trainer.train_epoch()
        weights.append(block_weights(trainer))
        assert not torch.equal(start["blocks.0.fuse.0.weight"], weights[-1]["blocks.0.fuse.0.weight"])
    assert_equal(weights[0], weights[1])
    assert_equal(weights[0], weights[2])


def test_an_update_changes_its_block_and_the_shared_parameters_only(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    with torch.no_grad():
        trainer.model.W_embed.mul_(0.05)  # embeddings so near that theta_out is not sure of any
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.updates.step([2], trainer.batches.batch(torch.arange(32), 1, 0))
    after = trainer.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k for k in changed if not k.startswith("blocks.1.")} == {"W_embed", "theta_out.weight", "theta_out.bias"}
    parameters = {k for k, _ in trainer.model.named_parameters() if k.startswith("blocks.1.")}
    assert parameters <= changed


def test_in_algorithm_1_a_block_moves_the_embeddings_by_its_own_scale(tmp_path):
    """Gradients of W_embed are far larger from the last block; an Adam state of all blocks would still the first."""
    trainer = make_trainer(tmp_path, "--block-order", "sequential", "--weight-decay", 0)
    trainer.model.train()
    batch, W_embed = trainer.batches.batch(torch.arange(32), 1, 0), trainer.model.W_embed
    for _ in range(3):
        trainer.updates.step([trainer.model.num_blocks], batch)
    before = W_embed.detach().clone()
    trainer.updates.step([1], batch)
    moved = (W_embed - before).abs()
    assert moved.max() < 0.00101 and moved.quantile(0.1) > 0.00099  # Adam's first step is lr, but for gradients near 0


@pytest.mark.parametrize("order", ["interleaved", "sequential"])
def test_no_weight_decay_pulls_on_theta_out(tmp_path, order):
    trainer = make_trainer(tmp_path, "--block-order", order, "--weight-decay", 0.5)
    theta_out = set(trainer.model.theta_out.parameters())
    for updater in trainer.updates.shared:
        decay = {p: g["weight_decay"] for g in updater.optimizer.param_groups for p in g["params"]}
        assert {p: decay[p] for p in theta_out} == dict.fromkeys(theta_out, 0)
        assert decay[trainer.model.W_embed] == 0.5


def test_no_weight_decay_pulls_on_the_schedule_of_ct(tmp_path):
    trainer = make_trainer(tmp_path, "--method", "ct", "--weight-decay", 0.5)
    (updater,), model = trainer.updates.updaters, trainer.model
    free = {p for g in updater.optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert free == {*model.schedule.parameters(), *model.theta_out.parameters()}


def test_one_norm_of_clipping_means_one_thing_for_every_block(tmp_path):
    """Gradients grow with the weight of a block's loss: relative to it they are of one size."""
    updates = make_trainer(tmp_path, "--clip-grad-norm", 0.5).updates
    weights = updates.model.loss_weights
    assert [updates.by_block[t].clip_norm / weights[t - 1] for t in updates.by_block] == pytest.approx([0.5] * 3)
    assert weights[-1] / weights[0] > 100


def test_training_lowers_the_loss_and_learns_the_classes(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 12, "--lr", 0.005, "--block-order", "sequential")
    trainer.fit_all()
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
    whole.fit_all()
    part = make_trainer(tmp_path / "part", *flags, "--epochs", 4)
    part.epochs = 2  # the rate falls as for 4
    part.fit()
    content = load_checkpoint(tmp_path / "part" / "last.pt")
    resumed = make_trainer(tmp_path / "part", *flags, "--epochs", 4, content=content)
    resumed.fit_all()
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert differences(*(load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "part"))) == []


def test_the_model_ends_with_the_best_epoch_which_is_in_best_model(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 4)
    trainer.fit_all()
    accuracies = [row["val_accuracy"] for row in trainer.history]
    best = load_checkpoint(tmp_path / "best_model.pt")
    assert best["epoch"] == accuracies.index(max(accuracies)) + 1
    assert_equal(trainer.model.state_dict(), best["model"])


def test_without_validation_the_last_epoch_counts(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 2, "--val-fraction", 0)
    trainer.fit_all()
    assert trainer.history[0]["val_accuracy"] is None
    assert load_checkpoint(tmp_path / "best_model.pt")["epoch"] == 2


@pytest.mark.usefixtures("without_pictures")
def test_early_stopping_says_so_and_another_patience_goes_on(run_main, tmp_path):
    flags = ["--dataset", "digits", "--num-blocks", 1, "--lr", 1e-12, "--early-stopping-patience", 2]
    _, out, _ = run_main(*flags, "--epochs", 6, "--checkpoint-dir", tmp_path)
    best, last = (load_checkpoint(tmp_path / name)["epoch"] for name in ("best_model.pt", "last.pt"))
    why = f"stopped early: no better validation accuracy since epoch {best} (--early-stopping-patience 2; "
    assert last == best + 2 < 6 and [line.startswith(why) for line in out].count(True) == 1
    _, out, _ = run_main("--checkpoint", tmp_path / "last.pt")
    assert [line[: len(why)] for line in out if line.startswith(("stopped", "epoch"))] == [why]  # nothing is trained
    _, out, _ = run_main("--checkpoint", tmp_path / "last.pt", "--early-stopping-patience", 0)
    assert [line[:7] for line in out if line.startswith(("stopped", "epoch"))] == [
        f"epoch {n}" for n in range(last + 1, 7)
    ]


def test_a_loss_that_is_not_finite_names_block_epoch_and_batch_and_keeps_the_files(tmp_path):
    trainer = make_trainer(tmp_path, "--epochs", 1)
    trainer.fit_all()
    kept = (tmp_path / "last.pt").read_bytes()
    original, calls = trainer.model.loss, []

    def loss(t, *args):
        terms = original(t, *args)
        calls.append(t)
        return terms._replace(denoise=terms.denoise * float("nan")) if calls.count(2) == 3 and t == 2 else terms

    trainer.model.loss, trainer.epochs = loss, 2
    with pytest.raises(UserError, match="block 2 is not finite at epoch 2, batch 3"):
        trainer.fit()
    assert (tmp_path / "last.pt").read_bytes() == kept
    assert len(json.loads((tmp_path / "logs" / "training_history.json").read_text())) == 1


def test_bfloat16_autocast_keeps_the_loss(tmp_path):
    losses = []
    for amp in (False, True):
        trainer = make_trainer(tmp_path, *["--amp"] * amp)
        trainer.model.train()
        losses += trainer.updates.step([2], trainer.batches.batch(torch.arange(32), 1, 0)).values()
    assert not torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=1e-3)


def offload_blocks_of(trainer):
    """Take "cpu:0" for the GPU; home is plain "cpu"."""
    offload = BlockOffload(trainer.model.networks, trainer.updates.by_block, torch.device("cpu:0"))
    trainer.model.before_block = offload.bring


def test_offloaded_blocks_train_alike_with_one_on_the_device_at_a_time(tmp_path, monkeypatch):
    moves, move = [], BlockOffload._move

    def record(offload, t, device):
        moves.append((t, device == offload.device))
        move(offload, t, device)

    monkeypatch.setattr(BlockOffload, "_move", record)
    flags = ["--embedding-type", "one-hot", "--block-order", "sequential", "--epochs", 2]
    plain = make_trainer(tmp_path / "plain", *flags)
    plain.fit_all()
    trainer = make_trainer(tmp_path / "offload", *flags)
    offload_blocks_of(trainer)
    assert moves == [(1, False), (2, False), (3, False)]
    moves.clear()
    trainer.epoch = 1
    trainer.train_epoch()
    assert moves == [(1, True), (1, False), (2, True), (2, False), (3, True)]  # once per epoch
    moves.clear()
    assert list(trainer.model.networks) == [1, 2, 3] and moves == []  # looking at them moves none
    again = make_trainer(tmp_path / "again", *flags)
    offload_blocks_of(again)
    again.fit_all()
    assert_equal(again.model.state_dict(), plain.model.state_dict())


def test_a_trainer_is_built_in_ten_lines_without_a_command_line():
    from functools import partial

    from data import Batches, load_images, training_data
    from models.build import build, draw_weights
    from models.random_streams import Streams
    from optimizers.updater import Updater
    from train import BlockUpdates, Trainer

    streams = Streams(seed=0)
    data = training_data(load_images("digits", "train"), 0.1, streams, train_size=64)
    model = build("dt", torch.eye(10), image_shape=data.info.image_shape, num_blocks=2)
    draw_weights(model, streams)
    batches = Batches(data.train, data.info.normalise, 32, streams)
    updates = BlockUpdates(model, streams, len(batches), partial(Updater.by_epochs, epochs=2))
    trainer = Trainer(model, updates, batches, streams, epochs=2)
    trainer.fit()
    assert trainer.history[1]["loss"][0] < trainer.history[0]["loss"][0]

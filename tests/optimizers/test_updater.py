"""Learning rates over the steps, clipping, plateau."""

import math

import pytest
import torch

from optimizers.updater import Updater, rate_factor


def parameter():
    return torch.nn.Parameter(torch.ones(1))


def test_warm_up_rises_linearly_to_the_rate():
    updater, rates = Updater([parameter()], 0.1, 0.0, warmup_steps=5), []
    for _ in range(7):
        rates.append(updater.lr)
        updater.step()
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])


def test_after_the_warm_up_the_cosine_begins_at_the_full_rate_and_no_step_is_lost():
    updater, rates = Updater([parameter()], 0.1, 0.0, warmup_steps=2, cosine_steps=4), []
    for _ in range(6):
        rates.append(updater.lr)
        updater.step()
    half_cosine = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in (0, 1, 2, 3)]
    assert rates == pytest.approx([0.05, 0.1, *half_cosine], abs=1e-9) and min(rates) > 0.01
    assert [rate_factor(step, 1, 1) for step in (0, 1)] == [1, 1]  # one batch an epoch, two epochs, one to warm up


def test_no_weight_decay_pulls_on_what_is_named():
    free, decayed = parameter(), parameter()
    updater = Updater([decayed, free], 0.1, 0.5, undecayed=[free])
    for each in (free, decayed):
        each.grad = torch.zeros(1)
    updater.step()
    assert free.item() == 1 and decayed.item() == pytest.approx(1 - 0.1 * 0.5)


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

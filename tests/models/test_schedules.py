"""Schedules rise strictly, and the coefficients of eq. 3 satisfy the identities that make the step exact."""

import math

import pytest
import torch

from models.schedules import ALPHA_BAR_CLIP, clip_alpha_bar, make_alpha_bar, snr, step_coefficients

ALL = [(name, T) for name in ("cosine", "linear") for T in (1, 2, 3, 10, 50, 150, 999, 1000)]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_alpha_bar_and_snr_rise_strictly_for_every_T(name):
    for T in range(1, 1001):
        alpha_bar = make_alpha_bar(name, T)
        assert alpha_bar.shape == (T + 1,) and alpha_bar.dtype == torch.float64
        assert alpha_bar.diff().min() > 0 and snr(alpha_bar).diff().min() > 0
        assert (alpha_bar[0].item(), alpha_bar[-1].item()) == pytest.approx(ALPHA_BAR_CLIP, rel=1e-12)


@pytest.mark.parametrize("name, T", ALL)
def test_identities_of_the_step(name, T):
    alpha_bar = make_alpha_bar(name, T)
    previous, now = alpha_bar[:-1], alpha_bar[1:]
    a, b, c = step_coefficients(previous, now)
    torch.testing.assert_close(a + b * previous.sqrt(), now.sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b**2 * (1 - previous) + c, 1 - now, rtol=1e-12, atol=1e-12)


def test_cosine_inside_the_clip_is_the_formula():
    T, s = 10, 0.008
    alpha_bar = make_alpha_bar("cosine", T)
    for t in range(1, T):

        def f(k):
            return math.cos((k / T + s) / (1 + s) * math.pi / 2) ** 2

        assert alpha_bar[t].item() == pytest.approx(f(T - t) / f(0), rel=1e-12)


def test_linear_inside_the_clip_is_t_over_T():
    expected = torch.arange(1, 10, dtype=torch.float64) / 10
    torch.testing.assert_close(make_alpha_bar("linear", 10)[1:-1], expected)


def test_the_clip_sets_the_last_snr():
    assert snr(make_alpha_bar("cosine", 10))[-1].item() == pytest.approx(999, rel=1e-9)
    loose = make_alpha_bar("cosine", 10, (1e-4, 1 - 1e-5))
    assert snr(loose)[-1].item() == pytest.approx(99_999, rel=1e-6)


def test_clip_spreads_only_the_levels_that_would_be_equal():
    raw = torch.tensor([0.0, 0.01, 0.3, 0.6, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.9], dtype=torch.float64)
    torch.testing.assert_close(clip_alpha_bar(raw, 0.1, 0.9), expected)

"""Reading the answer out of many runs, and its calibration."""

import pytest
import torch
from conftest import images_of, make_model

from data import Split
from evaluate import BINS, CalibrationSum, Evaluator, answer, joined_answers, mean_and_error, vote_shares
from models.image_info import ImageInfo
from models.random_streams import Streams


def finished(p, labels):
    total = CalibrationSum(torch.device("cpu"))
    for part in range(0, len(p), 1000):
        total.add(p[part : part + 1000], labels[part : part + 1000])
    return total.finish()


def test_calibration_of_a_known_case():
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 0, 1])
    result = finished(p, labels)
    assert result.nll == pytest.approx(-torch.tensor([0.8, 0.2, 0.6, 0.7]).log().mean().item(), rel=1e-6)
    # two answers of 80 % of which one is right, one of 60 % and one of 70 % that are right
    assert result.ece == pytest.approx(100 * (2 * 0.3 + 0.4 + 0.3) / 4, rel=1e-5)
    assert result.bins.shape == (3, BINS) and result.bins[0].sum() == 4


def test_answers_drawn_from_the_stated_probabilities_are_calibrated():
    torch.manual_seed(0)
    p = torch.randn(200_000, 5).mul(2).softmax(dim=1)
    labels = torch.multinomial(p, 1).squeeze(1)
    assert finished(p, labels).ece < 0.3
    assert finished((3 * p.log()).softmax(dim=1), labels).ece > 10  # overconfident


def test_vote_shares_are_a_distribution_that_is_never_zero():
    p = torch.randn(7, 50, 4).softmax(dim=2)
    shares = vote_shares(p)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(50))
    assert (shares > 0).all()
    assert torch.equal(shares.argmax(dim=1)[:1], torch.tensor([p[:, 0].argmax(dim=1).mode().values]))


def test_answers_of_the_first_runs():
    p = torch.tensor([[[0.6, 0.4, 0.0]], [[0.1, 0.1, 0.8]], [[0.0, 0.55, 0.45]], [[0.1, 0.5, 0.4]]])  # (4, 1, 3)
    joined = joined_answers(p)
    assert joined["vote"].flatten().tolist() == [0, 2, 2, 1]  # ties go to the larger mean
    assert joined["mean"].flatten().tolist() == [0, 2, 2, 2]


def test_the_answer_for_one_image_comes_with_what_it_rests_on():
    p = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.1, 0.8], [0.0, 0.55, 0.45], [0.1, 0.5, 0.4]])  # (4, 3)
    expected = {"sample": (0, 0.6), "vote": (1, 0.5), "mean": (2, (0.8 + 0.45 + 0.4) / 4)}
    for readout, (y, sure) in expected.items():
        assert answer(p, readout) == (y, pytest.approx(sure))


def test_mean_and_standard_error():
    assert mean_and_error([3.0]) == (3.0, 0.0)
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))


def test_predictions_do_not_depend_on_the_labels():
    model = make_model(m=4)
    y = torch.arange(40) % 4
    images = (images_of(y) + torch.randn(40, 1, 8, 8)).mul(20).byte().permute(0, 2, 3, 1)
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [0.0], [1.0])
    evaluator = Evaluator(model, Streams(0), ways=[{}], runs=3)
    results = [evaluator.evaluate(Split(images, labels)) for labels in (y, y.flip(0), y[torch.randperm(40)])]
    predicted = [result.confusion.sum(0) for result in results]  # how often each class is predicted
    assert torch.equal(predicted[0], predicted[1]) and torch.equal(predicted[0], predicted[2])

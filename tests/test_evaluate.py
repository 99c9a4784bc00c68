"""Reading the answer out of many runs, and its calibration."""

import pytest
import torch
from conftest import Oracle, images_of, make_model

from data import Split, TrainingData
from evaluate import Answers, Evaluator, accuracies_after_epoch, ask, best_answers, joined, mean_and_error, vote_shares
from models.build import build
from models.calibration import BINS, CalibrationSum
from models.image_info import ImageInfo, images_at_a_time
from models.NoProp_FM import NoPropNetFM
from models.random_streams import Streams


def finished(p, labels):
    total = CalibrationSum(torch.device("cpu"))
    for part in range(0, len(p), 1000):
        some = p[part : part + 1000]
        total.add(some, some.argmax(dim=1), labels[part : part + 1000])
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
    # by chance a bin of n answers is off by 0.8 sqrt(p (1 - p) / n) on average, p (1 - p) at most a quarter
    assert finished(p, labels).ece < 100 * 2 * (BINS / 4 / len(p)) ** 0.5
    assert finished((3 * p.log()).softmax(dim=1), labels).ece > 10  # overconfident


def test_vote_shares_are_a_distribution_that_is_never_zero():
    p = torch.randn(7, 50, 4).softmax(dim=2)
    shares = vote_shares(p)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(50))
    assert (shares > 0).all()
    assert torch.equal(shares.argmax(dim=1)[:1], torch.tensor([p[:, 0].argmax(dim=1).mode().values]))


def test_answers_of_the_first_runs():
    p = torch.tensor([[[0.6, 0.4, 0.0]], [[0.1, 0.1, 0.8]], [[0.0, 0.55, 0.45]], [[0.1, 0.5, 0.4]]])  # (4, 1, 3)
    first = {name: joined(Answers(p, p, None), name, None).argmax(dim=2).flatten() for name in ("vote", "mean")}
    assert first["vote"].tolist() == [0, 2, 2, 1]  # ties go to the larger mean
    assert first["mean"].tolist() == [0, 2, 2, 2]


def test_the_best_answers_come_with_what_they_rest_on():
    p = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.1, 0.8], [0.0, 0.55, 0.45], [0.1, 0.5, 0.4]])  # (4, 3)
    votes = [(2 + 1 / 3) / 5, (1 + 1 / 3) / 5]
    means = [0.8 / 4, (0.4 + 0.1 + 0.55 + 0.5) / 4, (0.8 + 0.45 + 0.4) / 4]
    expected = {"sample": ([0, 1, 2], [0.6, 0.4, 0.0]), "vote": ([1, 2, 0], [votes[0], votes[1], votes[1]])}
    expected["mean"] = ([2, 1, 0], means[::-1])
    answers = Answers(p.unsqueeze(1), p.unsqueeze(1), None)
    for readout, (classes, sure) in expected.items():
        for k in (1, 3):
            y, share = best_answers(answers, readout, None, k)
            assert y.tolist() == [classes[:k]] and share[0].tolist() == pytest.approx(sure[:k])


def made_answers(runs=3, batch=4, m=5, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p, u_hat = (torch.randn(runs, batch, m, generator=generator).softmax(dim=2) for _ in range(2))
    return Answers(p, torch.randn(runs, batch, d, generator=generator), u_hat)


def test_ensemble_is_the_mean_of_the_blocks_own_class_weights_over_blocks_and_runs():
    model = make_model(num_blocks=3, m=4).eval()
    x, generators = torch.randn(6, 1, 8, 8), [torch.Generator().manual_seed(r) for r in range(2)]
    seen = []
    answers = ask(model, x, generators, lambda step, z, weights: seen.append(weights))
    expected = torch.stack(seen).mean(dim=(0, 1))  # (B, m) of (T, R, B, m)
    torch.testing.assert_close(joined(answers, "ensemble", model)[-1], expected)
    assert len(seen) == 3 and answers.probabilities.shape == (2, 6, 4)


def test_mean_z_is_the_embedding_nearest_to_the_mean_of_z():
    W = torch.tensor([[0.0, 0], [4, 0], [0, 4]])
    model = NoPropNetFM((1, 8, 8), W)
    z = torch.tensor([[[3.9, 0.0]], [[-3.0, 3.9]], [[-0.9, 0.0]]])  # (R, 1, d); each run of another class
    answers = Answers(model.log_prob(z).exp(), z, None)
    assert joined(answers, "mean-z", model).argmax(dim=2).flatten().tolist() == [1, 0, 0]
    assert answers.probabilities.argmax(dim=2).flatten().tolist() == [1, 2, 0]


def test_joined_readouts_of_one_run_are_that_run():
    answers, model = made_answers(runs=1), make_model(m=5)
    assert torch.equal(joined(answers, "mean", model), answers.probabilities)
    assert torch.equal(joined(answers, "ensemble", model), answers.u_hat)


def test_as_many_right_answers_are_equal_accuracies_however_they_are_spread():
    spread = [[100 * n / 720 for n in right] for right in ([716, 716, 715, 713, 720], [720, 720, 720, 720, 700])]
    assert mean_and_error(spread[0])[0] == mean_and_error(spread[1])[0] == pytest.approx(100 * 716 / 720)


@pytest.mark.parametrize("side, images", [(8, 500), (32, 500), (64, 125), (192, 13), (2000, 1)])
def test_of_larger_images_fewer_are_evaluated_at_a_time(side, images):
    assert images_at_a_time(side, side) == images


def test_the_batch_of_an_evaluation_can_be_set():
    model, sizes = make_model(m=4), []
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [0.0], [1.0])
    denoise = model.denoise
    model.denoise = lambda x, *args, **how: sizes.append(len(x)) or denoise(x, *args, **how)
    split = Split(torch.zeros(10, 8, 8, 1, dtype=torch.uint8), torch.arange(10) % 4)
    Evaluator(model, Streams(0), ways=[{}], runs=1, batch_size=4).evaluate(split)
    assert sizes == [4, 4, 2]


def test_with_mirror_images_an_image_and_its_mirror_image_get_the_same_answer():
    model = build("classifier", torch.eye(4), image_shape=(1, 8, 8)).eval()
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [128.0], [60.0])
    images = torch.randint(256, (6, 8, 8, 1), dtype=torch.uint8)
    x, mirrored = model.see(images), model.see(images.flip(2))
    alone = ask(model, x, [None]).probabilities
    one, two = ask(model, x, [None], mirrored=mirrored), ask(model, mirrored, [None], mirrored=x)
    assert torch.equal(one.probabilities, two.probabilities) and not torch.equal(one.probabilities, alone)


def random_split(images=40):
    torch.manual_seed(0)
    return Split(torch.randint(256, (images, 8, 8, 1), dtype=torch.uint8), torch.arange(images) % 4)


def test_with_mirror_images_what_is_said_on_the_way_is_averaged_too():
    model = make_model(m=4, num_blocks=2, alpha_bar_clip=(0.01, 0.6))
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [128.0], [1.0])
    alone, both = (Evaluator(model, Streams(0), ways=[{}], mirror=m).evaluate(random_split()) for m in (False, True))
    assert both.per_run != alone.per_run and both.per_step_u_hat != alone.per_step_u_hat
    for result in (alone, both):  # the last step is the answer
        assert result.per_step_accuracy[-1] == pytest.approx(sum(result.per_run) / len(result.per_run), abs=1e-4)


def test_calibration_is_of_the_answers_that_are_counted_also_where_votes_tie():
    model = make_model(m=4, num_blocks=2, alpha_bar_clip=(0.01, 0.6))
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [128.0], [1.0])
    result = Evaluator(model, Streams(0), ways=[{}], runs=4).evaluate(random_split(200))
    for name, accuracies in result.by_runs.items():
        count, _, correct = result.calibration[name].bins
        assert 100 * (count * correct).sum().item() / 200 == pytest.approx(accuracies[-1], abs=1e-4)


@pytest.mark.parametrize("readout", ["sample", "mean"])
def test_top_5_and_accuracy_by_class(readout):
    model = make_model(m=7)
    model.info = ImageInfo(list("abcdefg"), (1, 8, 8), [0.0], [1.0])
    ranks = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1], [7, 6, 5, 4, 3, 2, 1]]).softmax(dim=1)
    model.log_prob = lambda z: ranks.log().expand(len(z), -1, -1)  # for both images a, b, c ... g in this order
    split = Split(torch.zeros(2, 8, 8, 1, dtype=torch.uint8), torch.tensor([0, 5]))
    result = Evaluator(model, Streams(0), ways=[{}], runs=3, readout=readout).evaluate(split)
    assert result.top5 == 50 and result.accuracy()[0] == 50
    assert result.by_class == [100, None, None, None, None, 0, None]


def test_mean_and_standard_error():
    assert mean_and_error([3.0]) == (3.0, 0.0)
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))


def test_predictions_do_not_depend_on_the_labels():
    model = make_model(m=4)
    y = torch.arange(40) % 4
    images = (images_of(y) + torch.randn(40, 1, 8, 8)).mul(20).byte().permute(0, 2, 3, 1)
    model.info = ImageInfo(list("abcd"), (1, 8, 8), [0.0], [1.0])
    evaluator = Evaluator(model, Streams(0), ways=[{}], runs=3)
    results = [evaluator.evaluate(Split(images, labels)) for labels in (y, y.flip(0), torch.zeros_like(y))]
    predicted = [result.confusion.sum(0) for result in results]  # how often each class is predicted
    assert torch.equal(predicted[0], predicted[1]) and torch.equal(predicted[0], predicted[2])


def split_of(y):
    """Return images that tell an Oracle their class, and the statistics that leave them as they are."""
    return Split(images_of(y).byte().permute(0, 2, 3, 1), y), ImageInfo(list("abcd"), (1, 8, 8), [0.0], [1.0])


def test_the_class_of_a_blocks_own_u_hat_is_counted_apart_from_that_of_z():
    model = make_model(num_blocks=2)
    model.blocks["0"], model.blocks["1"] = Oracle(4), Oracle(4, shift=1)  # the first knows the class, the second errs
    split, model.info = split_of(torch.arange(40) % 4)
    result = Evaluator(model, Streams(0), ways=[{}], runs=3).evaluate(split)
    assert result.per_step_u_hat == [100, 0] and result.accuracy()[0] < 5


def test_the_accuracies_after_an_epoch_are_of_training_and_validation_images_each():
    model = make_model(num_blocks=1)
    model.blocks["0"] = Oracle(4)
    train, model.info = split_of(torch.arange(40) % 4)
    validation = Split(train.images, (train.labels + 1) % 4)  # whose labels are all wrong
    evaluator = Evaluator(model, Streams(0), ways=[{}], runs=1)
    data = TrainingData(model.info, train, validation, fingerprint="")
    row, result = accuracies_after_epoch(evaluator, data, watched=train)
    assert row["train_accuracy"] == row["test_accuracy"] > 95 and row["val_accuracy"] == result.accuracy()[0] < 5

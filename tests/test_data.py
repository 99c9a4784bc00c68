"""Data sets: sizes, statistics, splits, batches, augmentation."""

import pytest
import torch
from torch.nn import functional as F

from data import GREY, Batches, augment, channel_statistics, load_images, scaled, training_data
from errors import UserError
from loaders import RawImages
from models.random_streams import Streams


def random_raw(count=50, m=5, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 8, 6, channels), dtype=torch.uint8, generator=generator)
    return RawImages(images, torch.arange(count) % m, [str(y) for y in range(m)])


def test_digits_are_all_there_and_no_test_image_is_trained_on():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert train.images.dtype == torch.uint8 and train.images.shape[1:] == (8, 8, 1)
    from sklearn.datasets import load_digits

    all_rows = sorted(map(tuple, torch.cat([train.images, test.images]).flatten(1).tolist()))
    expected = (load_digits().data * 255 / 16).round().astype(int)
    assert all_rows == sorted(map(tuple, expected.tolist()))


def test_statistics_are_those_of_the_training_part_alone():
    raw = random_raw()
    raw.images[:25] //= 4
    data = training_data(raw, 0.3, Streams(0))
    pixels = data.train.images.double().flatten(0, 2)  # (N*H*W, C)
    torch.testing.assert_close(torch.tensor(data.info.mean, dtype=torch.float64), pixels.mean(0))
    torch.testing.assert_close(torch.tensor(data.info.std, dtype=torch.float64), pixels.std(0, correction=0))
    x = data.info.normalise(data.train.images)
    assert x.shape == (35, 3, 8, 6) and x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_constant_channel_does_not_divide_by_zero():
    assert channel_statistics(torch.full((4, 2, 2, 1), 7, dtype=torch.uint8)) == ([7.0], [1.0])


def test_split_holds_out_the_stated_part_and_follows_from_images_and_seed():
    raw, mixed = random_raw(), torch.randperm(50)
    in_another_order = RawImages(raw.images[mixed], raw.labels[mixed], raw.classes)
    first, other = (training_data(raw, 0.2, Streams(seed)) for seed in (0, 1))
    again = training_data(in_another_order, 0.2, Streams(0))
    assert (len(first.train), len(first.validation)) == (40, 10)
    assert torch.equal(first.validation.images, again.validation.images) and first.fingerprint == again.fingerprint
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    both = torch.cat([first.train.images, first.validation.images]).flatten(1).tolist()
    assert sorted(both) == sorted(raw.images.flatten(1).tolist())
    assert len(training_data(raw, 0.0, Streams(0)).train) == 50


def test_split_holds_out_the_same_part_of_every_class():
    images = torch.randint(256, (400, 4, 4, 1), dtype=torch.uint8)
    labels = torch.tensor([0] * 300 + [1] * 60 + [2] * 35 + [3] * 4 + [4])
    data = training_data(RawImages(images, labels, list("abcde")), 0.1, Streams(0))
    assert data.validation.labels.bincount(minlength=5).tolist() == [30, 6, 4, 0, 0]
    assert data.train.labels.bincount(minlength=5).tolist() == [270, 54, 31, 4, 1]
    nearly_all = training_data(RawImages(images, labels, list("abcde")), 0.9, Streams(0))
    assert nearly_all.train.labels.bincount(minlength=5).min() == 1


@pytest.mark.parametrize("change", ["added", "removed", "changed"])
def test_the_fingerprint_tells_other_images(change):
    raw = random_raw()
    images, labels = raw.images.clone(), raw.labels
    if change == "added":
        images, labels = torch.cat([images, images[:1] // 2]), torch.cat([labels, labels[:1]])
    elif change == "removed":
        images, labels = images[1:], labels[1:]
    else:
        images[0, 0, 0, 0] ^= 1
    other = training_data(RawImages(images, labels, raw.classes), 0.2, Streams(0))
    assert other.fingerprint != training_data(raw, 0.2, Streams(0)).fingerprint


def test_epoch_batches_hold_every_index_once_and_never_a_single_one():
    raw = random_raw(257)
    data = training_data(raw, 0.0, Streams(0))
    epoch = Batches(data.train, data.info.normalise, 128, Streams(0))
    batches = epoch.indices(torch.Generator().manual_seed(0))
    assert len(epoch) == len(batches)
    assert [len(b) for b in batches] == [128, 129]
    assert sorted(torch.cat(batches).tolist()) == list(range(257))


def test_augment_shifts_windows_whose_border_is_reflected():
    images = torch.randint(1, 256, (200, 8, 8, 1), dtype=torch.uint8)
    out = augment(images, torch.Generator().manual_seed(0), ["crop"])
    assert out.shape == images.shape and out.dtype == torch.uint8
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="reflect").permute(0, 2, 3, 1).byte()
    shifts = set()
    for before, after in zip(padded, out, strict=True):
        found = [(i, j) for i in range(3) for j in range(3) if torch.equal(before[i : i + 8, j : j + 8], after)]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 9


def test_cutout_covers_one_square_with_grey_and_nothing_else():
    images = torch.full((200, 16, 16, 3), 7, dtype=torch.uint8)
    covered = augment(images, torch.Generator().manual_seed(0), ["cutout"]) == GREY
    rows, columns = covered.any(dim=3).any(dim=2).sum(dim=1), covered.any(dim=3).any(dim=1).sum(dim=1)
    assert torch.equal(covered.sum(dim=(1, 2, 3)), 3 * rows * columns)  # rectangles: squares that may stick out
    assert rows.max() == columns.max() == 4 and rows.min() == 1


def test_images_of_every_data_set_can_be_scaled():
    train, test = (load_images("digits", part, image_size=16) for part in ("train", "test"))
    assert train.image_shape == test.image_shape == (1, 16, 16)
    flat = torch.full((2, 8, 8, 1), 93, dtype=torch.uint8)
    assert torch.equal(scaled(flat, 12), torch.full((2, 12, 12, 1), 93, dtype=torch.uint8))


def test_augment_mirrors_only_where_it_is_asked_for():
    images = torch.randint(1, 256, (200, 8, 8, 1), dtype=torch.uint8)
    flipped = augment(images, torch.Generator().manual_seed(0), ["flip"])
    mirrored = sum(torch.equal(a.flip(1), b) for a, b in zip(images, flipped, strict=True))
    upright = sum(torch.equal(a, b) for a, b in zip(images, flipped, strict=True))
    assert mirrored + upright == 200 and min(mirrored, upright) > 70
    both = augment(images, torch.Generator().manual_seed(0), ["crop", "flip"])
    assert torch.equal(both, augment(images, torch.Generator().manual_seed(0), ["flip", "crop"]))
    assert not torch.equal(both, augment(images, torch.Generator().manual_seed(0), ["crop"]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_train_size_draws_classes_fairly_beside_a_validation_split(seed):
    some = training_data(random_raw(3000, m=10), 0.1, Streams(seed), train_size=300)
    counts = torch.bincount(some.train.labels)
    assert (counts - 30).square().sum() / 30 < 27.9  # chi-squared of 9 degrees of freedom: p = 0.001


def test_train_size_takes_the_last_of_the_drawn_order_and_leaves_the_validation_part():
    whole, some = (training_data(random_raw(50), 0.2, Streams(3), train_size=n) for n in (None, 7))
    assert torch.equal(some.train.images, whole.train.images[-7:])
    assert torch.equal(some.validation.images, whole.validation.images)
    assert len(training_data(random_raw(50), 0.2, Streams(3), train_size=40).train) == 40
    with pytest.raises(UserError, match="--train-size 41 is more than the 40"):
        training_data(random_raw(50), 0.2, Streams(3), train_size=41)


def test_a_batch_makes_its_images_only_where_they_are_asked_for():
    data = training_data(random_raw(), 0.0, Streams(0))
    made = []

    def see(images):
        made.append(len(images))
        return data.info.normalise(images)

    batches = Batches(data.train, see, 10, Streams(0), augment=["crop"])
    batch = batches.batch(torch.arange(10), 1, 0)
    assert batch.y.tolist() == data.train.labels[:10].tolist() and made == []
    assert batch.x is batch.x and made == [10]
    assert torch.equal(batch.x, batches.batch(torch.arange(10), 1, 0).x)  # augmented by a stream of its own
    assert not torch.equal(batch.x, batches.batch(torch.arange(10), 2, 0).x)

"""Datasets: sizes, statistics, splits, batches, augmentation, own images of every kind."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import Batches, augment, channel_statistics, load_images, training_data
from errors import UserError
from loaders import RawImages
from loaders.image_folder import decode_image
from models.image_info import ImageInfo
from models.random_streams import Streams


def random_raw(count=50, m=5, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 8, 6, channels), dtype=torch.uint8, generator=generator)
    return RawImages(images, torch.arange(count) % m, [str(y) for y in range(m)])


def make_folder(root, counts=(3, 3), classes=("cat", "dog"), size=(8, 8), mode="RGB"):
    for part in ("train", "test"):
        for name, count in zip(classes, counts, strict=True):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / part / name / f"{i}.png")
    return root


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


def test_split_holds_out_the_stated_part_and_depends_on_the_seed_alone():
    raw = random_raw()
    first, again, other = (training_data(raw, 0.2, Streams(seed)) for seed in (0, 0, 1))
    assert (len(first.train), len(first.validation)) == (40, 10)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    both = torch.cat([first.train.images, first.validation.images]).flatten(1).tolist()
    assert sorted(both) == sorted(raw.images.flatten(1).tolist())
    assert len(training_data(raw, 0.0, Streams(0)).train) == 50


def test_epoch_batches_hold_every_index_once_and_never_a_single_one():
    raw = random_raw(257)
    data = training_data(raw, 0.0, Streams(0))
    epoch = Batches(data.train, data.info, 128, Streams(0))
    batches = epoch.indices(torch.Generator().manual_seed(0))
    assert len(epoch) == len(batches)
    assert [len(b) for b in batches] == [128, 129]
    assert sorted(torch.cat(batches).tolist()) == list(range(257))


def test_augment_crops_shifted_windows_and_mirrors():
    images = torch.randint(1, 256, (200, 8, 8, 1), dtype=torch.uint8)
    out = augment(images, torch.Generator().manual_seed(0), mirror=False)
    assert out.shape == images.shape and out.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (0, 0, 1, 1, 1, 1))
    shifts = set()
    for before, after in zip(padded, out, strict=True):
        found = [(i, j) for i in range(3) for j in range(3) if torch.equal(before[i : i + 8, j : j + 8], after)]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 9
    flipped = augment(images, torch.Generator().manual_seed(0), mirror=True)
    mirrored = sum(torch.equal(a.flip(1), b) for a, b in zip(images, flipped, strict=True))
    upright = sum(torch.equal(a, b) for a, b in zip(images, flipped, strict=True))
    assert mirrored > 2 and upright > 2


def test_folder_has_classes_by_name_and_colour_from_the_data(tmp_path):
    raw = load_images("folder", "train", data_dir=str(make_folder(tmp_path / "colour", counts=(3, 2))))
    assert raw.classes == ["cat", "dog"] and raw.labels.tolist() == [0, 0, 0, 1, 1]
    assert raw.images.shape == (5, 8, 8, 3)
    with Image.open(tmp_path / "colour" / "train" / "cat" / "0.png") as image:
        assert np.array_equal(raw.images[0].numpy(), np.asarray(image))
    grey = load_images("folder", "train", data_dir=str(make_folder(tmp_path / "grey", mode="L")))
    assert grey.images.shape == (6, 8, 8, 1)


def test_folder_sizes(tmp_path):
    root = make_folder(tmp_path, size=(40, 20))
    assert load_images("folder", "train", data_dir=str(root)).images.shape[1:3] == (20, 40)
    assert load_images("folder", "train", data_dir=str(root), image_size=16).images.shape[1:3] == (16, 16)
    assert load_images("folder", "test", data_dir=str(root), shape=(1, 9, 7)).images.shape[1:] == (9, 7, 1)
    Image.new("RGB", (12, 5)).save(root / "train" / "cat" / "odd.png")
    assert load_images("folder", "train", data_dir=str(root)).images.shape[1:3] == (32, 32)
    large = make_folder(tmp_path / "large", size=(100, 100))
    assert load_images("folder", "train", data_dir=str(large)).images.shape[1:3] == (32, 32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_of_any_mode_keeps_its_brightness(tmp_path, mode):
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:, 4:] = 255
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert("RGB" if mode in ("P", "CMYK") else mode).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    decoded = decode_image(str(path), (8, 8)).astype(int)
    assert np.abs(decoded - pixels[..., None]).max() <= 1


def test_transparency_is_laid_on_white_and_exif_turned_upright(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode_image(str(tmp_path / "clear.png"), (4, 4)).min() == 255
    image = Image.new("L", (4, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[274] = 3  # stored upside down
    image.save(tmp_path / "turned.png", exif=exif)
    assert decode_image(str(tmp_path / "turned.png"), (4, 4))[3, 3, 0] == 255


def test_broken_layouts_are_named(tmp_path):
    def message(root):
        with pytest.raises(UserError) as caught:
            load_images("folder", "train", data_dir=str(root))
        return str(caught.value)

    assert "no folder" in message(tmp_path / "none")
    (tmp_path / "train").mkdir()
    assert "no class folder" in message(tmp_path)
    make_folder(tmp_path / "one", counts=(2,), classes=("cat",))
    assert "one class only" in message(tmp_path / "one")
    make_folder(tmp_path / "empty", counts=(2, 0))
    assert "dog" in message(tmp_path / "empty")
    root = make_folder(tmp_path / "broken")
    (root / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert "1.png" in message(root)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="val-fraction"):
        training_data(random_raw(3), 0.1, Streams(0))
    with pytest.raises(UserError, match="too few"):
        training_data(random_raw(3), 0.9, Streams(0))


def test_train_size_takes_the_first_of_the_drawn_order_and_leaves_the_validation_part():
    whole, some = (training_data(random_raw(50), 0.2, Streams(3), train_size=n) for n in (None, 7))
    assert torch.equal(some.train.images, whole.train.images[:7])
    assert torch.equal(some.validation.images, whole.validation.images)
    assert len(training_data(random_raw(50), 0.2, Streams(3), train_size=40).train) == 40
    with pytest.raises(UserError, match="--train-size 41 is more than the 40"):
        training_data(random_raw(50), 0.2, Streams(3), train_size=41)


def test_info_survives_plain_data():
    from dataclasses import asdict

    info = ImageInfo(["a", "b"], (1, 8, 8), [1.0], [2.0])
    assert ImageInfo(**asdict(info)) == info


def test_a_batch_makes_its_images_only_where_they_are_asked_for():
    data = training_data(random_raw(), 0.0, Streams(0))
    batches, made = Batches(data.train, data.info, 10, Streams(0), augment=True), []
    normalise = data.info.normalise
    data.info.normalise = lambda images: made.append(len(images)) or normalise(images)
    batch = batches.batch(torch.arange(10), 1, 0)
    assert batch.y.tolist() == data.train.labels[:10].tolist() and made == []
    assert batch.x is batch.x and made == [10]
    assert torch.equal(batch.x, batches.batch(torch.arange(10), 1, 0).x)  # augmented by a stream of its own
    assert not torch.equal(batch.x, batches.batch(torch.arange(10), 2, 0).x)

"""Images in one NumPy file, laid out as MedMNIST."""

import numpy as np
import pytest

from errors import UserError
from loaders.npz import load_npz


def make_file(path, **changes):
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 30), ("val", 6), ("test", 9)):
        arrays[f"{part}_images"] = generator.integers(256, size=(count, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % 3 + 5)[:, None]
    arrays |= changes
    np.savez_compressed(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_the_parts_and_classes_of_a_file(tmp_path):
    path = make_file(tmp_path / "x.npz", test_labels=np.array([7] * 9))
    train, validation, test = (load_npz(part, str(path)) for part in ("train", "validation", "test"))
    assert (
        train.images.shape == (30, 8, 8, 1)
        and train.classes == ["5", "6", "7"]
        and train.labels[:4].tolist() == [0, 1, 2, 0]
    )
    assert len(validation.labels) == 6 and test.labels.tolist() == [2] * 9 and test.classes == train.classes
    assert load_npz("validation", str(make_file(tmp_path / "y.npz", val_images=None))) is None


def test_it_trains_with_its_own_validation_images(tmp_path, run_main):
    flags = ["--dataset", "npz", "--data-dir", make_file(tmp_path / "x.npz"), "--num-blocks", 1, "--epochs", 1]
    code, out, err = run_main(*flags, "--checkpoint-dir", tmp_path / "run")
    assert (code, err) == (0, []) and "npz: 30 training, 6 validation, 9 test images 1x8x8, 3 classes" in "\n".join(out)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train_images": np.zeros((30, 8, 8), dtype=np.float32)}, "its images are float32, not uint8"),
        ({"train_images": np.zeros((30, 8, 8, 4), dtype=np.uint8)}, "30x8x8x4"),
        ({"train_labels": np.zeros((30, 14), dtype=np.uint8)}, "not one whole number an image"),
        ({"train_labels": None}, "it has no array train_labels"),
    ],
)
def test_arrays_of_another_kind_are_refused_in_words(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load_npz("train", str(make_file(tmp_path / "x.npz", **changes)))

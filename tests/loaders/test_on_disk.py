"""Own images that stay on disk: equal to the bit to those in memory, made once, and never half."""

import os

import numpy as np
import pytest
import torch
from helpers import assert_equal, weights
from pictures import make_folder
from PIL import Image

from data import training_data
from errors import UserError
from loaders.image_folder import load_folder
from loaders.on_disk import ImagesOnDisk
from models.random_streams import Streams


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr("loaders.on_disk.MOST_IN_MEMORY", 0)


def make_coloured(root, count=30, grey=False, seed=0):
    draw = np.random.default_rng(seed)
    for part in ("train", "test"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(256, size=(12 + i % 3, 10, 1 if grey else 3), dtype=np.uint8)
                Image.fromarray(pixels.repeat(3 // pixels.shape[2], axis=2)).save(root / part / name / f"{i}.png")
    return str(root)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("shape", [None, (1, 9, 9), (3, 9, 9)])
def test_images_and_splits_are_those_of_the_memory(tmp_path, monkeypatch, grey, shape):
    root, cache = make_coloured(tmp_path / "set", grey=grey), tmp_path / "cache"
    inside = load_folder("train", root, 9, shape, cache)
    monkeypatch.setattr("loaders.on_disk.MOST_IN_MEMORY", 0)
    monkeypatch.setattr("loaders.on_disk.CHUNK", 7 * 9 * 9 * 3)
    outside = load_folder("train", root, 9, shape, cache)
    assert isinstance(outside.images, ImagesOnDisk) and torch.equal(outside.images[:], inside.images)
    assert outside.image_shape == inside.image_shape and str(cache) in outside.notes[0]
    assert inside.notes == outside.notes[1:] == ("the images are scaled from 10-14 to 9 pixels",)
    one, other = (training_data(raw, 0.2, Streams(0)) for raw in (inside, outside))
    assert (one.fingerprint, one.info) == (other.fingerprint, other.info)
    for mine, its in ((one.train, other.train), (one.validation, other.validation)):
        assert torch.equal(its.images[:], mine.images) and torch.equal(its.labels, mine.labels)
        assert isinstance(its.subset(slice(3)).images, ImagesOnDisk)
        assert all(map(torch.equal, mine.images.split(4), [part[:] for part in its.images.split(4)]))


@pytest.mark.usefixtures("without_pictures")
def test_a_training_is_the_same_to_the_bit(tmp_path, monkeypatch, run_main):
    flags = ["--dataset", "folder", "--data-dir", make_coloured(tmp_path / "set"), "--num-blocks", 2, "--epochs", 2]
    flags += ["--augment", "--embedding-type", "prototype", "--test-every-epoch", "--batch-size", 16]
    assert run_main(*flags, "--checkpoint-dir", tmp_path / "memory")[0] == 0
    monkeypatch.setattr("loaders.on_disk.MOST_IN_MEMORY", 0)
    code, out, err = run_main(*flags, "--checkpoint-dir", tmp_path / "disk")
    assert (code, err) == (0, []) and sum("images.cache" in line for line in out) == 2
    assert_equal(weights(tmp_path / "disk"), weights(tmp_path / "memory"))
    code, again, _ = run_main("--evaluate", "--checkpoint", tmp_path / "disk/best_model.pt")
    assert code == 0 and again[-1] == out[-1]


@pytest.mark.usefixtures("no_memory")
def test_the_file_is_made_once_and_anew_for_other_images(tmp_path, monkeypatch):
    root, cache = make_coloured(tmp_path / "set"), tmp_path / "cache"
    first = load_folder("train", root, 9, None, cache)
    (made,) = cache.glob("train-*.npy")
    with monkeypatch.context() as patch:
        patch.setattr("loaders.image_folder.decode_image", lambda *_: pytest.fail("decoded again"))
        again = load_folder("train", root, 9, None, cache)
    assert torch.equal(again.images[:], first.images[:]) and again.notes == first.notes
    changed = os.path.join(root, "train", "a", "0.png")
    os.utime(changed, ns=(1, 1))
    load_folder("train", root, 9, None, cache)
    (anew,) = cache.glob("train-*.npy")
    assert anew != made


@pytest.mark.usefixtures("no_memory")
def test_what_is_cut_off_or_broken_leaves_nothing_half(tmp_path, monkeypatch):
    root, cache = make_coloured(tmp_path / "set"), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("loaders.on_disk.os.fsync", lambda _: os._exit(9))
        if (child := os.fork()) == 0:
            load_folder("train", root, 9, None, cache)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9 and not list(cache.glob("train-*"))
    assert len(load_folder("train", root, 9, None, cache).images) == 60
    assert {path.name for path in cache.iterdir()} - {".lock"} == {path.name for path in cache.glob("train-*.npy")}
    broken = os.path.join(root, "test", "a", "0.png")
    with open(broken, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match="does not open"):
        load_folder("test", root, 9, None, cache)
    assert not [path for path in cache.iterdir() if "test" in path.name]


@pytest.mark.usefixtures("no_memory")
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    root = str(make_folder(tmp_path / "set"))
    with pytest.raises(UserError, match="--checkpoint-dir"):
        load_folder("train", root, 9, None, tmp_path / "file" / "cache")

"""Own images of every kind, and folders, classes and files with names of every kind: what is odd and good works."""

import os

import numpy as np
import pytest
from helpers import call
from pictures import make_folder
from PIL import Image

from data import load_images
from errors import UserError, printable
from loaders.image_folder import decode_image, load_folder

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
ODD_NAMES = [
    "a b",
    'it\'s "q"',
    "ünï 猫",
    "-dash",
    "new\nline",
    "tab\tx",
    "\x1b[31mred",
    "$x^",
    os.fsdecode(b"\xff\xfe"),
]


def decoded(path, image, **how):
    image.save(path, **how)
    return decode_image(str(path), (8, 8))


def test_16_bits_are_cut_to_8(tmp_path):
    deep = RAMP.astype(np.uint16) * 256 + 255
    kinds = [
        (deep, "x.png"),
        (deep, "x.tif"),
        (deep.astype(">u2"), "big-endian.tif"),
        (deep.astype(np.int32), "x.tiff"),
    ]
    for pixels, name in kinds:
        assert np.array_equal(decoded(tmp_path / name, Image.fromarray(pixels)), np.stack([RAMP] * 3, axis=-1)), name
    (tmp_path / "x.pgm").write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    assert np.array_equal(decode_image(str(tmp_path / "x.pgm"), (8, 8))[..., 0], RAMP)


def test_colours_of_other_systems(tmp_path):
    planes = [Image.new("L", (8, 8)), Image.new("L", (8, 8)), Image.new("L", (8, 8)), Image.fromarray(RAMP)]
    assert np.array_equal(decoded(tmp_path / "cmyk.tif", Image.merge("CMYK", planes))[..., 1], 255 - RAMP)
    palette = Image.fromarray(RAMP // 4, mode="P")
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    expected = np.stack([RAMP // 4, 255 - RAMP // 4, np.full_like(RAMP, 7)], axis=-1)
    assert np.array_equal(decoded(tmp_path / "palette.png", palette), expected)
    expected[RAMP // 4 == 9] = 255  # transparent, so white
    assert np.array_equal(decoded(tmp_path / "clear.png", palette, transparency=9), expected)
    half = Image.merge("LA", [Image.new("L", (8, 8), 55), Image.new("L", (8, 8), 51)])  # a fifth of 55, the rest white
    assert (decoded(tmp_path / "alpha.png", half) == 215).all()
    assert (decoded(tmp_path / "rgba.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == 255).all()


@pytest.mark.parametrize("name, how", [("x.gif", {}), ("x.png", {}), ("x.webp", {"lossless": True}), ("x.tif", {})])
def test_of_an_animation_the_first_image_counts(tmp_path, name, how):
    first, second = (Image.new("L", (8, 8), value) for value in (10, 200))
    assert (decoded(tmp_path / name, first, save_all=True, append_images=[second], **how) == 10).all()


def test_every_exif_orientation_is_turned_upright(tmp_path):
    kept = {1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1]}
    turned = {5: RAMP.T, 6: RAMP.T[:, ::-1], 7: RAMP.T[::-1, ::-1], 8: RAMP.T[::-1]}
    for orientation, upright in (kept | turned).items():
        exif = Image.Exif()
        exif[274] = orientation
        pixels = decoded(tmp_path / "x.png", Image.fromarray(RAMP), exif=exif)
        assert np.array_equal(pixels[..., 0], upright), orientation


def test_the_name_does_not_decide_the_format(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert np.array_equal(decode_image(str(tmp_path / "x.jpg"), (8, 8))[..., 0], RAMP)


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


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, AssertionError, IndexError, RecursionError])
def test_whatever_a_reader_of_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    def broken(*_, **__):
        raise error("odd")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(UserError, match="x.png"):
        decode_image(str(tmp_path / "x.png"), (8, 8))


def test_links_in_a_class_lead_to_every_image_once(tmp_path):
    root = make_folder(tmp_path / "data", counts=(2, 2))
    make_folder(tmp_path / "more", counts=(3, 3))
    cat = root / "train" / "cat"
    for name, target in {"itself": cat, "train": root / "train", "up": tmp_path, "loop": cat / "loop"}.items():
        os.symlink(target, cat / name)
    for name in ("more", "again"):
        os.symlink(tmp_path / "more" / "train" / "cat", cat / name)
    os.symlink(cat / "0.png", cat / "copy.png")
    _, labels, classes = load_folder("train", str(root))
    assert classes == ["cat", "dog"] and labels.bincount().tolist() == [2 + 3 + 1, 2]


def test_printable_leaves_what_a_terminal_shows_and_escapes_the_rest():
    assert printable("ünï 猫 'x' \\") == "ünï 猫 'x' \\"
    assert printable("a\nb\tc\x1b[2J\u2028\u202e" + os.fsdecode(b"\xff")) == r"a\nb\tc\x1b[2J\u2028\u202e\udcff"


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """Images in folders with odd names, the folder of a model trained on them, and what the training printed."""
    base = tmp_path_factory.mktemp("odd") / "da\tta \x1b[2J"
    root = make_folder(base, counts=[2] * len(ODD_NAMES), classes=ODD_NAMES)
    flags = ["--dataset", "folder", "--data-dir", root, "--val-fraction", 0, "--num-blocks", 1, "--epochs", 1]
    return root, root / "run\n1", call([*flags, "--checkpoint-dir", root / "run\n1"])


def lines_of(code, out, err):
    assert (code, err) == (0, "")
    assert all(column.isprintable() for line in out.split("\n") for column in line.split("\t"))
    return out.splitlines()


def test_odd_names_train_and_draw(odd_run):
    root, run, result = odd_run
    assert any(line.startswith("test accuracy") for line in lines_of(*result))
    assert {"confusion_matrix.png", "predictions.png", "denoising_path.png"} <= set(os.listdir(run / "plots"))
    lines_of(*call([run]))  # visualize.py


def test_odd_names_are_evaluated(odd_run, tmp_path):
    _, run, _ = odd_run
    lines_of(*call(["--evaluate", "--checkpoint", run / "best_model.pt", "--checkpoint-dir", tmp_path]))


def test_a_prediction_is_one_line_of_three_columns_whatever_the_names(odd_run):
    root, run, _ = odd_run
    files = [root / "test" / name / "0.png" for name in ODD_NAMES]
    rows = [line.split("\t") for line in lines_of(*call(["--predict", *files, "--checkpoint", run / "best_model.pt"]))]
    assert [row[0] for row in rows] == [printable(path) for path in files]
    assert all(len(row) == 3 and row[1] in map(printable, ODD_NAMES) for row in rows)


def test_a_terminal_without_the_letters_gets_them_escaped(odd_run):
    root, run, _ = odd_run
    code, out, _ = call(["--predict", root / "test" / "ünï 猫" / "0.png", "--checkpoint", run / "last.pt"], "ascii")
    assert code == 0 and r"\xfcn\xef \u732b" in out


def test_a_file_that_begins_with_a_dash_is_predicted_by_its_path(odd_run, monkeypatch):
    root, run, _ = odd_run
    (root / "-x.png").write_bytes((root / "test" / "a b" / "0.png").read_bytes())
    monkeypatch.chdir(root)
    assert lines_of(*call(["--predict", "./-x.png", "--checkpoint", run / "last.pt"]))[0].startswith("./-x.png\t")

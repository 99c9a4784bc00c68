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
    return decode_image(str(path), (8, 8)).pixels


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
    assert np.array_equal(decode_image(str(tmp_path / "x.pgm"), (8, 8)).pixels[..., 0], RAMP)


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
    assert np.array_equal(decode_image(str(tmp_path / "x.jpg"), (8, 8)).pixels[..., 0], RAMP)


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
    decoded = decode_image(str(path), (8, 8)).pixels.astype(int)
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
    _, labels, classes, _ = load_folder("train", str(root))
    assert classes == ["cat", "dog"] and labels.bincount().tolist() == [2 + 3 + 1, 2]


def save(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


HIDDEN = ["._0.png", "Thumbs.db", "@eaDir/0.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", ".thumbnails/0.png"]


def test_hidden_and_system_files_are_passed_over_also_as_classes(tmp_path):
    root = make_folder(tmp_path, counts=(3, 3))
    for name in HIDDEN:
        save(root / "train" / "cat" / "x.png")
        (root / "train" / "cat" / "x.png").rename(make_parent(root / "train" / "cat" / name))
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        save(root / "train" / name / "0.png")
    raw = load_folder("train", str(root))
    assert (raw.classes, raw.labels.tolist(), raw.notes) == (["cat", "dog"], [0] * 3 + [1] * 3, ())


def make_parent(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_is_not_taken_is_counted_by_ending(tmp_path, capsys):
    root = make_folder(tmp_path, counts=(3, 3))
    for name in ("a.txt", "b.TXT", "c.pdf", "noending"):
        (root / "train" / "dog" / name).write_text("x")
    assert len(load_images("folder", "train", data_dir=str(root)).labels) == 6
    line = capsys.readouterr().out
    assert (
        line.startswith(f"{root / 'train'}: 4 files are not taken") and "(2 .txt, 1 without an ending, 1 .pdf)" in line
    )


@pytest.mark.parametrize("ending", ["png", "jpg", "jp2", "tga", "ico", "pcx", "dds", "icns", "sgi", "avif"])
def test_every_format_that_pillow_opens_is_taken(tmp_path, ending):
    if f".{ending}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow knows no {ending}")
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "white").save(tmp_path / "train" / name / f"x.{ending}")
    raw = load_folder("train", str(tmp_path))
    assert len(raw.labels) == 2 and "not taken" not in str(raw.notes) and raw.images.float().mean() > 250


def test_broken_images_are_named_together(tmp_path):
    root = make_folder(tmp_path, counts=(9, 9))
    for name in ("cat", "dog"):
        for i in range(6):
            (root / "train" / name / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        load_folder("train", str(root))
    line = str(error.value)
    assert "12 images do not open" in line and line.count("no image of a known format") == 10 and "and 2 more" in line


def test_16_bit_images_in_a_small_part_of_their_range_are_refused_not_black(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "train" / name / "x.png")
    with pytest.raises(UserError, match="use values up to 252 of 65535"):
        load_folder("train", str(tmp_path))
    Image.fromarray(RAMP.astype(np.uint16) * 256).save(tmp_path / "train" / "cat" / "bright.png")
    assert len(load_folder("train", str(tmp_path)).labels) == 3  # dark ones beside bright ones are just dark


def test_exif_that_cannot_be_read_does_not_matter(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.png", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff")
    assert np.array_equal(decode_image(str(tmp_path / "x.png"), (8, 8)).pixels[..., 0], RAMP)


def test_class_names_are_compared_in_unicodes_normal_form(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for part, name in (("train", composed), ("test", decomposed)):
        save(tmp_path / part / name / "0.png")
        save(tmp_path / part / "tea" / "0.png", 200)
    assert load_folder("train", str(tmp_path)).classes == load_folder("test", str(tmp_path)).classes
    save(tmp_path / "train" / decomposed / "1.png")
    assert load_folder("train", str(tmp_path)).labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["val", "valid"])
def test_a_validation_folder_has_one_of_the_usual_names(tmp_path, name):
    root = make_folder(tmp_path, counts=(2, 2))
    save(root / name / "cat" / "0.png")
    assert len(load_folder("validation", str(root)).labels) == 1


def test_a_validation_folder_is_the_validation_split(tmp_path, run_main):
    name = "validation"
    root = make_folder(tmp_path, counts=(4, 4))
    for y, label in enumerate(("cat", "dog")):
        for i in range(2 + y):
            save(root / name / label / f"{i}.png", 10 * i)
    run = tmp_path / "run"
    flags = ["--num-blocks", 1, "--epochs", 1, "--checkpoint-dir", run]
    code, out, _ = run_main("--dataset", "folder", "--data-dir", root, *flags)
    assert code == 0 and "8 training, 5 validation, 8 test images" in "\n".join(out)
    save(root / name / "cat" / "new.png", 99)
    code, _, err = run_main("--checkpoint", run / "last.pt", "--epochs", 2)
    assert code == 2 and "the training images are not those" in err[0]


def test_a_test_set_that_lacks_classes_is_evaluated_on_those_it_has(tmp_path, run_main):
    root = make_folder(tmp_path, counts=(4, 4, 4), classes=("ant", "bee", "cat"))
    for path in [*(root / "test" / "ant").iterdir(), *(root / "test" / "bee").iterdir()]:
        path.unlink()
    (root / "test" / "ant").rmdir()
    run = tmp_path / "run"
    flags = ["--num-blocks", 1, "--epochs", 1, "--val-fraction", 0.25, "--checkpoint-dir", run]
    code, out, err = run_main("--dataset", "folder", "--data-dir", root, *flags)
    assert (code, err) == (0, []) and "2 of 3 classes have no test images: ant, bee" in out
    with np.load(run / "logs" / "examples.npz") as examples:
        assert examples["confusion"].sum(axis=1)[:2].tolist() == [0, 0] and set(examples["labels"]) == {2}


def test_a_table_of_labels_beside_a_flat_folder(tmp_path):
    for i in range(5):
        save(tmp_path / "train" / "images" / f"{i}.png", 10 * i)
    lines = ["name,label,extra", "images/0.png,dog,x", "images/3.png,cat", '"images/2.png","dog"', ""]
    (tmp_path / "train" / "labels.csv").write_text("\n".join(lines))
    raw = load_folder("train", str(tmp_path))
    assert raw.classes == ["cat", "dog"] and raw.labels.tolist() == [0, 1, 1]
    assert raw.images[:, 0, 0, 0].tolist() == [30, 0, 20] and "2 files are not taken" in raw.notes[0]
    (tmp_path / "train" / "labels.csv").write_text("\n".join([*lines, "images/9.png,cat"]))
    with pytest.raises(UserError, match="names the file images/9.png, which is not there"):
        load_folder("train", str(tmp_path))


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

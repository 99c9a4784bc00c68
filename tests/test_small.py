"""Sets and networks at the edge of what makes sense: they work, or are refused in words."""

import json

import pytest
from pictures import make_folder
from test_main import LAST_LINE


def write_set(root, classes, per_class, size=(8, 8)):
    return make_folder(root, [per_class] * classes, [f"class{y:04}" for y in range(classes)], size, "L")


def train(run_main, root, *flags):
    where = ["--dataset", "folder", "--data-dir", root, "--checkpoint-dir", root / "run"]
    return run_main(*where, "--epochs", 1, *flags)


@pytest.mark.parametrize(
    "classes, per_class, size, flags",
    [
        (2, 1, (8, 8), ["--num-blocks", 2, "--val-fraction", 0]),  # one image of each class
        # a class without validation image
        (2, 2, (8, 8), ["--num-blocks", 2, "--val-fraction", 0.25, "--embedding-type", "prototype"]),
        # 33 images: the last batch would be a single one
        (3, 11, (8, 8), ["--num-blocks", 2, "--batch-size", 8, "--val-fraction", 0]),
        (2, 3, (13, 6), ["--num-blocks", 2]),  # not square
        (2, 4, (4, 4), ["--num-blocks", 1]),  # the smallest images, and T = 1
    ],
)
def test_the_smallest_sets_train_and_draw(run_main, tmp_path, classes, per_class, size, flags):
    code, out, err = train(run_main, write_set(tmp_path, classes, per_class, size), *flags)
    assert (code, err) == (0, []) and LAST_LINE.fullmatch(out[-1])
    assert (tmp_path / "run" / "plots" / "confusion_matrix.png").exists()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("method, flags", [("backprop", ["--num-blocks", 1]), ("adjoint", ["--steps", 2])])
def test_methods_whose_blocks_are_one_train_on_five_classes_of_three(run_main, tmp_path, method, flags):
    code, out, err = train(run_main, write_set(tmp_path, 5, 3), "--method", method, *flags)
    assert (code, err) == (0, []) and LAST_LINE.fullmatch(out[-1])


def test_a_thousand_classes(run_main, tmp_path):
    code, out, err = train(run_main, write_set(tmp_path, 1000, 1), "--num-blocks", 1, "--val-fraction", 0)
    assert (code, err) == (0, []) and "1000 classes" in out[0] and LAST_LINE.fullmatch(out[-1])


@pytest.mark.usefixtures("without_pictures")
def test_two_hundred_blocks(run_main, tmp_path):
    code, out, err = train(run_main, write_set(tmp_path, 2, 4, (4, 4)), "--num-blocks", 200, "--val-fraction", 0)
    assert (code, err) == (0, []) and LAST_LINE.fullmatch(out[-1])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["per_step_accuracy"]) == 200


@pytest.mark.parametrize(
    "size, per_class, flags, words",
    [
        ((1, 1), 3, [], ["at least 4 x 4 pixels", "--image-size"]),
        ((3, 40), 3, [], ["at least 4 x 4 pixels", "--image-size"]),
        ((8, 8), 1, [], ["--val-fraction"]),  # a tenth of two images is none
        ((8, 8), 1, ["--val-fraction", 0.5], ["--val-fraction", "each class keeps one"]),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(run_main, tmp_path, size, per_class, flags, words):
    code, _, err = train(run_main, write_set(tmp_path, 2, per_class, size), *flags)
    assert (code, len(err)) == (2, 1) and all(word in err[0] for word in words)
    assert not (tmp_path / "run" / "config.json").exists()

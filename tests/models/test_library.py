"""models as a library: a checkpoint loaded, used on images, and what it refuses."""

import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from errors import UserError
from main import main
from models import load
from runs.convert import main as convert


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return four image files and their pixels (4, 1, 8, 8) uint8."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(256, size=(4, 8, 8), dtype=np.uint8)
    files = [folder / f"{i}.png" for i in range(4)]
    for path, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(path)
    return files, torch.from_numpy(pixels).unsqueeze(1)


def test_predict_answers_as_the_command_line_does(digits_run, pictures, run_main):
    files, images = pictures
    net = load(digits_run / "best_model.pt")
    classes, p = net.predict(images)
    assert torch.equal(p.argmax(dim=1), classes) and torch.allclose(p.sum(dim=1), torch.ones(4))
    out = run_main("--predict", *files, "--checkpoint", digits_run / "best_model.pt")[1]
    # the command line takes one image at a time, and alone an image draws other noise than beside others
    alone = torch.cat([net.predict(image[None])[1] for image in images])
    expected = [[net.info.classes[q.argmax()], f"{100 * q.max():.2f} %"] for q in alone]
    assert [line.split("\t")[1:] for line in out] == expected


def test_floats_are_bytes_divided_by_255_and_a_call_gives_the_probabilities(digits_run, pictures):
    net, images = load(digits_run / "best_model.pt"), pictures[1]
    torch.testing.assert_close(net(images.float() / 255), net.predict(images)[1], rtol=1e-4, atol=1e-6)
    assert not torch.equal(net.predict(images, seed=1)[1], net.predict(images)[1])


def test_the_path_is_there_to_be_looked_at(digits_run):
    net = load(digits_run / "best_model.pt")
    path = list(net.denoise(torch.randn(2, 1, 8, 8), [None] * 3))
    assert [z.shape for z, _ in path] == [(3, 2, 10)] * 4 and not path[-1][0].requires_grad


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (1, 8, 8), (2, 3, 8, 8)])
def test_images_of_another_shape_are_refused(digits_run, shape):
    with pytest.raises(ValueError, match=r"must be \(N, 1, 8, 8\)"):
        load(digits_run / "best_model.pt").predict(torch.zeros(shape))


def older(path, run):
    """Write a checkpoint as format 2 did, which did not describe its network."""
    content = torch.load(run / "best_model.pt", weights_only=True)
    kept = {name: value for name, value in content.items() if name not in ("network", "inference")}
    kept["config"] = {name: value for name, value in kept["config"].items() if name not in ("encoder", "recipe")}
    torch.save({**kept, "format": 2}, path)
    return path


def test_an_older_checkpoint_names_the_command_that_converts_it(digits_run, tmp_path, capsys):
    old, new = older(tmp_path / "old.pt", digits_run), tmp_path / "new.pt"
    with pytest.raises(UserError, match=f"python -m runs.convert {old} NEW.pt"):
        load(old)
    assert convert([str(old), str(new)]) == 0 and str(new) in capsys.readouterr().out
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(new)(images), load(digits_run / "best_model.pt")(images))
    assert convert([str(old)]) == 2 and convert([str(tmp_path / "none.pt"), str(new)]) == 2


def test_a_checkpoint_from_before_a_setting_was_there_is_read(digits_run, tmp_path):
    content = torch.load(digits_run / "best_model.pt", weights_only=True)
    del content["config"]["encoder"], content["network"]["arguments"]["encoder"]
    torch.save(content, tmp_path / "best_model.pt")
    assert main(["--evaluate", "--checkpoint", str(tmp_path / "best_model.pt")]) == 0
    content["network"]["arguments"]["eta"] = 9.0  # not what its settings say
    torch.save(content, tmp_path / "best_model.pt")
    assert main(["--evaluate", "--checkpoint", str(tmp_path / "best_model.pt")]) == 2


def test_a_part_is_refused(tmp_path):
    flags = "--dataset digits --embedding-type one-hot --num-blocks 3 --epochs 1 --train-size 64 --blocks 2"
    assert main([*flags.split(), "--checkpoint-dir", str(tmp_path)]) == 0
    with pytest.raises(UserError, match="holds blocks 2 of 1-3 only"):
        load(tmp_path / "last.pt")


def test_the_notebook_of_the_readme_runs(digits_run, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "from models import load" in code and len(code.strip().splitlines()) <= 7
    (tmp_path / "checkpoints_run").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("[")

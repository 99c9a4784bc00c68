"""models as a library: a checkpoint loaded, used on images, and what it refuses."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SHAPE
from PIL import Image

from errors import UserError
from main import main
from models import AdjointNet, BackpropNet, ImageInfo, NoPropNetCT, NoPropNetDT, NoPropNetFM, load
from models.diffusion import best_classifier
from runs.checkpoint import load_checkpoint, save_checkpoint
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


@pytest.mark.parametrize("scale", [1, 255])
def test_predict_answers_as_the_command_line_does(digits_run, pictures, run_main, scale):
    files, images = pictures
    net = load(digits_run / "best_model.pt")
    classes, p = net.predict(images if scale == 1 else images.float() / scale)
    assert torch.equal(p.argmax(dim=1), classes) and torch.allclose(p.sum(dim=1), torch.ones(4))
    out = run_main("--predict", *files, "--checkpoint", digits_run / "best_model.pt")[1]
    lines = [line.split("\t") for line in out]
    assert [name for _, name, _ in lines] == [net.info.classes[y] for y in classes]
    printed = [float(sure.removesuffix(" %")) for *_, sure in lines]
    assert printed == pytest.approx((100 * p.max(dim=1).values).tolist(), abs=0.0051)  # two digits are printed


def test_predict_takes_seed_and_mirror_from_the_checkpoint(digits_run, pictures, run_main, tmp_path):
    files, images = pictures
    content = load_checkpoint(digits_run / "best_model.pt")
    content["config"] |= {"seed": 3, "mirror_test": True}
    content["inference"] |= {"seed": 3, "mirror": True}
    save_checkpoint(tmp_path / "model.pt", content)
    net = load(tmp_path / "model.pt")
    ways = {}, {"seed": 0, "mirror": False}
    asked, plain = (100 * net.predict(images, **way)[1].max(dim=1).values for way in ways)
    lines = run_main("--predict", *files, "--checkpoint", tmp_path / "model.pt")[1]
    printed = [float(line.split("\t")[-1].removesuffix(" %")) for line in lines]
    assert printed == pytest.approx(asked.tolist(), abs=0.0051) != pytest.approx(plain.tolist(), abs=0.0051)


def untrained(network, **how):
    """Return a network of 4 classes that knows the statistics of images, with a class head that tells z apart."""
    torch.manual_seed(0)
    net = network(SHAPE, torch.eye(4))
    torch.nn.init.normal_(net.theta_out.weight)
    net.info, net.inference = ImageInfo(list("abcd"), SHAPE, [127.5], [64.0]), {"runs": 2, "how": how}
    return net


NETWORKS = {
    "dt": (NoPropNetDT, {}),
    "ancestral": (NoPropNetCT, {"steps": 5}),
    "ode": (NoPropNetCT, {"steps": 5, "sampler": "ode", "solver": "heun"}),
    "fm": (NoPropNetFM, {"steps": 5}),
    "backprop": (BackpropNet, {}),
    "adjoint": (AdjointNet, {"steps": 5}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_answer_does_not_depend_on_the_other_images(name):
    network, how = NETWORKS[name]
    net, images = untrained(network, **how), torch.rand(6, *SHAPE)
    together = net(images)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net(images.flip(0)), together.flip(0), rtol=1e-4, atol=1e-6)
    assert (net.predict(images, seed=1)[1] - together).abs().max() > 1e-3  # other noise, another answer


@pytest.mark.parametrize("name", NETWORKS)
def test_without_noise_every_run_starts_at_zero_and_gives_the_same_answer(name):
    network, how = NETWORKS[name]
    net, images = untrained(network, **how), torch.rand(3, *SHAPE)
    one, other = (net.predict(images, seed=seed, stochastic=False)[1] for seed in (0, 1))
    assert torch.equal(one, other)
    z_0, _ = next(net.infer(images, [None] * 2, stochastic=False, **how))
    assert z_0.shape[:2] == (2, 3) and not z_0.any()


def test_another_number_of_steps_keeps_the_sampler_and_the_solver_of_the_checkpoint():
    net, images = untrained(NoPropNetCT, sampler="ode", solver="heun", steps=20), torch.rand(2, *SHAPE)
    expected = net.predict(images, sampler="ode", solver="heun", steps=5)[1]
    assert torch.equal(net.predict(images, steps=5)[1], expected)
    assert not torch.equal(net.predict(images, sampler="ancestral", steps=5)[1], expected)


def test_floats_are_bytes_divided_by_255_and_a_call_gives_the_probabilities(digits_run, pictures):
    net, images = load(digits_run / "best_model.pt"), pictures[1]
    torch.testing.assert_close(net(images.float() / 255), net.predict(images)[1], rtol=1e-4, atol=1e-6)
    assert not torch.equal(net.predict(images, seed=1)[1], net.predict(images)[1])


def test_the_path_is_there_to_be_looked_at(digits_run):
    net = load(digits_run / "best_model.pt")
    path = list(net.denoise(torch.randn(2, 1, 8, 8), [None] * 3))
    assert [z.shape for z, _ in path] == [weights.shape for _, weights in path] == [(3, 2, 10)] * 4
    assert torch.is_grad_enabled() and not any(part.requires_grad for step in path for part in step)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (1, 8, 8), (2, 3, 8, 8)])
def test_images_of_another_shape_are_refused(digits_run, shape):
    with pytest.raises(ValueError, match=r"must be \(N, 1, 8, 8\)"):
        load(digits_run / "best_model.pt").predict(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_images_of_another_type_are_refused(digits_run, dtype):
    with pytest.raises(ValueError, match=r"uint8, or floats in \[0, 1\]"):
        load(digits_run / "best_model.pt").predict(torch.ones(2, 1, 8, 8, dtype=dtype))


def older(path, run):
    """Write a checkpoint as format 2 did, which did not describe its network."""
    content = torch.load(run / "best_model.pt", weights_only=True)
    kept = {name: value for name, value in content.items() if name not in ("network", "inference")}
    kept["config"] = {name: value for name, value in kept["config"].items() if name not in ("encoder", "recipe")}
    state = kept["model"] = dict(kept["model"])
    weight, bias = best_classifier(state["alpha_bar"][-1], state["W_embed"])  # theta_out was the whole classifier
    state["theta_out.weight"], state["theta_out.bias"] = (
        state["theta_out.weight"] + weight,
        state["theta_out.bias"] + bias,
    )
    torch.save({**kept, "format": 2}, path)
    return path


def test_a_checkpoint_whose_method_did_not_know_the_way_of_inference_has_the_papers(digits_run, tmp_path):
    content = torch.load(digits_run / "best_model.pt", weights_only=True)
    content["config"]["inference"] = None
    torch.save(content, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["config"]["inference"] == "stochastic"


def test_an_older_checkpoint_names_the_command_that_converts_it(digits_run, tmp_path):
    old, new = older(tmp_path / "old.pt", digits_run), tmp_path / "new.pt"
    with pytest.raises(UserError) as refusal:
        load(old)
    line = str(refusal.value)
    assert "\n" not in line and line.endswith(f": convert it with python -m runs.convert {old} NEW.pt")
    _, *words = shlex.split(line.partition("convert it with ")[2].replace("NEW.pt", str(new)))
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"written: {new}\n", "")
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(load(new)(images), load(digits_run / "best_model.pt")(images), rtol=1e-2, atol=1e-3)
    assert convert([str(old)]) == 2 and convert([str(tmp_path / "none.pt"), str(new)]) == 2


def test_theta_out_of_an_older_checkpoint_is_converted_once_where_its_best_model_is_its_last(digits_run, tmp_path):
    state = torch.load(older(tmp_path / "old.pt", digits_run), weights_only=True)
    best = {"epoch": 2, "accuracy": 50.0, "model": state["model"]}  # one copy in the file, as after the best epoch
    torch.save({**state, "best": best}, tmp_path / "last.pt")
    assert convert([str(tmp_path / "last.pt"), str(tmp_path / "new.pt")]) == 0
    new = torch.load(tmp_path / "new.pt", weights_only=True)["model"]["theta_out.weight"]
    expected = torch.load(digits_run / "best_model.pt", weights_only=True)["model"]["theta_out.weight"]
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-3)


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
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "from models import load" in block]
    assert 'load("checkpoints_run")' in code and len(code.strip().splitlines()) <= 7
    (tmp_path / "checkpoints_run").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("[")

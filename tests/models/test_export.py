"""Exported files answer as the network does, for any number of images, in runtimes that know nothing of it."""

import io
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SHAPE
from PIL import Image

from evaluate import ask, joined
from models import DiffusionBlocksNet, ImageInfo, NoPropNetCT, NoPropNetDT, NoPropNetFM, load
from models.export import Answer, export

SOFT = {"num_blocks": 2, "alpha_bar_clip": (0.01, 0.6)}  # z_T is noisy, so that no answer is sure
NETWORKS = {
    "dt": (NoPropNetDT, SOFT, {}, "mean"),
    "dt, ensemble": (NoPropNetDT, SOFT, {}, "ensemble"),
    "fm": (NoPropNetFM, {"flow_sigma": 1.0}, {"steps": 3}, "mean"),
    "ct": (
        NoPropNetCT,
        {"class_probability": "posterior", "posterior_sigma": 1.0},
        {"steps": 2, "sampler": "ode"},
        "mean",
    ),
    "diffusionblocks": (DiffusionBlocksNet, {"num_blocks": 2}, {"steps": 3}, "mean"),
    "transformer in pieces, ensemble": (
        DiffusionBlocksNet,
        {"num_blocks": 2, "network": "vit", "vit_layers": 2, "vit_width": 16, "vit_heads": 2},
        {"steps": 4, "sampler": "ancestral"},
        "ensemble",
    ),
}
IMAGES = torch.randint(256, (7, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_onnx_file_answers_as_predict_for_any_number_of_images(name):
    network, arguments, how, readout = NETWORKS[name]
    torch.manual_seed(0)
    net = network(SHAPE, torch.eye(4), **arguments).eval()
    if "network" in arguments:  # a transformer, to which an image counts for little at its start
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
    net.info = ImageInfo(["dog", "Katze", "chèvre", "馬"], SHAPE, [127.5], [1.0])  # images of a high contrast
    file = io.BytesIO()
    export(net, file, ".onnx", readout, **how)
    expected = net.predict(IMAGES, runs=1, stochastic=False, **how)[1]
    if readout == "ensemble":
        answers = ask(net, net.see(IMAGES.permute(0, 2, 3, 1)), [None], stochastic=False, **how)
        expected = joined(answers, readout, net)[-1]
    assert expected.std(dim=0).min() > 1e-3  # else any constant would pass
    session = onnxruntime.InferenceSession(file.getvalue())
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == net.info.classes
    for n in (1, 7):
        (found,) = session.run(["probabilities"], {"images": IMAGES[:n].numpy()})
        np.testing.assert_allclose(found, expected[:n].numpy(), rtol=0, atol=1e-5)


def test_the_command_exports_what_predict_prints(digits_run, run_main, tmp_path):
    file, model = tmp_path / "new" / "model.pt2", ["--checkpoint", digits_run / "best_model.pt"]
    code, out, err = run_main("--export", file, *model)
    assert (code, err) == (0, []) and out == [
        f"exported to {file}: uint8 images Nx1x8x8 -> probabilities Nx10, by --inference deterministic"
    ]
    extra = {"classes.json": ""}
    (p,) = torch.export.load(file, extra_files=extra).module()(IMAGES[:1])
    Image.fromarray(IMAGES[0, 0].numpy()).save(tmp_path / "x.png")
    (line,) = run_main("--predict", tmp_path / "x.png", *model, "--inference", "deterministic")[1]
    _, name, sure = line.split("\t")
    assert name == json.loads(extra["classes.json"])[p.argmax()]
    assert float(sure.removesuffix(" %")) == pytest.approx(100 * p.max().item(), abs=0.0051)


def test_without_onnx_a_line_says_how_to_install_it(digits_run, run_main, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = run_main("--export", tmp_path / "x.onnx", "--checkpoint", digits_run / "best_model.pt")
    assert (code, len(err)) == (2, 1) and "pip install onnx onnxscript" in err[0]
    assert list(tmp_path.iterdir()) == []


def test_a_mirrored_answer_is_the_mean_of_two(digits_run):
    net = load(digits_run / "best_model.pt")
    both = torch.stack([Answer(net)(images) for images in (IMAGES, IMAGES.flip(3))])
    torch.testing.assert_close(Answer(net, mirror=True)(IMAGES), both.mean(dim=0))

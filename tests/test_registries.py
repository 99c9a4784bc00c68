"""One entry adds a method, an encoder, a data set, a schedule, a figure: each is used by the command line alone."""

import json
import re
from dataclasses import fields

import pytest
import torch
from conftest import ROOT, SHAPE
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from command_line import as_flag, show
from data import DATASETS, Dataset, load_images
from figures import FIGURES
from loaders import RawImages
from main import main
from models import load
from models.build import build
from models.classifier import Classifier
from models.encoders import ENCODERS
from models.methods import METHODS, Method
from models.schedules import SCHEDULES, make_alpha_bar
from settings import Settings

SMALL = ["--dataset", "digits", "--train-size", "64", "--epochs", "1"]


def train(run, *flags):
    assert main([*SMALL, *flags, "--checkpoint-dir", str(run)]) == 0
    return json.loads((run / "config.json").read_text()), json.loads((run / "results.json").read_text())


class ToyNet(Classifier):
    """A linear layer that adds the class embedding it finds to the noise."""

    loss_terms = ("cross_entropy",)

    def __init__(self, image_shape, W_embed, *, learn_embedding=False, eta=1.0):
        super().__init__(W_embed, learn_embedding)
        self.eta, self.linear = eta, nn.Linear(torch.Size(image_shape).numel(), len(W_embed))

    @property
    def networks(self):
        return {0: self.linear}

    def times(self, **how):
        return [1.0]

    def loss(self, x, y, noise=None, drop=None):
        return (self.eta * F.cross_entropy(self.linear(x.flatten(1)), y),)

    @torch.no_grad()
    def denoise(self, x, generators=(None,), scale=1.0):
        z = self.noise(generators, len(x))
        yield z, None
        yield scale * self.linear(x.flatten(1)).softmax(1) @ self.W_embed + 0 * z, None

    def log_prob(self, z):
        return (z @ self.W_embed.T).log_softmax(-1)

    @staticmethod
    def ways(eta=1.0):
        return [{"scale": 3 * eta}]


def test_a_method_is_a_network_and_an_entry(tmp_path, monkeypatch, run_main):
    toy = Method(ToyNet, "toy", "a toy", settings=("eta",), epochs={"other": 1}, defaults={"eta": 3.0})
    monkeypatch.setitem(METHODS, "toy", toy)
    config, results = train(tmp_path, "--method", "toy", "--embedding-type", "one-hot")
    assert config["eta"] == 3.0 and config["num_blocks"] is None and results["method"] == "toy"
    net = load(tmp_path / "best_model.pt")
    assert net.eta == 3.0 and net.linear.weight.any() and net(torch.rand(3, *SHAPE)).shape == (3, 10)
    assert run_main("--evaluate", "--checkpoint", tmp_path / "best_model.pt")[0] == 0
    code, _, err = run_main(*SMALL, "--method", "toy", "--num-blocks", 2, "--checkpoint-dir", tmp_path / "none")
    owners = "dt or diffusionblocks or backprop or classifier"
    assert (code, err) == (2, [f"main.py: error: --num-blocks belongs to --method {owners}, not to toy"])


class ToyEncoder(nn.Module):
    """The mean of every channel."""

    out_features = 5

    def __init__(self, image_shape, norm=True):
        super().__init__()
        self.linear = nn.Linear(image_shape[0], self.out_features)
        self.register_buffer("seen", torch.zeros(()))

    def prepare(self, x):
        assert x.shape[1:] == (1, 8, 8) and abs(x.mean()) < 0.2  # training images, normalised
        self.seen.fill_(len(x))

    def forward(self, x, generator=None):
        return self.linear(x.mean(dim=(2, 3)))


def test_an_encoder_is_a_module_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "toy", ToyEncoder)
    for method, own in (("dt", ["--num-blocks", "2"]), ("fm", ["--steps", "2"]), ("backprop", ["--num-blocks", "2"])):
        config, _ = train(tmp_path / method, "--method", method, "--encoder", "toy", *own)
        state = torch.load(tmp_path / method / "best_model.pt", weights_only=True)["model"]
        assert config["encoder"] == "toy" and {v.item() for k, v in state.items() if k.endswith(".seen")} == {64}


def test_a_data_set_is_a_loader_and_an_entry(tmp_path, monkeypatch, run_main):
    def load(part, shape=None):
        images = torch.arange(80 * 36).view(80, 6, 6, 1) % (200 if part == "train" else 100)
        return RawImages(images.to(torch.uint8), torch.arange(80) % 4, list("abcd"))

    monkeypatch.setitem(DATASETS, "toy", Dataset(load, defaults={"batch_size": 16}))
    flags = ["--dataset", "toy", "--num-blocks", "1", "--train-size", "40", "--augment"]
    config, results = train(tmp_path, *flags)
    assert config["batch_size"] == 16 and results["test_images"] == 80 and config["epochs"] == 1
    code, _, err = run_main(*flags, "--data-dir", "x", "--checkpoint-dir", tmp_path / "none")
    assert (code, len(err)) == (2, 1) and "--data-dir belongs to --dataset" in err[0] and "not to toy" in err[0]


def test_a_schedule_is_a_function_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "square", lambda T: (torch.arange(T + 1, dtype=torch.float64) / T) ** 2)
    train(tmp_path, "--schedule", "square", "--num-blocks", "2")
    alpha_bar = torch.load(tmp_path / "best_model.pt", weights_only=True)["model"]["alpha_bar"]
    assert alpha_bar.tolist() == [1e-4, 0.25, 0.999]


def test_a_figure_is_a_function_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "toy", lambda run: Figure() if run.results else None)
    train(tmp_path, "--num-blocks", "1")
    assert (tmp_path / "plots" / "toy.png").exists()


UNKNOWN = {
    "method": lambda: build("none", torch.eye(4), image_shape=SHAPE),
    "encoder": lambda: build("dt", torch.eye(4), image_shape=SHAPE, encoder="none"),
    "dataset": lambda: load_images("none", "train"),
    "schedule": lambda: make_alpha_bar("none", 3),
}


@pytest.mark.parametrize("registry", UNKNOWN)
def test_an_unknown_name_is_a_key_error_and_one_line_at_the_command_line(registry, run_main, tmp_path):
    with pytest.raises(KeyError, match="none"):
        UNKNOWN[registry]()
    code, _, err = run_main(f"--{registry}", "none", "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and f"--{registry}: 'none' is none of" in err[0]


def test_every_field_of_the_settings_is_in_help_and_on_the_page_of_flags_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")  # no line is broken
    with pytest.raises(SystemExit):
        main(["--help-all"])
    entries = re.split(r"\n  (?=--)", capsys.readouterr().out.partition("\ndata:")[2].partition("\nhelp:")[0])
    in_help = {entry.split()[0]: " ".join(entry.split()) for entry in entries if entry.startswith("--")}
    rows = [line.split("|") for line in (ROOT / "docs" / "flags.md").read_text().splitlines() if "| `--" in line]
    on_page = {flag.strip(" `"): default.strip() for _, flag, default, *_ in rows}
    flags = {as_flag(each.name): each for each in fields(Settings)}
    assert in_help.keys() == on_page.keys() == flags.keys()
    for flag, each in flags.items():
        shown = each.metadata["shown"]
        default = (shown() if callable(shown) else shown) or show(getattr(Settings(), each.name))
        assert f"(default: {default})" in in_help[flag] and on_page[flag] == default

"""One entry adds a method, an encoder, a data set, a schedule, a figure: each is used by the command line alone."""

import json

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from data import DATASETS, Dataset
from figures import FIGURES
from loaders import RawImages
from main import main
from models.classifier import Classifier
from models.encoders import ENCODERS
from models.methods import METHODS, Method
from models.schedules import SCHEDULES
from settings import make_parser

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
    def ways(inference="stochastic"):
        return [{"scale": 9.0}]


def test_a_method_is_a_network_and_an_entry(tmp_path, monkeypatch):
    toy = Method(ToyNet, "toy", "a toy", settings=("eta", "inference"), epochs={"other": 1}, defaults={"eta": 3.0})
    monkeypatch.setitem(METHODS, "toy", toy)
    config, results = train(tmp_path, "--method", "toy", "--embedding-type", "one-hot")
    assert config["eta"] == 3.0 and config["num_blocks"] is None and results["method"] == "toy"
    assert main(["--evaluate", "--checkpoint", str(tmp_path / "best_model.pt")]) == 0
    assert main(["--method", "toy", "--num-blocks", "2"]) == 2  # it has none


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


def test_a_data_set_is_a_loader_and_an_entry(tmp_path, monkeypatch):
    def load(part, shape=None):
        images = torch.arange(80 * 36).view(80, 6, 6, 1) % (200 if part == "train" else 100)
        return RawImages(images.to(torch.uint8), torch.arange(80) % 4, list("abcd"))

    monkeypatch.setitem(DATASETS, "toy", Dataset(load, defaults={"batch_size": 16}))
    flags = ["--dataset", "toy", "--num-blocks", "1", "--train-size", "40", "--augment"]
    config, results = train(tmp_path, *flags)
    assert config["batch_size"] == 16 and results["test_images"] == 80 and config["epochs"] == 1
    assert main([*flags, "--data-dir", "x"]) == 2  # it needs none


def test_a_schedule_is_a_function_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "square", lambda T: (torch.arange(T + 1, dtype=torch.float64) / T) ** 2)
    train(tmp_path, "--schedule", "square", "--num-blocks", "2")
    alpha_bar = torch.load(tmp_path / "best_model.pt", weights_only=True)["model"]["alpha_bar"]
    assert alpha_bar.tolist() == [1e-4, 0.25, 0.999]


def test_a_figure_is_a_function_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "toy", lambda run: Figure() if run.results else None)
    train(tmp_path, "--num-blocks", "1")
    assert (tmp_path / "plots" / "toy.png").exists()


def test_every_setting_is_a_flag_with_its_default_and_meaning():
    parser = make_parser()
    shown = {action.dest: action.help for action in parser._actions if action.dest != "help"}
    assert shown.keys() == parser.defaults.keys()
    assert all(" (default: " in text and len(text) > 20 for text in shown.values())

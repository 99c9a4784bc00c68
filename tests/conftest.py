"""What the tests share: small models, a block that knows the answer, and main.py run in this process."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # steady on a busy machine, and equal to the bit in all processes

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from main import main  # noqa: E402
from models.NoProp_DT import NoPropNetDT  # noqa: E402

ROOT = Path(__file__).parent.parent
SHAPE = (1, 8, 8)
FOUR_BLOCKS = ["--dataset", "digits", "--train-size", "700", "--embedding-type", "one-hot", "--num-blocks", "4"]


def make_model(num_blocks=3, m=4, d=None, learn=False, seed=0, **kwargs):
    """Return a small NoPropNetDT: one-hot without d, else random embeddings."""
    torch.manual_seed(seed)
    W = torch.eye(m) if d is None else torch.randn(m, d)
    model = NoPropNetDT(SHAPE, W, num_blocks=num_blocks, learn_embedding=learn, **kwargs)
    return model.to(memory_format=torch.channels_last)


class Oracle(nn.Module):
    """A perfect block where shift = 0: the first pixel of x is the class. With shift it always errs."""

    def __init__(self, m, shift=0):
        super().__init__()
        self.m, self.shift = m, shift

    def features(self, x, generator=None):
        return x[:, 0, 0, :1]  # (B, 1)

    def logits(self, z, features, generator=None):
        y = (features[:, 0].long() + self.shift) % self.m
        return 1e4 * nn.functional.one_hot(y, self.m).float()

    def forward(self, z, x, W_embed, generator=None):
        return self.logits(z, self.features(x)).softmax(dim=1) @ W_embed


def give_oracles(model, shift=0):
    m = model.W_embed.shape[0]
    model.blocks = nn.ModuleDict({name: Oracle(m, shift) for name in model.blocks})
    return model


def images_of(y):
    """Return images that tell an Oracle their class."""
    x = torch.zeros(len(y), *SHAPE)
    x[:, 0, 0, 0] = y
    return x


def in_this_process(flags, ranks=1):
    """Stand in for runs.launch.run_main: starting Python and torch anew takes longer than the trainings."""
    return main(flags)


@contextmanager
def start(*words):
    """Start Python on a program as a process of its own, which is killed at the end of the with block."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        yield process
    finally:
        process.kill()


def start_main(run, *flags):
    """Start main.py; see start."""
    return start("main.py", *flags, "--checkpoint-dir", run)


def train(run, *flags):
    """Train through main.py, without pictures; returns the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("main.draw_pictures", lambda run: None)
        assert main([*map(str, flags), "--checkpoint-dir", str(run)]) == 0
    return run


def pytest_configure(config):
    """Hide the GPU from all tests but those of `-m gpu`, so that the suite means the same on every machine."""
    if config.getoption("-m") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def run_main(capsys):
    """Return a function that runs main.py's main: exit code, lines on stdout, lines on stderr."""

    def run(*argv):
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


@pytest.fixture
def without_pictures(monkeypatch):
    """Let runs of main.py draw nothing, which saves half of their time."""
    monkeypatch.setattr("main.draw_pictures", lambda run: None)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """Return the folder of a two-epoch training on digits through main.py, with one-hot embeddings and T = 3."""
    run = tmp_path_factory.mktemp("digits") / "run"
    flags = "--dataset digits --embedding-type one-hot --num-blocks 3 --epochs 2 --save-every 1"
    assert main([*flags.split(), "--checkpoint-dir", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Return the folder of two epochs of four blocks, trained by one process."""
    return train(tmp_path_factory.mktemp("whole") / "run", *FOUR_BLOCKS, "--epochs", 2, "--save-every", 1)

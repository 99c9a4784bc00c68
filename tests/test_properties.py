"""Whatever the bytes, settings and names: a load equal to the original or one line, what is accepted can be used."""

import os
import unicodedata

import torch
from helpers import call
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from errors import UserError, printable
from loaders.image_folder import load_folder
from models.build import build
from rules import accepted, adopt, parse
from runs.checkpoint import load_checkpoint
from settings import Settings, make_parser

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
slow = settings(max_examples=25, derandomize=True, deadline=None, database=None)

DEFAULTS = make_parser().defaults
NUMBERS = st.integers(-3, 10**12) | st.floats() | st.sampled_from([0.1, 0.5, 1.0])
WORDS = st.sampled_from(["dt", "ct", "fm", "one-hot", "linear", "random", "mnist", "mean", "cpu", "--help"]) | st.text()
LISTS = st.lists(NUMBERS | WORDS, max_size=3)
VALUES = st.none() | st.booleans() | NUMBERS | WORDS | LISTS | st.dictionaries(WORDS, WORDS)


def equal(first, second) -> bool:
    """Compare nested content with tensors."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@st.composite
def damages(draw):
    """Draw a function that damages the bytes of a file: a part of them cut off, or some changed.

    Often near the end, where a zip file has its list of members, or at the start, where the pickle is.
    """
    place = st.floats(0, 1) | st.floats(0, 0.002) | st.floats(0.998, 1)
    if draw(st.integers(0, 4)) == 0:
        start, end = sorted((draw(place), draw(place)))
        return lambda data: data[: int(start * len(data))] + data[int(end * len(data)) :]
    changes = draw(st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=3))

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for where, bits in changes:
            changed[min(int(where * len(data)), len(data) - 1)] ^= bits
        return bytes(changed)

    return change


def test_a_damaged_checkpoint_is_refused_or_still_the_same(digits_run, tmp_path):
    good = digits_run / "best_model.pt"
    data, content, path = good.read_bytes(), load_checkpoint(good), tmp_path / "damaged.pt"
    refused = []

    @quick
    @given(damages())
    def check(damage):
        path.write_bytes(damage(data))
        try:
            assert equal(load_checkpoint(path), content)
        except UserError as error:
            assert "damaged.pt" in str(error) and "\n" not in str(error)
            refused.append(error)

    check()
    assert len(refused) > 40  # and not, say, all left as they were


def test_settings_of_a_checkpoint_are_refused_or_can_be_used(digits_run):
    config = load_checkpoint(digits_run / "last.pt")["config"]
    s, _ = parse(["--evaluate", "--checkpoint", "x.pt"])
    outcomes = set()

    @settings(quick, max_examples=400)
    @given(st.sampled_from(sorted(DEFAULTS)), VALUES)
    def check(name, value):
        changed = {**config, name: value}
        try:
            checked = accepted(changed)
        except ValueError as error:
            assert "its setting --" in str(error)
            outcomes.add("refused")
            return
        outcomes.add("accepted")
        network = checked.describe_network((1, 8, 8))
        with torch.device("meta"):
            build("dt", torch.empty(10, 10), **network["arguments"] | {"blocks": [1]})
        assert isinstance(adopt(s, set(), changed), Settings)

    check()
    assert outcomes == {"refused", "accepted"}


@quick
@given(st.integers(1, 10**9), st.floats(1e-300, 1e300), st.lists(st.integers(1, 10**5), min_size=1, unique=True))
def test_a_setting_survives_as_words_of_the_command_line(count, rate, steps):
    parser = make_parser()
    for name, value in {"epochs": count, "lr": rate, "steps": steps, "alpha_bar_clip": [0.25, 0.5]}.items():
        assert vars(parser.parse_args(parser.words(name, value))) == {name: value}
        assert parser.accepts(name, value) and not parser.accepts(name, str(value))


BYTES = st.sampled_from(sorted({*range(1, 256)} - {ord("/")}))
FILE_NAMES = st.lists(BYTES, min_size=1, max_size=60).map(bytes).filter(lambda name: name[:1] != b".")  # not hidden


def test_folders_of_any_name_are_classes(tmp_path_factory):
    @slow
    @given(st.lists(FILE_NAMES, min_size=2, max_size=4, unique=True))
    def check(names):
        root = tmp_path_factory.mktemp("data")
        for name in names:
            os.makedirs(os.path.join(os.fsencode(root), b"train", name))
            Image.new("L", (5, 4)).save(os.path.join(os.fsencode(root), b"train", name, b"x.png"), "PNG")
        images, labels, classes, _ = load_folder("train", str(root))
        expected = sorted(unicodedata.normalize("NFC", os.fsdecode(name)) for name in names)
        assert classes == expected and labels.tolist() == list(range(len(names)))
        assert images.shape == (len(names), 4, 5, 1)

    check()


@quick
@given(st.text() | st.binary().map(os.fsdecode))
def test_what_is_printed_of_a_name_stays_on_its_line(name):
    shown = printable(name)
    assert shown.isprintable() and (shown == name or not name.isprintable())


@slow
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_word_that_is_no_flag_gets_one_line(word):
    code, out, err = call([f"--{word}"])
    assert (code, out, err.count("\n")) == (2, "", 1) or word == "help"

"""Class names in any script: a font of this machine that has the letters, else code points; never empty boxes."""

import shutil
import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.font_manager import fontManager

from figures.letters import families_for, fonts_for
from figures.style import save_figure, short_names
from visualize import draw_figures

CAT, DOG = "猫", "犬"


@pytest.fixture
def own_fonts(monkeypatch):
    """Leave matplotlib its own fonts alone, on any machine."""
    own = [font for font in fontManager.ttflist if matplotlib.get_data_path() in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)


@pytest.fixture
def cat_font(own_fonts, tmp_path):
    """Install a font that has the letter of the cat alone; returns its name."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": Glyph(), "cat": Glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Cats Only", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    fontManager.addfont(tmp_path / "cats.ttf")
    return "Cats Only"


def shown(names):
    """Return names as the figures have them."""
    with fonts_for(names):
        return short_names(names)


def test_a_letter_is_taken_from_another_font_that_has_it_else_its_code_point_is_shown(cat_font):
    assert families_for(["cat", "кошка"]) == matplotlib.rcParams["font.family"]
    assert families_for([CAT + DOG]) == [*matplotlib.rcParams["font.family"], cat_font]
    assert shown([CAT, "a " + CAT + DOG]) == [CAT, f"a {CAT} U+72AC"]


@pytest.mark.parametrize(
    "names, expected",
    [
        ([CAT, DOG + CAT], ["U+732B", "U+72AC U+732B"]),
        ([CAT + "x" * 20 + DOG, DOG * 9], ["U+732B … U+72AC", "U+72AC … U+72AC"]),
        ([f"{CAT}{y}{DOG * 4}" for y in "12"], ["…1…", "…2…"]),
        (["$x$", "$x"], [r"\$x\$", r"\$x"]),
    ],
)
def test_names_without_a_font_are_short(own_fonts, names, expected):
    assert shown(names) == expected


def test_names_that_shortened_are_alike_in_two_ways_are_numbered(own_fonts):
    names = [f"{kind} number {y} of them all" for kind in ("tulip", "roses") for y in "12"]
    assert shown(names) == ["0: tulip…them all", "1: tulip…them all", "2: roses…them all", "3: roses…them all"]


def test_no_figure_of_a_run_warns_of_a_letter(digits_run, cat_font, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run, ignore=shutil.ignore_patterns("*.pt", "plots"))
    examples = dict(np.load(run / "logs" / "examples.npz"))
    names = [CAT, DOG, "قطة", "🐶", "ไทย", "हिन्दी", "한국어", "кошка", "$x_1$", "\ue000"]
    np.savez(run / "logs" / "examples.npz", **examples | {"classes": np.array(names)})
    figures = dict(draw_figures(run))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")
        for figure in figures.values():
            save_figure(figure, tmp_path / "picture.png")
    ticks = figures["confusion_matrix"].axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks[:2]] == [CAT, "U+72AC"]

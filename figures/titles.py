"""Titles that stay on the page however long the names in them, and a small line that says which run a picture shows."""

import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures.style import plain
from runs.reader import RunFiles

WIDTH = 0.88  # of the page, that a title may take: at another resolution letters are up to a tenth wider
MOST_LINES = 3  # of a title: its letters shrink before it gets more
SMALLEST = 6  # points
DOLLAR = r"\$", "\0"  # written as two letters that no line may break apart


def name_run(figure: Figure, run: RunFiles) -> None:
    """Write folder, method and data set of a run small below a figure."""
    text = f"run {run.name}, method {run.config['method']}, data set {run.dataset}"
    figure.supxlabel(plain(text), x=0.99, ha="right", fontsize=7, color="dimgrey")


def fit_titles(figure: Figure) -> None:
    """Break and shrink titles that are wider than their place: the page, or the column of a panel."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = WIDTH * figure.bbox.width
    for axes in figure.axes:
        place = axes.get_subplotspec()
        share = len(place.colspan) / place.get_gridspec().ncols if place else 1
        _fit(axes.title, share * page, renderer)
    for text in (figure._suptitle, figure._supxlabel):
        if text is not None:
            _fit(text, page, renderer)


def _fit(text: Text, width: float, renderer) -> None:
    whole = text.get_text()
    _break_lines(text, whole, width, renderer)
    while text.get_text().count("\n") >= MOST_LINES and text.get_fontsize() > SMALLEST:
        text.set_fontsize(max(SMALLEST, text.get_fontsize() - 1))
        _break_lines(text, whole, width, renderer)


def _break_lines(text: Text, whole: str, width: float, renderer) -> None:
    """Let a text be `whole`, broken into lines of at most `width` pixels."""
    text.set_text(whole)
    lines = whole.replace(*DOLLAR).split("\n")
    letters = max(map(len, lines))
    while letters > 1 and (wide := text.get_window_extent(renderer).width) > width:
        letters = max(1, min(letters - 1, int(letters * width / wide)))
        broken = "\n".join(part for line in lines for part in textwrap.wrap(line, letters))
        text.set_text(broken.replace(*DOLLAR[::-1]))

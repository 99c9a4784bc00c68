"""The look of the figures: colours, grids, class names, images."""

import io
import os
from itertools import accumulate
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from errors import printable
from figures.letters import lacking
from runs.files import write_atomic

# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
STYLES = ("-", "--", ":", "-.")
FORMATS = ("png", "pdf", "svg")
DPI = 110


def block_colours(num_blocks: int) -> list:
    """Return a colour for each block, dark for the first."""
    return list(colormaps["viridis"](np.linspace(0, 0.92, num_blocks)))


def block_colourbar(figure: Figure, axes: list, num_blocks: int) -> None:
    """Add the scale of block_colours."""
    scale = ScalarMappable(Normalize(1, max(num_blocks, 2)), ListedColormap(block_colours(256)))
    figure.colorbar(scale, ax=axes, label="block t (1 sees most noise)", ticks=MaxNLocator(integer=True))


def show_image(axes, image: np.ndarray) -> None:
    """Show an image (H, W, C) uint8, one or three channels."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def short_names(names: list[str]) -> list[str]:
    """Return class names for an axis, shortened so that they stay different; code points for letters without a font."""
    missing = lacking("".join(map(printable, names)))
    short = [_short(name, missing) for name in names]
    shown = short.copy()
    for text in set(short):
        alike = [name for name, other in zip(names, short, strict=True) if other == text]
        if len(alike) > 1:
            start = len(os.path.commonprefix(alike))
            end = len(os.path.commonprefix([name[start:][::-1] for name in alike]))
            for name in alike:
                differs = f"…{name[start : len(name) - end]}{'…' if end else ''}"
                shown[names.index(name)] = _short(differs, missing)
    return [text if shown.count(text) == 1 else f"{y}: {short[y]}" for y, text in enumerate(shown)]


def plain(text: str) -> str:
    """Return a text as matplotlib may show it: no mathematics, code points for letters without a font."""
    return _joined(_letters(text, lacking(printable(text))))


def _short(name: str, missing: set[str]) -> str:
    """Return a class name as matplotlib may show it. The middle of a long one goes: ends differ."""
    letters = _letters(name, missing)
    start, end = _fitting(letters, 5), _fitting(letters[::-1], 8)
    if start + end < len(letters) and _columns("".join(letters)) > 14:
        letters[start:-end] = "…"
    return _joined(letters)


def _letters(text: str, missing: set[str]) -> list[str]:
    return [f" U+{ord(letter):04X} " if letter in missing else letter for letter in printable(text)]


def _joined(letters: list[str]) -> str:
    return " ".join("".join(letters).split()).replace("$", r"\$")


def _fitting(letters: list[str], columns: int) -> int:
    """Return how many letters fit into some columns: at least one."""
    return max(1, sum(width <= columns for width in accumulate(map(_columns, letters))))


def _columns(text: str) -> int:
    """Return how wide a text is in Latin letters."""
    return sum(1 + (east_asian_width(letter) in "WF") for letter in text)


def legend_columns(figure: Figure, labels: list[str], most: int = 4) -> int:
    """Return in how many columns a legend with these labels fits on the page."""
    letters = max(len(line) for label in labels for line in label.split("\n"))
    return max(
        1, min(most, int(figure.get_figwidth() / (0.6 + 0.09 * letters)))
    )  # inches: of line and gap, of a letter


def legend_below(figure: Figure) -> None:
    """Add one legend below all panels, of what has a label in the first."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(figure, labels))


def with_grid(figure: Figure, *all_axes) -> Figure:
    """Return the figure, with grids in these axes."""
    for axes in all_axes:
        axes.grid(alpha=0.3)
    return figure


class PlainLogFormatter(LogFormatterSciNotation):
    """Labels what matplotlib would label, but 0.06, 1 and 23.2 as numbers, not as powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        return f"{x:g}" if text and 1e-3 <= abs(x) < 1e4 else text


def with_log_scale(axes) -> None:
    """Give an axes a logarithmic y axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PlainLogFormatter())
    axes.yaxis.set_minor_formatter(PlainLogFormatter())


def reliability(axes, lines: list[tuple]) -> None:
    """Draw a reliability diagram; lines of (label, bins (3, n), expected error in per cent, colour, marker).

    bins: count, mean confidence and accuracy of the answers by confidence.
    """
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":", label="perfect calibration")
    for label, bins, error, colour, sign in lines:
        count, confidence, accuracy = np.asarray(bins)
        filled = count > 0
        points = 100 * confidence[filled], 100 * accuracy[filled]
        size = 12 + 250 * count[filled] / count.sum()
        hollow = {"facecolor": "none", "edgecolor": colour, "linewidth": 1.5}  # what lies below stays seen
        axes.scatter(*points, s=size, marker=sign, label=f"{label}: expected error {error:.1f} %", **hollow)
    axes.set(xlabel="confidence (%); larger marks: more answers", ylabel="accuracy (%)")
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=1 + (len(lines) > 3))
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([30])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format, of FORMATS, that the ending of the path says."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=DPI)
    write_atomic(path, lambda file: file.write(buffer.getvalue()))

"""Letters that the font of the figures lacks: another font of this machine has them, or their code points are shown."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from matplotlib import rc_context, rcParams
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from errors import printable

OF_BOXES = "lastresort"  # comes with matplotlib, and has a box for every letter


@contextmanager
def fonts_for(names: list[str]) -> Iterator[None]:
    """Let figures that are drawn inside have fonts for these names."""
    with rc_context({"font.family": families_for([printable(name) for name in names])}):
        yield


def families_for(names: list[str]) -> list[str]:
    """Return font families for figures with these names: the usual ones, then some of this machine with the rest."""
    families, missing = list(rcParams["font.family"]), lacking("".join(names))
    if not missing:
        return families
    found: dict[str, set[str]] = {}  # letters that all faces of a family have
    for font in fontManager.ttflist:
        if OF_BOXES not in font.name.replace(" ", "").lower():
            found[font.name] = found.get(font.name, missing) & _letters_in(font.fname, missing)
    while missing:
        best = max(sorted(found), key=lambda family: len(found[family] & missing))
        if not found[best] & missing:
            break
        families.append(best)
        missing -= found[best]
    return families


def lacking(text: str) -> set[str]:
    """Return the letters of a text that no font in use has, in normal or bold."""
    lost = set()
    for weight in ("normal", "bold"):
        missing = set(text)
        for family in rcParams["font.family"]:
            missing -= _letters_in(findfont(FontProperties(family=family, weight=weight)), missing)
        lost |= missing
    return lost


def _letters_in(path: str, letters: Iterable[str]) -> set[str]:
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # removed since matplotlib listed it
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}

"""Tell the person at the keyboard what is wrong: main.py prints a UserError as one line, exit code 2."""

import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

MAX_REASON = 200  # characters
# What reading a file that is damaged, or not what it should be, can raise; anything else is a fault of this program.
READING_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    OverflowError,
    RecursionError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


class UserError(Exception):
    """Bad input or wrong usage; the message says what is wrong and how to mend it."""


def printable(text: object) -> str:
    """Return a text on one line, with what would drive a terminal or is undecodable as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def require(holds: object, what_is_wrong: str) -> None:
    """Raise ValueError unless it holds."""
    if not holds:
        raise ValueError(what_is_wrong)


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is not known: "no solver 'eulr': euler, heun, dopri5"."""
    require(name in known, f"no {what} {name!r}: {', '.join(known)}")


@contextmanager
def reading(what: object, way_out: str, errors: tuple[type[Exception], ...] = READING_ERRORS) -> Iterator[None]:
    """Turn what reading and checking a file can raise into a UserError that names the file.

    Put nothing inside but the reading and the checks: an error of other code would be told as a damaged file.
    """
    try:
        yield
    except errors as error:
        kind = "" if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__} "
        reason = " ".join(f"{kind}{error}".split())[:MAX_REASON]
        raise UserError(f"{what} is damaged ({reason}): {way_out}") from error

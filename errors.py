"""What is told to the person at the keyboard: main.py prints a UserError as one line, exit code 2."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

MAX_REASON = 200  # characters


class UserError(Exception):
    """Bad input or wrong usage; the message says what is wrong and how to mend it."""


def printable(text: object) -> str:
    """For names from files: what would break a line, drive a terminal or stand for an undecodable byte is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def require(holds: object, what_is_wrong: str) -> None:
    """Inside of `reading` only, which names the file."""
    if not holds:
        raise ValueError(what_is_wrong)


@contextmanager
def reading(what: object, way_out: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the file that is read, and becomes a UserError that names it."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__} "
        reason = " ".join(f"{kind}{error}".split())[:MAX_REASON]
        raise UserError(f"{what} is damaged ({reason}): {way_out}") from error


def reading_checkpoint(path: object) -> AbstractContextManager:
    return reading(f"the checkpoint {path}", "take another one")

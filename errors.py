"""What is told to the person at the keyboard: main.py prints a UserError as one line, exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

MAX_REASON = 200  # characters


class UserError(Exception):
    """Bad input or wrong usage; the message says what is wrong and how to mend it."""


def printable(text: object) -> str:
    """For names from files: what would break a line, drive a terminal or stand for an undecodable byte is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@contextmanager
def reading_checkpoint(path: object) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the file, and becomes a UserError that names it."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__} "
        reason = printable(f"{kind}{error}")[:MAX_REASON]
        raise UserError(f"the checkpoint {path} is damaged ({reason}): take another one") from error

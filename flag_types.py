"""A parser of flags whose errors are one line, and the types of their values: numbers in a range, lists, names."""

import argparse
import math
import re
from collections.abc import Callable

from errors import UserError
from parts import parse_blocks

MAX_COUNT, MAX_STEPS, MAX_RUNS, MAX_BLOCKS = 10**9, 10**5, 1000, 10**4  # beyond is a slip, and would take all memory


class Parser(argparse.ArgumentParser):
    """Errors are one line; which flags were given is told apart from the defaults."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        self.defaults: dict[str, object] = {}
        self.several: set[str] = set()  # those whose values are separated by spaces

    def error(self, message: str):
        if "expected at least one argument" in message or re.search("unrecognized arguments: -[^-]", message):
            message += "; a file whose name begins with - is written ./-x.png"
        raise UserError(f"{message} (all flags: python {self.prog} --help)")

    def group(self, title: str):
        """A function that adds a flag to a new group: name, default, help; the default is shown in the help."""
        group = self.add_argument_group(title)

        def flag(name: str, default: object, help: str, shown: str | None = None, **kwargs) -> None:
            action = group.add_argument(name, help=f"{help} (default: {shown or show(default)})", **kwargs)
            self.defaults[action.dest] = default
            if action.nargs not in (None, 0):
                self.several.add(action.dest)

        return flag


def show(value: object) -> str:
    """A setting in words."""
    if value is False:
        return "off"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def block_list(text: str) -> list[int]:
    try:
        return parse_blocks(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of blocks such as 3,5-7, counted from 1") from None


def number(kind: type, low: float, high: float = math.inf, *, open_low: bool = False):
    """An argparse type: a finite number within [low, high], or (low, high] where open_low."""
    bound = f"{'more than' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or value == math.inf or (open_low and value == low):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} of {bound}")
        return value

    return convert


COUNT, POSITIVE = number(int, 0), number(int, 1, MAX_COUNT)
RATE, WEIGHT = number(float, 0, open_low=True), number(float, 0)


def place(text: str) -> str:
    """An argparse type: the name of a file or folder; an empty one comes from a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def one_of(names: tuple[str, ...]):
    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return convert


def list_of(convert: Callable[[str], object]):
    """An argparse type: values between commas, each once."""
    return lambda text: list(dict.fromkeys(convert(piece) for piece in text.split(",")))

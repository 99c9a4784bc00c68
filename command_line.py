"""Settings as flags: how one is declared, the types of their values, and the parser that follows from a dataclass.

Errors are one line; which flags were given is told apart from the defaults. The settings themselves: settings.py.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import Field, field, fields

from errors import UserError
from models.blocks import parse_blocks

MAX_COUNT, MAX_STEPS, MAX_RUNS, MAX_BLOCKS = 10**9, 10**5, 1000, 10**4  # beyond is a slip, and would take all memory


def setting(
    group: str,
    default: object,
    help: str | Callable[[], str],
    type: Callable[[str], object] | None = None,
    *,
    shown: str | Callable[[], str] | None = None,
    may_change: str = "",
    of_call: bool = False,
    shapes_blocks: bool = True,
    **how,
) -> Field:
    """Declare a setting and its flag.

    Args:
        group: heading in --help.
        type: makes the value of a word; without one a default of False makes the flag a switch.
        shown: the default in words, where it depends on other settings.
        may_change: which of "resume evaluate predict export" may set another value than the checkpoint has.
        of_call: the value is that of this command, never that of a checkpoint.
        shapes_blocks: whether the trained blocks depend on it; parts of a training may differ in what does not.
        how: arguments of argparse: choices, nargs, metavar.
    """
    declared = {"group": group, "help": help, "shown": shown, "may_change": may_change.split(), "of_call": of_call}
    how |= {"type": type} if type else {"action": "store_true"} if default is False else {}
    declared |= {"shapes_blocks": shapes_blocks, "how": how}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=declared)
    return field(default=default, metadata=declared)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the flags of a dataclass of settings if one is given."""

    def __init__(self, declared: type | None = None, **kwargs):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        groups: dict[str, argparse._ArgumentGroup] = {}
        self.defaults = dict(vars(declared())) if declared else {}
        self.several = set()  # those whose values are separated by spaces
        for each in fields(declared) if declared else ():
            about = each.metadata
            group = groups.setdefault(about["group"], None) or self.add_argument_group(about["group"])
            groups[about["group"]] = group
            text = about["help"]() if callable(about["help"]) else about["help"]
            group.add_argument(
                as_flag(each.name), help=f"{text} (default: {self.shown(each)})".replace("%", "%%"), **about["how"]
            )
            if about["how"].get("nargs", "?") != "?":
                self.several.add(each.name)

    def shown(self, each: Field) -> str:
        """Return the default of a setting in words."""
        text = each.metadata["shown"]
        return (text() if callable(text) else text) or show(self.defaults[each.name])

    def error(self, message: str):
        if "expected at least one argument" in message or re.search("unrecognized arguments: -[^-]", message):
            message += "; a file whose name begins with - is written ./-x.png"
        raise UserError(f"{message} (all flags: python {self.prog} --help)")

    def words(self, name: str, value: object) -> list[str]:
        """Return the words of a command line that give a setting this value."""
        if value is True or value == []:
            return [as_flag(name)]
        words = [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
        if name in self.several:
            return [as_flag(name), *words]
        text = ",".join(words)
        return [f"{as_flag(name)}={text}"] if text.startswith("-") else [as_flag(name), text]

    def accepts(self, name: str, value: object) -> bool:
        """Return whether a value is the flag's default, or what the flag makes of some words: of its type and range."""
        if _same(value, self.defaults[name]):
            return True
        flag, *words = self.words(name, value)
        if any(word.startswith("-") for word in words):
            return False  # another flag
        try:
            return _same(vars(self.parse_args([flag, *words])).get(name), value)
        except UserError:
            return False


def as_flag(name: str) -> str:
    """Return the flag of a setting: 'num_blocks' -> '--num-blocks'."""
    return "--" + name.replace("_", "-")


def show(value: object) -> str:
    """Return a setting in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _same(value: object, other: object) -> bool:
    """Return whether two values are equal and of the same type: 1, 1.0 and True are not the same."""
    if type(value) is not type(other):
        return False
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    return value == other


def number(kind: type, low: float, high: float = math.inf, *, open_low: bool = False):
    """Return an argparse type: a finite number within [low, high], or (low, high] where open_low."""
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


def block_list(text: str) -> list[int]:
    """Return the blocks of a list such as 3,5-7; an argparse type."""
    try:
        return parse_blocks(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of blocks such as 3,5-7, counted from 1") from None


def place(text: str) -> str:
    """Return the name of a file or folder, with ~ and $NAME replaced as in a shell, which does not do so in --flag=~/x.

    An argparse type; an empty name comes from a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text if os.path.exists(text) else os.path.expanduser(os.path.expandvars(text))


def one_of(names: Iterable[str]):
    """Return an argparse type: one of the names."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return convert


def one_of_these(values: dict[str, object]):
    """Return an argparse type: the value of one of the words."""
    word = one_of(values)
    return lambda text: values[word(text)]


def list_of(convert: Callable[[str], object]):
    """Return an argparse type: values between commas, none of them twice."""

    def convert_all(text: str) -> list:
        values = [convert(piece) for piece in text.split(",")]
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names something twice")
        return values

    return convert_all

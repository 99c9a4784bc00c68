"""Settings as flags: how one is declared, the types of their values, and the parser that follows from a dataclass.

Errors are one line; which flags were given is told apart from the defaults. The settings themselves: settings.py.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import Field, field, fields
from difflib import get_close_matches

from errors import UserError
from models.blocks import parse_blocks

NEGATIVE = re.compile(r"-[0-9.]+(e[+-]?[0-9]+)?")  # a number
LONG_DEFAULT = 40  # characters; a longer one stands in --help-all only
MOST_GUESSES = 3
OTHER_NAMES = {"resume": "--checkpoint RUN", "output-dir": "--checkpoint-dir"}  # of other programs
OF_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # how shtab completes names of files
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
    shapes_blocks: bool | None = None,
    common: bool = False,
    more: str | Callable[[], str] = "",
    **how,
) -> Field:
    """Declare a setting and its flag.

    Args:
        group: heading in --help.
        type: makes the value of a word; without one a default of False makes the flag a switch.
        shown: the default in words, where it depends on other settings.
        may_change: which of "resume evaluate predict export" may set another value than the checkpoint has.
        of_call: the value is that of this command, never that of a checkpoint.
        shapes_blocks: whether the trained blocks depend on it, by default on all that is not of_call; parts of a
            training may differ in what does not.
        common: whether --help shows it; --help-all shows all.
        more: what follows the help in --help-all and docs/flags.md only.
        how: arguments of argparse: choices, nargs, metavar.
    """
    declared = {"group": group, "help": help, "shown": shown, "may_change": may_change.split(), "of_call": of_call}
    how |= {"type": type} if type else {"action": "store_true"} if default is False else {}
    shapes_blocks = not of_call if shapes_blocks is None else shapes_blocks
    declared |= {"shapes_blocks": shapes_blocks, "common": common, "more": more, "how": how}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=declared)
    return field(default=default, metadata=declared)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the flags of a dataclass of settings if one is given.

    Of those --help shows the common ones, --help-all all.
    """

    def __init__(self, declared: type | None = None, version: str = "", **kwargs):
        kwargs |= {"add_help": declared is None, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        self.defaults = dict(vars(declared())) if declared else {}
        self.several = set()  # those whose values are separated by spaces
        self.short: dict[str, str] = {}  # help of the common ones
        if declared:
            self._add_settings(declared)
            self._add_help(version)

    def _add_settings(self, declared: type) -> None:
        groups: dict[str, argparse._ArgumentGroup] = {}
        for each in fields(declared):
            about, name = each.metadata, each.metadata["group"]
            groups[name] = groups[name] if name in groups else self.add_argument_group(name)
            text, more = (text() if callable(text) else text for text in (about["help"], about["more"]))
            default, how = self.shown(each), dict(about["how"])
            if "choices" in how:
                how["type"] = one_of(how["choices"])
            in_full = f"{text}{more} (default: {default})".replace("%", "%%")
            action = groups[name].add_argument(as_flag(each.name), help=in_full, **how)
            if how.get("type") is place:
                action.complete = OF_FILES
            if how.get("nargs", "?") != "?":
                self.several.add(each.name)
            if about["common"]:
                self.short[each.name] = (
                    f"{text} (default: {'see --help-all' if len(default) > LONG_DEFAULT else default})"
                )

    def _add_help(self, version: str) -> None:
        group = self.add_argument_group("help")
        group.add_argument("-h", "--help", action="help", help="show the common flags and end")
        group.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags with all defaults and end")
        group.add_argument("--version", action="version", version=version, help="show the version and end")
        self.short |= {action.dest: action.help for action in group._group_actions}

    def format_help(self, every: bool = False) -> str:
        """Return the help: of the common flags, or of every one."""
        if not self.short:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for group in self._action_groups:
            actions = [copy(action) for action in group._group_actions if every or action.dest in self.short]
            for action in () if every else actions:
                action.help = self.short[action.dest].replace("%", "%%")
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def shown(self, each: Field) -> str:
        """Return the default of a setting in words."""
        text = each.metadata["shown"]
        return (text() if callable(text) else text) or show(self.defaults[each.name])

    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        guess = did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        if not guess and ("expected at least one argument" in message or re.search(": -[^-]", message)):
            message += "; a file whose name begins with - is written ./-x.png"
        raise UserError(f"{message}{guess} (all flags: python {self.prog} --help-all)")

    def words(self, name: str, value: object) -> list[str]:
        """Return the words of a command line that give a setting this value."""
        if value is True or value == []:
            return [as_flag(name)]
        if value is False or value is None:
            return [as_flag(name), "off"]
        words = [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
        if name in self.several:
            return [as_flag(name), *words]
        text = ",".join(words)
        return [f"{as_flag(name)}={text}"] if text.startswith("-") else [as_flag(name), text]

    def accepts(self, name: str, value: object) -> bool:
        """Return whether a value is the flag's default, or what the flag makes of some words: of its type and range."""
        try:
            return _same(self.read(name, value), value)
        except UserError:
            return False

    def read(self, name: str, value: object) -> object:
        """Return what a flag makes of a value as it is typed. Raises UserError where it is not one of the flag's."""
        if _same(value, self.defaults[name]):
            return value
        flag, *words = self.words(name, value)
        if any(word.startswith("-") and not NEGATIVE.fullmatch(word) for word in words):
            raise UserError(f"argument {flag}: {words} are not its values")  # but another flag
        return vars(self.parse_args([flag, *words])).get(name)


class _HelpAll(argparse.Action):
    """Shows the help of every flag."""

    def __call__(self, parser, *_):
        print(parser.format_help(every=True), end="")
        parser.exit()


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a question with the names that begin with a word, else with the nearest one; nothing if none is near."""
    bare = {name.lstrip("-"): name for name in names}
    word = word.lstrip("-").lower().replace("_", "-")
    if word in OTHER_NAMES:
        return f"; did you mean {OTHER_NAMES[word]}?"
    near = [name for name in bare if len(word) > 1 and name.startswith(word)] or get_close_matches(word, bare, n=1)
    return f"; did you mean {' or '.join(bare[name] for name in near[:MOST_GUESSES])}?" if near else ""


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


def one_of(names: Iterable[str], or_one: Callable[[str], bool] = lambda text: False):
    """Return an argparse type: one of the names, or one that `or_one` knows."""

    def convert(text: str) -> str:
        if text not in names and not or_one(text):
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}{did_you_mean(text, names)}")
        return text

    return convert


def one_of_these(values: dict[str, object]):
    """Return an argparse type: the value of one of the words."""
    word = one_of(values)
    return lambda text: values[word(text)]


def or_off(convert: Callable[[str], object]):
    """Return an argparse type: None for off, else what `convert` makes of the text."""
    return lambda text: None if text == "off" else convert(text)


def list_of(convert: Callable[[str], object]):
    """Return an argparse type: values between commas, none of them twice."""

    def convert_all(text: str) -> list:
        values = [convert(piece) for piece in text.split(",")]
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names something twice")
        return values

    return convert_all


def ending_in(endings: tuple[str, ...]) -> Callable[[str], str]:
    """Return the type of a file's name with one of some endings."""

    def check(text: str) -> str:
        if not text.endswith(endings):
            wanted = " or ".join(endings)
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {wanted}, which says what is written")
        return place(text)

    return check


def defaults_in_words(name: str, owners: Mapping) -> str:
    """Return the defaults of a setting that depend on its owner, of a registry."""
    return ", ".join(f"{owner} {show(each.defaults[name])}" for owner, each in owners.items() if name in each.defaults)


def epochs_in_words(methods: Mapping, datasets: Iterable[str]) -> str:
    """Return the default epochs of methods, of data sets with the same ones together."""
    by_text: dict[str, list[str]] = {}
    for dataset in datasets:
        by_number: dict[int, list[str]] = {}
        for name, method in methods.items():
            by_number.setdefault(method.epochs.get(dataset, method.epochs["other"]), []).append(name)
        text = ", ".join(f"{n} ({' '.join(names)})" for n, names in by_number.items())
        by_text.setdefault(text, []).append(dataset)
    return "; ".join(f"{' '.join(names)} {text}" for text, names in by_text.items())


def recipes_in_words(methods: Mapping, recipes: Iterable[str]) -> str:
    """Return every recipe with the flags that it stands for, those first that it has for all methods."""
    texts = []
    for recipe in recipes:
        own = {name: m.recipes[recipe].items() for name, m in methods.items() if recipe in m.recipes}
        words = {name: [f"{as_flag(k)} {show(v)}" for k, v in flags] for name, flags in own.items()}
        common = [word for word in next(iter(words.values())) if all(word in each for each in words.values())]
        more = {name: [word for word in each if word not in common] for name, each in words.items()}
        texts.append(f"{recipe} ({' '.join(own)}) is {' '.join(common)}")
        texts[-1] += "".join(f", {name} {' '.join(each)}" for name, each in more.items() if each)
    return ": " + "; ".join(texts)


def describe_flags(parser: Parser, owners_of: Callable[[str], tuple[str, list[str]] | None]) -> str:
    """Return docs/flags.md: every flag with its default, its owners and its meaning.

    owners_of: returns method or dataset, and the names that know a setting; None where all do.
    """
    rows, group = ["| flag | default | of | meaning |", "| --- | --- | --- | --- |"], None
    for action in parser._actions:
        if action.dest not in parser.defaults:  # help and the like
            continue
        title = next(g.title for g in parser._action_groups if action in g._group_actions)
        if title != group:
            rows.append(f"| **{title}** | | | |")
            group = title
        text, default = action.help.replace("%%", "%")[:-1].split(" (default: ")
        choices = f" ({', '.join(action.choices)})" if action.choices else ""
        owners = owners_of(action.dest)
        known = " ".join(owners[1]) if owners else ""
        rows.append(f"| `{action.option_strings[0]}` | {default} | {known} | {text}{choices} |")
    return "# Flags\n\nWritten by `make docs` from settings.py.\n\n" + "\n".join(rows) + "\n"

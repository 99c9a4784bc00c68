"""Repeat a run: the settings of its config.json as if they had been typed before the flags of the command line."""

from pathlib import Path

from command_line import Parser, as_flag, show
from errors import UserError, printable, reading, require
from models.methods import methods_with
from rules import EMBEDDING_SETTINGS, accepted, parse, settle, unknown_to_owners, with_recipe
from runs.checks import todays_settings
from runs.reader import read_json
from settings import Settings, make_parser, names_where


def read_command(argv: list[str] | None = None) -> tuple[Settings, set[str]]:
    """Return the settings of a command line and the names of those that were given, here or by the run of --config.

    Raises UserError for what cannot be.
    """
    s, given = parse(argv)
    if not s.config:
        return s, given
    path = Path(s.config, "config.json") if Path(s.config).is_dir() else Path(s.config)
    before = _flags_in(path)
    if s.seeds:
        before.pop("seed", None)
    for name in unknown_to_owners(before.keys() - given, parse(argv, before)[0]):
        print(printable(f"{as_flag(name)} {show(before.pop(name))} of {path} is left out: it does not go with yours"))
    s, given = parse(argv, before)
    try:
        settle(s, given)
    except UserError as error:
        raise UserError(
            f"{error} (with the settings of {path}: give other flags, or change them in a copy of it)"
        ) from error
    return s, given


def _flags_in(path: Path) -> dict[str, object]:
    """Return the flags of a config.json; tells which of its settings this program does not know."""
    if path.is_file() and path.suffix != ".json":
        raise UserError(f"--config {path} is no config.json: name the folder of a run, or its config.json")
    content = read_json(path, "take another one")
    if content is None:
        raise UserError(f"--config {path}: there is no such file; name the folder of a run, or its config.json")
    with reading(path, "take another one"):
        require(type(content) is dict, "it holds no settings")
        old = type(content.get("augment")) is bool and content.get("class_probability") == "posterior"
        require(not old, "it is of an older version, whose --posterior-sigma had another unit")
        parser = make_parser()
        settings = parser.defaults.keys()
        config = todays_settings({name: value for name, value in content.items() if name in settings})
        config = {name: _read(parser, path, name, value) for name, value in config.items()}
        if config.get("class_probability") == "softmax":
            config.pop("posterior_sigma", None)  # which nothing reads; older versions had another default
        flags = _flags_of(config)
    if unknown := sorted(content.keys() - settings - {"versions"}):
        print(printable(f"{path} has settings of another version, left out: {', '.join(unknown)}"))
    return flags


def _read(parser: Parser, path: Path, name: str, value: object) -> object:
    """Return a setting as its flag reads it, so that 1 stands for 1.0, and 10 for [10]."""
    try:
        return value if value is None else parser.read(name, value)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error


def _flags_of(config: dict) -> dict[str, object]:
    """Return the fewest flags from which the settings of a run follow, those of its call left out.

    Raises ValueError for a value that its flag does not accept.
    """
    s, of_call = accepted(config), names_where(lambda about: about["of_call"])
    flags = {name: value for name, value in vars(s).items() if s.method in methods_with(name) and name not in of_call}
    wanted = settle(with_recipe(flags), set())
    for name in list(flags):
        fewer = {other: value for other, value in flags.items() if other != name}
        if settle(with_recipe(fewer), set()) == wanted:
            flags = fewer
    if s.embedding_from:  # which brings them
        flags = {name: value for name, value in flags.items() if name not in EMBEDDING_SETTINGS}
    return flags

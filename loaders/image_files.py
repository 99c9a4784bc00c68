"""Tell which files of a folder are own images, and of which class: by class folders, or by labels.csv."""

import csv
import os
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from errors import UserError

NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # which Pillow knows and cannot decode by itself
HIDDEN = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"}
LABELS = "labels.csv"


class ImageFiles(NamedTuple):
    """Files of a part with the index of their class, and how many others are among them, by ending."""

    paths: list[str]
    labels: list[int]
    classes: list[str]
    others: Counter


def list_images(folder: Path, needs_all: bool) -> ImageFiles:
    """Return the images of a part; needs_all: every class must have one, and there must be two."""
    layout = f"expected DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/train/{LABELS}, DIR given with --data-dir"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: {layout}")
    by_class, others = _from_table(folder) if (folder / LABELS).is_file() else _from_folders(folder)
    if not by_class:
        raise UserError(f"there is no class folder in {folder}: {layout}")
    if needs_all and len(by_class) < 2:
        raise UserError(f"{folder} has one class only ({next(iter(by_class))!r}): two or more are needed")
    empty = [name for name, paths in by_class.items() if not paths]
    if needs_all and empty:
        raise UserError(f"no images in the class folder {folder / empty[0]}: add some (png, jpg, ...) or remove it")
    if len(empty) == len(by_class):
        raise UserError(f"there are no images in {folder}: add some (png, jpg, ...)")
    classes = sorted(by_class.keys() - set(empty))
    paths = [path for name in classes for path in by_class[name]]
    return ImageFiles(paths, [y for y, name in enumerate(classes) for _ in by_class[name]], classes, others)


def _from_folders(folder: Path) -> tuple[dict[str, list[str]], Counter]:
    """Return the images of every class folder, and what else is in them by ending; hidden things are passed over."""
    by_class: dict[str, list[str]] = {}
    others: Counter = Counter()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not _is_hidden(entry.name):
            found, more = images_in(Path(entry.path))
            by_class.setdefault(_normal(entry.name), []).extend(found)
            others += more
    return by_class, others


def _from_table(folder: Path) -> tuple[dict[str, list[str]], Counter]:
    """Return the images that labels.csv names in lines of file,class; the first line may be a heading."""
    by_class: dict[str, list[str]] = {}
    path = folder / LABELS
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): save it as CSV in UTF-8") from error
    if rows and not (folder / rows[0][0]).is_file():
        rows = rows[1:]  # a heading
    for row in rows:
        if len(row) < 2 or not row[1]:
            raise UserError(f"{path} has the line {','.join(row)!r}: every line needs file,class")
        if not (folder / row[0]).is_file():
            raise UserError(f"{path} names the file {row[0]}, which is not there: add it or remove the line")
        by_class.setdefault(_normal(row[1]), []).append(str(folder / row[0]))
    named = {os.path.realpath(place) for paths in by_class.values() for place in paths}
    found, others = images_in(folder)
    others.update(Path(place).suffix.lower() for place in found if os.path.realpath(place) not in named)
    return by_class, others - Counter([".csv"])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in HIDDEN


def _normal(name: str) -> str:
    """Return a name in Unicode's normal form: macOS and Linux write the same letters differently."""
    return unicodedata.normalize("NFC", name)


@cache
def _endings() -> frozenset[str]:
    """Return the endings of all images that Pillow can open."""
    return frozenset(
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - NO_IMAGES
    )


def images_in(folder: Path) -> tuple[list[str], Counter]:
    """Return all image files below, in order, and the number of other files by ending.

    A folder that links lead to again, or to one around it, counts once.
    """
    real = folder.resolve()
    seen = {real, *real.parents}
    found, others = [], Counter()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        new = {}
        for name in sorted(folders):
            if not _is_hidden(name):
                new.setdefault(Path(root, name).resolve(), name)
        folders[:] = [name for place, name in new.items() if place not in seen]
        seen |= new.keys()
        for name in files:
            ending = Path(name).suffix.lower()
            if ending in _endings() and not _is_hidden(name):
                found.append(os.path.join(root, name))
            elif not _is_hidden(name):
                others[ending] += 1
    return sorted(found, key=lambda path: (os.path.dirname(path), path)), others


def endings_in_words(others: Counter) -> str:
    """Return how many files there are of each ending, the ten most frequent first: '3 .txt, 1 without an ending'."""
    most = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    return ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in most)


def _raise(error: OSError) -> None:
    raise error

"""Input of strangers: every bad input gets its one line and harms nothing; what looks odd and is good works."""

import contextlib
import warnings
from collections import OrderedDict

import pytest
from bad_inputs import PARTS
from box import MARKER, Box
from helpers import call

from models import load

MOST_MEMORY = 150e6  # bytes that a bad input may take for a while; the bombs among them would take 500e6 and more
CASES = {name: case for cases in PARTS.values() for name, case in cases.items()}


@contextlib.contextmanager
def peak_memory_of_this():
    """Yield a list that gets the bytes by which the peak memory inside is above what was in use before; Linux only."""
    grown = []
    before = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    yield grown
    grown.append(_memory("VmHWM") - before)


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))


def files_of(folder) -> dict:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_there_are_many_and_no_name_twice():
    assert len(CASES) == sum(map(len, PARTS.values())) > 60


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_gets_one_line_exit_code_2_and_harms_nothing(name, digits_run, tmp_path):
    box = Box(tmp_path, digits_run)
    words = CASES[name].make(box)
    files, own = files_of(digits_run), files_of(tmp_path)
    with peak_memory_of_this() as grown, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # they would be further lines on stderr
        code, _, err = call(words)
    assert not [str(each.message) for each in warned if each.category is not DeprecationWarning]
    assert (code, err.count("\n"), err[-1]) == (2, 1, "\n"), err
    assert CASES[name].words in err and err.strip().isprintable(), err
    assert grown[0] < MOST_MEMORY, grown
    assert files_of(digits_run) == files and own.items() <= files_of(tmp_path).items()
    assert not (tmp_path / MARKER).exists() and not (tmp_path / "run" / "config.json").exists()


def test_what_torch_notes_beside_the_weights_is_not_looked_at(digits_run, tmp_path):
    def change(content):
        content["model"] = OrderedDict(content["model"])
        content["model"]._metadata = "odd"

    assert load(Box(tmp_path, digits_run).changed(change)).info.image_shape == (1, 8, 8)

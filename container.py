"""What a checkpoint file must be before torch opens it: a zip file of stored members, one a pickle of plain data.

The pickle is read by its opcodes: nothing in it is imported, called or hashed but what our checkpoints consist of,
which are numbers, words, lists, dicts with plain keys, and tensors whose elements all lie in a member of the file.
Raises ValueError, saying what is wrong, and whatever zipfile, struct and pickletools raise for broken files.
"""

import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from errors import require

MAX_PICKLE = 2**26  # bytes; a run of a thousand blocks and epochs has about 50 million
MAX_STEPS = 2 * 10**7  # opcodes
MAX_CONTAINERS = 10**6  # lists and dicts
MAX_DIRECTORY = 2**25  # bytes of the zip file's list of members
MAX_DEPTH = 20
MAX_DIMENSIONS = 4  # of a tensor
MAX_TEXT = 2**14  # characters

# The end of a zip file as torch.save writes it: zip64 record, its locator, end of central directory.
END = struct.Struct("<4sQHHIIQQQQ4sIQI4sHHHHIIH")

ATOMS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ELEMENT_BYTES = {"torch FloatStorage": 4, "torch DoubleStorage": 8, "torch LongStorage": 8, "torch ByteStorage": 1}
ORDERED_DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"


class Name(NamedTuple):
    """A function or class that the pickle names."""

    name: str


class Stored(NamedTuple):
    """Elements in a member of the file, which a tensor is a view of."""

    numel: int


def check_container(path: Path) -> None:
    """Read the file's list of members and its pickle, without the tensors."""
    with open(path, "rb") as file:
        _check_directory(file, path.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            sizes = _member_sizes(archive, path.stat().st_size)
            folder = _folder(sizes)
            require(f"{folder}/data.pkl" in sizes, "it has no description of its content")
            require(sizes[f"{folder}/data.pkl"] <= MAX_PICKLE, "its description of the content is absurdly large")
            content, steps = read_pickle(archive.read(f"{folder}/data.pkl"), folder, sizes)
            check_plain(content, budget=6 * steps)
            spoiled = archive.testzip()  # torch does not look at the checksums
            require(spoiled is None, f"its part {spoiled} is not what was written")


def _check_directory(file: BinaryIO, size: int) -> None:
    """Python's zipfile and torch's reader must see the same list of members, the one right before the file's end."""
    require(size > END.size, "it is too short")
    file.seek(-END.size, os.SEEK_END)
    end = END.unpack(file.read())
    names, (length, offset), locator = (end[0], end[10], end[14]), end[8:10], end[12]
    require(names == (b"PK\6\6", b"PK\6\7", b"PK\5\6"), "it does not end as a file of torch.save does")
    require(locator == offset + length == size - END.size and end[-1] == 0, "its list of members is out of place")
    require(length <= MAX_DIRECTORY, "it has too many members")
    file.seek(0)


def _member_sizes(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    members = archive.infolist()
    sizes = {member.filename: member.file_size for member in members}
    require(len(sizes) == len(members), "two of its members have the same name")
    stored = all(m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members)
    require(stored, "its members are compressed")
    require(sum(sizes.values()) <= size, "its members are larger than the file")
    return sizes


def _folder(sizes: Iterable[str]) -> str:
    """Of all members; the name that torch.save gives it varies."""
    folders = {name.partition("/")[0] for name in sizes}
    require(len(folders) == 1, "its members are in several folders")
    return folders.pop()


def read_pickle(data: bytes, folder: str, sizes: dict[str, int]) -> tuple[object, int]:
    """The content, with ... for every tensor, and the number of opcodes. sizes: bytes of the file's members."""
    machine = _Machine(folder, sizes)
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        require(steps < MAX_STEPS and machine.containers < MAX_CONTAINERS, "it describes too many things")
        if opcode.name == "STOP":
            return [*machine.stack, *machine.attributes], steps
        machine.run(opcode.name, argument)
    raise ValueError("its description of the content is cut off")


class _Machine:
    """Runs opcodes as pickle does: what they make is on a stack, MARK begins a new one."""

    def __init__(self, folder: str, sizes: dict[str, int]):
        self.folder, self.sizes = folder, sizes
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, object] = {}
        self.attributes: list = []  # of state dicts
        self.containers = 0

    def run(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in ATOMS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.containers += 1
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "GLOBAL":
            known = {ORDERED_DICT, TENSOR, *ELEMENT_BYTES}
            require(argument in known, f"it wants to run {argument.replace(' ', '.')}, which no checkpoint needs")
            stack.append(Name(argument))
        elif name == "PROTO":
            require(argument == 2, "it is a pickle of another protocol than torch.save's")
        else:
            self._combine(name)

    def _combine(self, name: str) -> None:
        """Opcodes that take things from the stack."""
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, self.stack = self.stack, self.marks.pop()
            if name == "TUPLE":
                self.stack.append(tuple(items))
            else:
                self._fill(items)
        elif name == "APPEND":
            self._fill([self.stack.pop()])
        elif name == "SETITEM":
            value, key = self.stack.pop(), self.stack.pop()
            self._fill([key, value])
        elif name == "BINPERSID":
            self.stack.append(self._stored(*self.stack.pop()))
        elif name == "REDUCE":
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(_called(function, arguments))
            self.containers += function == Name(ORDERED_DICT)
        elif name == "BUILD":
            self.attributes.append(self.stack.pop())
            require(isinstance(self.stack[-1], dict), "it sets attributes of a tensor")
        else:
            raise ValueError(f"it has {name} in it, which no checkpoint needs")

    def _fill(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
            return
        keys = items[::2]
        plain = isinstance(target, dict) and all(type(key) in (str, int) for key in keys)
        require(plain, "it has keys of a wrong type")
        target.update(zip(keys, items[1::2], strict=True))

    def _stored(self, kind: str, element: Name, key: str, device: str, numel: int) -> Stored:
        plain = kind == "storage" and type(key) is str and type(numel) is int
        require(plain and isinstance(element, Name), "it has a tensor that is none")
        size = self.sizes.get(f"{self.folder}/data/{key}")
        require(size == numel * ELEMENT_BYTES[element.name], "it has a tensor of another size than its elements")
        return Stored(numel)


def _called(function: Name, arguments: tuple) -> object:
    if function == Name(ORDERED_DICT):
        require(arguments == (), "it has a dict that is not made as ours are")
        return {}
    require(function == Name(TENSOR), "it calls what no checkpoint needs to")
    storage, offset, size, stride, *_ = arguments
    require(isinstance(storage, Stored) and len(size) == len(stride) <= MAX_DIMENSIONS, "it has a tensor that is none")
    whole = all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
    require(whole, "it has a tensor that is none")
    require(offset + math.prod(size) <= storage.numel, "it has a tensor that is larger than its elements in the file")
    expected = 1
    for step, length in sorted((step, length) for step, length in zip(stride, size, strict=True) if length != 1):
        require(step == expected, "it has a tensor whose elements overlap or have gaps")
        expected *= length
    return ...


def check_plain(content: object, budget: int) -> None:
    """Visits everything, what is there twice twice: so much must not grow without bounds by being shared."""
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if type(value) in (dict, list, tuple):
            budget -= 2 * len(value) + 1
            require(budget >= 0, "it contains itself, or the same things many times over")
            require(depth <= MAX_DEPTH, "it is nested too deeply")
            parts = (*value, *value.values()) if type(value) is dict else value
            waiting.extend((part, depth + 1) for part in parts)
        elif type(value) is str:
            require(len(value) <= MAX_TEXT, "it has an absurdly long word in it")
        else:
            require(value is None or value is ... or type(value) in (int, float, bool), "it has odd things in it")

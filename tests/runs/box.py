"""What bad inputs are made with (bad_inputs.py): a folder beside that of a good run, and a call of the program."""

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

MARKER = "code was run"
# The end of a zip file as torch.save writes it: zip64 record, its locator, end of central directory.
END = struct.Struct("<4sQHHIIQQQQ4sIQI4sHHHHIIH")


class Case(NamedTuple):
    """make(box) makes the input and returns the call: the flags of main.py, or [Path, ...] for visualize.py."""

    make: Callable[["Box"], list]
    words: str


class Box:
    """A folder in which bad inputs are made, beside the folder of a good run."""

    def __init__(self, folder: Path, run: Path):
        self.folder, self.run = folder, run
        self.model, self.last = run / "best_model.pt", run / "last.pt"

    def train(self, *flags) -> list:
        small = ["--dataset", "digits", "--num-blocks", "1", "--epochs", "1"]
        return [*small, "--checkpoint-dir", self.folder / "run", *flags]

    def file(self, name: str, content: bytes | str = b"") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def changed(self, change: Callable[[dict], object], last: bool = False) -> Path:
        """Save a checkpoint whose content is changed."""
        content = torch.load(self.last if last else self.model, weights_only=True)
        change(content)
        return self.saved(content)

    def saved(self, content: object) -> Path:
        path = self.folder / "stranger.pt"
        torch.save(content, path)
        return path

    def written(self, pickle: bytes, members: dict[str, bytes] | None = None) -> Path:
        """Write a file of torch's format whose pickle, and more, is given byte by byte."""
        path = self.folder / "stranger.pt"
        writer = torch._C.PyTorchFileWriter(str(path))
        for name, content in {"data.pkl": pickle, **(members or {})}.items():
            writer.write_record(name, content, len(content))
        writer.write_end_of_file()
        return path

    def zipped(self, edit: Callable[[zipfile.ZipFile], object]) -> Path:
        """Write a zip file of Python's that ends as one of torch's does."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            edit(archive)
        data = buffer.getvalue()
        _, _, _, _, count, length, offset, _ = struct.unpack("<4s4H2LH", data[-22:])
        data, place = data[:-22], len(data) - 22
        record = (b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)
        end = END.pack(*record, b"PK\6\7", 0, place, 1, b"PK\5\6", 0, 0, count, count, length, offset, 0)
        return self.file("stranger.pt", data + end)

    def run_copy(self, name: str, content: bytes | str) -> list:
        """Copy the run without its checkpoints, one of its files replaced."""
        copy = self.folder / "copy"
        shutil.copytree(self.run, copy, ignore=shutil.ignore_patterns("*.pt", "plots"))
        self.file(f"copy/{name}", content)
        return [copy]

    def with_json(self, name: str, change: Callable) -> list:
        content = json.loads((self.run / name).read_text())
        change(content)
        return self.run_copy(name, json.dumps(content))

    def with_examples(self, **arrays) -> list:
        with np.load(self.run / "logs" / "examples.npz") as file:
            content = dict(file) | arrays
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        return self.run_copy("logs/examples.npz", buffer.getvalue())

    def image(self, name: str, image: Image.Image | bytes, **how) -> list:
        """Return a call that predicts an image file."""
        path = self.file(name)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **how)
        return self.predict(path)

    def predict(self, *paths) -> list:
        return ["--predict", *paths, "--checkpoint", self.model]

    def data(self, *flags) -> list:
        """Write two classes of two images each, and return a call that trains on them."""
        for part in ("train", "test"):
            for name, colour in (("cat", "navy"), ("dog", "red")):
                (self.folder / "data" / part / name).mkdir(parents=True, exist_ok=True)
                for i in range(2):
                    Image.new("RGB", (8, 8), colour).save(self.folder / "data" / part / name / f"{i}.png")
        where = ["--data-dir", self.folder / "data", "--checkpoint-dir", self.folder / "run"]
        return ["--dataset", "folder", "--val-fraction", 0, *where, *flags]

    def compared(self, name: str, content: str) -> list:
        """Return a call of --compare in a folder where dt is done."""
        shutil.copytree(self.run / "logs", self.folder / "compare" / "dt" / "logs")
        for file in ("config.json", "results.json"):
            shutil.copy(self.run / file, self.folder / "compare" / "dt")
        self.file(f"compare/{name}", content)
        return ["--compare", "dt", "--checkpoint-dir", self.folder / "compare"]


class Runs:
    """Become a call of a function when pickled."""

    def __init__(self, function: Callable, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evaluate(path: Path) -> list:
    return ["--evaluate", "--checkpoint", path]


def resume(path: Path) -> list:
    return ["--checkpoint", path, "--epochs", 3]


def png(width: int, height: int) -> bytes:
    """Return a small PNG file that says it is so large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

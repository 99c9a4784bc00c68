"""A table of bad inputs: how each is made, how it is called, words that its line must hold.

python tests/runs/bad_inputs.py > docs/bad_inputs.md prints it with the lines. The tests run it all: test_untrusted.py.
"""

import io
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bad_checkpoints import CONTENTS, FILES  # noqa: E402
from box import MARKER, Box, Case, Runs, evaluate, png  # noqa: E402
from helpers import call  # noqa: E402
from PIL import Image, PngImagePlugin  # noqa: E402


def train(*flags):
    return lambda box: box.train(*flags)


DIGITS = ["--dataset", "digits"]
ONE_HOT = ["--embedding-type", "one-hot"]


FLAGS = {
    "unknown flag": Case(train("--wavelets"), "--wavelets"),
    "abbreviated flag": Case(train("--embedding", "one-hot"), "--embedding"),
    "unknown value": Case(train("--schedule", "square"), "square"),
    "negative epochs": Case(train("--epochs", "-3"), "--epochs"),
    "epochs with 400 digits": Case(train("--epochs", "9" * 400), "--epochs"),
    "T = 0": Case(train("--num-blocks", "0"), "--num-blocks"),
    "T = a million": Case(train("--num-blocks", "1000000"), "--num-blocks"),
    "a billion blocks": Case(train(*ONE_HOT, "--blocks", "1-1000000000"), "--blocks"),
    "learning rate that is no number": Case(train("--lr", "nan"), "--lr"),
    "infinite": Case(train("--lr", "inf"), "--lr"),
    "fraction over 1": Case(train("--val-fraction", "1.5"), "--val-fraction"),
    "clip upside down": Case(train("--alpha-bar-clip", "0.9", "0.1"), "--alpha-bar-clip"),
    "dim of one-hot": Case(train(*ONE_HOT, "--embedding-dim", "5"), "--embedding-dim"),
    "runs without noise": Case(train("--inference", "deterministic", "--eval-runs", "3"), "--eval-runs"),
    "a billion runs": Case(train("--eval-runs", "1000000000"), "--eval-runs"),
    "offload on the CPU": Case(train("--device", "cpu", "--offload-blocks"), "--offload-blocks"),
    "unknown device": Case(train("--device", "toaster"), "toaster"),
    "no such GPU": Case(train("--device", "cuda:99"), "cuda:99"),
    "run folder is a file": Case(lambda b: b.train("--checkpoint-dir", b.file("x.png")), "x.png"),
    "run folder not writable": Case(train("--checkpoint-dir", "/proc/run"), "/proc/run"),
    "evaluate what": Case(lambda b: ["--evaluate"], "--checkpoint"),
    "predict with what": Case(lambda b: ["--predict", b.file("x.png")], "--checkpoint"),
    "fewer epochs than done": Case(lambda b: ["--checkpoint", b.last, "--epochs", "1"], "--epochs"),
    "other T": Case(lambda b: [*evaluate(b.model), "--num-blocks", "5"], "--num-blocks 5"),
    "other data set": Case(lambda b: ["--checkpoint", b.last, "--dataset", "mnist"], "--dataset mnist"),
    "weights of another network": Case(
        lambda b: [*DIGITS, "--method", "ct", "--init-from", b.model, "--checkpoint-dir", b.folder / "run"],
        "--init-from",
    ),
    "one seed": Case(train("--seeds", "0"), "--seeds"),
    "settings that are none": Case(lambda b: b.train("--config", b.file("x.json", '{"method": 3}')), "x.json"),
    "settings of no run": Case(lambda b: b.train("--config", b.folder / "none"), "--config"),
    "model without optimizers": Case(lambda b: ["--checkpoint", b.model], "last.pt"),
}


RAMP = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))


def link(name: str, target: str):
    def make(box: Box) -> list:
        os.symlink(target, box.folder / name)
        return box.predict(box.folder / name)

    return make


def truncated(kind: str):
    def make(box: Box) -> list:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, kind)
        return box.image(f"half.{kind}", buffer.getvalue()[: len(buffer.getvalue()) // 2])

    return make


def in_class(name: str, content: bytes):
    def make(box: Box) -> list:
        call = box.data()
        box.file(f"data/train/dog/{name}", content)
        return call

    return make


def without(part: str):
    def make(box: Box) -> list:
        call = box.data()
        shutil.rmtree(box.folder / "data" / part)
        return call

    return make


def emptied(box: Box) -> list:
    call = box.data()
    for path in (box.folder / "data" / "train" / "dog").iterdir():
        path.unlink()
    return call


def text_bomb(box: Box) -> list:
    text = PngImagePlugin.PngInfo()
    text.add_text("x", "a" * 2**26, zip=True)
    return box.image("text.png", RAMP, pnginfo=text)


FLOATING = Image.fromarray(np.zeros((8, 8), dtype=np.float32))
DEEP = Image.fromarray(np.full((8, 8), 2**20, dtype=np.int32))


IMAGES = {
    "missing image": Case(lambda b: b.predict(b.folder / "none.png"), "no such file"),
    "folder as image": Case(lambda b: b.predict(b.folder), "folder"),
    "folder named x.png": Case(lambda b: ((b.folder / "x.png").mkdir(), b.predict(b.folder / "x.png"))[1], "folder"),
    "more classes than there are": Case(lambda b: [*b.image("x.png", RAMP), "--top-k", "11"], "10 classes"),
    "table that is a folder": Case(lambda b: [*b.image("x.png", RAMP), "--output", b.folder], "--output"),
    "empty image": Case(lambda b: b.image("x.png", b""), "no image"),
    "text as image": Case(lambda b: b.image("x.png", b"no image"), "no image"),
    "truncated PNG": Case(truncated("png"), "half.png"),
    "truncated JPEG": Case(truncated("jpeg"), "half.jpeg"),
    "truncated GIF": Case(truncated("gif"), "half.gif"),
    "truncated TIFF": Case(truncated("tiff"), "half.tiff"),
    "truncated WebP": Case(truncated("webp"), "half.webp"),
    "pixel bomb": Case(lambda b: b.image("x.png", png(60000, 60000)), "pixels"),
    "pixel bomb where Pillow only warns": Case(lambda b: b.image("x.png", png(11000, 11000)), "pixels"),
    "text bomb in a PNG": Case(text_bomb, "text.png"),
    "floating-point image": Case(lambda b: b.image("x.tif", FLOATING), "floating-point"),
    "32-bit image": Case(lambda b: b.image("x.tif", DEEP), "16 bits"),
    "link that points nowhere": Case(link("x.png", "nowhere.png"), "points nowhere: to nowhere.png"),
    "link that points to itself": Case(link("x.png", "x.png"), "points nowhere"),
    "name that drives a terminal": Case(lambda b: b.predict(b.folder / "\x1b[2Jx\n.png"), "\\x1b[2Jx\\n.png"),
    "name that looks like a flag": Case(lambda b: ["--predict", "-x.png", "--checkpoint", b.model], "./-x.png"),
    "own images without --dataset folder": Case(
        lambda b: ["--dataset", "mnist", "--data-dir", b.file("train/cat/x.png").parents[2]], "--dataset folder"
    ),
    "a folder too deep": Case(
        lambda b: ["--dataset", "mnist", "--data-dir", b.file("MNIST/raw/x").parents[1]], "did you mean --data-dir"
    ),
    "no data folder": Case(lambda b: ["--dataset", "folder", "--data-dir", b.folder / "nowhere"], "nowhere"),
    "no test images": Case(without("test"), "test"),
    "no class folders": Case(
        lambda b: ["--dataset", "folder", "--data-dir", b.file("train/x.png").parent.parent], "no class folder"
    ),
    "one class only": Case(without("train/dog"), "one class"),
    "class without images": Case(emptied, "dog"),
    "broken image of a class": Case(in_class("9.png", b"\x89PNG\r\n\x1a\nnothing"), "9.png"),
    "pixel bomb in a class": Case(in_class("9.png", png(11000, 11000)), "pixels"),
    "size too small": Case(lambda b: b.data("--image-size", "2"), "--image-size"),
    "size too large": Case(lambda b: b.data("--image-size", "1000000"), "--image-size"),
}


def bomb(box: Box) -> list:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w") as member:
            member.write(bytes(1000))
        archive.infolist()[0].file_size = 2**32 - 2
    return box.run_copy("logs/examples.npz", buffer.getvalue())


HISTORY, EXAMPLES = "logs/training_history.json", "logs/examples.npz"


RUN_FILES = {
    "no run": Case(lambda b: [b.folder], "config.json"),
    "settings that are no JSON": Case(lambda b: b.run_copy("config.json", "{ half"), "config.json"),
    "settings of a run that are a list": Case(lambda b: b.run_copy("config.json", "[]"), "settings"),
    "settings of a wrong type": Case(
        lambda b: b.with_json("config.json", lambda c: c.update(num_blocks="9")), "num_blocks"
    ),
    "deeply nested JSON": Case(lambda b: b.run_copy(HISTORY, "[" * 10**5), "training_history.json"),
    "history with NaN": Case(lambda b: b.with_json(HISTORY, lambda c: c[0].update(seconds=float("nan"))), "history"),
    "history without losses": Case(lambda b: b.with_json(HISTORY, lambda c: c[0].pop("loss")), "loss"),
    "history without a term": Case(lambda b: b.with_json(HISTORY, lambda c: c[0].pop("loss_denoise")), "loss_denoise"),
    "results that are a word": Case(lambda b: b.run_copy("results.json", '"good"'), "results.json"),
    "results of a wrong type": Case(
        lambda b: b.with_json("results.json", lambda c: c.update(by_inference=[1, 2])), "damaged"
    ),
    "examples that are no zip file": Case(lambda b: b.run_copy(EXAMPLES, "hello"), "examples.npz"),
    "examples that are a zip bomb": Case(bomb, "4.3 GB"),
    "examples with code": Case(
        lambda b: b.with_examples(images=np.array([Runs(os.system, f"touch '{b.folder / MARKER}'")])), "examples.npz"
    ),
    "a million examples": Case(lambda b: b.with_examples(images=np.zeros((10**6, 1, 1, 1), np.uint8)), "images"),
    "examples of other classes": Case(lambda b: b.with_examples(classes=np.array(["a", "b"])), "damaged"),
    "a picture of one run": Case(lambda b: [b.run, "--out", b.folder / "x.png"], "name two"),
    "a picture of a run and of none": Case(lambda b: [b.run, b.folder, "--out", b.folder / "x.png"], "config.json"),
    "a picture of a run that has only begun": Case(
        lambda b: [*b.run_copy(HISTORY, "[]"), b.run, "--out", b.folder / "x.png"], "no finished epoch"
    ),
    "a picture in an unknown format": Case(lambda b: [b.run, b.run, "--out", b.folder / "x.bmp"], ".png or .pdf"),
    "a picture of several runs without a name": Case(lambda b: [b.run, b.run], "--out"),
    "pictures in an unknown format": Case(lambda b: [b.run, "--format", "bmp"], "--format"),
    "evaluation into the folder of another training": Case(
        lambda b: ["--evaluate", "--checkpoint", b.model, "--checkpoint-dir", b.file("other/last.pt").parent], "another"
    ),
    "comparison with damaged flags": Case(lambda b: b.compared("flags.json", "[1]"), "flags.json"),
    "comparison with unknown flags": Case(lambda b: b.compared("flags.json", '{"wavelets": 1}'), "flags.json"),
    "comparison with damaged results": Case(lambda b: b.compared("dt/results.json", "{}"), "results.json"),
    "comparison with a damaged history": Case(
        lambda b: b.compared("dt/logs/training_history.json", '[{"epoch": "one"}]'), "training_history.json"
    ),
}


PARTS = {
    "Flags": FLAGS,
    "Files that are no checkpoints, or do more than to hold one": FILES,
    "Checkpoints that say what cannot be": CONTENTS,
    "Images and folders of images": IMAGES,
    "Files of a run that are read back": RUN_FILES,
}


def print_table() -> None:
    """Print it in Markdown."""
    print("# Bad inputs\n\nEach ends with exit code 2 and this line on stderr (by python tests/runs/bad_inputs.py).")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "RUN"
        flags = "--dataset digits --embedding-type one-hot --num-blocks 3 --epochs 2 --checkpoint-dir"
        call([*flags.split(), run])
        for title, cases in PARTS.items():
            print(f"\n## {title}\n\n| input | line |\n| --- | --- |")
            for name, case in cases.items():
                box = Box(Path(tempfile.mkdtemp(dir=folder)), run)
                line = call(case.make(box))[2].strip()
                line = line.replace(str(box.folder), "DIR").replace(str(run), "RUN")
                print(f"| {name} | {line.replace('|', chr(92) + '|')} |")


if __name__ == "__main__":
    print_table()

"""--predict: the classes of images, in files or folders, with their probabilities, printed or as a CSV file."""

import csv
import io
import os
import sys
from pathlib import Path

from tqdm import tqdm

from assemble import model_to_use
from errors import UserError, printable
from evaluate import ask, best_answers
from loaders.image_files import endings_in_words, images_in
from loaders.image_folder import decode_images, match_channels
from models.classifier import Classifier, SameNoise
from models.image_info import images_at_a_time
from models.random_streams import Streams
from runs.files import write_atomic
from settings import Settings

Row = tuple[str, list[tuple[str, float]]]  # a file, and its classes with their probabilities


def predict_files(s: Settings, given: set[str]) -> None:
    """Print a line for each image: file, class, per cent, and so on; or write --output."""
    s, _, model = model_to_use(s, given)
    if s.top_k > (m := len(model.info.classes)):
        raise UserError(f"--top-k {s.top_k} is more than the {m} classes of the model: lower it")
    if s.output and Path(s.output).is_dir():
        raise UserError(f"--output {s.output} is a folder: name a file in it")
    rows = predict(s, model, images_of(s.predict))
    if s.output:
        write_table(Path(s.output), rows)
        print(printable(f"written: the classes of {len(rows)} images in {s.output}"))
        return
    for name, answers in rows:
        words = [word for label, share in answers for word in (printable(label), f"{100 * share:.2f} %")]
        print(printable(name), *words, sep="\t")


def images_of(names: list[str]) -> list[str]:
    """Return the files, and of a folder all images in it and below, in order.

    Tells on stderr what else a folder holds. Raises UserError for one without images.
    """
    files = []
    for name in names:
        if not os.path.isdir(name):
            files.append(name)
            continue
        found, others = images_in(Path(name))
        if not found:
            raise UserError(f"there are no images in the folder {name}: add some (png, jpg, ...)")
        if others:
            what = f"files that are no images are left out ({endings_in_words(others)})"
            print(printable(f"main.py: {name}: {what}"), file=sys.stderr)
        files += found
    return files


def predict(s: Settings, model: Classifier, files: list[str]) -> list[Row]:
    """Return the --top-k classes of each file; the noise is the same for all of them."""
    (channels, height, width), device = model.info.image_shape, model.W_embed.device
    images = match_channels(decode_images(files, (height, width)), channels)
    streams, how, rows = Streams(s.seed, device), s.ways[-1], []
    size = images_at_a_time(height, width)
    for part in tqdm(images.split(size), desc="predict", unit="batch", disable=None, leave=False):
        part = part.to(device)
        noise = SameNoise(streams.fresh("predict", r) for r in range(s.eval_runs))
        mirrored = model.see(part.flip(2)) if s.mirror_test else None
        answers = ask(model, model.see(part), noise, mirrored=mirrored, **how)
        classes, shares = (values.tolist() for values in best_answers(answers, s.readout, model, s.top_k))
        for labels, own in zip(classes, shares, strict=True):
            rows.append((files[len(rows)], [(model.info.classes[y], p) for y, p in zip(labels, own, strict=True)]))
    return rows


def write_table(path: Path, rows: list[Row]) -> None:
    """Write file, class, probability (0 to 1), class_2, probability_2 and so on as CSV in UTF-8."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    ends = ["", *(f"_{place}" for place in range(2, len(rows[0][1]) + 1))]
    table.writerow(["file", *(name + end for end in ends for name in ("class", "probability"))])
    for name, answers in rows:
        table.writerow([name, *(cell for label, share in answers for cell in (label, f"{share:.6f}"))])
    write_atomic(path, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape")))

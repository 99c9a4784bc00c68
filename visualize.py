"""Figures of a run, from the files in its folder alone: no data set, no network. Also: python visualize.py RUN

A run in progress works too; what its files do not hold yet is left out. The pictures go to RUN/plots.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from checkpoint import load_checkpoint, write_atomic
from errors import UserError
from models.schedules import make_alpha_bar, snr, step_coefficients

# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PATH_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)


class RunFiles(NamedTuple):
    """What a run folder holds; None for what is not there (yet)."""

    folder: Path
    config: dict | None
    history: list[dict] | None
    examples: dict[str, np.ndarray] | None
    classes: list[str]


def read_run(folder: Path) -> RunFiles:
    """Raises UserError for a folder that is no run, and for a file in it that cannot be read."""
    config = _read_json(folder / "config.json")
    if config is None:
        raise UserError(f"{folder} is not the folder of a run: it has no config.json")
    examples = None
    if (path := folder / "logs" / "examples.npz").exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                examples = dict(file)
        except (ValueError, OSError, BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it, or make it again with --evaluate") from error
    classes = [] if examples is None else [str(name) for name in examples["classes"]]
    history = _read_json(folder / "logs" / "training_history.json")
    return RunFiles(folder, config, history, examples, classes)


def _read_json(path: Path):
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): delete it") from error


def training_curves(run: RunFiles) -> Figure | None:
    """Loss and denoising term of every block, accuracies and learning rate over the epochs."""
    if not run.history:
        return None
    epochs = [row["epoch"] for row in run.history]
    figure = Figure(figsize=(11, 7), layout="constrained")
    (loss, denoise), (accuracy, rate) = figure.subplots(2, 2, sharex=True)
    marker = "o" if len(epochs) < 30 else None
    colours = _block_colours(len(run.history[0]["loss"]))
    for axes, key, title in (
        (loss, "loss", "loss of each block (eq. 8)"),
        (denoise, "loss_denoise", "its denoising term"),
    ):
        for t, colour in enumerate(colours, 1):
            values = [row[key][t - 1] for row in run.history]
            axes.plot(epochs, values, color=colour, linewidth=1, marker=marker, markersize=3)
        axes.set(title=title, ylabel="mean over the epoch (log scale)", yscale="log")
    _block_colourbar(figure, [loss, denoise], len(colours))
    shown = (("train_accuracy", "training images", ORANGE, "s"), ("val_accuracy", "validation images", BLUE, "o"))
    for key, label, colour, sign in shown:
        points = [(row["epoch"], row[key]) for row in run.history if row[key] is not None]
        if points:
            accuracy.plot(*zip(*points, strict=True), color=colour, label=label, marker=sign, markersize=4)
    readout = run.config["readout"]
    accuracy.set(title=f"accuracy by denoising (readout {readout})", xlabel="epoch", ylabel="accuracy (%)")
    if accuracy.lines:
        accuracy.legend()
    else:
        accuracy.text(0.5, 0.5, "none: the blocks were trained apart", ha="center", transform=accuracy.transAxes)
        accuracy.set_yticks([])
    rate.step(
        epochs, [row["learning_rate"] for row in run.history], where="mid", color=GREEN, marker=marker, markersize=4
    )
    rate.set(title="learning rate of the blocks, at the start of the epoch", xlabel="epoch", ylabel="learning rate")
    rate.set_ylim(bottom=0)
    for axes in (accuracy, rate):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_grid(figure, loss, denoise, accuracy, rate)


def schedule(run: RunFiles) -> Figure:
    """alpha_bar_t, SNR(t) and the coefficients of eq. 3."""
    config = run.config
    alpha_bar = make_alpha_bar(config["schedule"], config["num_blocks"], tuple(config["alpha_bar_clip"]))
    t = np.arange(len(alpha_bar))
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    level, ratio, steps = figure.subplots(1, 3)
    marker = "o" if len(t) < 60 else None
    level.plot(t, alpha_bar, color=BLUE, marker=marker, markersize=4)
    level.set(title=f"{config['schedule']} schedule", ylabel=r"$\bar\alpha_t$", xlabel="t (0 noise, T clean)")
    ratio.plot(t, snr(alpha_bar), color=GREEN, marker=marker, markersize=4)
    ratio.set(title="signal-to-noise ratio", ylabel="SNR(t) (log scale)", yscale="log", xlabel="t")
    names = ("$a_t$ (of $\\hat u$)", "$b_t$ (of $z_{t-1}$)", "$c_t$ (noise variance)")
    coefficients = step_coefficients(alpha_bar[:-1], alpha_bar[1:])
    for name, values, colour, sign in zip(names, coefficients, (BLUE, ORANGE, RED), "os^", strict=True):
        steps.plot(t[1:], values, color=colour, label=name, marker=sign if marker else None, markersize=4)
    steps.set(title="coefficients of step t (eq. 3)", ylabel="coefficient", xlabel="t")
    steps.legend(loc="upper center", ncols=3, fontsize=8, columnspacing=0.8)
    steps.set_ylim(top=1.2)
    for axes in (level, ratio, steps):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_grid(figure, level, ratio, steps)


def denoising_accuracy(run: RunFiles) -> Figure | None:
    """Accuracy after each denoising step."""
    if run.examples is None:
        return None
    by_z, by_u_hat = run.examples["per_step_accuracy"], run.examples["per_step_u_hat"]
    t = np.arange(1, len(by_z) + 1)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(t, by_z, color=BLUE, marker="o", markersize=4, label=r"class of $z_t$, by $\theta_{out}$")
    axes.plot(t, by_u_hat, color=ORANGE, marker="s", markersize=4, label=r"class of block t's own $\hat u$")
    axes.axhline(100 / len(run.classes), color="grey", linestyle=":", label="chance")
    axes.set(title=f"accuracy after each block, {_source(run)}", xlabel="after block t", ylabel="accuracy (%)")
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    return _with_grid(figure, axes)


def confusion_matrix(run: RunFiles) -> Figure | None:
    """True against predicted classes, in per cent of the true class."""
    if run.examples is None:
        return None
    counts, m = run.examples["confusion"], len(run.classes)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14, 3.5 + 0.42 * m)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(picture, label="per cent of the true class", shrink=0.8)
    every = max(1, m // 25)
    names = [_short(name) for name in run.classes[::every]]
    axes.set_xticks(range(0, m, every), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(0, m, every), names)
    if m <= 20:
        for true, predicted in np.argwhere(counts > 0):
            value = share[true, predicted]
            colour = "black" if value > 50 else "white"
            axes.text(predicted, true, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=7)
    title = f"confusion, {_source(run)}, readout {run.examples['readout']}"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    return figure


def predictions(run: RunFiles) -> Figure | None:
    """Some images with the predicted class and its probability; wrong ones are framed and name the true class."""
    if run.examples is None:
        return None
    e = run.examples
    columns, rows = 6, -(-len(e["images"]) // 6)
    figure = Figure(figsize=(1.75 * columns, 2.1 * rows + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, label, p in zip(figure.axes, e["images"], e["labels"], e["probabilities"], strict=False):
        predicted = p.argmax()
        text, colour = f"{_short(run.classes[predicted])}  {100 * p[predicted]:.1f} %", "black"
        _show_image(axes, image)
        if predicted != label:
            text, colour = f"{text}\nWRONG: is {_short(run.classes[label])}", RED
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(edgecolor=RED, linewidth=3)
        axes.set_title(text, fontsize=9, color=colour)
    figure.suptitle(f"predicted class and mean probability of the inference runs, {_source(run)}")
    return figure


def denoising_path(run: RunFiles) -> Figure | None:
    """z_t of some images from noise to answer, on the first two principal components of the class embeddings."""
    if run.examples is None:
        return None
    from sklearn.decomposition import PCA

    W_embed, z_path = run.examples["W_embed"], run.examples["z_path"]  # (m, d), (T+1, E, d)
    pca = PCA(min(2, *W_embed.shape)).fit(W_embed)

    def flat(points: np.ndarray) -> np.ndarray:  # (n, d) -> (n, 2)
        points = pca.transform(points)
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))

    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    axes = figure.subplots()
    embeddings = flat(W_embed)
    for (x, y), name in zip(embeddings, run.classes, strict=True):
        axes.plot(x, y, marker="*", color="black", markersize=11, linestyle="none")
        axes.annotate(_short(name), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=11, weight="bold")
    chosen = np.linspace(0, z_path.shape[1] - 1, min(len(PATH_COLOURS), z_path.shape[1])).astype(int)
    for i, colour in zip(chosen, PATH_COLOURS, strict=False):
        path = flat(z_path[:, i])  # (T+1, 2)
        true, read = (_short(run.classes[run.examples[key][i]]) for key in ("labels", "path_class"))
        label = f"image of {true}" + ("" if read == true else f", read as {read}")
        axes.plot(*path.T, color=colour, linewidth=1, alpha=0.8)
        axes.scatter(*path.T, color=colour, s=np.linspace(8, 60, len(path)), alpha=0.8, label=label)
    axes.set(xlabel="principal component 1", ylabel="principal component 2")
    title = r"$z_t$ from noise (small dots) to the answer (large), class embeddings as stars"
    axes.set_title(f"{title}\n{_source(run)}, one inference run")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _with_grid(figure, axes)


def prototypes(run: RunFiles) -> Figure | None:
    """Prototype embeddings as images, before and after learning; only where the embedding is prototype."""
    best = run.folder / "best_model.pt"
    if run.config["embedding_type"] != "prototype" or not best.exists():
        return None
    checkpoint = load_checkpoint(best)
    info = checkpoint["info"]
    m = min(len(info["classes"]), 20)
    figure = Figure(figsize=(1.2 * m + 0.8, 3.4), layout="constrained")
    grid = figure.subplots(2, m, squeeze=False)
    start, now = checkpoint["W_embed_start"], checkpoint["model"]["W_embed"]
    for axes_row, W, name in ((grid[0], start, "start"), (grid[1], now, f"epoch {checkpoint['epoch']}")):
        images = W.numpy().reshape(-1, *info["image_shape"]).transpose(0, 2, 3, 1)  # (m, H, W, C)
        images = images * np.array(info["std"]) + np.array(info["mean"])
        for axes, image, label in zip(axes_row, images, info["classes"], strict=False):
            _show_image(axes, image.clip(0, 255).astype(np.uint8))
            axes.set(xticks=[], yticks=[], title=_short(label))
        axes_row[0].set_ylabel(name)
    figure.suptitle("prototype of each class before and after learning")
    return figure


FIGURES = (training_curves, schedule, denoising_accuracy, confusion_matrix, predictions, denoising_path, prototypes)


def draw_run(folder: Path) -> list[Path]:
    """Draw all figures the run's files allow into folder/plots; returns their paths. Raises UserError."""
    run = read_run(Path(folder))
    drawn = []
    for make in FIGURES:
        figure = make(run)
        if figure is None:
            continue
        path = run.folder / "plots" / f"{make.__name__}.png"
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        write_atomic(path, lambda file, content=buffer: file.write(content.getvalue()))
        drawn.append(path)
    return drawn


def _block_colours(num_blocks: int) -> list:
    return list(colormaps["viridis"](np.linspace(0, 0.92, num_blocks)))


def _block_colourbar(figure: Figure, axes: list, num_blocks: int) -> None:
    scale = ScalarMappable(Normalize(1, max(num_blocks, 2)), ListedColormap(_block_colours(256)))
    figure.colorbar(scale, ax=axes, label="block t (1 sees most noise)", ticks=MaxNLocator(integer=True))


def _show_image(axes, image: np.ndarray) -> None:
    """image (H, W, C) uint8, one or three channels."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def _source(run: RunFiles) -> str:
    return f"{run.config['dataset']} {run.examples['split']} images, epoch {run.examples['epoch']}"


def _short(name: str) -> str:
    """A class name as matplotlib may show it: short, no mathematics."""
    name = name if len(name) <= 14 else name[:13] + "…"
    return name.replace("$", r"\$")


def _with_grid(figure: Figure, *all_axes) -> Figure:
    for axes in all_axes:
        axes.grid(alpha=0.3)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="visualize.py", description="Draw the figures of a run into RUN/plots.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as checkpoints_run")
    args = parser.parse_args(argv)
    try:
        for path in draw_run(args.run):
            print(path)
    except (UserError, OSError) as error:
        print("visualize.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

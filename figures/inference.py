"""Figures of an evaluation: accuracy along the way and by inference, confusion, calibration, examples."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import (
    BLUE,
    COLOURS,
    GREEN,
    ORANGE,
    RED,
    legend_columns,
    plain,
    reliability,
    short_names,
    show_image,
    with_grid,
)
from runs.reader import RunFiles

MOST_NAMES = 25  # class names beside their embeddings


def denoising_accuracy(run: RunFiles) -> Figure | None:
    """Draw accuracy on the way from noise to the answer, of methods that have one."""
    if run.examples is None or "z_path" not in run.examples:
        return None
    by_z, by_u_hat, t = (run.examples[name] for name in ("per_step_accuracy", "per_step_u_hat", "times"))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(t, by_z, color=BLUE, marker="o", markersize=4, label="class of $z_t$")
    if len(by_u_hat):
        axes.plot(t, by_u_hat, color=ORANGE, marker="s", markersize=4, label=r"class of the block's own $\hat u$")
    axes.axhline(100 / len(run.classes), color="grey", linestyle=":", label="chance")
    blocks = run.config["num_blocks"] is not None
    counted = "after step" if run.config.get("steps") else "after block t"
    place = counted if blocks else "time t (0 noise, 1 answer)"
    figure.suptitle(f"accuracy on the way from noise, {plain(run.source)}")
    axes.set(xlabel=place, ylabel="accuracy (%)", ylim=(0, 102))
    if blocks:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return with_grid(figure, axes)


def calibration(run: RunFiles) -> Figure | None:
    """Draw a reliability diagram of what the runs say together; how many of their answers are wrong by their number.

    A single run has neither votes nor a mean: the second panel is left out.
    """
    if run.examples is None or "ece_mean" not in run.examples:
        return None
    e = run.examples
    runs = len(e["by_runs_vote"])
    series = [("mean", "mean probability" if runs > 1 else "probability", BLUE, "o")]
    series += [("ensemble", "ensemble of u_hat", GREEN, "^")] if "ece_ensemble" in e else []
    if runs > 1:
        series += [("vote", "share of votes", ORANGE, "s")]
        series += [("mean-z", "mean of z", GREEN, "^")] if "ece_mean-z" in e else []
    figure = Figure(figsize=(11 if runs > 1 else 5.5, 5.2), layout="constrained")
    diagram, *more = np.ravel(figure.subplots(1, 1 + (runs > 1)))
    lines = [(label, e[f"calibration_{name}"], e[f"ece_{name}"], colour, sign) for name, label, colour, sign in series]
    reliability(diagram, lines)
    diagram.set_title(f"calibration over {runs} runs" if runs > 1 else "calibration of a run")
    for axes in more:
        _wrong_by_runs(axes, e, series)
    figure.suptitle(plain(run.source))
    return with_grid(figure, diagram, *more)


def _wrong_by_runs(axes: Axes, e: dict[str, np.ndarray], series: list[tuple[str, str, str, str]]) -> None:
    """Draw how many images are wrong, from 0 on: one image more or less looks as small as it is."""
    images = max(1, round(e["calibration_mean"][0].sum()))
    for name, label, colour, sign in series:
        wrong, look = images * (1 - e[f"by_runs_{name}"] / 100), {"marker": sign, "markersize": 4}
        style = "--" if name == "vote" else "-"  # which often lies on the mean
        axes.plot(range(1, len(wrong) + 1), wrong, color=colour, linestyle=style, label=label, **look)
    most = max(line.get_ydata().max() for line in axes.lines)
    axes.set_ylim(0, max(min(1.25 * most, 1.05 * images), min(10, images)))
    axes.set(xlabel="inference runs R", ylabel=f"wrong of {images} images", title="wrong answers by number of runs")
    share = axes.secondary_yaxis("right", functions=(lambda n: 100 * n / images, lambda part: part * images / 100))
    share.set_ylabel("wrong (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def inference_steps(run: RunFiles) -> Figure | None:
    """Draw accuracy, and where it is known log-likelihood, by the number of inference steps, a line for each way."""
    rows = (run.results or {}).get("by_inference", [])
    if len(rows) < 2:
        return None
    lines: dict[str, list[dict]] = {}
    for row in rows:
        name = " ".join(row[part] for part in ("sampler", "solver") if part in row) or "euler"
        lines.setdefault(name, []).append(row)
    panels = [("accuracy_mean", "accuracy_sem", f"accuracy (%), readout {run.results['readout']}")]
    if all("nll" in row for row in rows):
        panels.append(("nll", None, "negative log-likelihood, readout mean"))
    figure = Figure(figsize=(1.5 + 5.5 * len(panels), 4.5), layout="constrained")
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        _by_steps(axes, lines, *panel)
    source = f"{run.config['method']}, {plain(run.dataset)} {run.split} images"
    figure.suptitle(f"by the number of inference steps, {source}")
    figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return with_grid(figure, *figure.axes)


def _by_steps(axes: Axes, lines: dict[str, list[dict]], value: str, error: str | None, label: str) -> None:
    for (name, points), colour, sign in zip(lines.items(), COLOURS, "os^vDP", strict=False):
        points = sorted(points, key=lambda row: row.get("steps", 0))
        means = [row[value] for row in points]
        errors = [row[error] if error else 0 for row in points]
        if "steps" in points[0]:
            steps = [row["steps"] for row in points]
            axes.errorbar(steps, means, errors, color=colour, marker=sign, markersize=5, capsize=3, label=name)
        else:
            axes.axhline(means[0], color=colour, linestyle="--", label=f"{name}, adaptive steps")
            axes.axhspan(means[0] - errors[0], means[0] + errors[0], color=colour, alpha=0.15)
    axes.set(xlabel="steps (log scale)", ylabel=label, xscale="log")
    counts = sorted({row["steps"] for points in lines.values() for row in points if "steps" in row})
    axes.set_xticks(counts, counts)
    axes.set_xticks([], minor=True)


def confusion_matrix(run: RunFiles) -> Figure | None:
    """Draw true against predicted classes, in per cent of the true class."""
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
    names = short_names(run.classes)[::every]
    axes.set_xticks(range(0, m, every), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(0, m, every), names)
    if m <= 20:
        for true, predicted in np.argwhere(counts > 0):
            value = share[true, predicted]
            colour = "black" if value > 50 else "white"
            axes.text(predicted, true, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=7)
    figure.suptitle(f"confusion, {plain(run.source)}, readout {run.examples['readout']}")
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def predictions(run: RunFiles) -> Figure | None:
    """Draw some images with the predicted class and its probability, first the wrong ones, framed, with their class."""
    if run.examples is None:
        return None
    e = run.examples
    names, right = short_names(run.classes), e["probabilities"].argmax(axis=1) == e["labels"]
    columns, rows = 6, -(-len(e["images"]) // 6)
    figure = Figure(figsize=(2.1 * columns, 2.45 * rows + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, i in zip(figure.axes, np.argsort(right, kind="stable"), strict=False):
        label, p = e["labels"][i], e["probabilities"][i]
        predicted = p.argmax()
        text, colour = f"{names[predicted]}  {100 * p[predicted]:.1f} %", "black"
        show_image(axes, e["images"][i])
        if predicted != label:
            text, colour = f"{text}\nWRONG: is {names[label]}", RED
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(edgecolor=RED, linewidth=3)
        axes.set_title(text, fontsize=9, color=colour)
    several = len(e.get("by_runs_vote", ())) > 1
    said = "predicted class and its " + ("mean probability over the inference runs" if several else "probability")
    wrong = f"{np.sum(~right)} wrong, shown first" if not right.all() else "none wrong"
    figure.suptitle(f"{said}\n{len(right)} of the {plain(run.source)}, {wrong}")
    return figure


def denoising_path(run: RunFiles) -> Figure | None:
    """Draw z_t of some images from noise to answer, on the first two principal components of the class embeddings."""
    if run.examples is None or "z_path" not in run.examples:
        return None
    from sklearn.decomposition import PCA

    W_embed, z_path = run.examples["W_embed"], run.examples["z_path"]  # (m, d), (T+1, E, d)
    pca = PCA(min(2, *W_embed.shape)).fit(W_embed)

    def flat(points: np.ndarray) -> np.ndarray:  # (n, d) -> (n, 2)
        points = pca.transform(points)
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))

    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    axes = figure.subplots()
    embeddings, names = flat(W_embed), short_names(run.classes)
    axes.plot(*embeddings.T, marker="*", color="black", markersize=11, linestyle="none")
    chosen = np.linspace(0, z_path.shape[1] - 1, min(len(COLOURS), z_path.shape[1])).astype(int)
    for i, colour in zip(chosen, COLOURS, strict=False):
        path = flat(z_path[:, i])  # (T+1, 2)
        true, read = (names[run.examples[key][i]] for key in ("labels", "path_class"))
        label = f"image of {true}" + ("" if read == true else f", read as {read}")
        axes.plot(*path.T, color=colour, linewidth=1, alpha=0.8)
        axes.scatter(*path.T, color=colour, s=np.linspace(8, 60, len(path)), alpha=0.8, label=label)
    axes.margins(y=0.1)
    if len(names) <= MOST_NAMES:
        _name_points(axes, embeddings, names)
    axes.set(xlabel="principal component 1", ylabel="principal component 2")
    title = r"$z_t$ from noise (small dots) to the answer (large), class embeddings as stars"
    figure.suptitle(f"{title}\n{plain(run.source)}, one inference run")
    columns = legend_columns(figure, axes.get_legend_handles_labels()[1], most=2)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=columns)
    return with_grid(figure, axes)


def _name_points(axes: Axes, points: np.ndarray, names: list[str]) -> None:
    """Write names beside points (n, 2), towards the middle; where they would overlap, above each other."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = (right - left) / 75, (top - bottom) / 28  # of a letter, about
    taken: list[tuple[float, float, float]] = []  # y and both ends
    for i in np.argsort(points[:, 1]):
        x, y = points[i]
        to_the_left = x > (left + right) / 2
        start = x - width * (len(names[i]) + 1) if to_the_left else x + width  # a letter's width beside the star
        end = start + width * len(names[i])
        for other_y, other_start, other_end in sorted(taken):
            if start < other_end and other_start < end and abs(y - other_y) < height:
                y = other_y + height
        taken.append((y, start, end))
        place = {"xytext": (-6, 4), "ha": "right"} if to_the_left else {"xytext": (6, 4), "ha": "left"}
        axes.annotate(names[i], (x, y), textcoords="offset points", fontsize=10, weight="bold", **place)

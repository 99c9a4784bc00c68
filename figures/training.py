"""Figures of a training: its curves, its noise schedule, its prototypes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.losses import block_losses, whole_losses
from figures.style import BLUE, GREEN, ORANGE, RED, short_names, show_image, with_grid
from runs.reader import RunFiles


def training_curves(run: RunFiles) -> Figure | None:
    """Draw loss, its terms, accuracies and learning rate over the epochs.

    What would show nothing new has no panel: the term of a loss that has one alone, and a rate that never changes.
    """
    if not run.history:
        return None
    rates = [row["learning_rate"] for row in run.history]
    terms = [name for name in run.history[0] if name.startswith("loss_")]
    names = ["loss", *["terms"] * (len(terms) > 1), "accuracy", *["rate"] * (len(set(rates)) > 1)]
    rows = [names] if len(names) == 2 else [names[:2], [names[2], names[-1]]]
    figure = Figure(figsize=(11.5, 1 + 4.2 * len(rows)), layout="constrained")
    panels = figure.subplot_mosaic(rows)
    epochs = len(rates)
    look = {"marker": "o" if epochs < 30 else None, "markersize": 3}
    if len(run.history[0]["loss"]) > 1 or run.config.get("block_order"):
        block_losses(figure, panels["loss"], panels.get("terms"), run, terms, **look)
    else:
        whole_losses(panels["loss"], panels.get("terms"), run, terms, **look)
    _accuracies(panels["accuracy"], run, **look)
    if "rate" in panels:
        panels["rate"].step(range(1, len(rates) + 1), rates, where="mid", color=GREEN, **look)
        panels["rate"].set(title="learning rate at the start of the epoch", ylabel="learning rate")
        panels["rate"].set_ylim(bottom=0)
    else:
        figure.suptitle(f"learning rate {rates[0]:g} at the start of every epoch", fontsize=10)
    for axes in panels.values():
        axes.set_xlabel("epoch")
        margin = max(0.5, 0.04 * epochs)
        axes.set_xlim(1 - margin, epochs + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return with_grid(figure, *panels.values())


def _accuracies(axes: Axes, run: RunFiles, **look) -> None:
    """Draw the accuracies on training, validation and test images, as far as they were measured, and the best epoch."""
    shown = (
        ("train_accuracy", "training images", ORANGE, "--"),
        ("val_accuracy", "validation images", BLUE, "-"),
        ("test_accuracy", "test images", GREEN, ":"),
    )
    for key, label, colour, style in shown:
        points = [(row["epoch"], row[key]) for row in run.history if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label, linestyle=style, **look)
    best = run.history[run.best_epoch - 1]
    if best["val_accuracy"] is not None:
        ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none", "color": "black"}
        ring["label"] = f"the best, of epoch {best['epoch']}: kept and tested"
        axes.plot(best["epoch"], best["val_accuracy"], **ring)
    axes.set(title=f"accuracy (readout {run.config['readout']})", ylabel="accuracy (%)")
    if axes.lines:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "none: the blocks were trained apart", ha="center", transform=axes.transAxes)
        axes.set_yticks([])


def schedule(run: RunFiles) -> Figure | None:
    """Draw alpha_bar_t, SNR(t) and the coefficients of eq. 3."""
    if run.examples is None or "alpha_bar" not in run.examples:
        return None
    alpha_bar, coefficients = run.examples["alpha_bar"], run.examples["coefficients"]
    t = np.arange(len(alpha_bar))
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    level, ratio, steps = figure.subplots(1, 3)
    marker = "o" if len(t) < 60 else None
    level.plot(t, alpha_bar, color=BLUE, marker=marker, markersize=4)
    level.set(title="noise schedule", ylabel=r"$\bar\alpha_t$", xlabel="t (0 noise, T clean)")
    ratio.plot(t, alpha_bar / (1 - alpha_bar), color=GREEN, marker=marker, markersize=4)
    ratio.set(title="signal-to-noise ratio", ylabel="SNR(t) (log scale)", yscale="log", xlabel="t")
    names = ("$a_t$ (of $\\hat u$)", "$b_t$ (of $z_{t-1}$)", "$c_t$ (noise variance)")
    for name, values, colour, sign in zip(names, coefficients, (BLUE, ORANGE, RED), "os^", strict=True):
        steps.plot(t[1:], values, color=colour, label=name, marker=sign if marker else None, markersize=4)
    steps.set(title="coefficients of step t (eq. 3)", ylabel="coefficient", xlabel="t")
    steps.legend(loc="upper center", ncols=3, fontsize=8, columnspacing=0.8)
    steps.set_ylim(top=1.2)
    for axes in (level, ratio, steps):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return with_grid(figure, level, ratio, steps)


def learned_schedule(run: RunFiles) -> Figure | None:
    """Draw gamma, alpha_bar and SNR of continuous time, before and after learning."""
    if run.examples is None or "gamma" not in run.examples:
        return None
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    names = (("gamma_start", "start", ORANGE, "--"), ("gamma", f"epoch {run.examples['epoch']}", BLUE, "-"))
    for name, label, colour, style in names:
        gamma = run.examples[name]
        snr = np.exp(-gamma)
        for axes, values in zip(panels, (gamma, snr / (1 + snr), snr), strict=True):
            axes.plot(np.linspace(0, 1, len(gamma)), values, color=colour, linestyle=style, label=label)
    titles = ((r"$\gamma(t)$", "linear"), (r"$\bar\alpha_t$", "linear"), ("SNR(t) (log scale)", "log"))
    for axes, (title, scale) in zip(panels, titles, strict=True):
        axes.set(xlabel="t (0 noise, 1 clean)", ylabel=title, yscale=scale)
        axes.legend()
    figure.suptitle("noise schedule before and after learning")
    return with_grid(figure, *panels)


def prototypes(run: RunFiles) -> Figure | None:
    """Draw prototype embeddings as images, before and after learning, and what was learned, made visible."""
    if run.examples is None or "prototypes" not in run.examples:
        return None
    start, now = run.examples["prototypes_start"], run.examples["prototypes"]  # (m, H, W, C)
    m = min(len(run.classes), 20)
    figure = Figure(figsize=(1.2 * m + 0.8, 4.9), layout="constrained")
    grid = figure.subplots(3, m, squeeze=False)
    factor = 127.5 / max(np.abs(now - start).max(), 0.1)
    change = 127.5 + factor * (now - start)
    shown = (start, "start"), (now, f"epoch {run.examples['epoch']}"), (change, f"change x {factor:.3g}")
    for axes_row, (images, name) in zip(grid, shown, strict=True):
        for axes, image, label in zip(axes_row, images, short_names(run.classes), strict=False):
            show_image(axes, image.clip(0, 255).astype(np.uint8))
            axes.set(xticks=[], yticks=[])
            axes.set_title(label, fontsize=8)
        axes_row[0].set_ylabel(name)
    figure.suptitle("prototype of each class before and after learning; the change is added to grey")
    return figure

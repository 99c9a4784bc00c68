"""The loss of a training over its epochs, and its terms, named in words beside their symbols."""

from math import nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import BLUE, COLOURS, block_colourbar, block_colours, with_log_scale
from runs.reader import RunFiles

DENOISE = "loss_denoise"
BY_NOISE_LEVEL = r"weighted by $1/c_{out}^2$ of the noise level"
WORDS = {  # symbol and meaning
    "loss_class_nll": (r"$-\log p(y\,|\,z)$ at the clean end", "how badly $z$ tells the class"),
    "loss_kl": (r"KL$(q(z_0|y)\,\|\,N(0,I))$", "how far $z_0$ is from mere noise"),
    DENOISE: (r"$\eta\,|\hat u-u_y|^2$, weighted by $t$", r"how far $\hat u$ is from the embedding of the class"),
    "loss_flow": (r"$|v-(z_1-z_0)|^2$", "how far $v$ is from the way that leads to the embedding"),
    "loss_anchor": (r"$-\log p(y\,|\,z_t+(1-t)\,v)$", "how badly the end of the way tells the class"),
    "loss_cross_entropy": (r"$-\log p(y)$", "how badly the answer tells the class"),
    "loss_weighted_cross_entropy": (rf"$-\log p(y)$, {BY_NOISE_LEVEL}", "how badly a block's answer tells the class"),
    "loss_weighted_error": (
        rf"$|\hat u-u_y|^2$, {BY_NOISE_LEVEL}",
        r"how far $\hat u$ is from the embedding of the class",
    ),
}
WORDS_OF_CROSS_ENTROPY = {DENOISE: (r"$-\eta\,\log p(y\,|\,\hat u)$", r"how badly $\hat u$ tells the class")}


def in_words(term: str, run: RunFiles, of: str = "") -> str:
    """Return the symbol of a term of the loss, of what it is, and its meaning; the name of a term not known here."""
    words = WORDS | WORDS_OF_CROSS_ENTROPY if run.config.get("loss") == "cross-entropy" else WORDS
    symbol, *meaning = words.get(term, [term.removeprefix("loss_").replace("_", " ")])
    return ":\n".join([symbol + of, *meaning])


def block_losses(figure: Figure, loss: Axes, terms: Axes | None, run: RunFiles, names: list[str], **look) -> None:
    """Draw a line for each block; of the terms that hardly differ between blocks their mean."""
    colours, own = block_colours(len(run.history[0]["loss"])), DENOISE if terms else names[0]
    for axes, key in ((loss, "loss"), (terms, own)) if terms else ((loss, "loss"),):
        for t, colour in enumerate(colours):
            _plot(axes, [row[key][t] for row in run.history], color=colour, linewidth=1, **look)
    lines = (terms or loss).lines
    lines[len(lines) // 2].set_label(in_words(own, run, ", of each block"))
    shared = [name for name in names if name != own]
    for name, style in zip(shared, ("--", ":"), strict=False):
        label = in_words(name, run, ", mean of the blocks")
        _plot(terms, run.mean_of(name), color="black", linestyle=style, label=label, **look)
    loss.set_title("loss of each block")
    _explain(terms or loss)
    block_colourbar(figure, [loss, terms] if terms else [loss], len(colours))


def whole_losses(loss: Axes, terms: Axes | None, run: RunFiles, names: list[str], **look) -> None:
    """Draw the loss of a network that is trained as a whole, and its terms where it has several."""
    _plot(loss, run.mean_of("loss"), color=BLUE, label=None if terms else in_words(names[0], run), **look)
    loss.set_title("loss")
    for name, colour in zip(names, COLOURS, strict=False):
        if terms:
            _plot(terms, run.mean_of(name), color=colour, label=in_words(name, run), **look)
    _explain(terms or loss)


def _plot(axes: Axes, values: list[float | None], label: str | None = None, **look) -> None:
    """Draw a loss over the epochs; what is not known has a gap, and what is 0 no place on a logarithmic scale."""
    known = [nan if value is None else value for value in values]
    zero = " (0, not on this scale)" if label and not any(known) else ""
    axes.plot(range(1, len(known) + 1), known, label=label and label + zero, **look)
    axes.set_ylabel("mean over the epoch (log scale)")
    with_log_scale(axes)


def _explain(axes: Axes) -> None:
    """Name the lines below their panel."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=9)
    if not axes.get_title():
        axes.set_title("its terms, of which it is the sum")

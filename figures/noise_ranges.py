"""Draw how DiffusionBlocks shares out the noise levels: density, the range of each block, the steps of inference."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures.style import block_colours, with_grid
from runs.reader import RunFiles


def noise_ranges(run: RunFiles) -> Figure | None:
    """Draw the density of log sigma, the equal shares of the blocks, where they overlap, and the ladder below."""
    if run.examples is None or "noise_ends" not in run.examples:
        return None
    low, high, mean, std = run.examples["noise_density"]
    ends, wider, steps = (run.examples[f"noise_{name}"] for name in ("ends", "ranges", "ladder"))
    figure, colours = Figure(figsize=(9, 5.5), layout="constrained"), block_colours(len(wider))
    density, shares = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for t, colour in enumerate(colours, 1):
        own = ends[t], ends[t - 1]
        sigma = np.geomspace(*own, 200)
        height = np.exp(-(((np.log(sigma) - mean) / std) ** 2) / 2) / std / np.sqrt(2 * np.pi)
        density.fill_between(sigma, height, color=colour, linewidth=0)
        for (left, right), paleness, width in ((wider[t - 1], 0.35, 3), (own, 1, 8)):
            shares.plot([left, right], [-t, -t], color=colour, alpha=paleness, linewidth=width, solid_capstyle="butt")
    nodes = steps[steps > 0]
    shares.plot(nodes, np.zeros(len(nodes)), "k|", markersize=10)
    names = [f"block {t}: {ends[t]:.3g} to {ends[t - 1]:.3g}" for t in range(1, len(ends))]
    steps = f"where the {len(nodes)} step{'s' * (len(nodes) > 1)} of inference begin"
    shares.set_yticks(range(0, -len(ends), -1), [steps, *names], fontsize=8)
    shares.set(xlabel=r"noise level $\sigma$ (log scale; left clean, right noise)", ylim=(-len(ends) + 0.4, 0.6))
    density.set(xscale="log", xlim=(low * 0.9, high * 1.1), ylabel=r"density of $\log \sigma$", ylim=(0, None))
    density.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.suptitle("noise levels in training, an equal share for each block (thin: where it learns beyond its own)")
    return with_grid(figure, density, shares)

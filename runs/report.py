"""Print what a run says of itself: the opening lines, the accuracies at the end."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import torch

from errors import printable
from evaluate import Evaluation
from models.blocks import format_blocks
from models.classifier import Classifier
from models.image_info import ImageInfo
from models.methods import METHODS
from settings import Settings


def describe_run(s: Settings, model: Classifier, sizes: dict[str, int], processes: int) -> str:
    """Return two lines on a training; sizes: the numbers of images by split."""
    info: ImageInfo = model.info
    spread = f"{processes} ranks of " if processes > 1 else ""
    shape = "x".join(map(str, info.image_shape))
    images = ", ".join(f"{size} {part}" for part, size in sizes.items())
    augmented = f", augmented by {' and '.join(s.augment)}" if s.augment else ""
    augmented += ", not mirrored" if s.augment and "flip" not in s.augment else ""
    batches = f", batches of {s.batch_size}"
    return (
        f"{s.dataset}: {images} images {shape}, {len(info.classes)} classes{augmented}{batches}\n"
        f"{_describe_model(s, model)}, on {spread}{model.W_embed.device} (threads: {torch.get_num_threads()})"
    )


def _describe_model(s: Settings, model: Classifier) -> str:
    frozen = f" of {s.embedding_from}, frozen" if s.embedding_from else ""
    embedding = f"{s.embedding_type} embedding of d = {model.embedding_dim}{frozen}"
    size = f"a network of {count_parameters(model) / 1e6:.2f} M parameters"
    if s.num_blocks is not None:
        blocks = f"{s.num_blocks} blocks"
        if s.blocks:
            blocks = f"{len(s.blocks)} of {blocks} ({format_blocks(s.blocks)})"
        size = f"{blocks} of {parameters_per_block(model) / 1e6:.2f} M parameters"
    encoder = f", encoder {s.encoder_spec}" if s.encoder_spec != "paper" or s.freeze_encoder else ""
    if s.network == "vit":
        encoder = f", transformer of {s.vit_layers} layers, width {s.vit_width}, patches of {s.vit_patch} pixels"
    if s.freeze_encoder:
        encoder += " frozen" + ("" if s.encoder_weights or s.init_from else " as it starts, with random weights")
    loss = f", {s.loss}" if s.loss == "cross-entropy" else ""
    loss += f", {s.noise_levels} noise levels" if (s.noise_levels or 1) > 1 else ""
    noise = f", {s.schedule} noise schedule" if s.schedule else ""
    order = f", {s.block_order} order" if s.block_order else ""
    warmup = f" after warm-up of {s.warmup_epochs}" if s.warmup_epochs else ""
    rate = f", lr {s.lr:g} {s.lr_schedule}{warmup}{', bfloat16' if s.amp else ''}"
    return f"{METHODS[s.method].title}: {size}{encoder}, {embedding}{noise}{loss}{order}{rate}"


def describe_idle(blocks: list[int]) -> str:
    """Return one line on blocks that are trained though no answer needs them."""
    which = f"block{'s' * (len(blocks) > 1)} {format_blocks(blocks)}"
    return f"the answer does not need {which}: --steps are fewer than --num-blocks"


def go_on(last: Path, processes: int = 1) -> str:
    """Return the command that continues a run, from the folder in which this one was started."""
    found = shutil.which("python")
    python = "python" if found and os.path.abspath(found) == sys.executable else sys.executable
    script = sys.argv[0] if Path(sys.argv[0]).name == "main.py" else "main.py"
    again = " (or with torchrun, as before)" if processes > 1 else ""
    return shlex.join([python, script, "--checkpoint", str(last)]) + again


def describe_part(last: Path, blocks: list[int], num_blocks: int) -> str:
    """Return where the blocks of a part are, and the command that joins all parts."""
    join = f"python main.py --merge {shlex.quote(str(last))} ... --checkpoint-dir DIR"
    return printable(f"blocks {format_blocks(blocks)} of {num_blocks} are in {last}; join all parts with: {join}")


def describe_progress(history: list[dict], steps: int) -> str:
    """Return what last.pt holds: full epochs, and steps of the next one."""
    parts = [f"epoch {len(history)}"] if history else []
    if steps:
        parts.append(f"{steps} steps of epoch {len(history) + 1}")
    return " and ".join(parts) + (" are saved" if steps else " is saved")


def describe_way(way: dict) -> str:
    """Return a way of inference in words: 'ode euler, 50 steps'."""
    names = [way[name] for name in ("sampler", "solver") if name in way]
    return ", ".join([" ".join(names), *([f"{way['steps']} steps"] if "steps" in way else [])]).strip(", ")


def print_ways(by_way: list[dict]) -> None:
    """Print the accuracy of each way of inference, where there are several."""
    for row in by_way if len(by_way) > 1 else ():
        accuracy = f"{row['accuracy_mean']:.2f} +- {row['accuracy_sem']:.2f} %"
        trust = f"ECE of mean {row['ece']:.2f} %, NLL {row['nll']:.3f}"
        others = ", ".join(f"{name} {value:.2f} %" for name, value in row["accuracy_by_readout"].items())
        print(f"{describe_way(row)}: {accuracy} ({others}), {trust}, {row['seconds']:.1f} s")


NOT_THE_PAPERS = {
    "ensemble": ", of the blocks' own u_hat, which see the image: not the paper's readout",
    "mean-z": ", of the mean z over the runs: not the paper's readout",
}


def print_accuracies(result: Evaluation, by_step: bool, counted: str, split: str) -> None:
    """Print the accuracies: by step if asked for (block, step or time), by readout, and the program's last line."""
    if by_step:
        _print_steps(result, counted)
    readouts = ["sample", *result.by_runs]
    width = max(map(len, readouts)) + 1
    for name in readouts:
        mean, sem = result.accuracy(name)
        spread = f" +- {sem:.2f}" if name == "sample" and len(result.per_run) > 1 else ""  # else it is one answer
        print(f"readout {name + ':':{width}} {mean:.2f}{spread} %{NOT_THE_PAPERS.get(name, '')}")
    if result.block_1_alone is not None:
        print(f"block 1 alone: {result.block_1_alone:.2f} %, the class of its u_hat from the image and mere noise")
    print(last_line(*result.accuracy(), len(result.per_run), split))


def last_line(mean: float, sem: float, count: int, split: str = "test", of: str = "runs") -> str:
    """Return the last line of a training or evaluation."""
    return f"{split} accuracy: {mean:.2f} +- {sem:.2f} % ({count} {of})"


def _print_steps(result: Evaluation, counted: str) -> None:
    where = f"{'at' if counted == 'time' else 'after'} {counted}"
    print(f"{where:11}   class of z_t" + ("   class of the block's u_hat" if result.per_step_u_hat else ""))
    for step, (t, accuracy) in enumerate(zip(result.times, result.per_step_accuracy, strict=True)):
        u_hat = f"   {result.per_step_u_hat[step]:10.2f} %" if result.per_step_u_hat else ""
        print(f"{t:11{'.3f' if counted == 'time' else 'd'}}   {accuracy:10.2f} %{u_hat}")


def parameters_of(s: Settings, model: Classifier) -> dict:
    """Return the numbers of parameters of the whole model, of which this process may hold some blocks only."""
    parameters = count_parameters(model)
    if s.num_blocks is None:
        return {"parameters": parameters}
    per_block = parameters_per_block(model)
    elsewhere = s.num_blocks - len(model.networks)
    return {"parameters": parameters + per_block * elsewhere, "parameters_per_block": per_block}


def count_parameters(module: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())


def parameters_per_block(model: Classifier) -> int:
    """Return the number of parameters of one block."""
    return count_parameters(next(iter(model.networks.values())))

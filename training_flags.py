"""The flags of main.py that decide what is trained and how: defaults, and what --help says of them."""

from data import DATASETS
from defaults import EPOCHS, ETA, LR_SCHEDULES, METHODS, PLATEAU_PATIENCE, RECIPES
from flag_types import (
    COUNT,
    MAX_BLOCKS,
    MAX_COUNT,
    POSITIVE,
    RATE,
    WEIGHT,
    Parser,
    block_list,
    list_of,
    number,
    one_of,
    place,
)
from models.schedules import ALPHA_BAR_CLIP, SCHEDULES


def data_flags(parser: Parser) -> None:
    flag = parser.group("data")
    flag("--dataset", "cifar10", "what is learned; digits needs no files", choices=DATASETS)
    flag(
        "--data-dir",
        "./data",
        "torchvision's folder, or DIR of --dataset folder with DIR/train/CLASS/* and DIR/test/CLASS/*",
        type=place,
        metavar="DIR",
    )
    flag(
        "--image-size",
        None,
        "side in pixels to which the images of --dataset folder are cropped and scaled",
        shown="their own where all have the same of at most 64, else 32",
        type=number(int, 4, 4096),
        metavar="PIXELS",
    )
    flag(
        "--val-fraction",
        0.1,
        "part of the training images held out to choose the best epoch; 0 trains on "
        "all and takes the last epoch, as the paper does",
        type=number(float, 0, 0.9),
        metavar="PART",
    )
    flag(
        "--train-size",
        None,
        "train on so many of the training images, drawn by the seed",
        shown="all",
        type=number(int, 2),
        metavar="N",
    )
    flag(
        "--augment",
        False,
        "crop training images at random, and mirror them except digits; the paper does not",
        action="store_true",
    )


def method_flags(parser: Parser) -> None:
    flag = parser.group("method")
    described = ", ".join(f"{name} {text}" for name, text in METHODS.items())
    flag("--method", "dt", f"what is trained: {described}", choices=tuple(METHODS))
    flag(
        "--compare",
        None,
        "train several methods, such as dt,backprop,ct,fm, each in a folder of its own in --checkpoint-dir, and compare"
        " them in a table and figures",
        shown="none",
        type=list_of(one_of(tuple(METHODS))),
        metavar="METHOD,...",
    )
    flag("--num-blocks", 10, "blocks T of dt and backprop", type=number(int, 1, MAX_BLOCKS), metavar="T")


def embedding_flags(parser: Parser) -> None:
    flag = parser.group("embeddings")
    flag(
        "--embedding-type",
        "learned",
        "class embeddings W_embed: learned vectors, one-hot, or prototype images",
        choices=("learned", "one-hot", "prototype"),
    )
    flag("--embedding-dim", 20, "d of learned embeddings", type=POSITIVE, metavar="D")
    flag(
        "--embedding-init",
        None,
        "how W_embed starts",
        shown="orthogonal; prototype for prototype",
        choices=("orthogonal", "random", "prototype"),
    )
    flag(
        "--embedding-from",
        None,
        "take W_embed and theta_out from this checkpoint and keep them as they are",
        shown="none",
        type=place,
        metavar="CHECKPOINT",
    )
    flag(
        "--class-probability",
        "softmax",
        "p(y given z_T): softmax (eq. 14) or posterior (eq. 15-16)",
        choices=("softmax", "posterior"),
    )
    flag("--posterior-sigma", 1.0, "sigma of the posterior, in units of the embedding", type=RATE, metavar="S")


def noise_flags(parser: Parser) -> None:
    flag = parser.group("noise")
    flag("--schedule", "cosine", "noise schedule alpha_bar of dt", choices=tuple(SCHEDULES))
    flag(
        "--alpha-bar-clip",
        ALPHA_BAR_CLIP,
        "range into which alpha_bar of dt is clipped",
        nargs=2,
        type=number(float, 0, 1, open_low=True),
        metavar=("LOW", "HIGH"),
    )
    flag(
        "--eta",
        None,
        "weight of the denoising term of the loss of dt and ct",
        shown=", ".join(f"{name} {eta}" for name, eta in ETA.items()),
        type=RATE,
        metavar="ETA",
    )
    flag(
        "--flow-sigma",
        0.1,
        "deviation of z_t of fm around the line from noise to embedding, in units of the embedding",
        type=RATE,
        metavar="S",
    )
    flag("--stratified-time", False, "spread t of ct and fm evenly over every batch", action="store_true")


def training_flags(parser: Parser) -> None:
    flag = parser.group("training")
    flag(
        "--epochs",
        None,
        "passes over the training images",
        shown="; ".join(f"{name} {_by_number(methods)}" for name, methods in EPOCHS.items()),
        type=POSITIVE,
        metavar="N",
    )
    flag("--batch-size", None, "images per step", shown="128; digits: 32", type=number(int, 2, MAX_COUNT), metavar="N")
    flag(
        "--block-order",
        "interleaved",
        "order of the updates within an epoch: every batch through all "
        "blocks, one block after the other (the paper's Algorithm 1), or drawn",
        choices=("interleaved", "sequential", "random"),
    )
    flag(
        "--blocks",
        None,
        "train only these blocks, such as 3,5-7; the embeddings must be fixed, and --merge joins the parts",
        shown="all",
        type=block_list,
        metavar="LIST",
    )
    flag(
        "--early-stopping-patience",
        0,
        "epochs without a better validation accuracy after which training ends; 0: never",
        type=COUNT,
        metavar="N",
    )
    flag("--recipe", None, f"other defaults: {_recipes()}", shown="the paper's", choices=tuple(RECIPES))
    flag("--seed", 0, "seed of all random streams", type=COUNT, metavar="N")


def optimizer_flags(parser: Parser) -> None:
    flag = parser.group("optimizer")
    flag("--lr", 0.001, "learning rate of every AdamW (ct, fm: Adam)", type=RATE, metavar="RATE")
    flag("--weight-decay", 0.001, "weight decay of every AdamW (ct, fm: Adam)", type=WEIGHT, metavar="RATE")
    flag("--warmup-epochs", 0, "epochs of linearly rising learning rate; 0: none", type=COUNT, metavar="N")
    flag(
        "--lr-schedule",
        None,
        "what follows the warm-up: constant, as the paper; cosine: falling to zero at the last epoch; plateau: halved "
        "while the validation accuracy stands still",
        shown="constant; with --lr-scheduler-patience: plateau",
        choices=LR_SCHEDULES,
    )
    flag(
        "--lr-scheduler-patience",
        0,
        "epochs without a better validation accuracy after which the learning rate is halved; 0: never",
        shown=f"0; with --lr-schedule plateau: {PLATEAU_PATIENCE}",
        type=COUNT,
        metavar="N",
    )
    flag(
        "--clip-grad-norm",
        0.0,
        "shorten longer gradients to this norm, over all parameters of a block (of the network); 0: never",
        type=WEIGHT,
        metavar="NORM",
    )


def _by_number(epochs: dict[str, int]) -> str:
    """{"dt": 150, "ct": 500, "fm": 500} -> '150 (ct, fm 500)': those that differ from the first in brackets."""
    first = next(iter(epochs.values()))
    others = {n: [m for m in epochs if epochs[m] == n] for n in epochs.values() if n != first}
    return f"{first} ({'; '.join(f'{chr(44).join(m)} {n}' for n, m in others.items())})"


def _recipes() -> str:
    """Every recipe with the flags that it stands for."""
    flags = {name: " ".join(f"--{k.replace('_', '-')} {v}" for k, v in own.items()) for name, own in RECIPES.items()}
    return "; ".join(f"{name} is {text}" for name, text in flags.items())

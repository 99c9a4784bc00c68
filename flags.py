"""The flags of main.py: their names, defaults and what --help says of them. Which go together: options.py."""

from data import DATASETS
from defaults import EPOCHS, ETA, LR_SCHEDULES, METHODS, PLATEAU_PATIENCE, RECIPES
from flag_types import (
    COUNT,
    MAX_BLOCKS,
    MAX_COUNT,
    MAX_RUNS,
    MAX_STEPS,
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
from models.NoProp_CT import SAMPLERS
from models.schedules import ALPHA_BAR_CLIP, SCHEDULES
from models.solvers import SOLVERS
from readout import READOUTS


def _by_number(epochs: dict[str, int]) -> str:
    """{"dt": 150, "ct": 500, "fm": 500} -> '150 (ct, fm 500)': those that differ from the first in brackets."""
    first = next(iter(epochs.values()))
    others = {n: [m for m in epochs if epochs[m] == n] for n in epochs.values() if n != first}
    return f"{first} ({'; '.join(f'{chr(44).join(m)} {n}' for n, m in others.items())})"


def make_parser() -> Parser:
    """All flags, in the order of --help."""
    parser = Parser(
        prog="main.py",
        description="Train, evaluate and use NoProp networks: blocks that learn alone to denoise class embeddings, "
        "with no back-propagation between blocks (Li, Teh, Pascanu 2025).",
    )
    _data_flags(parser)
    _model_flags(parser)
    _training_flags(parser)
    _inference_flags(parser)
    _place_flags(parser)
    return parser


def _data_flags(parser: Parser) -> None:
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


def _model_flags(parser: Parser) -> None:
    flag = parser.group("model")
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


def _training_flags(parser: Parser) -> None:
    flag = parser.group("training")
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
        "--epochs",
        None,
        "passes over the training images",
        shown="; ".join(f"{name} {_by_number(methods)}" for name, methods in EPOCHS.items()),
        type=POSITIVE,
        metavar="N",
    )
    flag("--batch-size", None, "images per step", shown="128; digits: 32", type=number(int, 2, MAX_COUNT), metavar="N")
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
    flag(
        "--early-stopping-patience",
        0,
        "epochs without a better validation accuracy after which training ends; 0: never",
        type=COUNT,
        metavar="N",
    )
    flag(
        "--recipe",
        None,
        "other defaults: "
        + "; ".join(
            f"{name} is {' '.join(f'--{k.replace(chr(95), chr(45))} {v}' for k, v in values.items())}"
            for name, values in RECIPES.items()
        ),
        shown="the paper's",
        choices=tuple(RECIPES),
    )
    flag("--seed", 0, "seed of all random streams", type=COUNT, metavar="N")


def _inference_flags(parser: Parser) -> None:
    flag = parser.group("evaluation and prediction")
    flag("--evaluate", False, "evaluate --checkpoint on the test images, train nothing", action="store_true")
    flag(
        "--predict",
        None,
        "class and probability of image files, by the model of --checkpoint",
        nargs="+",
        shown="none",
        type=place,
        metavar="IMAGE",
    )
    flag(
        "--inference",
        "stochastic",
        "of dt; stochastic: eq. 3 from noise; deterministic: from z_0 = 0 without noise",
        choices=("stochastic", "deterministic"),
    )
    flag(
        "--eval-runs",
        None,
        "inference runs, each from fresh noise",
        type=number(int, 1, MAX_RUNS),
        metavar="R",
        shown="5; deterministic: 1",
    )
    flag(
        "--steps",
        [1000],
        "steps of inference of ct and fm, of training too of adjoint; of a list such as 5,10,50 every number is "
        "tested, and the last one is the result",
        type=list_of(number(int, 1, MAX_STEPS)),
        metavar="N,...",
    )
    flag(
        "--sampler",
        ["ancestral"],
        "inference of ct: eq. 3 step by step (ancestral) or the probability-flow ODE (ode); or a list of both",
        type=list_of(one_of(SAMPLERS)),
        metavar="NAME,...",
    )
    flag(
        "--solver",
        ["euler"],
        f"how the ODE of fm, and of ct with --sampler ode, is solved: {', '.join(SOLVERS)}, or a list; dopri5 takes "
        "as many steps as its tolerance needs",
        type=list_of(one_of(SOLVERS)),
        metavar="NAME,...",
    )
    flag(
        "--readout",
        None,
        "sample: every run counts by itself; vote: the most frequent class of the runs; "
        "mean: the largest mean probability",
        shown="sample; with --predict: mean",
        choices=READOUTS,
    )
    flag(
        "--test-every-epoch",
        False,
        "note the accuracy on the test images after every epoch, for curves only: nothing is chosen by it",
        action="store_true",
    )
    flag("--steps-report", False, "print the accuracy after every block, or along the way", action="store_true")


def _place_flags(parser: Parser) -> None:
    flag = parser.group("files and device")
    flag(
        "--merge",
        None,
        "join the last.pt of parts that were trained with --blocks into the run in --checkpoint-dir",
        shown="none",
        nargs="+",
        type=place,
        metavar="PART",
    )
    flag(
        "--checkpoint",
        None,
        "training: continue from it; with --evaluate or --predict: the model to use. Its settings need not be repeated",
        shown="none",
        type=place,
        metavar="PATH",
    )
    flag(
        "--checkpoint-dir",
        None,
        "folder of the run",
        type=place,
        metavar="DIR",
        shown="checkpoints_run; with --checkpoint: the checkpoint's folder",
    )
    flag("--save-every", 0, "epochs between the checkpoint_epoch_N.pt that are kept; 0: none", type=COUNT, metavar="N")
    flag(
        "--save-every-minutes",
        10.0,
        "minutes after which last.pt is written within an epoch too; 0: after epochs only",
        type=WEIGHT,
        metavar="MINUTES",
    )
    flag(
        "--tensorboard",
        False,
        "write scalars and pictures to RUN/tensorboard as it trains; needs: pip install tensorboard",
        action="store_true",
    )
    flag("--device", "auto", "auto, cpu, cuda or cuda:N; auto is cuda where there is one", metavar="DEVICE")
    flag("--no-cuda", False, "use the CPU even where there is a GPU", action="store_true")
    flag("--amp", False, "bfloat16 autocast: faster on CUDA, and on CPUs with AVX512_BF16 or AMX", action="store_true")
    flag(
        "--offload-blocks",
        False,
        "keep blocks and optimizer states that are not in use in the memory of the CPU, on CUDA only; "
        "travels least with --block-order sequential",
        action="store_true",
    )
    flag("--compile", False, "compile the blocks with torch.compile", action="store_true")

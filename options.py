"""The flags of main.py: what they are called, what they mean, which go together.

Every default is shown in --help. A flag that makes no sense beside the others is an error, never ignored.
"""

import argparse
import math
from argparse import Namespace

from data import DATASETS
from errors import UserError
from evaluate import READOUTS
from models.schedules import ALPHA_BAR_CLIP, SCHEDULES

EPOCHS = {"mnist": 100, "fashion-mnist": 100, "cifar10": 150, "cifar100": 150, "folder": 150, "digits": 14}
BATCH_SIZE = {name: 32 if name == "digits" else 128 for name in EPOCHS}  # few digits: more steps an epoch

# Flags that may differ from those of the checkpoint which is continued, evaluated or used to predict.
PLACE_FLAGS = {"checkpoint", "checkpoint_dir", "data_dir", "device", "no_cuda"}
THIS_CALL = {"checkpoint", "checkpoint_dir", "device", "no_cuda", "evaluate", "predict", "steps_report"}
RESUME_FLAGS = PLACE_FLAGS | {"epochs", "save_every", "steps_report", "compile"}
EVALUATE_FLAGS = PLACE_FLAGS | {"evaluate", "eval_runs", "readout", "inference", "steps_report", "seed"}
PREDICT_FLAGS = PLACE_FLAGS - {"checkpoint_dir", "data_dir"} | {"predict", "eval_runs", "readout", "inference", "seed"}


class Parser(argparse.ArgumentParser):
    """Errors are one line; which flags were given is told apart from the defaults."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        self.defaults: dict[str, object] = {}

    def error(self, message: str):
        raise UserError(f"{message} (all flags: python main.py --help)")

    def group(self, title: str):
        """A function that adds a flag to a new group: name, default, help; the default is shown in the help."""
        group = self.add_argument_group(title)

        def flag(name: str, default: object, help: str, shown: str | None = None, **kwargs) -> None:
            action = group.add_argument(name, help=f"{help} (default: {shown or _show(default)})", **kwargs)
            self.defaults[action.dest] = default

        return flag


def _show(default: object) -> str:
    if default is False:
        return "off"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _number(kind: type, low: float, high: float = math.inf, *, open_low: bool = False):
    """An argparse type: a finite number within [low, high], or (low, high] where open_low."""
    bound = f"{'more than' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high) or (open_low and value == low):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} of {bound}")
        return value

    return convert


COUNT, POSITIVE = _number(int, 0), _number(int, 1)
RATE, WEIGHT = _number(float, 0, open_low=True), _number(float, 0)


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
        metavar="DIR",
    )
    flag(
        "--image-size",
        None,
        "side in pixels to which the images of --dataset folder are cropped and scaled",
        shown="their own where all have the same of at most 64, else 32",
        type=_number(int, 4),
        metavar="PIXELS",
    )
    flag(
        "--val-fraction",
        0.1,
        "part of the training images held out to choose the best epoch; 0 trains on "
        "all and takes the last epoch, as the paper does",
        type=_number(float, 0, 0.9),
        metavar="PART",
    )
    flag(
        "--augment",
        False,
        "crop training images at random, and mirror them except digits; the paper does not",
        action="store_true",
    )


def _model_flags(parser: Parser) -> None:
    flag = parser.group("model")
    flag("--method", "dt", "what is trained: dt is NoProp in discrete time", choices=("dt",))
    flag("--num-blocks", 10, "blocks T", type=POSITIVE, metavar="T")
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
        "--class-probability",
        "softmax",
        "p(y given z_T): softmax (eq. 14) or posterior (eq. 15-16)",
        choices=("softmax", "posterior"),
    )
    flag("--posterior-sigma", 1.0, "sigma of the posterior, in units of the embedding", type=RATE, metavar="S")
    flag("--schedule", "cosine", "noise schedule alpha_bar", choices=tuple(SCHEDULES))
    flag(
        "--alpha-bar-clip",
        ALPHA_BAR_CLIP,
        "range into which alpha_bar is clipped",
        nargs=2,
        type=_number(float, 0, 1, open_low=True),
        metavar=("LOW", "HIGH"),
    )
    flag("--eta", 0.1, "weight of the denoising term of the loss", type=RATE, metavar="ETA")


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
        "--epochs",
        None,
        "passes over the training images",
        shown=", ".join(f"{n} {name}" for name, n in EPOCHS.items()),
        type=POSITIVE,
        metavar="N",
    )
    flag("--batch-size", None, "images per step", shown="128; digits: 32", type=_number(int, 2), metavar="N")
    flag("--lr", 0.001, "learning rate of every AdamW", type=RATE, metavar="RATE")
    flag("--weight-decay", 0.001, "weight decay of every AdamW", type=WEIGHT, metavar="RATE")
    flag("--warmup-epochs", 0, "epochs of linearly rising learning rate; 0: none", type=COUNT, metavar="N")
    flag(
        "--lr-scheduler-patience",
        0,
        "epochs without a better validation accuracy after which the learning rate is halved; 0: never",
        type=COUNT,
        metavar="N",
    )
    flag(
        "--early-stopping-patience",
        0,
        "epochs without a better validation accuracy after which training ends; 0: never",
        type=COUNT,
        metavar="N",
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
        metavar="IMAGE",
    )
    flag(
        "--inference",
        "stochastic",
        "stochastic: eq. 3 from noise; deterministic: from z_0 = 0 without noise",
        choices=("stochastic", "deterministic"),
    )
    flag(
        "--eval-runs",
        None,
        "inference runs, each from fresh noise",
        type=POSITIVE,
        metavar="R",
        shown="5; deterministic: 1",
    )
    flag(
        "--readout",
        None,
        "sample: every run counts by itself; vote: the most frequent class of the runs; "
        "mean: the largest mean probability",
        shown="sample; with --predict: mean",
        choices=READOUTS,
    )
    flag("--steps-report", False, "print the accuracy after every block", action="store_true")


def _place_flags(parser: Parser) -> None:
    flag = parser.group("files and device")
    flag(
        "--checkpoint",
        None,
        "training: continue from it; with --evaluate or --predict: the model to use. Its settings need not be repeated",
        shown="none",
        metavar="PATH",
    )
    flag(
        "--checkpoint-dir",
        None,
        "folder of the run",
        metavar="DIR",
        shown="checkpoints_run; with --checkpoint: the checkpoint's folder",
    )
    flag("--save-every", 0, "epochs between the checkpoint_epoch_N.pt that are kept; 0: none", type=COUNT, metavar="N")
    flag("--device", "auto", "auto, cpu, cuda or cuda:N; auto is cuda where there is one", metavar="DEVICE")
    flag("--no-cuda", False, "use the CPU even where there is a GPU", action="store_true")
    flag("--amp", False, "bfloat16 autocast, on CUDA only", action="store_true")
    flag("--compile", False, "compile the blocks with torch.compile", action="store_true")


def parse_flags(argv: list[str] | None = None) -> tuple[Namespace, set[str]]:
    """All settings, and the names of those that were given. Raises UserError for what cannot be."""
    parser = make_parser()
    explicit = vars(parser.parse_args(argv))
    args = Namespace(**{**parser.defaults, **explicit})
    _check_modes(args, set(explicit))
    return args, set(explicit)


def settle(args: Namespace, given: set[str]) -> None:
    """Fill in the defaults that depend on other flags. Raises UserError for flags that do not go together."""
    if args.epochs is None:
        args.epochs = EPOCHS[args.dataset]
    if args.batch_size is None:
        args.batch_size = BATCH_SIZE[args.dataset]
    if args.embedding_init is None:
        args.embedding_init = "prototype" if args.embedding_type == "prototype" else "orthogonal"
    if args.eval_runs is None:
        args.eval_runs = 1 if args.inference == "deterministic" else 5
    if args.readout is None:
        args.readout = "mean" if args.predict else "sample"
    args.alpha_bar_clip = list(args.alpha_bar_clip)
    _check_together(args, given)


def _check_modes(args: Namespace, given: set[str]) -> None:
    if args.evaluate and args.predict:
        raise UserError("--evaluate and --predict are two things: give one of them")
    if (args.evaluate or args.predict) and not args.checkpoint:
        raise UserError(f"--{'evaluate' if args.evaluate else 'predict'} needs --checkpoint PATH, the model to use")
    if args.predict:
        for name in sorted(given & {"steps_report", "checkpoint_dir", "data_dir"}):
            raise UserError(f"{as_flag(name)} makes no sense with --predict: leave it out")


def _check_together(args: Namespace, given: set[str]) -> None:
    low, high = args.alpha_bar_clip
    prototype = args.embedding_type == "prototype"
    image_start = args.embedding_init == "prototype"
    no_validation = args.val_fraction == 0
    needs_validation = "needs validation images: raise --val-fraction"
    same_runs = args.inference == "deterministic" and args.eval_runs > 1
    rules = [
        ("embedding_dim", args.embedding_type != "learned", "belongs to --embedding-type learned"),
        ("embedding_init", args.embedding_type == "one-hot", "makes no sense with one-hot embeddings"),
        ("embedding_init", image_start and not prototype, "prototype belongs to --embedding-type prototype"),
        ("image_size", args.dataset != "folder", "belongs to --dataset folder"),
        ("data_dir", args.dataset == "digits", "makes no sense with --dataset digits, which needs no files"),
        ("posterior_sigma", args.class_probability != "posterior", "belongs to --class-probability posterior"),
        ("eval_runs", same_runs, "above 1 makes no sense with --inference deterministic: all runs are the same"),
        ("lr_scheduler_patience", args.lr_scheduler_patience and no_validation, needs_validation),
        ("early_stopping_patience", args.early_stopping_patience and no_validation, needs_validation),
        ("warmup_epochs", args.warmup_epochs > args.epochs, f"exceeds --epochs {args.epochs}: lower it"),
        ("no_cuda", args.no_cuda and args.device.startswith("cuda"), "contradicts --device cuda"),
        ("alpha_bar_clip", not low < high < 1, "needs 0 < LOW < HIGH < 1"),
    ]
    for name, wrong, why in rules:
        if name in given and wrong:
            raise UserError(f"{as_flag(name)} {why}")


def adopt(args: Namespace, given: set[str], config: dict) -> Namespace:
    """The settings of a checkpoint, with those of the given flags that may differ from it.

    Raises UserError for any other given flag that is not as in the checkpoint.
    """
    using = args.evaluate or args.predict
    free = EVALUATE_FLAGS if args.evaluate else PREDICT_FLAGS if args.predict else RESUME_FLAGS
    for name in sorted(given - free):
        if getattr(args, name) != config.get(name):
            way_out = "leave the flag out" if using else "leave the flag out or start a new run"
            raise UserError(
                f"{as_flag(name)} {_show(getattr(args, name))} contradicts the checkpoint, which has "
                f"{_show(config.get(name))}: {way_out}"
            )
    settings = {**config, **{name: getattr(args, name) for name in THIS_CALL}}
    settings.update({name: getattr(args, name) for name in given & free})
    if using:
        settings.update(amp=False, compile=False)
    if args.predict and "readout" not in given:
        settings["readout"] = None  # of its own default
    if "inference" in given and "eval_runs" not in given:
        settings["eval_runs"] = None
    adopted = Namespace(**settings)
    settle(adopted, given)
    return adopted


def as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")

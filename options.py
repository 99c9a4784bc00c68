"""Settings from flags: defaults that depend on other flags, which flags go together, which a checkpoint decides.

A flag that makes no sense beside the others is an error, never ignored.
"""

from argparse import Namespace

from defaults import BATCH_SIZE, EPOCHS, ETA, PLATEAU_PATIENCE, RECIPES
from errors import UserError
from flag_types import Parser, show
from flags import make_parser
from models.schedules import ALPHA_BAR_CLIP
from parts import format_blocks

# Flags that only some methods know.
METHOD_FLAGS = {
    "num_blocks": ("dt", "backprop"),
    "eta": ("dt", "ct"),
    "class_probability": ("dt", "ct", "backprop"),
    "posterior_sigma": ("dt", "ct", "backprop"),
    "flow_sigma": ("fm",),
    "stratified_time": ("ct", "fm"),
    "steps": ("ct", "fm", "adjoint"),
    "sampler": ("ct",),
    "solver": ("ct", "fm"),
}
METHOD_FLAGS |= dict.fromkeys(("schedule", "alpha_bar_clip", "block_order", "blocks", "embedding_from"), ("dt",))
METHOD_FLAGS |= dict.fromkeys(("inference", "offload_blocks"), ("dt",))

EMBEDDING_SETTINGS = ("embedding_type", "embedding_dim", "embedding_init", "class_probability", "posterior_sigma")

# Flags that may differ from those of the checkpoint which is continued, evaluated or used to predict.
PLACE_FLAGS = {"checkpoint", "checkpoint_dir", "data_dir", "device", "no_cuda", "no_deterministic"}
THIS_CALL = PLACE_FLAGS - {"data_dir"} | {"evaluate", "predict", "merge", "compare", "steps_report", "tensorboard"}
RESUME_FLAGS = PLACE_FLAGS | {"epochs", "save_every", "steps_report", "compile", "offload_blocks", "tensorboard"}
RESUME_FLAGS |= {"test_every_epoch", "save_every_minutes"}
INFERENCE_FLAGS = {"eval_runs", "readout", "inference", "steps", "sampler", "solver", "seed"}
EVALUATE_FLAGS = PLACE_FLAGS | INFERENCE_FLAGS | {"evaluate", "steps_report"}
PREDICT_FLAGS = PLACE_FLAGS - {"checkpoint_dir", "data_dir"} | INFERENCE_FLAGS | {"predict"}


def parse_flags(argv: list[str] | None = None) -> tuple[Namespace, set[str]]:
    """All settings, and the names of those that were given. Raises UserError for what cannot be."""
    parser = make_parser()
    explicit = vars(parser.parse_args(argv))
    recipe = RECIPES.get(explicit.get("recipe"), {})
    args = Namespace(**{**parser.defaults, **recipe, **explicit})
    _check_modes(args, set(explicit))
    return args, set(explicit)


def settle(args: Namespace, given: set[str]) -> None:
    """Fill in the defaults that depend on other flags. Raises UserError for flags that do not go together."""
    if args.epochs is None:
        args.epochs = EPOCHS[args.dataset][args.method]
    if args.batch_size is None:
        args.batch_size = BATCH_SIZE[args.dataset]
    if args.embedding_init is None:
        args.embedding_init = "prototype" if args.embedding_type == "prototype" else "orthogonal"
    if args.eval_runs is None:
        args.eval_runs = 1 if args.inference == "deterministic" else 5
    if args.readout is None:
        args.readout = "mean" if args.predict else "sample"
    if args.eta is None:
        args.eta = ETA.get(args.method)
    if args.lr_schedule is None:
        args.lr_schedule = "plateau" if args.lr_scheduler_patience else "constant"
    if args.lr_schedule == "plateau" and "lr_scheduler_patience" not in given:
        args.lr_scheduler_patience = args.lr_scheduler_patience or PLATEAU_PATIENCE
    _check_together(args, given)
    for name, methods in METHOD_FLAGS.items():
        if args.method not in methods:
            setattr(args, name, None)
    if args.alpha_bar_clip:
        args.alpha_bar_clip = list(args.alpha_bar_clip)


def learns_embedding(args: Namespace) -> bool:
    """Whether W_embed gets gradients, from every block at every step."""
    return args.embedding_type != "one-hot" and not args.embedding_from


def take_embedding_settings(args: Namespace, given: set[str], source: dict) -> None:
    """The settings of W_embed and theta_out become those of the checkpoint of --embedding-from.

    Raises UserError for a given flag that is not as there.
    """
    method = source["config"]["method"]
    if method not in METHOD_FLAGS["class_probability"]:
        raise UserError(f"--embedding-from {args.embedding_from} is of --method {method}, whose theta_out reads no z_T")
    for name in EMBEDDING_SETTINGS:
        value = source["config"][name]
        if name in given and getattr(args, name) != value:
            raise UserError(f"{as_flag(name)} contradicts --embedding-from, which has {value}: leave it out")
        setattr(args, name, value)


def check_ranks(args: Namespace, size: int) -> None:
    """Raises UserError for what `size` processes of torchrun cannot do."""
    if size == 1:
        return
    if args.method != "dt":
        raise UserError(
            f"torchrun deals out blocks that learn alone, and --method {args.method} has none: start it with python"
        )
    if args.evaluate or args.predict or args.merge or args.compare:
        raise UserError("torchrun is for training: call python main.py to evaluate, predict, merge or compare")
    if ":" in args.device:
        raise UserError(f"--device {args.device} is one GPU for all ranks: give --device cuda, each takes its own")
    blocks = len(args.blocks or range(args.num_blocks))
    if size > blocks:
        raise UserError(f"more ranks ({size}) than blocks ({blocks}): start at most {blocks} with torchrun")
    if learns_embedding(args) and args.block_order != "interleaved":
        raise UserError(
            f"--block-order {args.block_order} trains one block after the other where the embeddings are learned, so "
            "ranks would only wait: take interleaved, or fixed ones (--embedding-type one-hot or --embedding-from)"
        )


def _check_modes(args: Namespace, given: set[str]) -> None:
    modes = [as_flag(name) for name in ("evaluate", "predict", "merge", "compare") if getattr(args, name)]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} are different things: give one of them")
    if args.compare:
        for name in sorted(given & {"method", "checkpoint", "blocks", "embedding_from", "test_every_epoch"}):
            raise UserError(f"{as_flag(name)} makes no sense with --compare: leave it out")
    if args.merge:
        for name in sorted(given - {"merge", "checkpoint_dir"}):
            raise UserError(f"{as_flag(name)} makes no sense with --merge: leave it out, the parts have the settings")
    if (args.evaluate or args.predict) and not args.checkpoint:
        raise UserError(f"--{'evaluate' if args.evaluate else 'predict'} needs --checkpoint PATH, the model to use")
    if args.predict:
        for name in sorted(given & {"steps_report", "checkpoint_dir", "data_dir", "tensorboard", "test_every_epoch"}):
            raise UserError(f"{as_flag(name)} makes no sense with --predict: leave it out")


def _check_together(args: Namespace, given: set[str]) -> None:
    """Raises UserError for the first given flag that makes no sense beside the others."""
    _check_method(given, args.method)
    rules = [*_part_rules(args), *_model_rules(args), *_training_rules(args), *_inference_rules(args)]
    for name, wrong, why in rules:
        if name in given and wrong:
            raise UserError(f"{as_flag(name)} {why}")


Rules = list[tuple[str, object, str]]  # (setting, whether it is wrong where given, why)


def _part_rules(args: Namespace) -> Rules:
    part = bool(args.blocks)
    chain = "looks at the accuracy of all blocks together, which --blocks does not have: leave it out"
    fixed = (
        "needs fixed embeddings, since learned ones (also prototypes) take a gradient from every block at every step: "
        "add --embedding-type one-hot or --embedding-from CHECKPOINT"
    )
    return [
        ("blocks", part and max(args.blocks) > args.num_blocks, f"goes beyond --num-blocks {args.num_blocks}"),
        ("blocks", part and learns_embedding(args), fixed),
        ("lr_schedule", part and args.lr_schedule == "plateau", chain),
        ("lr_scheduler_patience", part and args.lr_scheduler_patience, chain),
        ("early_stopping_patience", part and args.early_stopping_patience, chain),
        ("steps_report", part and args.steps_report, chain),
        ("test_every_epoch", part and args.test_every_epoch, chain),
    ]


def _model_rules(args: Namespace) -> Rules:
    low, high = args.alpha_bar_clip or ALPHA_BAR_CLIP
    no_prototype = args.embedding_init == "prototype" and args.embedding_type != "prototype"
    return [
        ("image_size", args.dataset != "folder", "belongs to --dataset folder"),
        ("data_dir", args.dataset == "digits", "makes no sense with --dataset digits, which needs no files"),
        ("embedding_init", args.embedding_from, "makes no sense with --embedding-from"),
        ("embedding_dim", args.embedding_type != "learned", "belongs to --embedding-type learned"),
        ("embedding_init", args.embedding_type == "one-hot", "makes no sense with one-hot embeddings"),
        ("embedding_init", no_prototype, "prototype belongs to --embedding-type prototype"),
        ("posterior_sigma", args.class_probability != "posterior", "belongs to --class-probability posterior"),
        ("alpha_bar_clip", not low < high < 1, "needs 0 < LOW < HIGH < 1"),
    ]


def _training_rules(args: Namespace) -> Rules:
    plateau, patience = args.lr_schedule == "plateau", args.lr_scheduler_patience
    no_validation = args.val_fraction == 0
    needs_validation = "needs validation images: raise --val-fraction"
    no_fall = args.lr_schedule == "cosine" and args.warmup_epochs >= args.epochs
    warmup = f"--warmup-epochs {args.warmup_epochs}: raise it, or lower those"
    return [
        ("lr_scheduler_patience", patience and not plateau, "belongs to --lr-schedule plateau"),
        ("lr_schedule", plateau and not patience, "plateau needs --lr-scheduler-patience of 1 or more"),
        ("lr_schedule", plateau and no_validation, f"plateau {needs_validation}"),
        ("lr_scheduler_patience", patience and no_validation, needs_validation),
        ("early_stopping_patience", args.early_stopping_patience and no_validation, needs_validation),
        ("epochs", no_fall, f"{args.epochs} leaves none for the learning rate to fall after {warmup}"),
        ("warmup_epochs", no_fall, f"leaves no epoch of {args.epochs} for the learning rate to fall: lower it"),
        ("warmup_epochs", args.warmup_epochs > args.epochs, f"exceeds --epochs {args.epochs}: lower it"),
        ("no_cuda", args.no_cuda and args.device.startswith("cuda"), "contradicts --device cuda"),
        ("offload_blocks", args.offload_blocks and args.compile, "does not go with --compile: leave one of them out"),
        ("tensorboard", args.evaluate, "makes no sense with --evaluate: leave it out"),
    ]


def _inference_rules(args: Namespace) -> Rules:
    same_runs = args.inference == "deterministic" and args.eval_runs > 1
    ancestral = args.method == "ct" and args.sampler == ["ancestral"]
    no_steps = (args.method == "fm" or args.sampler == ["ode"]) and args.solver == ["dopri5"]
    several = args.method == "adjoint" and len(args.steps) > 1 and not args.evaluate
    one = "can be a list for --evaluate only: --method adjoint trains with one number of steps"
    return [
        ("eval_runs", same_runs, "above 1 makes no sense with --inference deterministic: all runs are the same"),
        ("solver", ancestral, "needs --sampler ode too (or ancestral,ode)"),
        ("steps", no_steps, "makes no sense with --solver dopri5, which chooses its steps"),
        ("steps", several, one),
    ]


def _check_method(given: set[str], method: str) -> None:
    """Raises UserError for a given flag that the method does not know."""
    for name in sorted(given & METHOD_FLAGS.keys()):
        if method not in METHOD_FLAGS[name]:
            raise UserError(f"{as_flag(name)} belongs to --method {' or '.join(METHOD_FLAGS[name])}, not to {method}")


def adopt(args: Namespace, given: set[str], config: dict) -> Namespace:
    """The settings of a checkpoint, with those of the given flags that may differ from it.

    Raises UserError for any other given flag that is not as in the checkpoint.
    """
    using = args.evaluate or args.predict
    free = EVALUATE_FLAGS if args.evaluate else PREDICT_FLAGS if args.predict else RESUME_FLAGS
    if "method" not in given:
        _check_method(given, config["method"])
    for name in sorted(given - free):
        if getattr(args, name) != config.get(name):
            way_out = "leave the flag out" if using else "leave the flag out or start a new run"
            values = (getattr(args, name), config.get(name))
            given_value, value = (format_blocks(v or []) or "all" if name == "blocks" else show(v) for v in values)
            raise UserError(f"{as_flag(name)} {given_value} contradicts the checkpoint, which has {value}: {way_out}")
    if config.get("lr_schedule") == "cosine" and args.epochs != config["epochs"] and "epochs" in given and not using:
        raise UserError(
            f"--epochs {args.epochs} contradicts the checkpoint: its learning rate falls to zero at epoch "
            f"{config['epochs']} (--lr-schedule cosine): leave the flag out or start a new run"
        )
    settings = {**make_parser().defaults, **config, **{name: getattr(args, name) for name in THIS_CALL}}
    settings.update({name: getattr(args, name) for name in given & free})
    if using:
        settings.update(amp=False, compile=False, offload_blocks=False)
    if args.predict and "readout" not in given:
        settings["readout"] = None  # of its own default
    if "inference" in given and "eval_runs" not in given:
        settings["eval_runs"] = None
    adopted = Namespace(**settings)
    settle(adopted, given)
    return adopted


def as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_tokens(parser: Parser, name: str, value: object) -> list[str]:
    """The words of a command line that set a flag to this value."""
    if value is True:
        return [as_flag(name)]
    words = [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
    if name in parser.several:
        return [as_flag(name), *words]
    text = ",".join(words)
    return [f"{as_flag(name)}={text}"] if text.startswith("-") else [as_flag(name), text]


def is_accepted(parser: Parser, name: str, value: object) -> bool:
    """Whether a setting is its flag's default, or what the flag makes of some words: of the right type and in range."""
    if _same(value, parser.defaults[name]):
        return True
    flag, *words = as_tokens(parser, name, value)
    if any(word.startswith("-") for word in words):
        return False  # another flag
    try:
        return _same(vars(parser.parse_args([flag, *words])).get(name), value)
    except UserError:
        return False


def _same(value: object, other: object) -> bool:
    """Equal, and of the same type: 1, 1.0 and True are not the same."""
    if type(value) is not type(other):
        return False
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    return value == other

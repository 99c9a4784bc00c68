"""From a command line to settings that make sense together, also with those of a checkpoint.

A flag that makes no sense beside the others is an error, never ignored.
"""

from dataclasses import replace
from itertools import chain

from command_line import as_flag, show
from data import DATASETS
from errors import UserError, require
from models.blocks import format_blocks
from models.encoders import OPTIONS
from models.export import MOST_CALLS, ONE_RUN_READOUTS
from models.methods import METHODS, arguments_for, methods_with
from settings import PLATEAU_PATIENCE, Settings, make_parser, names_where, owners_of

EMBEDDING_SETTINGS = ("embedding_type", "embedding_dim", "embedding_init", "class_probability", "posterior_sigma")
USES = ("evaluate", "predict", "export")  # of a trained model
COMMANDS = (*USES, "merge", "compare", "seeds")


def parse(argv: list[str] | None = None, before: dict[str, object] | None = None) -> tuple[Settings, set[str]]:
    """Return the settings of a command line, and the names of those that were given.

    before: flags as if they stood before those of the command line, which win. Defaults that depend on other settings
    are still None: see `settle`. Raises UserError for what cannot be.
    """
    flags = {**(before or {}), **vars(make_parser().parse_args(argv))}
    settings = with_recipe(flags)
    _check_commands(settings, set(flags))
    return settings, set(flags)


def with_recipe(flags: dict[str, object]) -> Settings:
    """Return settings from flags and what their --recipe stands for."""
    recipe, method = flags.get("recipe"), flags.get("method", Settings.method)
    known = METHODS[method].recipes
    if recipe and recipe not in known:
        raise UserError(f"--method {method} has no recipe {recipe}: take {' or '.join(known)}, or leave --recipe out")
    values = {**known.get(recipe, {}), **flags}
    if recipe and "warmup_epochs" not in flags:  # a short trial leaves out the recipe's
        values["warmup_epochs"] = min(values["warmup_epochs"], values["epochs"] - 1)
    return Settings(**values)


def settle(s: Settings, given: set[str]) -> Settings:
    """Return the settings with the defaults that depend on others, None for those that the method does not know.

    Raises UserError for settings that do not go together.
    """
    method, dataset = METHODS[s.method], DATASETS[s.dataset]
    if s.freeze_encoder and "augment" not in given:  # of a recipe
        s = replace(s, augment=None)
    s = replace(s, embedding_type=s.embedding_type or method.defaults.get("embedding_type", "learned"))
    defaults = {
        "embedding_init": "prototype" if s.embedding_type == "prototype" else "orthogonal",
        "eval_runs": 1 if s.inference == "deterministic" else 5,
        "readout": "mean" if s.predict or s.export else "sample",
        "lr_schedule": "plateau" if s.lr_scheduler_patience else "constant",
        "epochs": method.epochs.get(s.dataset, method.epochs["other"]),
        **dataset.defaults,
        **method.defaults,
    }
    s = replace(s, **{name: value for name, value in defaults.items() if getattr(s, name) is None})
    if s.augment == []:
        s = replace(s, augment=list(dataset.augment))
    if s.lr_schedule == "plateau" and "lr_scheduler_patience" not in given:
        s = replace(s, lr_scheduler_patience=s.lr_scheduler_patience or PLATEAU_PATIENCE)
    _check_together(s, given)
    return replace(s, **{name: None for name in vars(s) if s.method not in methods_with(name)})


def adopt(s: Settings, given: set[str], config: dict) -> Settings:
    """Return the settings of a checkpoint, with those of the given flags that may differ from it.

    Raises UserError for any other given flag that is not as in the checkpoint.
    """
    use = next((name for name in USES if getattr(s, name)), "resume")
    free = names_where(lambda about: use in about["may_change"])
    if "method" not in given:
        _check_owners(given, replace(s, method=config["method"], dataset=config["dataset"]))
    if s.augment == []:
        s = replace(s, augment=list(DATASETS[config["dataset"]].augment))
    way_out = ": leave the flag out" + (" or start a new run" if use == "resume" else "")
    if s.auto_resume:  # which starts a new run by itself
        way_out = ""
    for name in sorted(given - free):
        if not _same_setting(name, getattr(s, name), config.get(name)):
            mine, its = (_in_words(name, value) for value in (getattr(s, name), config.get(name)))
            raise UserError(f"{as_flag(name)} {mine} contradicts the checkpoint, which has {its}{way_out}")
    if config.get("lr_schedule") == "cosine" and use == "resume" and "epochs" in given and s.epochs != config["epochs"]:
        raise UserError(
            f"--epochs {s.epochs} contradicts the checkpoint: its learning rate falls to zero at epoch "
            f"{config['epochs']} (--lr-schedule cosine){way_out}"
        )
    own = names_where(lambda about: about["of_call"]) | (given & free)
    values = {**config, **{name: getattr(s, name) for name in own}}
    if use != "resume":
        values |= {"amp": False, "compile": False, "offload_blocks": False}
    if use == "export":
        values |= {"inference": "deterministic", "eval_runs": None, "device": "cpu"}
    if use in ("predict", "export") and "readout" not in given:
        values["readout"] = None  # of its own default
    if "inference" in given and "eval_runs" not in given:
        values["eval_runs"] = None
    return settle(Settings(**values), given)


def _same_setting(name: str, value: object, of_checkpoint: object) -> bool:
    if name == "augment" and value and of_checkpoint:
        return set(value) == set(of_checkpoint)
    return value == of_checkpoint or (name, value) == ("amp", "auto")


def _in_words(name: str, value: object) -> str:
    return (format_blocks(value) if value else "all") if name == "blocks" else show(value)


def take_embedding_settings(s: Settings, given: set[str], config: dict) -> Settings:
    """Return the settings with those of W_embed and theta_out as in the checkpoint of --embedding-from.

    Raises UserError for a given flag that is not as there.
    """
    if config["method"] not in methods_with("eta"):  # of others theta_out is not what is added to the closed form
        raise UserError(
            f"--embedding-from {s.embedding_from} is of --method {config['method']}, whose theta_out is not that "
            "of dt: name a checkpoint of dt or ct"
        )
    values = {name: config[name] for name in EMBEDDING_SETTINGS}
    for name, value in values.items():
        if name in given and getattr(s, name) != value:
            raise UserError(f"{as_flag(name)} contradicts --embedding-from, which has {value}: leave it out")
    return replace(s, **values)


def accepted(config: dict) -> Settings:
    """Return the settings of a checkpoint, where every value is one that its flag accepts.

    What an older program did not know gets its default. Raises ValueError naming the flag.
    """
    parser = make_parser()
    known = {"method", "dataset", "num_blocks"}
    require(type(config) is dict and known <= config.keys(), "it has no settings")
    method = config["method"]
    require(type(method) is str and method in METHODS, f"its setting --method is {str(method)[:50]!r}, which is none")
    settings = {**parser.defaults, **config}
    for name, value in settings.items():
        require(name in parser.defaults, f"it has a setting {name}, which this program does not know")
        unused = value is None and settings["method"] not in methods_with(name)
        if not unused and not parser.accepts(name, value):
            raise ValueError(f"its setting {as_flag(name)} is {str(value)[:50]!r}, which the flag does not accept")
    return Settings(**settings)


def check_ranks(s: Settings, size: int) -> None:
    """Raise UserError for what `size` processes of torchrun cannot do."""
    if size == 1:
        return
    if commands_in(s):
        raise UserError(
            "torchrun is for training: call python main.py to evaluate, predict, export, merge, compare or for --seeds"
        )
    if ":" in s.device:
        raise UserError(f"--device {s.device} is one GPU for all ranks: give --device cuda, each takes its own")
    if not METHODS[s.method].blocks_alone:
        if 2 * size > s.batch_size:
            why = f"{size} ranks cannot share a batch of {s.batch_size}, two images each"
            raise UserError(f"{why}: raise --batch-size, or start fewer")
        return
    blocks = len(s.blocks or range(s.num_blocks))
    if size > blocks:
        raise UserError(f"more ranks ({size}) than blocks ({blocks}): start at most {blocks} with torchrun")
    if s.learns_embedding and s.block_order != "interleaved":
        raise UserError(
            f"--block-order {s.block_order} trains one block after the other where the embeddings are learned, so "
            "ranks would only wait: take interleaved, or fixed ones (--embedding-type one-hot or --embedding-from)"
        )


def commands_in(s: Settings) -> list[str]:
    """Return which of COMMANDS are asked for; none: a training."""
    return [name for name in COMMANDS if getattr(s, name)]


def _check_commands(s: Settings, given: set[str]) -> None:
    commands = commands_in(s)
    modes = [as_flag(name) for name in commands]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} are different things: give one of them")
    if set(commands) & set(USES) and not s.checkpoint:
        raise UserError(f"{modes[0]} needs --checkpoint RUN, the model to use (--checkpoint-dir is where results go)")
    senseless = set()
    if s.compare:
        senseless = {"method", "checkpoint", "blocks", "embedding_from", "init_from", "test_every_epoch", "auto_resume"}
        senseless |= {"config"}
    if s.seeds:
        senseless = {"seed", "checkpoint", "blocks", "auto_resume"}
    if s.merge:
        senseless = given - {"merge", "checkpoint_dir"}
    if s.predict:
        senseless = {"steps_report", "checkpoint_dir", "data_dir", "tensorboard", "test_every_epoch", "eval_split"}
        senseless |= {"eval_batch_size"}
    if s.evaluate or s.predict:
        senseless |= {"auto_resume"}
    for name in sorted(given & {"top_k", "output"} if not s.predict else ()):
        raise UserError(f"{as_flag(name)} belongs to --predict: leave it out")
    if s.export:
        others = names_where(lambda about: about["may_change"] or about["of_call"])
        senseless = others - names_where(lambda about: "export" in about["may_change"])
    for name in ("init_from", "config"):
        if name in given and s.checkpoint:
            raise UserError(f"{as_flag(name)} is for a new run, --checkpoint names one that is there: leave one out")
    if s.auto_resume and s.checkpoint:
        raise UserError("--auto-resume goes on from last.pt of --checkpoint-dir: leave --checkpoint out")
    for name in sorted(given & senseless):
        raise UserError(f"{as_flag(name)} makes no sense with {modes[0]}: leave it out")


def _check_owners(given: set[str], s: Settings) -> None:
    """Raise UserError for a given flag that the method or the data set does not know."""
    for name, (kind, names) in unknown_to_owners(given, s).items():
        raise UserError(f"{as_flag(name)} belongs to --{kind} {' or '.join(names)}, not to {getattr(s, kind)}")


def unknown_to_owners(names: set[str], s: Settings) -> dict[str, tuple[str, list[str]]]:
    """Return those of the settings that the method or the data set does not know, each with who does."""
    owned = {name: owners for name in sorted(names) if (owners := owners_of(name))}
    return {name: (kind, owners) for name, (kind, owners) in owned.items() if getattr(s, kind) not in owners}


def _check_together(s: Settings, given: set[str]) -> None:
    """Raise UserError for the first given flag that makes no sense beside the others."""
    _check_owners(given, s)
    kinds = _part_rules(s), _model_rules(s), _training_rules(s), _inference_rules(s), _export_rules(s)
    for name, wrong, why in chain.from_iterable(kinds):
        if name in given and wrong:
            raise UserError(f"{as_flag(name)} {why}")


Rules = list[tuple[str, object, str]]  # (setting, whether it is wrong where given, why)


def _part_rules(s: Settings) -> Rules:
    part = bool(s.blocks)
    chain = "looks at the accuracy of all blocks together, which --blocks does not have: leave it out"
    fixed = (
        "needs fixed embeddings, since learned ones (also prototypes) take a gradient from every block at every step: "
        "add --embedding-type one-hot or --embedding-from CHECKPOINT"
    )
    return [
        ("blocks", part and max(s.blocks) > s.num_blocks, f"goes beyond --num-blocks {s.num_blocks}"),
        ("blocks", part and s.learns_embedding, fixed),
        ("lr_schedule", part and s.lr_schedule == "plateau", f"plateau {chain}"),
        ("lr_scheduler_patience", part and s.lr_scheduler_patience, chain),
        ("early_stopping_patience", part and s.early_stopping_patience, chain),
        ("steps_report", part and s.steps_report, chain),
        ("test_every_epoch", part and s.test_every_epoch, chain),
        ("eval_split", part and s.eval_split != "test", chain),
    ]


def _model_rules(s: Settings) -> Rules:
    low, high = s.alpha_bar_clip or (0, 0.5)
    sigmas, transformer = s.noise_range or [0, 1], "belongs to --network vit"
    no_encoder = "makes no sense with --network vit, which sees the image itself"
    no_download = s.encoder_weights == "pretrained" and not s.encoder.startswith("timm:")
    no_prototype = s.embedding_init == "prototype" and s.embedding_type != "prototype"
    only = METHODS[s.method].defaults.get("embedding_type", s.embedding_type)
    return [
        ("embedding_type", s.embedding_type != only, f"of --method {s.method} is {only}: leave it out"),
        ("encoder_width", s.encoder not in OPTIONS, f"belongs to --encoder {' or '.join(OPTIONS)}"),
        ("encoder_weights", no_download, "pretrained belongs to --encoder timm:NAME"),
        ("encoder_weights", s.init_from, "makes no sense with --init-from, which has weights of the encoder too"),
        ("anchor", s.loss != "squared", "belongs to --loss squared"),
        ("anchor", not s.anchor and s.learns_embedding, "off makes learned embeddings all the same: leave it out"),
        ("embedding_init", s.embedding_from, "makes no sense with --embedding-from"),
        ("embedding_dim", s.embedding_type != "learned", "belongs to --embedding-type learned"),
        ("embedding_init", s.embedding_type == "one-hot", "makes no sense with one-hot embeddings"),
        ("embedding_init", no_prototype, "prototype belongs to --embedding-type prototype"),
        ("posterior_sigma", s.class_probability != "posterior", "belongs to --class-probability posterior"),
        ("alpha_bar_clip", not low < high < 1, "needs 0 < LOW < HIGH < 1"),
        ("noise_range", len(sigmas) != 2 or not sigmas[0] < sigmas[1], "needs LOW,HIGH such as 0.002,80, LOW < HIGH"),
        *((name, s.network == "vit", no_encoder) for name in ("encoder", "freeze_encoder")),
        ("encoder_weights", s.network == "vit" and METHODS[s.method].blocks_alone, no_encoder),
        ("recipe", s.network == "vit" and s.recipe == "strong", f"strong {no_encoder}"),
        *((name, s.network != "vit", transformer) for name in ("vit_layers", "vit_width", "vit_heads", "vit_patch")),
    ]


def _training_rules(s: Settings) -> Rules:
    plateau, patience = s.lr_schedule == "plateau", s.lr_scheduler_patience
    no_validation = s.val_fraction == 0
    needs_validation = "needs validation images: raise --val-fraction"
    no_fall = s.lr_schedule == "cosine" and s.warmup_epochs >= s.epochs
    warmup = f"--warmup-epochs {s.warmup_epochs}: raise it, or lower those"
    return [
        ("lr_scheduler_patience", patience and not plateau, "belongs to --lr-schedule plateau"),
        ("lr_schedule", plateau and not patience, "plateau needs --lr-scheduler-patience of 1 or more"),
        ("lr_schedule", plateau and no_validation, f"plateau {needs_validation}"),
        ("lr_scheduler_patience", patience and no_validation, needs_validation),
        ("early_stopping_patience", s.early_stopping_patience and no_validation, needs_validation),
        ("eval_split", s.eval_split == "val" and no_validation, f"val {needs_validation}"),
        ("val_fraction", s.eval_split == "val" and no_validation, "of 0 leaves nothing for --eval-split val: raise it"),
        ("test_every_epoch", s.eval_split == "val", "looks at the test images: leave it out with --eval-split val"),
        ("epochs", no_fall, f"{s.epochs} leaves none for the learning rate to fall after {warmup}"),
        ("warmup_epochs", no_fall, f"leaves no epoch of {s.epochs} for the learning rate to fall: lower it"),
        ("augment", s.freeze_encoder and s.augment, "does not go with --freeze-encoder: features are computed once"),
        ("warmup_epochs", s.warmup_epochs > s.epochs, f"exceeds --epochs {s.epochs}: lower it"),
        ("no_cuda", s.no_cuda and s.device.startswith("cuda"), "contradicts --device cuda"),
        ("offload_blocks", s.offload_blocks and s.compile, "does not go with --compile: leave one of them out"),
        ("tensorboard", s.evaluate, "makes no sense with --evaluate: leave it out"),
    ]


def _inference_rules(s: Settings) -> Rules:
    same_runs = s.inference == "deterministic" and s.eval_runs > 1
    knows_sampler = s.method in methods_with("sampler")
    ancestral = knows_sampler and s.sampler == ["ancestral"]
    no_steps = not ancestral and s.solver == ["dopri5"] and (not knows_sampler or s.sampler == ["ode"])
    trains_with_steps = arguments_for(METHODS[s.method].network, {"steps": s.steps})
    several = trains_with_steps and len(s.steps) > 1 and not s.evaluate
    readers = " or ".join(name for name, method in METHODS.items() if s.readout in method.network.readouts)
    no_reader = s.readout not in METHODS[s.method].network.readouts
    one = f"can be a list for --evaluate only: --method {s.method} trains with one number of steps"
    return [
        ("eval_runs", same_runs, "above 1 makes no sense with --inference deterministic: all runs are the same"),
        ("readout", no_reader, f"{s.readout} belongs to --method {readers}, not to {s.method}"),
        ("solver", ancestral, "needs --sampler ode too (or ancestral,ode)"),
        ("steps", no_steps, "makes no sense with --solver dopri5, which chooses its steps"),
        ("steps", several, one),
    ]


def _export_rules(s: Settings) -> Rules:
    if not s.export:
        return []
    way = s.ways[-1]
    solver, in_steps = way.get("solver"), "steps" in way
    calls = (way["steps"] if in_steps else s.num_blocks or 1) * (2 if solver == "heun" else 1)
    too_many = f"writes out every call of the network, at most {MOST_CALLS}, and these are {calls}: "
    adaptive = "needs steps that are known before: dopri5 chooses them, give --solver euler or heun"
    one_run = (
        f"{s.readout} joins several runs, and an exported model makes one: take {' or '.join(ONE_RUN_READOUTS[1:])}"
    )
    return [
        ("export", solver == "dopri5", adaptive),
        ("export", calls > MOST_CALLS, too_many + ("lower --steps" if in_steps else "a model of fewer blocks can be")),
        ("readout", s.readout not in ONE_RUN_READOUTS, one_run),
    ]

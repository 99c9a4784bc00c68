"""Every setting once: default, type, help, and when it may change.

The parser, --help, docs/flags.md and the rules of resume, evaluate, predict and merge follow from the fields. Which
methods and data sets know a setting stands in METHODS and DATASETS, with the defaults that depend on them. Which
settings go together: rules.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

from command_line import (
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
    defaults_in_words,
    ending_in,
    epochs_in_words,
    list_of,
    number,
    one_of,
    one_of_these,
    or_off,
    place,
    recipes_in_words,
    setting,
)
from data import AUGMENTATIONS, DATASETS, datasets_with
from models.diffusion import LOSSES
from models.encoders import ENCODERS, is_encoder
from models.export import SUFFIXES
from models.methods import METHODS, arguments_for, methods_with
from models.networks import NETWORKS
from models.schedules import ALPHA_BAR_CLIP, SCHEDULES
from models.solvers import SAMPLERS, SOLVERS
from models.version import __version__

READOUTS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.network.readouts))
RECIPES = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.recipes))
ON_OFF = one_of_these({"on": True, "off": False})
SPLITS = {"test": "test", "val": "validation"}  # names of what is tested, in words
LR_SCHEDULES = ("constant", "cosine", "plateau")
PLATEAU_PATIENCE = 5
COUNT_OF_PARTS = number(int, 1, 65536)
ANYTIME, USE, ANSWER = "resume evaluate predict", "evaluate predict", "evaluate predict export"


def _by_owner(name: str) -> str:
    """Return the defaults of a setting that depend on the method or the data set, in words."""
    return defaults_in_words(name, {**METHODS, **DATASETS})


def _augment() -> str:
    """Return what a bare --augment does, by data set."""
    texts = [f"{name} {','.join(dataset.augment)}" for name, dataset in DATASETS.items()]
    return f"off; without a value: {', '.join(texts)}"


@dataclass(frozen=True)
class Settings:
    """All settings of a command; None for those that its method does not know."""

    # fmt: off
    dataset: str = setting("data", "cifar10", "what is learned; digits needs no files", choices=DATASETS, common=True)
    data_dir: str = setting("data", "./data",
        "torchvision's folder, DIR of --dataset folder with DIR/train/CLASS/* and DIR/test/CLASS/*, or FILE.npz", place,
        metavar="DIR", may_change="resume evaluate", shapes_blocks=False, common=True)
    image_size: int | None = setting("data", None, "side in pixels to which images are scaled, own images cropped too",
        number(int, 4, 4096), shown="their own; own images where not all have the same of at most 64: 32",
        metavar="PIXELS")
    val_fraction: float = setting("data", 0.1, "part of the training images held out to choose the best epoch; 0 "
        "trains on all and takes the last epoch, as the paper does", number(float, 0, 0.9), metavar="PART")
    train_size: int | None = setting("data", None, "train on so many of the training images, drawn by the seed",
        number(int, 2), shown="all", metavar="N")
    augment: list | None = setting("data", None, "change training images at random: crop shifts them, flip mirrors "
        "them, cutout covers a square; without a value what suits the data set. The paper does not",
        or_off(list_of(one_of(AUGMENTATIONS))), nargs="?", const=[], shown=_augment, metavar="crop,flip,cutout|off",
        common=True)

    method: str = setting("method", "dt",
        lambda: "what is trained: " + ", ".join(f"{n} {m.text}" for n, m in METHODS.items()), choices=METHODS,
        common=True)
    compare: list | None = setting("method", None, "train several methods, such as dt,backprop,ct,fm, each in a "
        "folder of its own in --checkpoint-dir, and compare them in a table and figures", list_of(one_of(METHODS)),
        metavar="METHOD,...", of_call=True, common=True)
    num_blocks: int | None = setting("method", None, "blocks T, or pieces K", number(int, 1, MAX_BLOCKS),
        shown=lambda: _by_owner("num_blocks"), metavar="T", common=True)
    network: str = setting("method", "noprop", "what is cut into blocks: noprop, the paper's block with a path for the "
        "noise level, once for each; vit, one transformer; classifier trains it as a whole", choices=NETWORKS)
    vit_layers: int = setting("method", 12, "layers of the whole transformer", COUNT_OF_PARTS, metavar="L")
    vit_width: int = setting("method", 128, "width of its tokens", COUNT_OF_PARTS, metavar="N")
    vit_heads: int = setting("method", 4, "heads of its attention", COUNT_OF_PARTS, metavar="N")
    vit_patch: int = setting("method", 4, "side of its patches", COUNT_OF_PARTS, metavar="PIXELS")
    encoder: str = setting("method", "paper", "the network that turns an image into features, one in each block: "
        + ", ".join(ENCODERS) + ", or timm:NAME, any of timm's (pip install timm)",
        one_of([*ENCODERS, "timm:NAME"], is_encoder), metavar="NAME")
    encoder_width: int | None = setting("method", None, "channels at the end of the encoder airbench",
        number(int, 4, 65536), shown="256", metavar="N")
    encoder_weights: str | None = setting("method", None, "file with weights of the encoder to start from (its state "
        "dict), or pretrained: those that timm downloads", place, metavar="PATH|pretrained")
    init_from: str | None = setting("method", None, "start a new run from the weights of another run's model: what has "
        "the same name and shape is taken, the rest starts anew", place, metavar="RUN")
    freeze_encoder: bool = setting("method", False, "train no encoder: one for all blocks, whose features are computed "
        "once and kept in memory")
    loss: str | None = setting("method", None, "squared error, or cross-entropy: of u_hat's class weights, with "
        "weight eta under a fixed schedule (ct) or the published one (diffusionblocks), or of the end point (fm)",
        choices=LOSSES, shown=lambda: _by_owner("loss"))
    anchor: bool = setting("method", False, "fm: the term of eq. 13 also where the embeddings are fixed", ON_OFF,
        nargs="?", const=True, metavar="on|off")
    noise_levels: int = setting("method", 1, "noised embeddings for each image in a step, which share its features",
        POSITIVE, metavar="M")

    embedding_type: str | None = setting("embeddings", None,
        "class embeddings W_embed: learned vectors, one-hot, or prototype images",
        choices=("learned", "one-hot", "prototype"), shown="learned; of --method classifier one-hot", common=True)
    embedding_dim: int = setting("embeddings", 20, "d of learned embeddings", POSITIVE, metavar="D", common=True)
    embedding_init: str | None = setting("embeddings", None, "how W_embed starts",
        choices=("orthogonal", "random", "prototype"), shown="orthogonal; prototype for prototype")
    embedding_from: str | None = setting("embeddings", None,
        "take W_embed and theta_out from this checkpoint and keep them as they are", place, metavar="CHECKPOINT",
        shapes_blocks=False)
    class_probability: str = setting("embeddings", "softmax",
        "p(y given z_T): softmax (eq. 14) or posterior (eq. 15-16)", choices=("softmax", "posterior"))
    posterior_sigma: float = setting("embeddings", 0.2,
        "sigma of the posterior, in units of the smallest distance between embeddings", RATE, metavar="S")

    schedule: str = setting("noise", "cosine", "noise schedule alpha_bar", choices=SCHEDULES)
    alpha_bar_clip: list | None = setting("noise", None, "range into which alpha_bar is clipped",
        number(float, 0, 1, open_low=True), nargs=2, metavar=("LOW", "HIGH"),
        shown="{} {}, LOW over the mean squared length of u_y where that is more than 1".format(*ALPHA_BAR_CLIP))
    eta: float | None = setting("noise", None, "weight of the denoising term of the loss", RATE,
        shown=lambda: _by_owner("eta"), metavar="ETA")
    flow_sigma: float = setting("noise", 0.1,
        "deviation of z_t around the line from noise to embedding, in absolute units", RATE, metavar="S")
    noise_range: list = setting("noise", [0.002, 80.0], "least and largest noise level sigma", list_of(RATE),
        metavar="LOW,HIGH")
    p_mean: float = setting("noise", -1.2, "mean of log sigma in training", number(float, -100, 100), metavar="P")
    p_std: float = setting("noise", 1.2, "deviation of log sigma in training", RATE, metavar="P")
    overlap: float = setting("noise", 0.1, "power of the ratio of its ends by which a block's range is widened",
        number(float, 0, 1), metavar="PART")
    stratified_time: bool = setting("noise", False, "spread t evenly over every batch")

    epochs: int | None = setting("training", None, "passes over the training images", POSITIVE, metavar="N",
        shown=lambda: epochs_in_words(METHODS, DATASETS), may_change="resume", shapes_blocks=False, common=True)
    batch_size: int | None = setting("training", None, "images per step", number(int, 2, MAX_COUNT),
        shown=lambda: _by_owner("batch_size"), metavar="N", common=True)
    block_order: str = setting("training", "interleaved", "order of the updates within an epoch: every batch through "
        "all blocks, one block after the other (the paper's Algorithm 1), or drawn",
        choices=("interleaved", "sequential", "random"))
    blocks: list | None = setting("training", None,
        "train only these blocks, such as 3,5-7; the embeddings must be fixed, and --merge joins the parts", block_list,
        shown="all", metavar="LIST", shapes_blocks=False)
    early_stopping_patience: int = setting("training", 0,
        "epochs without a better validation accuracy after which training ends; 0: never", COUNT, metavar="N",
        may_change="resume")
    recipe: str | None = setting("training", None, "other defaults, for a good result in fewer epochs",
        more=lambda: recipes_in_words(METHODS, RECIPES), choices=RECIPES, shown="the paper's", shapes_blocks=False,
        common=True)
    seeds: list | None = setting("training", None, "train once with each of these seeds, such as 0,1,2, in folders of "
        "--checkpoint-dir, and print mean and standard error over them", list_of(COUNT), metavar="N,...", of_call=True)
    seed: int = setting("training", 0, "seed of all random streams", COUNT, metavar="N", may_change=USE, common=True)

    lr: float = setting("optimizer", 0.001, "learning rate of every AdamW (ct, fm: Adam)", RATE, metavar="RATE",
        common=True)
    weight_decay: float = setting("optimizer", 0.001, "weight decay of every AdamW (ct, fm: Adam)", WEIGHT,
        metavar="RATE", common=True)
    warmup_epochs: int = setting("optimizer", 0, "epochs of linearly rising learning rate; 0: none", COUNT, metavar="N")
    lr_schedule: str | None = setting("optimizer", None, "what follows the warm-up: constant, as the paper; cosine: "
        "falling to zero at the last epoch; plateau: halved while the validation accuracy stands still",
        choices=LR_SCHEDULES, shown="constant; with --lr-scheduler-patience: plateau")
    lr_scheduler_patience: int = setting("optimizer", 0,
        "epochs without a better validation accuracy after which the learning rate is halved; 0: never", COUNT,
        shown=f"0; with --lr-schedule plateau: {PLATEAU_PATIENCE}", metavar="N")
    clip_grad_norm: float = setting("optimizer", 0.0,
        "shorten longer gradients to this norm, over all parameters of a block, whose loss weight multiplies it, or of "
        "the network; 0: never", WEIGHT, metavar="NORM")

    evaluate: bool = setting("evaluation and prediction", False,
        "evaluate --checkpoint on the test images, train nothing", may_change="evaluate", of_call=True, common=True)
    predict: list | None = setting("evaluation and prediction", None,
        "classes of image files, or of all images in a folder and below, by the model of --checkpoint", place,
        nargs="+", metavar="IMAGE", may_change="predict", of_call=True, common=True)
    top_k: int = setting("evaluation and prediction", 1, "classes that --predict names for an image, the most probable "
        "first", POSITIVE, metavar="K", may_change="predict", of_call=True, common=True)
    output: str | None = setting("evaluation and prediction", None, "CSV file that --predict writes instead of "
        "printing: file, class, probability", place, metavar="FILE", may_change="predict", of_call=True, common=True)
    export: str | None = setting("evaluation and prediction", None, "write the model of --checkpoint as ONNX (.onnx; "
        "pip install onnx onnxscript) or a program of torch.export (.pt2): uint8 images in, class probabilities out, "
        "by --inference deterministic", ending_in(SUFFIXES), metavar="FILE", may_change="export", of_call=True)
    eval_runs: int | None = setting("evaluation and prediction", None, "inference runs, each from fresh noise",
        number(int, 1, MAX_RUNS), shown="5; deterministic: 1", metavar="R", may_change=USE, shapes_blocks=False,
        common=True)
    eval_batch_size: int | None = setting("evaluation and prediction", None, "images that are evaluated at a time; "
        "with another number they get other noise", number(int, 1, MAX_COUNT), metavar="N",
        shown="500; of more than 32x32 pixels fewer", may_change="resume evaluate", shapes_blocks=False)
    mirror_test: bool = setting("evaluation and prediction", False, "average the answers to an image and its mirror "
        "image", ON_OFF, nargs="?", const=True, metavar="on|off", may_change=ANSWER, shapes_blocks=False)
    readout: str | None = setting("evaluation and prediction", None, "sample: every run counts by itself; vote: the "
        "most frequent class of the runs; mean: the largest mean probability; ensemble: the largest mean probability "
        "of the blocks' own u_hat; mean-z (fm): the embedding nearest to the runs' mean", choices=READOUTS,
        shown="sample; with --predict or --export: mean", may_change=ANSWER, shapes_blocks=False)
    eval_split: str = setting("evaluation and prediction", "test", "what is tested: the test images, or, while one "
        "chooses settings, val: the validation split, and the test images are not even read", choices=SPLITS,
        may_change="resume evaluate", shapes_blocks=False)
    test_every_epoch: bool = setting("evaluation and prediction", False,
        "note the accuracy on the test images after every epoch, for curves only: nothing is chosen by it",
        may_change="resume", shapes_blocks=False)
    steps_report: bool = setting("evaluation and prediction", False,
        "print the accuracy after every block, or along the way", may_change="resume evaluate", of_call=True)

    inference: str = setting("inference", "stochastic",
        "stochastic: from noise, as the paper; deterministic: from z_0 = 0 without noise, the same at every run",
        choices=("stochastic", "deterministic"), may_change=USE, shapes_blocks=False)
    steps: list | None = setting("inference", None, "steps of inference (of training too for adjoint); of a list such "
        "as 5,10,50 every number is tested, and the last one is the result", list_of(number(int, 1, MAX_STEPS)),
        shown=lambda: _by_owner("steps"), metavar="N,...", may_change=ANSWER, shapes_blocks=False)
    sampler: list | None = setting("inference", None,
        "eq. 3 step by step (ancestral) or the probability-flow ODE (ode); or a list of both",
        list_of(one_of(SAMPLERS)), shown=lambda: _by_owner("sampler"), metavar="NAME,...", may_change=ANSWER,
        shapes_blocks=False)
    solver: list = setting("inference", ["euler"], "how the ODE (of ct with --sampler ode) is solved: "
        + ", ".join(SOLVERS) + ", or a list; dopri5 takes as many steps as its tolerance needs",
        list_of(one_of(SOLVERS)), metavar="NAME,...", may_change=ANSWER, shapes_blocks=False)

    merge: list | None = setting("files", None,
        "join the last.pt of parts that were trained with --blocks into the run in --checkpoint-dir", place, nargs="+",
        metavar="PART", of_call=True)
    checkpoint: str | None = setting("files", None, "a run's folder or a file in it: continue its training, or use its "
        "model with --evaluate, --predict or --export. Its settings need not be repeated", place, metavar="RUN",
        may_change=f"{ANYTIME} export", of_call=True, common=True)
    checkpoint_dir: str | None = setting("files", None, "folder of the run", place, metavar="DIR",
        shown="checkpoints_run; with --checkpoint: the checkpoint's folder", may_change="resume evaluate", of_call=True,
        common=True)
    config: str | None = setting("files", None, "repeat a run in a new folder: take the settings of its config.json; "
        "flags that are given win", place, metavar="RUN", of_call=True)
    auto_resume: bool = setting("files", False, "go on from last.pt of the run folder where it is there and has these "
        "settings, else start: one command for schedulers that start a job again", may_change="resume", of_call=True)
    save_every: int = setting("files", 0, "epochs between the checkpoint_epoch_N.pt that are kept; 0: none", COUNT,
        metavar="N", may_change="resume", shapes_blocks=False)
    save_every_minutes: float = setting("files", 10.0, "minutes between two saves, within an epoch too; 0: after "
        "every epoch. A run is always saved at its end and when it is stopped", WEIGHT, metavar="MINUTES",
        may_change="resume", shapes_blocks=False)
    tensorboard: bool = setting("files", False, "scalars and pictures in RUN/tensorboard (pip install tensorboard)",
        may_change="resume", of_call=True)

    device: str = setting("device", "auto", "auto, cpu, cuda or cuda:N; auto is cuda where there is one",
        metavar="DEVICE", may_change=ANYTIME, of_call=True, common=True)
    no_cuda: bool = setting("device", False, "use the CPU even where there is a GPU", may_change=ANYTIME, of_call=True)
    no_deterministic: bool = setting("device", False,
        "on CUDA let every operation choose its fastest way: runs are no longer equal to the bit", may_change=ANYTIME,
        of_call=True)
    amp: bool | str = setting("device", False, "bfloat16 autocast for the networks: on (also without a value), off, or "
        "auto, which is on where the machine calculates faster with it", one_of_these({"on": True, "off": False,
        "auto": "auto"}), nargs="?", const=True, metavar="on|off|auto")
    offload_blocks: bool = setting("device", False, "keep blocks and optimizer states that are not in use in the "
        "memory of the CPU, on CUDA only; travels least with --block-order sequential", may_change="resume",
        shapes_blocks=False)
    compile: bool = setting("device", False, "compile the blocks with torch.compile", may_change="resume",
        shapes_blocks=False)
    # fmt: on

    def as_dict(self) -> dict[str, object]:
        """Return the settings as config.json and checkpoints keep them."""
        return asdict(self)

    def arguments(self, function: Callable) -> dict[str, object]:
        """Return those settings that have a value and whose names are arguments of a function."""
        return arguments_for(function, {name: value for name, value in vars(self).items() if value is not None})

    def describe_network(self, image_shape: Sequence[int]) -> dict:
        """Return the network in plain values, as a checkpoint keeps it: method and arguments of its class."""
        derived = {
            "image_shape": list(image_shape),
            "encoder": self.encoder_spec,
            "learn_embedding": self.learns_embedding,
            "prototype": self.embedding_type == "prototype",
            "learn_theta_out": not self.embedding_from,
        }
        network = METHODS[self.method].network
        arguments = self.arguments(network) | arguments_for(network, derived)
        if self.freeze_encoder:
            arguments["frozen_encoder"] = arguments.pop("encoder")
        return {"method": self.method, "arguments": arguments}

    @property
    def encoder_spec(self) -> str:
        """Return the encoder as make_encoder wants it."""
        return f"{self.encoder}:{self.encoder_width}" if self.encoder_width else self.encoder

    @property
    def ways(self) -> list[dict]:
        """Return the ways of inference, as arguments of `infer`; the last one counts."""
        ways = METHODS[self.method].network.ways
        common = {"stochastic": False} if self.inference == "deterministic" else {}
        return [way | common for way in ways(**self.arguments(ways))]

    @property
    def counted(self) -> str:
        """Return what stands on the way of inference: block, step or time."""
        return "time" if self.num_blocks is None else "step" if self.steps else "block"

    @property
    def inference_of_model(self) -> dict:
        """Return what `predict` of a loaded network does."""
        return {"runs": self.eval_runs, "how": self.ways[-1], "seed": self.seed, "mirror": self.mirror_test}

    @property
    def learns_embedding(self) -> bool:
        """Return whether W_embed gets gradients, from every block at every step."""
        return self.embedding_type != "one-hot" and not self.embedding_from


EXAMPLES = """\
python main.py --dataset digits                                train, test and draw: two minutes, needs no files
python main.py --recipe strong --epochs 20                     CIFAR-10 to 92 %, on a GPU
python main.py --checkpoint checkpoints_run                    go on with a stopped run
python main.py --evaluate --checkpoint checkpoints_run         test it again
python main.py --predict FOLDER --checkpoint checkpoints_run   classes of own images

Train, evaluate and use NoProp networks: blocks that learn alone to denoise class embeddings, with no
back-propagation between blocks (Li, Teh, Pascanu 2025)."""


def make_parser() -> Parser:
    """Return the parser of all flags, in the order of --help."""
    return Parser(Settings, f"noprop {__version__}", prog="main.py", description=EXAMPLES)


def names_where(condition: Callable[[dict], bool]) -> set[str]:
    """Return the settings whose declaration fulfils a condition."""
    return {each.name for each in fields(Settings) if condition(each.metadata)}


def owners_of(name: str) -> tuple[str, list[str]] | None:
    """Return who knows a setting that not all know: ("method", ["dt", "ct"]) or ("dataset", ["folder"])."""
    for kind, registry, known in (("method", METHODS, methods_with), ("dataset", DATASETS, datasets_with)):
        if len(owners := known(name)) < len(registry):
            return kind, owners
    return None

"""The flags of main.py, those of a training from training_flags.py. Which of them go together: options.py."""

from flag_types import COUNT, MAX_RUNS, MAX_STEPS, WEIGHT, Parser, list_of, number, one_of, place
from models.NoProp_CT import SAMPLERS
from models.solvers import SOLVERS
from readout import READOUTS
from training_flags import data_flags, embedding_flags, method_flags, noise_flags, optimizer_flags, training_flags


def make_parser() -> Parser:
    """All flags, in the order of --help."""
    parser = Parser(
        prog="main.py",
        description="Train, evaluate and use NoProp networks: blocks that learn alone to denoise class embeddings, "
        "with no back-propagation between blocks (Li, Teh, Pascanu 2025).",
    )
    groups = (data_flags, method_flags, embedding_flags, noise_flags, training_flags, optimizer_flags)
    for add in (*groups, _use_flags, _inference_flags, _file_flags, _device_flags):
        add(parser)
    return parser


def _use_flags(parser: Parser) -> None:
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
        "--eval-runs",
        None,
        "inference runs, each from fresh noise",
        type=number(int, 1, MAX_RUNS),
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
    flag(
        "--test-every-epoch",
        False,
        "note the accuracy on the test images after every epoch, for curves only: nothing is chosen by it",
        action="store_true",
    )
    flag("--steps-report", False, "print the accuracy after every block, or along the way", action="store_true")


def _inference_flags(parser: Parser) -> None:
    flag = parser.group("inference")
    flag(
        "--inference",
        "stochastic",
        "of dt; stochastic: eq. 3 from noise; deterministic: from z_0 = 0 without noise",
        choices=("stochastic", "deterministic"),
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


def _file_flags(parser: Parser) -> None:
    flag = parser.group("files")
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
        "--tensorboard", False, "scalars and pictures in RUN/tensorboard (pip install tensorboard)", action="store_true"
    )


def _device_flags(parser: Parser) -> None:
    flag = parser.group("device")
    flag("--device", "auto", "auto, cpu, cuda or cuda:N; auto is cuda where there is one", metavar="DEVICE")
    flag("--no-cuda", False, "use the CPU even where there is a GPU", action="store_true")
    flag(
        "--no-deterministic",
        False,
        "on CUDA let every operation choose its fastest way: runs are no longer equal to the bit",
        action="store_true",
    )
    flag("--amp", False, "bfloat16 autocast: faster on CPUs with AVX512_BF16 or AMX", action="store_true")
    flag(
        "--offload-blocks",
        False,
        "keep blocks and optimizer states that are not in use in the memory of the CPU, on CUDA only; "
        "travels least with --block-order sequential",
        action="store_true",
    )
    flag("--compile", False, "compile the blocks with torch.compile", action="store_true")

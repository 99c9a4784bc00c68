"""Which flags there are, which go together, what depends on what, and which may differ from a checkpoint."""

from dataclasses import replace

import pytest
from conftest import ROOT

from assemble import name_files
from command_line import describe_flags
from errors import UserError
from rules import adopt, owners_of, parse, settle, take_embedding_settings
from settings import make_parser

SPEC_FLAGS = """--method --dataset --data-dir --embedding-type --embedding-dim --embedding-init --class-probability
    --schedule --num-blocks --eta --block-order --batch-size --epochs --lr --weight-decay --warmup-epochs
    --lr-scheduler-patience --early-stopping-patience --save-every --val-fraction --eval-runs --readout --seed
    --checkpoint-dir --checkpoint --evaluate --predict --device --no-cuda --amp --compile --inference --steps-report
    --image-size --augment"""


def settled(flags):
    """Return the settings of flags in one string, and the names of those that were given."""
    s, given = parse(flags.split())
    return settle(s, given), given


def help_text(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args([flag])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_all_shows_every_flag_with_its_default(capsys):
    text = help_text(capsys, "--help-all")
    assert " ".join(text.split()).count("(default:") == len(make_parser().defaults)
    assert set(SPEC_FLAGS.split()) <= {word.strip("[],") for word in text.split()}


def test_help_begins_with_five_examples_and_is_short(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    lines = help_text(capsys, "--help").splitlines()
    assert len(lines) < 80 and "--help-all" in lines[-2]
    for line in lines[:5]:
        parse(line.partition("   ")[0].split()[2:])
    assert "".join(lines[:5]).count("python main.py") == 5 and lines[5] == ""
    assert {"--dataset", "--epochs", "--checkpoint"} <= {word for line in lines for word in line.split()}
    assert "--alpha-bar-clip" not in "".join(lines)


TYPOS = {
    "--epoch 3": "did you mean --epochs?",
    "--batch_size=3": "did you mean --batch-size?",
    "--embedding one-hot": "did you mean --embedding-type or --embedding-dim or --embedding-init?",
    "--schedule cosinus": "did you mean cosine?",
    "--augment flop,crop": "did you mean flip?",
    "--resume run": "did you mean --checkpoint RUN?",
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_answered_by_what_is_near(typo):
    with pytest.raises(UserError) as error:
        parse(typo.split())
    assert TYPOS[typo] in str(error.value)


def test_what_is_near_nothing_is_answered_by_no_guess():
    for flags in (["--wavelets"], ["--schedule", "square"]):
        with pytest.raises(UserError) as error:
            parse(flags)
        assert "did you mean" not in str(error.value)


def test_the_folder_of_a_run_stands_for_the_file_that_the_command_needs(tmp_path):
    def named(flags):
        return name_files(parse(flags.split())[0])

    assert named(f"--checkpoint {tmp_path}").checkpoint == f"{tmp_path}/last.pt"
    assert named(f"--evaluate --checkpoint {tmp_path}").checkpoint == f"{tmp_path}/best_model.pt"
    (tmp_path / "last.pt").touch()  # before the first epoch is over, and in a part: no best model
    assert named(f"--evaluate --checkpoint {tmp_path}").checkpoint == f"{tmp_path}/last.pt"
    (tmp_path / "best_model.pt").touch()
    assert named(f"--evaluate --checkpoint {tmp_path}").checkpoint == f"{tmp_path}/best_model.pt"
    assert named(f"--predict x.png --checkpoint {tmp_path}/y.pt").checkpoint == f"{tmp_path}/y.pt"
    assert named(f"--embedding-from {tmp_path}").embedding_from == f"{tmp_path}/best_model.pt"
    assert named(f"--merge {tmp_path} {tmp_path}/y.pt").merge == [f"{tmp_path}/last.pt", f"{tmp_path}/y.pt"]


def test_the_page_of_flags_is_made_from_the_settings():
    assert (ROOT / "docs" / "flags.md").read_text() == describe_flags(make_parser(), owners_of)  # make docs


TOGETHER = {
    "--method fm --readout ensemble": "--readout ensemble belongs to --method dt or diffusionblocks, not to fm",
    "--readout mean-z": "--readout mean-z belongs to --method fm, not to dt",
    "--eval-split val --val-fraction 0": "--eval-split val needs validation images",
    "--eval-split val --test-every-epoch": "--test-every-epoch looks at the test images",
    "--method ct --num-blocks 3": "--num-blocks belongs to --method dt or diffusionblocks or",
    "--method fm --eta 1": "--eta belongs",
    "--method dt --flow-sigma 1": "--flow-sigma belongs",
    "--method backprop --steps 5": "--steps belongs",
    "--method backprop --blocks 1": "--blocks belongs",
    "--method fm --solver rk4": "'rk4' is none of",
    "--encoder-width 16": "--encoder-width belongs to --encoder airbench",
    "--encoder-weights pretrained": "--encoder-weights pretrained belongs to --encoder timm:NAME",
    "--method fm --loss cross-entropy --anchor": "--anchor belongs to --loss squared",
    "--method fm --anchor off": "--anchor off makes learned embeddings all the same",
    "--method classifier --embedding-type learned": "--embedding-type of --method classifier is one-hot",
    "--method diffusionblocks --network vit --freeze-encoder": "--freeze-encoder makes no sense with --network vit",
    "--method diffusionblocks --network vit --encoder-weights x.pt": "--encoder-weights makes no sense with --network",
    "--method diffusionblocks --network vit --recipe strong": "--recipe strong makes no sense with --network vit",
    "--freeze-encoder --augment": "--augment does not go with --freeze-encoder",
    "--dataset digits --data-dir x": "--data-dir belongs",
    "--blocks 11": "--blocks goes beyond --num-blocks 10",
    "--blocks 1": "--blocks needs fixed embeddings",
    "--blocks 1 --embedding-type one-hot --lr-schedule plateau": "--lr-schedule plateau looks at the accuracy",
    "--blocks 1 --embedding-type one-hot --lr-scheduler-patience 2": "--lr-scheduler-patience looks at",
    "--blocks 1 --embedding-type one-hot --early-stopping-patience 2": "--early-stopping-patience looks at",
    "--blocks 1 --embedding-type one-hot --steps-report": "--steps-report looks at",
    "--blocks 1 --embedding-type one-hot --test-every-epoch": "--test-every-epoch looks at",
    "--embedding-from x.pt --embedding-init random": "--embedding-init makes no sense with --embedding-from",
    "--embedding-type one-hot --embedding-dim 5": "--embedding-dim belongs to --embedding-type learned",
    "--embedding-type one-hot --embedding-init random": "--embedding-init makes no sense with one-hot",
    "--embedding-init prototype": "--embedding-init prototype belongs to --embedding-type prototype",
    "--posterior-sigma 2": "--posterior-sigma belongs to --class-probability posterior",
    "--alpha-bar-clip 0.5 0.5": "--alpha-bar-clip needs 0 < LOW < HIGH < 1",
    "--alpha-bar-clip 0.5 1": "--alpha-bar-clip needs 0 < LOW < HIGH < 1",
    "--lr-schedule cosine --lr-scheduler-patience 2": "--lr-scheduler-patience belongs to --lr-schedule plateau",
    "--lr-schedule plateau --lr-scheduler-patience 0": "--lr-schedule plateau needs --lr-scheduler-patience",
    "--lr-schedule plateau --val-fraction 0": "--lr-schedule plateau needs validation images",
    "--lr-scheduler-patience 2 --val-fraction 0": "--lr-scheduler-patience needs validation images",
    "--early-stopping-patience 2 --val-fraction 0": "--early-stopping-patience needs validation images",
    "--lr-schedule cosine --epochs 1 --warmup-epochs 1": "--epochs 1 leaves none for the learning rate to fall",
    "--lr-schedule cosine --warmup-epochs 150": "--warmup-epochs leaves no epoch of 150",
    "--warmup-epochs 151": "--warmup-epochs exceeds --epochs 150",
    "--no-cuda --device cuda:1": "--no-cuda contradicts --device cuda",
    "--offload-blocks --compile": "--offload-blocks does not go with --compile",
    "--evaluate --checkpoint x.pt --tensorboard": "--tensorboard makes no sense with --evaluate",
    "--inference deterministic --eval-runs 2": "--eval-runs above 1 makes no sense",
    "--method ct --solver heun": "--solver needs --sampler ode too",
    "--method fm --solver dopri5 --steps 5": "--steps makes no sense with --solver dopri5",
    "--method ct --sampler ode --solver dopri5 --steps 5": "--steps makes no sense with --solver dopri5",
    "--method adjoint --steps 5,10": "--steps can be a list for --evaluate only",
    "--compare dt,transformer": "'transformer' is none of",
    "--compare dt,ct --method dt": "--method makes no sense with --compare",
    "--compare dt,ct --evaluate": "--evaluate and --compare are different things",
    "--seeds 0,1 --seed 3": "--seed makes no sense with --seeds",
    "--seeds 0,1 --checkpoint x.pt": "--checkpoint makes no sense with --seeds",
    "--seeds 0,1 --evaluate --checkpoint x.pt": "--evaluate and --seeds are different things",
    "--config x --compare dt,ct": "--config makes no sense with --compare",
    "--config x --checkpoint x": "--config is for a new run, --checkpoint names one that is there",
    "--init-from x --checkpoint x": "--init-from is for a new run, --checkpoint names one that is there",
    "--init-from x --encoder-weights x.pt": "--encoder-weights makes no sense with --init-from",
    "--merge a.pt --seed 1": "--seed makes no sense with --merge",
    "--predict a.png --checkpoint x.pt --steps-report": "--steps-report makes no sense with --predict",
    "--predict a.png": "--predict needs --checkpoint",
    "--top-k 3": "--top-k belongs to --predict",
    "--evaluate --checkpoint x.pt --output x.csv": "--output belongs to --predict",
    "--export a.onnx": "--export needs --checkpoint",
    "--export a.zip --checkpoint x.pt": "'a.zip' does not end in .onnx or .pt2",
    "--export a.pt2 --checkpoint x.pt --inference deterministic": "--inference makes no sense with --export",
    "--export a.pt2 --checkpoint x.pt --readout vote": "--readout vote joins several runs",
    "--export a.pt2 --checkpoint x.pt --num-blocks 51": "at most 50, and these are 51: a model of fewer blocks",
    "--export a.pt2 --checkpoint x.pt --method fm": "at most 50, and these are 1000: lower --steps",
    "--export a.pt2 --checkpoint x.pt --method fm --solver heun --steps 26": "at most 50, and these are 52: lower",
    "--export a.pt2 --checkpoint x.pt --method fm --solver dopri5": "--export needs steps that are known before",
}


@pytest.mark.parametrize("flags", TOGETHER)
def test_flags_that_do_not_go_together_are_refused_in_words(flags):
    with pytest.raises(UserError) as refused:
        settled(flags)
    assert TOGETHER[flags] in str(refused.value)


def test_what_was_not_given_is_no_reason_to_refuse():
    s, _ = settled("--method fm --solver dopri5")
    assert s.steps == [1000] and s.num_blocks is None
    assert settled("--embedding-type one-hot")[0].embedding_dim == 20


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", {"epochs": 150, "eta": 0.1, "batch_size": 128, "eval_runs": 5, "readout": "sample"}),
        ("--dataset digits --method ct", {"epochs": 50, "eta": 1.0, "batch_size": 32, "sampler": ["ancestral"]}),
        ("--dataset mnist --method adjoint", {"epochs": 2, "eta": None, "sampler": None}),
        ("--inference deterministic", {"eval_runs": 1}),
        ("--embedding-type prototype", {"embedding_init": "prototype"}),
        ("--lr-scheduler-patience 3", {"lr_schedule": "plateau", "lr_scheduler_patience": 3}),
        ("--lr-schedule plateau", {"lr_schedule": "plateau", "lr_scheduler_patience": 5}),
        ("--predict a.png --checkpoint x.pt", {"readout": "mean"}),
        ("--augment", {"augment": ["crop", "flip"]}),
        ("--augment --dataset folder", {"augment": ["crop"]}),
        ("--augment crop,flip --dataset mnist", {"augment": ["crop", "flip"]}),
        ("--amp", {"amp": True}),
        ("--amp auto", {"amp": "auto"}),
        ("--recipe fast --lr 0.5", {"epochs": 16, "lr": 0.5, "lr_schedule": "cosine", "warmup_epochs": 1}),
        ("--recipe fast --epochs 1", {"epochs": 1, "warmup_epochs": 0}),
    ],
)
def test_defaults_depend_on_method_data_and_other_flags(flags, expected):
    s, _ = settled(flags)
    assert {name: getattr(s, name) for name in expected} == expected


@pytest.mark.parametrize("method", ["ct", "fm"])
def test_a_recipe_that_a_method_lacks_is_one_line(run_main, method):
    code, _, err = run_main("--dataset", "digits", "--method", method, "--recipe", "fast")
    assert (code, len(err)) == (2, 1) and f"--method {method} has no recipe fast" in err[0]


def test_what_a_recipe_says_of_the_augmentation_is_for_the_data_set_and_can_be_undone():
    def augmented(*flags):
        return settle(*parse(["--recipe", "strong", *flags])).augment

    assert augmented() == ["crop", "flip"] and augmented("--dataset", "digits") == ["crop"]
    assert augmented("--augment", "off") is None and augmented("--freeze-encoder") is None


USE = {
    "resume": "--checkpoint x.pt",
    "evaluate": "--evaluate --checkpoint x.pt",
    "predict": "--predict a --checkpoint x",
    "export": "--export a.onnx --checkpoint x",
}


def adopted(use, flags, trained="--embedding-type one-hot --dataset digits"):
    return adopt(*parse(f"{USE[use]} {flags}".split()), settled(trained)[0].as_dict())


def test_going_on_keeps_a_warm_up_that_is_the_whole_training():
    trained = "--dataset digits --recipe fast --lr-schedule constant --warmup-epochs 16"
    assert adopted("resume", "", trained).warmup_epochs == 16


@pytest.mark.parametrize(
    "use, flags, name, value",
    [
        ("resume", "--epochs 99", "epochs", 99),
        ("resume", "--early-stopping-patience 3", "early_stopping_patience", 3),
        ("resume", "--num-blocks 10 --compile", "compile", True),  # the first is as the checkpoint says
        ("resume", "--amp auto", "amp", False),
        ("evaluate", "--eval-runs 9", "eval_runs", 9),
        ("evaluate", "--inference deterministic", "eval_runs", 1),
        ("evaluate", "", "embedding_type", "one-hot"),
        ("predict", "", "readout", "mean"),
        ("predict", "--seed 4", "seed", 4),
        ("export", "", "readout", "mean"),
        ("export", "--readout ensemble", "ways", [{"stochastic": False}]),
    ],
)
def test_a_checkpoint_gives_the_settings_and_some_flags_may_differ(use, flags, name, value):
    assert getattr(adopted(use, flags), name) == value


@pytest.mark.parametrize("given", ["--augment", "--augment flip,crop"])
def test_a_command_that_starts_a_run_also_goes_on_with_it_however_its_augmentations_are_typed(given):
    trained = "--dataset cifar10 --augment crop,flip"
    assert adopted("resume", given, trained).augment == ["crop", "flip"]
    with pytest.raises(UserError, match="--augment crop contradicts the checkpoint, which has crop flip"):
        adopted("resume", "--augment crop", trained)


@pytest.mark.parametrize(
    "use, flags, words",
    [
        (
            "resume",
            "--seed 1",
            "--seed 1 contradicts the checkpoint, which has 0: leave the flag out or start a new run",
        ),
        ("resume", "--eval-runs 9", "--eval-runs 9 contradicts"),
        ("evaluate", "--lr 0.5", "--lr 0.5 contradicts the checkpoint, which has 0.001: leave the flag out"),
        ("evaluate", "--epochs 3", "--epochs 3 contradicts"),
        ("evaluate", "--flow-sigma 1", "--flow-sigma belongs to --method fm, not to dt"),
        ("predict", "--blocks 2", "--blocks 2 contradicts the checkpoint, which has all"),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint_is_refused(use, flags, words):
    with pytest.raises(UserError) as refused:
        adopted(use, flags)
    assert words in str(refused.value)


def test_a_learning_rate_that_falls_to_zero_at_the_last_epoch_allows_no_other_one():
    trained = "--dataset digits --lr-schedule cosine --epochs 9"
    assert adopted("resume", "--epochs 9", trained).epochs == 9
    with pytest.raises(UserError, match="--epochs 10 contradicts the checkpoint: its learning rate falls to zero at"):
        adopted("resume", "--epochs 10", trained)


def test_embeddings_of_a_checkpoint_bring_their_settings():
    s, given = parse(["--embedding-from", "x.pt"])
    config = settled("--class-probability posterior --posterior-sigma 2 --embedding-dim 7")[0].as_dict()
    taken = take_embedding_settings(s, given, config)
    assert (taken.class_probability, taken.posterior_sigma, taken.embedding_dim) == ("posterior", 2.0, 7)
    with pytest.raises(UserError, match="--embedding-dim contradicts --embedding-from, which has 7"):
        take_embedding_settings(replace(s, embedding_dim=8), given | {"embedding_dim"}, config)
    with pytest.raises(UserError, match="of --method backprop, whose theta_out is not that of dt"):
        take_embedding_settings(s, given, {**config, "method": "backprop"})

"""From settings to a model, an evaluator and a trainer: how main.py, the benchmarks and the tests put them together."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from data import Batches, Split, TrainingData, as_known, load_images, training_data
from errors import UserError, reading
from evaluate import Evaluation, Evaluator, accuracies_after_epoch
from hardware.device import compile_networks, pick_device, set_numerics
from hardware.threads import set_threads
from models.blocks import select_blocks
from models.build import build, draw_weights, restore, starting_embedding
from models.checkpoint import require_whole
from models.classifier import Classifier
from models.image_info import ImageInfo, images_at_a_time
from models.methods import METHODS
from models.random_streams import Streams
from optimizers.offload import move_without_blocks
from optimizers.updater import Updater
from optimizers.whole_update import WholeUpdate
from rules import adopt, commands_in
from runs.callbacks import Callback, PrintEpochs, ProgressBar, SaveRun
from runs.checkpoint import BEST, LAST, load_checkpoint
from runs.process import OneProcess
from runs.results import RunResults
from runs.signals import StopSignals
from runs.starting_weights import take_weights_of_files
from runs.tensorboard import TensorBoard
from settings import Settings
from train import BlockUpdates, Trainer

DEFAULT_RUN = "checkpoints_run"
CACHE = "images.cache"  # in the folder of the run
PREPARE_WITH = 5000  # training images that an encoder may see before it is trained


def run_folder(s: Settings) -> Path:
    """Return the folder of the run."""
    if s.checkpoint_dir:
        return Path(s.checkpoint_dir)
    return Path(s.checkpoint).parent if s.checkpoint else Path(DEFAULT_RUN)


def name_files(s: Settings) -> Settings:
    """Return the settings with a file in place of the folder of a run: last.pt to go on or merge, else its model."""
    names = {"checkpoint": _model_of(s.checkpoint) if commands_in(s) else _file_of(s.checkpoint, LAST)}
    names |= {name: _model_of(getattr(s, name)) for name in ("embedding_from", "init_from")}
    return replace(s, **names, merge=s.merge and [_file_of(path, LAST) for path in s.merge])


def _file_of(path: str | None, name: str) -> str | None:
    return str(Path(path, name)) if path and Path(path).is_dir() else path


def _model_of(path: str | None) -> str | None:
    """Return the best model in the folder of a run; before the first epoch is over, and in that of a part, last.pt."""
    has_last_alone = path and Path(path, LAST).is_file() and not Path(path, BEST).is_file()
    return _file_of(path, LAST if has_last_alone else BEST)


def load_data(
    s: Settings, checkpoint: dict | None, streams: Streams, processes: OneProcess
) -> tuple[TrainingData, Split | None]:
    """Return the training data, and the images to test on where the whole model is trained."""
    with processes.one_per_machine_first():
        data = load_training(s, checkpoint, streams)
        if s.blocks:
            return data, None
        return data, data.validation if s.eval_split == "val" else load_test(s, data.info)


def load_tested(s: Settings, checkpoint: dict) -> Split:
    """Return the images that --evaluate tests a checkpoint on; the validation split is that of its training."""
    if s.eval_split == "test":
        return load_test(s, ImageInfo(**checkpoint["info"]))
    return load_training(s, checkpoint, Streams(checkpoint["config"]["seed"])).validation


def load_training(s: Settings, checkpoint: dict | None, streams: Streams) -> TrainingData:
    """Return the training data. Raises UserError where they are not those that the checkpoint was trained on."""
    if checkpoint:
        require_known_images(s.checkpoint, checkpoint)
    info = ImageInfo(**checkpoint["info"]) if checkpoint else None
    where = _where(s)
    raw = load_images(s.dataset, "train", shape=info.image_shape if info else None, **where)
    if info:
        raw = as_known(raw, info.classes, info.image_shape, "training")
    own = load_images(s.dataset, "validation", shape=raw.image_shape, **where) if s.val_fraction else None
    if own:
        own = as_known(own, raw.classes, raw.image_shape, "validation")
        print(f"validation split: the data set's own {len(own.labels)}, nothing is held out of the training images")
    data = training_data(raw, s.val_fraction, streams, info, s.train_size, own)
    if checkpoint:
        require_same_images(s.checkpoint, checkpoint, data)
    return data


def _where(s: Settings) -> dict[str, object]:
    """Return what loaders of all parts may want to know."""
    return {"data_dir": s.data_dir, "image_size": s.image_size, "cache": run_folder(s) / CACHE}


def require_known_images(path: str, checkpoint: dict) -> None:
    """Raise UserError where an older version trained the run, whose validation split cannot be made again."""
    if checkpoint.get("images") is None:
        raise UserError(
            f"{path} is of an older version, which held out other validation images: it can be used and evaluated on "
            "test images, but not trained on; start a new run"
        )


def require_same_images(path: str, checkpoint: dict, data: TrainingData) -> None:
    """Raise UserError where the splits are others than those of the training: validation images were trained on."""
    if checkpoint["images"] != data.fingerprint:
        raise UserError(
            f"the training images are not those that {path} was trained on (some were added, removed or changed), "
            "so others would be held out: bring those back, or start a new run"
        )


def load_test(s: Settings, info: ImageInfo) -> Split:
    """Return the test images on the CPU. Raises UserError where their classes are not those of the training images."""
    raw = load_images(s.dataset, "test", shape=info.image_shape, **_where(s))
    raw = as_known(raw, info.classes, info.image_shape, "test")
    return Split(raw.images, raw.labels)


def new_model(
    s: Settings, data: TrainingData, streams: Streams, blocks: Iterable[int] | None = None, source: dict | None = None
) -> Classifier:
    """Return a model with the starting weights of its streams, on the CPU; of its blocks those asked for.

    source: the checkpoint of --embedding-from. Raises UserError where it is of other classes or images, where a class
    has no image to be its prototype, and for images that the network cannot take.
    """
    info, train = data.info, data.train
    arguments = s.describe_network(info.image_shape)["arguments"] | ({"blocks": blocks} if blocks is not None else {})
    if source:
        W_embed = _embedding_from(s, info, source)
    else:
        how = s.embedding_type, s.embedding_init, s.embedding_dim
        try:
            W_embed = starting_embedding(*how, train.images, train.labels, info, streams)
        except ValueError as error:
            raise UserError(f"{error}: lower --val-fraction, raise --train-size or add images") from error
    try:
        model = build(s.method, W_embed, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
    if source:
        model.load_state_dict(select_blocks(source["model"], ()) | {"alpha_bar": model.alpha_bar}, strict=False)
    draw_weights(model, streams, lambda: info.normalise(train.images[:PREPARE_WITH]).cpu())
    model.info = info
    take_weights_of_files(s, model)
    return model


def _embedding_from(s: Settings, info: ImageInfo, source: dict) -> torch.Tensor:
    restore(source["network"], source["model"])  # its weights are as its settings say
    if source["info"]["classes"] != info.classes:
        raise UserError(f"--embedding-from {s.embedding_from} has other classes than the training images")
    if s.embedding_type == "prototype" and tuple(source["info"]["image_shape"]) != tuple(info.image_shape):
        raise UserError(f"--embedding-from {s.embedding_from} has prototypes of another size than the images")
    return source["model"]["W_embed"]


def use_device(s: Settings, processes: OneProcess | None = None) -> torch.device:
    """Return the device that the settings mean, ready for use."""
    rank = processes.local_rank if processes else 0
    device = pick_device(s.device, s.no_cuda, rank, s.offload_blocks)
    set_numerics(device, not s.no_deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def to_device(model: Classifier, s: Settings, device: torch.device) -> None:
    """Move a model to the device that trains it, with --offload-blocks all but its blocks, and compile it if asked."""
    if s.offload_blocks:
        move_without_blocks(model, device)
    else:
        model.to(device)
    if s.compile:
        compile_networks(model.networks.values())


def held_blocks(s: Settings, processes: OneProcess) -> list[int] | None:
    """Return the blocks that this process trains, None where a network is trained as a whole."""
    return processes.deal(s.blocks or range(1, s.num_blocks + 1)) if METHODS[s.method].blocks_alone else None


def make_model(
    s: Settings,
    checkpoint: dict | None,
    source: dict | None,
    data: TrainingData,
    streams: Streams,
    held: list[int] | None,
) -> Classifier:
    """Return the model to train, of whose blocks this process holds some, on its device."""
    model = restored(s.checkpoint, checkpoint, held) if checkpoint else new_model(s, data, streams, held, source)
    to_device(model, s, streams.device)
    return model


def restored(path: str, checkpoint: dict, blocks: list[int] | None = None) -> Classifier:
    """Return the model of a checkpoint. Raises UserError where its weights are not those of its settings."""
    with reading(f"the checkpoint {path}", "take another one", errors=(ValueError,)):
        model = restore(checkpoint["network"], checkpoint["model"], blocks)
    model.info = ImageInfo(**checkpoint["info"])
    return model


def model_to_use(s: Settings, given: set[str]) -> tuple[Settings, dict, Classifier]:
    """Return the settings, the checkpoint and its model on the device, for a command that trains nothing."""
    checkpoint = load_checkpoint(s.checkpoint)
    require_whole(s.checkpoint, checkpoint)
    s = adopt(s, given, checkpoint["config"])
    model = restored(s.checkpoint, checkpoint).to(use_device(s)).eval()
    set_threads(s.describe_network(model.info.image_shape), s.batch_size, checkpoint)
    return s, checkpoint, model


def make_evaluator(s: Settings, model: Classifier, streams: Streams, processes: OneProcess | None = None) -> Evaluator:
    """Return the evaluator of a model whose `info` is set."""
    processes = processes or OneProcess()
    return Evaluator(
        model,
        streams,
        s.ways,
        s.eval_runs,
        s.readout,
        processes.relay if METHODS[s.method].blocks_alone else None,
        processes.hides_bars,
        s.eval_batch_size,
        s.mirror_test,
    )


def make_trainer(
    s: Settings,
    model: Classifier,
    data: TrainingData,
    streams: Streams,
    processes: OneProcess | None = None,
    watched: Split | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Return a trainer; watched: test images whose accuracy is noted after every epoch, nothing is chosen by it."""
    processes, method = processes or OneProcess(), METHODS[s.method]
    kept = features_of(model, data.train) if model.encoder else None
    part_of = {} if method.blocks_alone else {"part_of": processes.part_of}
    batches = Batches(data.train, model.see, s.batch_size, streams, s.augment or (), kept, **part_of)
    updater = partial(Updater.by_epochs, optimizer=method.optimizer, **s.arguments(Updater.by_epochs))
    if method.blocks_alone:
        own = s.arguments(BlockUpdates.__init__)
        updates = BlockUpdates(model, streams, len(batches), updater, add_up=processes.add_up, **own)
    else:
        shared = processes.average_gradients, processes.average, processes.size
        updates = WholeUpdate(model, streams, len(batches), updater, s.amp, *shared)
    trainer = Trainer(model, updates, batches, streams, callbacks=callbacks, **s.arguments(Trainer.__init__))
    if not s.blocks:  # a part of the blocks has no accuracy
        evaluator = make_evaluator(s, model, streams, processes)
        trainer.validate = partial(accuracies_after_epoch, evaluator, data, watched, processes.from_first)
    return trainer


def take_up(trainer: Trainer, path: str | None, checkpoint: dict | None) -> None:
    """Let a trainer go on from a checkpoint, if any. Raises UserError where its state does not fit."""
    if checkpoint:
        with reading(f"the checkpoint {path}", "take another one"):
            trainer.load_state_dict(checkpoint)


def features_of(model: Classifier, split: Split) -> torch.Tensor:
    """Return the features of a frozen encoder for all images of a split: (N, F)."""
    return torch.cat(
        [model.see(images[:]) for images in split.images.split(images_at_a_time(*split.images.shape[1:3]))]
    )


def add_callbacks(
    trainer: Trainer,
    s: Settings,
    results: RunResults,
    data: TrainingData,
    stops: StopSignals,
    board: TensorBoard | None,
) -> None:
    """Let a trainer show, save and print its run, and stop at signals."""
    processes, info = results.processes, data.info
    constants = {"config": s.as_dict(), "info": asdict(info), "network": s.describe_network(info.image_shape)}
    constants |= {"inference": s.inference_of_model, "images": data.fingerprint}

    def examples(evaluation: Evaluation, epoch: int) -> None:
        results.write_examples(evaluation, data.validation, "validation", epoch)

    saver = SaveRun(results.run, constants, s.save_every_minutes, s.save_every, stops, processes, examples)
    trainer.validate = saver.unless_stopped(trainer.validate, trainer)
    trainer.callbacks += [ProgressBar(processes.hides_bars), saver]
    if processes.first:
        alone = METHODS[s.method].blocks_alone
        weighed = alone and trainer.model.one_weight
        weights = {t: trainer.model.loss_weights[t - 1] for t in trainer.updates.parts} if weighed else {}
        trainer.callbacks += [PrintEpochs(s.lr, weights), *([board] if board else [])]

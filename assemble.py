"""From settings to a model, an evaluator and a trainer: how main.py, the benchmarks and the tests put them together."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

import torch

from data import Batches, Split, TrainingData, as_known, load_images, training_data
from errors import UserError, reading
from evaluate import Evaluation, Evaluator, accuracies_after_epoch
from hardware.device import compile_networks
from hardware.threads import set_threads
from models.blocks import select_blocks
from models.build import build, draw_weights, restore, starting_embedding
from models.classifier import Classifier
from models.image_info import ImageInfo
from models.methods import METHODS
from models.random_streams import Streams
from optimizers.offload import move_without_blocks
from optimizers.updater import Updater
from runs.callbacks import Callback, PrintEpochs, ProgressBar, SaveRun
from runs.process import OneProcess
from runs.results import RunResults
from runs.signals import StopSignals
from runs.tensorboard import TensorBoard
from settings import Settings
from train import BlockUpdates, Trainer, WholeUpdate

PREPARE_WITH = 5000  # training images that an encoder may see before it is trained


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
    info = ImageInfo(**checkpoint["info"]) if checkpoint else None
    where = {"data_dir": s.data_dir, "image_size": s.image_size}
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


def require_same_images(path: str, checkpoint: dict, data: TrainingData) -> None:
    """Raise UserError where the splits are others than those of the training: validation images were trained on."""
    before = checkpoint.get("images")
    if before is None:
        raise UserError(
            f"{path} is of an older version, which held out other validation images: it can be used and evaluated on "
            "test images, but not trained on; start a new run"
        )
    if before != data.fingerprint:
        raise UserError(
            f"the training images are not those that {path} was trained on (some were added, removed or changed), "
            "so others would be held out: bring those back, or start a new run"
        )


def load_test(s: Settings, info: ImageInfo) -> Split:
    """Return the test images on the CPU. Raises UserError where their classes are not those of the training images."""
    raw = load_images(s.dataset, "test", data_dir=s.data_dir, image_size=s.image_size, shape=info.image_shape)
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
    arguments = s.network(info.image_shape)["arguments"] | ({"blocks": blocks} if blocks is not None else {})
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
    return model


def _embedding_from(s: Settings, info: ImageInfo, source: dict) -> torch.Tensor:
    restore(source["network"], source["model"])  # its weights are as its settings say
    if source["info"]["classes"] != info.classes:
        raise UserError(f"--embedding-from {s.embedding_from} has other classes than the training images")
    if s.embedding_type == "prototype" and tuple(source["info"]["image_shape"]) != tuple(info.image_shape):
        raise UserError(f"--embedding-from {s.embedding_from} has prototypes of another size than the images")
    return source["model"]["W_embed"]


def to_device(model: Classifier, s: Settings, device: torch.device) -> None:
    """Move a model to the device that trains it, with --offload-blocks all but its blocks, and compile it if asked."""
    if s.offload_blocks:
        move_without_blocks(model, device)
    else:
        model.to(device)
    if s.compile:
        compile_networks(model.networks.values())


def make_model(
    s: Settings,
    checkpoint: dict | None,
    source: dict | None,
    data: TrainingData,
    streams: Streams,
    processes: OneProcess,
) -> Classifier:
    """Return the model to train, with the blocks that this process holds, on its device; sets the number of threads."""
    before = checkpoint.get("threads") if checkpoint else None
    set_threads(s.network(data.info.image_shape), s.batch_size, before, processes.from_first)
    alone = METHODS[s.method].blocks_alone
    held = processes.deal(s.blocks or range(1, s.num_blocks + 1)) if alone else None
    model = restored(s.checkpoint, checkpoint, held) if checkpoint else new_model(s, data, streams, held, source)
    to_device(model, s, streams.device)
    return model


def restored(path: str, checkpoint: dict, blocks: list[int] | None = None) -> Classifier:
    """Return the model of a checkpoint. Raises UserError where its weights are not those of its settings."""
    with reading(f"the checkpoint {path}", "take another one", errors=(ValueError,)):
        model = restore(checkpoint["network"], checkpoint["model"], blocks)
    model.info = ImageInfo(**checkpoint["info"])
    return model


def make_evaluator(s: Settings, model: Classifier, streams: Streams, processes: OneProcess | None = None) -> Evaluator:
    """Return the evaluator of a model whose `info` is set."""
    processes = processes or OneProcess()
    return Evaluator(
        model,
        streams,
        s.ways,
        s.eval_runs,
        s.readout,
        processes.relay,
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
    batches = Batches(data.train, data.info, s.batch_size, streams, s.augment or ())
    updater = partial(Updater.by_epochs, optimizer=method.optimizer, **s.arguments(Updater.by_epochs))
    if method.blocks_alone:
        own = s.arguments(BlockUpdates.__init__)
        updates = BlockUpdates(model, streams, len(batches), updater, add_up=processes.add_up, **own)
    else:
        updates = WholeUpdate(model, streams, len(batches), updater, s.amp)
    trainer = Trainer(model, updates, batches, streams, callbacks=callbacks)
    if not s.blocks:  # a part of the blocks has no accuracy
        evaluator = make_evaluator(s, model, streams, processes)
        trainer.validate = partial(accuracies_after_epoch, evaluator, data, watched, processes.from_first)
    return trainer


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
    constants = {"config": s.as_dict(), "info": asdict(info), "network": s.network(info.image_shape)}
    constants |= {"inference": s.inference_of_model, "images": data.fingerprint}

    def examples(evaluation: Evaluation, epoch: int) -> None:
        results.write_examples(evaluation, data.validation, "validation", epoch)

    saver = SaveRun(results.run, constants, s.save_every_minutes, s.save_every, stops, processes, examples)
    trainer.validate = saver.unless_stopped(trainer.validate, trainer)
    trainer.callbacks += [ProgressBar(processes.hides_bars), saver]
    if processes.first:
        trainer.callbacks += [PrintEpochs(), *([board] if board else [])]

"""How long a training will take: a few real steps of the real trainer on random images of the data's shape."""

import torch

from benchmarks.measure import in_turn
from benchmarks.setup import make_trainer, train_epoch
from data import load_raw
from reproduction.paper import IMAGES, Images
from reproduction.plan import Training, flags_of


def images_of(settings: dict) -> Images:
    """Shape and size of the data of a training; data that the paper does not have is loaded."""
    if settings["dataset"] in IMAGES:
        images = IMAGES[settings["dataset"]]
    else:
        load = (settings["dataset"], settings["data_dir"])
        train, test = load_raw(*load, "train", settings["image_size"]), load_raw(*load, "test", settings["image_size"])
        images = Images(tuple(train.images.shape[1:]), len(train.labels), len(test.labels), len(train.classes))
    return images._replace(train=min(images.train, settings["train_size"] or images.train))


class Estimate:
    """Seconds of an epoch of a training, measured once for all seeds of the same settings."""

    def __init__(self, ranks: int):
        self.ranks, self.known = ranks, {}

    def seconds_per_epoch(self, training: Training) -> float:
        """Updates, and the tests after the epoch."""
        settings = {**training.settings, "seed": 0}
        key = str(settings)
        if key not in self.known:
            self.known[key] = self._measure(settings, images_of(settings))
        return self.known[key]

    def _measure(self, settings: dict, images: Images) -> float:
        dealt = self.ranks if settings["method"] == "dt" else 1
        threads = torch.get_num_threads()
        if dealt > 1:
            torch.set_num_threads(1)
        count = max(settings["batch_size"], images.classes)
        several = {**settings, "epochs": max(settings["epochs"], 10)}  # more than are measured
        trainer = make_trainer(count, *flags_of(several), shape=images.shape, classes=images.classes)
        step = in_turn({"step": lambda: train_epoch(trainer)}, rounds=2)["step"] / count
        tested = images.test + images.train // 10
        test = in_turn({"test": lambda: trainer.evaluator.validate(trainer.data.train)}, rounds=1)["test"] / count
        torch.set_num_threads(threads)
        return (step * images.train + test * tested) / dealt

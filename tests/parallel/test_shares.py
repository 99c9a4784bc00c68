"""A batch that several processes share: their gradients and losses have the mean of one process's."""

import pytest
import torch
from helpers import assert_equal, settings, small_data

from assemble import make_trainer, new_model
from models.random_streams import Streams
from parallel.ranks import Ranks
from runs.process import OneProcess


def gradient_of_rank(rank, size, *flags):
    """Return the gradients by name and the loss that one rank of `size` gives of a batch of 29 images."""
    s = settings("--batch-size", 32, "--augment", "crop,flip,cutout", *flags)
    streams, process = Streams(s.seed), OneProcess()
    process.size, process.part_of = size, Ranks(rank, size).part_of
    data = small_data(s, streams)
    model = new_model(s, data, streams).train()
    trainer = make_trainer(s, model, data, streams, process)
    trainer.updates.updaters[0].step = lambda: None
    (terms,) = trainer.updates.step([1], trainer.batches.batch(torch.arange(29), 1, 0)).values()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": terms}


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "fm", "--noise-levels", 3, "--stratified-time"],
        ["--method", "ct", "--noise-levels", 2, "--embedding-type", "prototype"],
        ["--method", "classifier", "--network", "vit", "--vit-layers", 2],
        ["--method", "adjoint", "--steps", 3],
    ],
)
def test_parts_of_a_batch_have_the_gradient_of_the_whole(flags):
    whole, ranks = gradient_of_rank(0, 1, *flags), [gradient_of_rank(rank, 3, *flags) for rank in range(3)]
    for name, value in whole.items():
        mean = sum(rank[name] for rank in ranks) / 3
        assert torch.allclose(mean, value, rtol=0, atol=1e-5 * value.abs().max()), name


def test_of_a_batch_with_less_than_two_images_a_rank_every_rank_takes_all():
    whole, rank = gradient_of_rank(0, 1, "--method", "backprop"), gradient_of_rank(3, 15, "--method", "backprop")
    assert_equal(rank, whole)

"""Encoders: what they start from, that they see the image only, and that a frozen one is the same for all blocks."""

import pytest
import torch
from conftest import train
from helpers import assert_equal, weights
from torch.nn import functional as F

from models.build import build, draw_weights, load_encoder
from models.diffusion import repeat
from models.encoders import make_encoder
from models.networks import NETWORKS, Shape
from models.NoProp_FM import NoPropNetFM
from models.NoPropBlock import NoPropBlock
from models.random_streams import Streams
from models.time_block import TimeBlock
from runs.checkpoint import load_checkpoint

SHAPE = (3, 16, 16)
NAMES = ["paper", "airbench:16", "resnet18", "timm:test_resnet"]
DIGITS = ["--dataset", "digits", "--image-size", 16, "--train-size", 200, "--embedding-type", "one-hot", "--epochs", 1]
AIRBENCH = ["--encoder", "airbench", "--encoder-width", 16]


def needs_timm(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")


def images(count=64):
    generator = torch.Generator().manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(count, *SHAPE[:1], 20, 20, generator=generator), 5, stride=1)
    return smooth / smooth.std()


def make_dt(name, **kwargs):
    model = build("dt", torch.eye(4), image_shape=SHAPE, num_blocks=2, encoder=name, **kwargs)
    draw_weights(model, Streams(0), images)
    return model


def test_airbench_begins_with_patches_whose_directions_are_independent_and_of_variance_1():
    encoder, x = make_encoder("airbench:16", SHAPE), images()
    encoder.prepare(x)
    out = F.conv2d(x.double(), encoder.whitening.double()).transpose(0, 1).flatten(1)  # (24, n)
    half = len(out) // 2
    covariance = out[:half] @ out[:half].T / out.shape[1]
    variances = covariance.diagonal()
    assert ((covariance - torch.diag(variances)).abs() < 1e-6).all() and variances.min() > 0.9 and (variances < 1).all()
    torch.testing.assert_close(out[half:], -out[:half])


@pytest.mark.parametrize("name", NAMES)
def test_the_start_of_a_block_follows_from_seed_and_block_alone(name):
    needs_timm(name)
    both, second = make_dt(name), make_dt(name, blocks=[2])
    assert_equal(both.blocks["1"].state_dict(), second.blocks["1"].state_dict())
    one, two = (both.blocks[t].image_path.state_dict() for t in "01")
    assert any(not torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("method", ["dt", "ct", "fm", "backprop", "classifier", "adjoint"])
def test_every_method_learns_with_every_encoder_and_no_global_random_number(name, method):
    needs_timm(name)
    more = {"steps": [2]} if method == "adjoint" else {"num_blocks": 2} if method in ("dt", "backprop") else {}
    model = build(method, torch.eye(4), image_shape=SHAPE, encoder=name, **more)
    draw_weights(model, Streams(0), images)
    x, y, state = images(8), torch.arange(8) % 4, torch.get_rng_state()
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sum(model.loss(*([1] if method == "dt" else []), x, y, *generators)).backward()
    encoder = next(iter(model.networks.values())).image_path
    assert any(p.grad is not None and p.grad.any() for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.eval().sample(x, generators[:1]).shape == (1, 8, 4)


@pytest.mark.parametrize("name", ["airbench:16", "timm:test_resnet"])
def test_gradients_stay_inside_a_block_whatever_its_encoder(name):
    needs_timm(name)
    model = make_dt(name)
    sum(model.loss(2, images(8), torch.arange(8) % 4)).backward()
    assert all(p.grad is None for p in model.blocks["0"].parameters())
    assert all(p.grad is not None for p in model.blocks["1"].image_path.parameters())


def test_a_frozen_encoder_stands_once_in_the_state_and_never_changes(tmp_path):
    flags = [*DIGITS, *AIRBENCH, "--num-blocks", 2, "--freeze-encoder"]
    short, longer = (train(tmp_path / str(n), *flags, "--epochs", n) for n in (1, 2))
    one, two = weights(short), weights(longer)
    frozen = [name for name in one if name.startswith("encoder.")]
    assert frozen and not any("image_path" in name for name in one)
    assert_equal({name: one[name] for name in frozen}, {name: two[name] for name in frozen})
    assert not torch.equal(one["blocks.0.fuse.0.weight"], two["blocks.0.fuse.0.weight"])


def test_a_frozen_encoder_and_the_block_beside_it_start_from_different_numbers():
    model = build("fm", torch.eye(4), image_shape=SHAPE, frozen_encoder="paper")
    draw_weights(model, Streams(0))
    first = [next(part.parameters()).flatten()[:400] for part in (model.encoder, model.block.label_path)]
    assert torch.corrcoef(torch.stack(first))[0, 1].abs() < 0.2


def test_blocks_that_are_given_kept_features_learn_what_they_learn_from_images():
    model = build("dt", torch.eye(4), image_shape=SHAPE, num_blocks=1, frozen_encoder="airbench:16")
    draw_weights(model, Streams(0), images)
    model.train()
    x, y, losses = images(8), torch.arange(8) % 4, []
    assert not model.encoder.training
    for _ in range(2):  # as in two epochs: batch norm of the encoder learns nothing
        with torch.no_grad():
            features = model.encoder(x)
        losses.append(torch.stack(model.loss(1, features, y, torch.Generator().manual_seed(0))))
    assert torch.equal(*losses)


@pytest.mark.parametrize("encoder", [AIRBENCH, ["--encoder", "timm:test_resnet"]])
def test_blocks_alone_and_merged_are_those_of_one_run(tmp_path, encoder):
    needs_timm(encoder[1])
    flags = [*DIGITS, *encoder, "--num-blocks", 2]
    whole = train(tmp_path / "whole", *flags)
    parts = [train(tmp_path / str(t), *flags, "--blocks", t) / "last.pt" for t in (1, 2)]
    merged = train(tmp_path / "merged", "--merge", *parts)
    assert_equal(load_checkpoint(merged / "last.pt")["model"], load_checkpoint(whole / "last.pt")["model"])


def test_weights_of_a_file_go_into_every_block_and_others_are_refused_in_a_line(tmp_path, run_main):
    given = make_encoder("airbench:16", (1, 16, 16)).state_dict()
    torch.save(given, tmp_path / "encoder.pt")
    flags = [*DIGITS, *AIRBENCH, "--num-blocks", 2, "--encoder-weights", tmp_path / "encoder.pt"]
    state = weights(train(tmp_path / "run", *flags, "--lr", 1e-30))
    for t in "01":
        name = "groups.0.conv1.weight"
        torch.testing.assert_close(state[f"blocks.{t}.image_path.{name}"], given[name])
    code, _, err = run_main(*flags, "--encoder-width", 32, "--checkpoint-dir", tmp_path / "none")
    assert (code, len(err)) == (2, 1) and "is not for --encoder airbench:32" in err[0]


def test_of_the_names_that_only_a_file_has_a_last_layer_alone_is_passed_over():
    model, source = make_dt("resnet18"), make_encoder("resnet18", SHAPE)
    state = {f"module.{name}": value for name, value in source.net.state_dict().items()}
    assert load_encoder(model, {**state, "module.fc.weight": torch.zeros(3)}) == ["fc.weight"]
    assert_equal(model.blocks["1"].image_path.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match="it has layer1.2.conv1.weight, which the encoder has not"):
        load_encoder(model, {**state, "layer1.2.conv1.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="conv1.weight is 64x1x3x3, that of the encoder 64x3x3x3"):
        load_encoder(model, {**state, "module.conv1.weight": torch.zeros(64, 1, 3, 3)})


@pytest.mark.parametrize("content", [None, torch.zeros(3), torch.nn.Linear(2, 2)])
def test_a_file_without_weights_by_name_is_refused_in_a_line(content, run_main, tmp_path):
    path = tmp_path / "weights.pt"
    if content is not None:
        torch.save(content, path)
    code, _, err = run_main(*DIGITS, *AIRBENCH, "--encoder-weights", path, "--checkpoint-dir", tmp_path / "run")
    assert (code, len(err)) == (2, 1) and ("no such file" if content is None else "state_dict(), PATH") in err[0]


def test_images_that_an_encoder_cannot_take_are_refused_in_a_line(run_main, tmp_path):
    code, _, err = run_main("--dataset", "digits", *AIRBENCH, "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and "at least 16 x 16 pixels, not 8 x 8: raise --image-size" in err[0]


def test_an_encoder_of_timm_that_there_is_not_is_refused_in_a_line(run_main, tmp_path):
    pytest.importorskip("timm")
    code, _, err = run_main("--dataset", "digits", "--encoder", "timm:nonesuch", "--checkpoint-dir", tmp_path)
    assert (code, len(err)) == (2, 1) and "timm knows no encoder nonesuch" in err[0]


def test_noise_levels_share_the_features_of_an_image():
    model, seen = make_dt("airbench:16", noise_levels=3), []
    block = model.blocks["0"]
    block.image_path.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    block.fuse.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model.loss(1, images(8), torch.arange(8) % 4)
    assert seen == [8, 24] and repeat(torch.arange(2), 2).tolist() == [0, 1, 0, 1]


W, T = torch.eye(4, 5), torch.linspace(0.1, 0.9, 3)
PIECE = Shape(SHAPE, 5, 4, layers=2, width=16, heads=2)
BLOCKS = {
    "dt": (lambda: NoPropBlock(SHAPE, 5, 4), W, W),
    "ct": (lambda: TimeBlock(SHAPE, 5, 4), T, T.repeat(2)),
    "vit": (lambda: NETWORKS["vit"].piece(PIECE, 1), T, T.repeat(2)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_of_several_noised_embeddings_meets_its_own_image(name):
    torch.manual_seed(0)
    make, once, twice = BLOCKS[name]
    block, z, x = make().eval(), torch.randn(6, 5), torch.randn(3, *SHAPE)
    torch.testing.assert_close(block(z, x, twice), torch.cat([block(z[:3], x, once), block(z[3:], x, once)]))


@pytest.mark.parametrize("how", [{"steps": 1}, {"steps": 7}, {"steps": 4, "solver": "heun"}, {"solver": "dopri5"}])
def test_a_flow_that_predicts_its_end_ends_there(how):
    """Where p does not depend on z, (p W - z) / (1 - t) is a straight line to p W."""
    net = NoPropNetFM(SHAPE, torch.eye(4), loss="cross-entropy").eval()
    with torch.no_grad():
        net.block.label_path.embed.weight.zero_()
        net.block.time_path[0].weight.zero_()
    x = images(3)
    *_, (z, _) = net.denoise(x, [torch.Generator().manual_seed(0)], **how)
    p = net.block(torch.zeros(3, 4), x, torch.zeros(3)).softmax(dim=1)
    torch.testing.assert_close(z[0], p, atol=1e-3 if how.get("solver") == "dopri5" else 1e-5, rtol=0)


def test_cross_entropy_of_ct_has_weight_1_at_every_t_and_leaves_the_schedule_alone():
    net = build("ct", torch.eye(4), image_shape=SHAPE, encoder="airbench:16", loss="cross-entropy")
    assert not any(p.requires_grad for p in net.schedule.parameters())
    gamma = net.schedule.gamma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(gamma, torch.tensor([4.0, 0.5, -3.0], dtype=torch.float64), atol=0.05, rtol=0)
    with torch.no_grad():
        net.block.head[-1].weight.zero_(), net.block.head[-1].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    y = torch.arange(8) % 4
    expected = F.cross_entropy(torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(8, 4), y)
    torch.testing.assert_close(net.loss(images(8), y).denoise, expected)


def test_members_of_an_ensemble_are_classifiers_that_learn_alone(tmp_path):
    flags = [*DIGITS, *AIRBENCH, "--method", "classifier"]
    flags = [flag for flag in flags if flag not in ("--embedding-type", "one-hot")]
    one, two = (weights(train(tmp_path / str(n), *flags, "--num-blocks", n)) for n in (1, 2))
    assert_equal({name: value for name, value in two.items() if name in one}, one)

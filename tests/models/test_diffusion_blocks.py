"""DiffusionBlocks: its noise levels and steps against closed forms and NoProp, and pieces that learn alone."""

import math

import pytest
import torch
from conftest import train
from helpers import assert_equal, weights
from torch import nn

from main import main
from models.build import build, draw_weights
from models.noise_ranges import NoiseDensity, block_of_step, c_in, ladder, sigma_of, step_towards
from models.random_streams import Streams
from models.schedules import step_coefficients

SHAPE, CLASSES = (1, 8, 8), 5
PUBLISHED = NoiseDensity(0.002, 80.0, -1.2, 1.2)
VIT = {"network": "vit", "vit_layers": 6, "vit_width": 16, "vit_heads": 2}
FLAGS = ["--dataset", "digits", "--method", "diffusionblocks", "--embedding-type", "one-hot", "--train-size", 200]


def make(method="diffusionblocks", W_embed=None, **kwargs):
    model = build(method, torch.eye(CLASSES) if W_embed is None else W_embed, image_shape=SHAPE, **kwargs)
    draw_weights(model, Streams(0))
    return model.eval()


class Knows(nn.Module):
    """A block that tells the class that a number in the corner of the image stands for."""

    def image_part(self, x, generator=None):
        return 1e4 * nn.functional.one_hot(x[:, 0, 0, 0].long(), CLASSES).float()

    def time_part(self, t):
        return t.float().unsqueeze(1)

    def logits(self, z, image_part, time_part, generator=None):
        return image_part


def batch(count=10):
    y = torch.arange(count) % CLASSES
    return y.view(-1, 1, 1, 1).expand(-1, *SHAPE).float(), y


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_ranges_meet_at_quantiles_of_the_density_and_have_exact_ends(blocks):
    ends = PUBLISHED.even(blocks)
    assert ends[0] == 80.0 and ends[-1] == 0.002
    normal = torch.distributions.Normal(torch.tensor(-1.2, dtype=torch.float64), 1.2)
    top, bottom = (normal.cdf(torch.tensor(end, dtype=torch.float64).log()) for end in (80, 0.002))
    for k in range(1, blocks):
        q = top + k / blocks * (bottom - top)
        assert ends[k] == pytest.approx(math.exp(-1.2 + 1.2 * torch.special.ndtri(q).item()), abs=1e-10)
    for (low, high), above, below in zip(PUBLISHED.ranges(blocks, 0.1), ends, ends[1:], strict=False):
        wider = (above / below) ** 0.1
        assert (low, high) == pytest.approx((max(0.002, below / wider), min(80, above * wider)))


def test_noise_levels_of_training_have_the_quantiles_of_the_truncated_density():
    low, high = PUBLISHED.ranges(3, 0.1)[1]
    sigma = PUBLISHED.draw(20_000, low, high, torch.Generator().manual_seed(0), "cpu")
    assert sigma.dtype == torch.float64 and low <= sigma.min() and sigma.max() <= high
    bottom, top = PUBLISHED.quantile(low), PUBLISHED.quantile(high)
    for part in (0.1, 0.5, 0.9):
        below = (sigma < PUBLISHED.sigma(torch.tensor(bottom + part * (top - bottom)).double())).double().mean()
        assert below.item() == pytest.approx(part, abs=0.011)  # three standard errors


@pytest.mark.parametrize(("steps", "blocks"), [(1, 3), (4, 3), (6, 3), (7, 2), (50, 6)])
def test_a_step_belongs_to_the_block_whose_range_it_starts_in_and_a_boundary_to_the_cleaner(steps, blocks):
    ends = PUBLISHED.even(blocks)
    for i, sigma in enumerate(ladder(PUBLISHED, steps)[:-1]):
        inside = [t for t in range(1, blocks + 1) if ends[t] - 1e-9 < sigma <= ends[t - 1] + 1e-9]
        assert block_of_step(i, steps, blocks) == max(inside)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_perfect_denoiser_lands_on_the_embedding_with_the_noise_of_the_next_level(steps, blocks):
    model = make(num_blocks=blocks)
    for t in range(1, blocks + 1):
        model.blocks[str(t - 1)] = Knows()
    x, y = batch()
    u, sigmas = model.u[y], ladder(PUBLISHED, steps)
    (start, _), *path = model.denoise(x, [torch.Generator().manual_seed(0)], steps=steps)
    eps = (math.sqrt(1 + 80**2) * start - u) / 80
    assert model.times(steps=steps)[-1] == steps and {1, steps} <= set(model.times(steps=steps))
    for step, (z, _) in zip(model.times(steps=steps), path, strict=True):
        lower = sigmas[step]
        torch.testing.assert_close(z * math.sqrt(1 + lower**2), u + lower * eps, rtol=1e-4, atol=1e-4)
    assert (model.answer(*path[-1]).argmax(dim=2) == y).all()


def test_a_step_is_eulers_without_noise_and_eq_3_with_it():
    z, u_hat, eps = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    sigma, lower = 1.7, 0.6
    euler = z + (lower - sigma) * (z - u_hat) / sigma  # dz/dsigma = (z - u_hat) / sigma
    torch.testing.assert_close(step_towards(z, u_hat, sigma, lower, None, noise=0), euler)
    alpha_bar = 1 / (1 + torch.tensor([sigma, lower], dtype=torch.float64) ** 2)
    a, b, c = step_coefficients(*alpha_bar)
    scale = alpha_bar.sqrt()  # of NoProp's z
    nextz = (a * u_hat + b * scale[0] * z + c.sqrt() * eps) / scale[1]
    torch.testing.assert_close(step_towards(z, u_hat, sigma, lower, eps, noise=1), nextz)


def test_with_no_width_and_the_weights_of_eq_8_the_loss_is_the_denoising_term_of_dt():
    mix = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(1))

    def logits(z):  # of NoProp's z
        return z @ mix

    class OfDT(nn.Module):
        def forward(self, z, x, W_embed, generator):
            return logits(z).softmax(dim=1) @ W_embed

    class OfPiece(nn.Module):
        def forward(self, z, x, t, generator):
            sigma = sigma_of(t).float().unsqueeze(1)
            return logits(z / c_in(sigma) / (1 + sigma**2).sqrt())

    dt, pieces = make("dt", num_blocks=3), make(num_blocks=3, loss="squared")
    x, y = batch()
    for t in (1, 2, 3):
        dt.blocks[str(t - 1)], pieces.blocks[str(t - 1)] = OfDT(), OfPiece()
        sigma = (1 / dt.alpha_bar[t - 1] - 1).sqrt().double().expand(len(y))
        noise = torch.Generator().manual_seed(t)
        torch.randn(len(y), CLASSES, generator=noise)  # dt draws z_T first
        loss = pieces.loss_at(t, x, y, sigma, torch.full((len(y),), dt.loss_weights[t - 1]), noise)
        torch.testing.assert_close(loss, dt.loss(t, x, y, torch.Generator().manual_seed(t)).denoise)


@pytest.mark.parametrize("kwargs", [{}, VIT])
def test_a_piece_gets_gradients_of_its_own_loss_only_and_sees_the_length_of_no_embedding(kwargs):
    W_embed = torch.randn(CLASSES, 7, generator=torch.Generator().manual_seed(0))
    model = make(W_embed=W_embed, learn_embedding=True, **kwargs).train()
    x, y = batch()
    losses = []
    for scale in (1, 10):
        with torch.no_grad():
            model.W_embed.copy_(scale * W_embed)
        (loss,) = model.loss(2, x, y, *(torch.Generator().manual_seed(0) for _ in range(2)))
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    loss.backward()
    assert model.W_embed.grad.abs().sum() > 0
    for t, block in model.networks.items():
        assert all((p.grad is None) == (t != 2) for p in block.parameters())


def test_the_pieces_of_a_transformer_have_its_layers_and_what_each_needs_alone():
    whole, pieces = make("classifier", num_blocks=1, **VIT), make(num_blocks=3, **VIT)
    per_piece = [len(block.layers) for block in pieces.networks.values()]
    assert per_piece == [2, 2, 2] and len(whole.networks[1].image_path.layers) == 6
    block = pieces.block(2)
    z, t, x = torch.randn(10, CLASSES), torch.full((10,), 0.3), batch()[0]
    parts = block.image_part(x), block.time_part(t[:1])[0]  # at one noise level
    torch.testing.assert_close(block.logits(z, *parts), block(z, x, t))
    with pytest.raises(ValueError, match="cannot be cut into 4"):
        make(num_blocks=4, **VIT)


@pytest.mark.parametrize("extra", [["--num-blocks", 2], ["--network", "vit", "--vit-layers", 2, "--num-blocks", 2]])
def test_pieces_that_are_trained_alone_and_merged_are_those_trained_together(tmp_path, extra):
    flags = [*FLAGS, *extra, "--epochs", 1, "--val-fraction", 0]
    together = train(tmp_path / "together", *flags)
    parts = [train(tmp_path / str(t), *flags, "--blocks", t) / "last.pt" for t in (1, 2)]
    assert main(["--merge", *map(str, parts), "--checkpoint-dir", str(tmp_path / "merged")]) == 0
    assert_equal(weights(tmp_path / "merged"), weights(together))

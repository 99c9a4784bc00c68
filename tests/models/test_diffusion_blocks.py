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
from models.time_block import sinusoids
from models.vit import Layer, ViT

SHAPE, CLASSES = (1, 8, 8), 5
PUBLISHED = NoiseDensity(0.002, 80.0, -1.2, 1.2)
VIT = {"network": "vit", "vit_layers": 6, "vit_width": 16, "vit_heads": 2}
FLAGS = ["--dataset", "digits", "--method", "diffusionblocks", "--embedding-type", "one-hot", "--train-size", 200]


def make(method="diffusionblocks", W_embed=None, **kwargs):
    model = build(method, torch.eye(CLASSES) if W_embed is None else W_embed, image_shape=SHAPE, **kwargs)
    draw_weights(model, Streams(0))
    return model.eval()


class Knows(nn.Module):
    """A block that tells the class that a number in the corner of the image stands for, and keeps what it is asked."""

    def __init__(self, asked, sure=1e4):
        super().__init__()
        self.asked, self.sure = asked, sure

    def image_part(self, x, generator=None):
        return self.sure * nn.functional.one_hot(x[:, 0, 0, 0].long(), CLASSES).float()

    def time_part(self, t):
        return t

    def logits(self, z, image_part, time_part, generator=None):
        self.asked.append((self, z, time_part))
        return image_part

    def forward(self, z, x, t, generator=None):
        return self.logits(z, self.image_part(x), self.time_part(t))


def make_with_oracles(sure=1e4, **kwargs):
    """Return a model of blocks that know the class, and the list of what they are asked."""
    model, asked = make(**kwargs), []
    for name in model.blocks:
        model.blocks[name] = Knows(asked, sure)
    return model, asked


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
@pytest.mark.parametrize("sampler", ["ode", "ancestral"])
def test_a_perfect_denoiser_lands_on_the_embedding_with_the_noise_of_the_next_level(steps, blocks, sampler):
    model, asked = make_with_oracles(num_blocks=blocks)
    x, y = batch(2000)
    u, sigmas = model.u[y], ladder(PUBLISHED, steps)
    generators = [torch.Generator().manual_seed(r) for r in range(2)]
    (start, _), *path = model.denoise(x, generators, steps=steps, sampler=sampler)
    assert (model.answer(*path[-1]).argmax(dim=2) == y).all()
    eps = (math.sqrt(1 + 80**2) * start - u) / 80
    shown = dict(zip(model.times(steps=steps), (z for z, _ in path), strict=True))
    assert {1, steps} <= shown.keys()
    for i, sigma in enumerate(sigmas[:-1]):
        (block, first, t), (_, second, _) = asked[2 * i : 2 * i + 2]  # once for each run
        assert block is model.block(block_of_step(i, steps, blocks)) and t == pytest.approx(math.log(sigma) / 4)
        now = (math.sqrt(sigma**2 + 0.25) * torch.stack([first, second]) - u) / sigma
        if sampler == "ode":
            torch.testing.assert_close(sigma * now, sigma * eps, rtol=1e-4, atol=1e-4)
        elif i:  # eq. 3: new noise, correlated with that of the level before
            kept = (now * eps).mean().item()
            assert now.std().item() == pytest.approx(1, abs=0.02) and kept == pytest.approx(
                sigma / sigmas[i - 1], abs=0.03
            )
        eps = now
        if i in shown:
            torch.testing.assert_close(math.sqrt(1 + sigma**2) * shown[i], u + sigma * now, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(path[-1][0], u.expand(2, -1, -1))


@pytest.mark.parametrize("t", [1, 2, 3])
def test_a_block_is_trained_on_its_own_noise_levels_with_the_published_weight(t):
    model, asked = make_with_oracles(sure=0.7, num_blocks=3, overlap=0.1)
    x, y = batch(5000)
    (loss,) = model.loss(t, x, y, torch.Generator().manual_seed(0))
    ((block, z, time),) = asked
    sigma = (4 * time).exp()
    low, high = PUBLISHED.ranges(3, 0.1)[t - 1]
    assert block is model.block(t) and low - 1e-9 <= sigma.min() and sigma.max() <= high + 1e-9
    cross_entropy = math.log(math.exp(0.7) + CLASSES - 1) - 0.7
    assert loss.item() == pytest.approx(((sigma**2 + 0.25) / (0.25 * sigma**2)).mean().item() * cross_entropy, rel=1e-4)
    eps = ((sigma**2 + 0.25).sqrt().unsqueeze(1) * z - model.u[y]) / sigma.unsqueeze(1)
    assert eps.mean().item() == pytest.approx(0, abs=0.02) and eps.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("steps", "last", "idle"), [(6, [2, 4, 6], []), (4, [2, 3, 4], []), (2, [1, 2], [3])])
def test_a_block_answers_by_its_last_step_and_one_without_a_step_is_idle(steps, last, idle):
    model = make(num_blocks=3)
    assert [model.times(steps=steps)[i] for i in model.answering(steps=steps)] == last
    assert model.idle(steps=steps) == idle


@pytest.mark.parametrize("mean, std", [(50, 1.2), (-17, 1.2), (9, 0.1)])
def test_a_density_that_misses_its_range_is_refused(mean, std):
    with pytest.raises(ValueError, match="hardly ever lie in 0.002 to 80"):
        NoiseDensity(0.002, 80.0, mean, std)


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


def test_a_layer_is_that_of_torch():
    torch.manual_seed(0)
    ours, h = Layer(8, heads=2), torch.randn(3, 5, 8)
    theirs = nn.TransformerEncoderLayer(8, 2, 32, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    names = {"queries_keys_values.": "self_attn.in_proj_", "out.": "self_attn.out_proj."}
    names |= {"mlp.0.": "linear1.", "mlp.2.": "linear2.", "norm1.": "norm1.", "norm2.": "norm2."}
    for name, value in ours.state_dict().items():
        part, kind = name.rpartition(".")[0] + ".", name.rpartition(".")[2]
        theirs.get_parameter(names[part] + kind).data = value
    torch.testing.assert_close(ours(h), theirs(h))


def test_a_whole_transformer_answers_by_its_class_token():
    net = ViT(SHAPE, layers=0, width=8, heads=2, patch=4)
    torch.testing.assert_close(net(torch.randn(3, *SHAPE)), net.norm(net.patches.others).expand(3, -1))


def test_a_condition_shifts_and_scales_what_a_layer_normalises():
    torch.manual_seed(0)
    layer, h = Layer(8, heads=2, conditioned=True), torch.randn(3, 5, 8)
    shift1, scale1, shift2, scale2 = changes = torch.randn(4, 8)
    layer.modulation.bias.data = changes.flatten()
    plain = Layer(8, heads=2)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "modulation" not in name})
    plain.norm1.weight.data, plain.norm1.bias.data = 1 + scale1, shift1
    plain.norm2.weight.data, plain.norm2.bias.data = 1 + scale2, shift2
    torch.testing.assert_close(layer(h, torch.zeros(1, 1, 8)), plain(h))


@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0])
def test_the_token_of_z_leaves_a_piece_as_the_preconditioning_says(sigma):
    class Says(nn.Module):
        def forward(self, h, condition):
            return torch.ones_like(h)

    block = make(num_blocks=3, **VIT).block(1)
    block.layers, block.head = nn.ModuleList([Says()]), nn.Identity()
    z, root = torch.randn(4, CLASSES), math.sqrt(sigma**2 + 0.25)
    t = torch.full((4,), math.log(sigma) / 4, dtype=torch.float64)
    expected = 0.5 * sigma / root + 0.25 / root**2 * block.embed(z)
    torch.testing.assert_close(block(z / root, batch(4)[0], t), expected, rtol=1e-4, atol=1e-5)


def test_the_noise_level_enters_the_networks_unscaled():
    model, t = make(num_blocks=3), torch.tensor([0.3])
    expected = model.block(1).time_path(sinusoids(t)) @ model.block(1).fuse.weight[:, -model.block(1).parts[2] :].T
    torch.testing.assert_close(model.block(1).time_part(t), expected)


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
    parts = [train(tmp_path / str(t), *flags, "--blocks", t, "--steps", t) / "last.pt" for t in (1, 2)]
    assert main(["--merge", *map(str, parts), "--checkpoint-dir", str(tmp_path / "merged")]) == 0
    assert_equal(weights(tmp_path / "merged"), weights(together))

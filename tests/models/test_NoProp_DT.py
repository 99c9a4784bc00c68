"""The mathematics of section 3: q, the three terms of the loss, where gradients go, and the sampler."""

import math

import pytest
import torch
from conftest import SHAPE, give_oracles, images_of, make_model
from torch.distributions import Categorical, MultivariateNormal, kl_divergence
from torch.nn import functional as F

from models.class_probability import class_log_prob
from models.diffusion import best_classifier, kl_to_noise
from models.NoProp_DT import NoPropNetDT
from models.precision import weighted_embedding
from models.schedules import snr


def test_q_sample_has_mean_and_variance_of_q():
    model = make_model(num_blocks=4, d=3)
    u_y = torch.tensor([1.0, -2.0, 0.5]).expand(200_000, 3)
    generator = torch.Generator().manual_seed(0)
    for t in range(5):
        z_t = model.q_sample(t, u_y, generator)
        alpha_bar = model.alpha_bar[t].item()
        torch.testing.assert_close(z_t.mean(0), math.sqrt(alpha_bar) * u_y[0], atol=0.01, rtol=0)
        torch.testing.assert_close(z_t.var(0), torch.full((3,), 1 - alpha_bar), atol=0.01, rtol=0)


def test_kl_is_that_of_two_gaussians():
    model = make_model(num_blocks=3, d=3)
    u_y, alpha_bar = torch.randn(5, 3), model.alpha_bar[0].float()
    q = MultivariateNormal(alpha_bar.sqrt() * u_y, (1 - alpha_bar) * torch.eye(3))
    expected = kl_divergence(q, MultivariateNormal(torch.zeros(3), torch.eye(3))).mean()
    torch.testing.assert_close(kl_to_noise(model.alpha_bar[0], u_y), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_denoising_term_is_summed_over_d_and_weighted_by_T_eta_and_snr(t):
    model = give_oracles(make_model(num_blocks=3, eta=0.7), shift=1)
    y = torch.tensor([0, 1, 2, 3, 0])
    terms = model.loss(t, images_of(y), y)
    gain = snr(model.alpha_bar)[t] - snr(model.alpha_bar)[t - 1]
    square = 2.0  # |e_i - e_j|^2
    assert terms.denoise.item() == pytest.approx(3 / 2 * 0.7 * gain.item() * square, rel=1e-5)


def test_class_term_is_the_cross_entropy_on_a_sample_of_z_T():
    model = give_oracles(make_model(num_blocks=3))
    with torch.no_grad():  # what is added takes the closed form away and puts 2 z there
        weight, bias = best_classifier(model.alpha_bar_T, model.W_embed)
        model.theta_out.weight.copy_(torch.eye(4) * 2 - weight)
        model.theta_out.bias.copy_(-bias)
    y = torch.zeros(100_000, dtype=torch.int64)
    nll = model.loss(1, images_of(y), y).class_nll.item()
    expected = -Categorical(logits=torch.tensor([2.0, 0, 0, 0])).log_prob(torch.tensor(0)).item()
    assert nll == pytest.approx(expected, abs=0.01)  # z_T is u_y but for a variance of 1e-3


@pytest.mark.parametrize("clip", [(1e-4, 0.999), (1e-4, 0.6)])
def test_theta_out_starts_at_the_posterior_of_q(clip):
    """The law of z_T is known, so is p(y | z_T): untrained, the class head is calibrated."""
    model = make_model(num_blocks=3, d=5, alpha_bar_clip=clip).double()
    alpha_bar, z = model.alpha_bar[-1], torch.randn(50, 5, dtype=torch.float64)
    law = MultivariateNormal(alpha_bar.sqrt() * model.W_embed, (1 - alpha_bar) * torch.eye(5, dtype=torch.float64))
    expected = law.log_prob(z[:, None]).log_softmax(dim=1)  # classes of equal share
    torch.testing.assert_close(model.log_prob(z), expected, rtol=1e-9, atol=1e-9)


def test_theta_out_follows_the_embeddings_as_they_are_learned():
    model = make_model(num_blocks=3, d=5, learn=True)
    with torch.no_grad():
        model.W_embed.mul_(-3)
    z_T = model.q_sample(3, model.W_embed)
    assert model.log_prob(z_T).argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("t", [1, 3])
def test_under_autocast_what_follows_the_network_is_single_precision(t):
    model = make_model(num_blocks=3, d=5, learn=True)
    y, kinds = torch.arange(8) % 4, []
    model.block(t).fuse.register_forward_hook(lambda block, args, out: kinds.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(t, torch.randn(8, *SHAPE), y)
        u_hat = weighted_embedding(torch.randn(8, 4, dtype=torch.bfloat16), model.W_embed)
    assert kinds == [torch.bfloat16] and u_hat.dtype == torch.float32
    assert {term.dtype for term in terms} <= {torch.float32, torch.float64}


def test_block_t_is_trained_at_the_noise_level_at_which_it_is_used():
    model = give_oracles(make_model(num_blocks=4))
    seen = {}

    def record(t):
        def hook(block, args):
            seen[t] = args[0].var().item()

        return hook

    y = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(0))
    x = images_of(y)
    for t in range(1, 5):
        model.block(t).register_forward_pre_hook(record(t))
        model.loss(t, x, y)
    path = [z for z, _ in model.denoise(x, [torch.Generator().manual_seed(1)])]
    for t in range(1, 5):
        assert seen[t] == pytest.approx(path[t - 1].var().item(), rel=0.05)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("learn", [True, False])
def test_gradients_of_block_t_stay_inside_it_and_the_shared_parameters(t, learn):
    model = make_model(num_blocks=3, d=5, learn=learn)
    y = torch.randint(4, (6,))
    sum(model.loss(t, torch.randn(6, *SHAPE), y)).backward()
    expected = {f"blocks.{t - 1}", "theta_out"} | ({"W_embed"} if learn else set())
    reached = {
        ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    assert reached == expected
    assert all(p.grad is not None for p in model.block(t).parameters())


def test_learned_embeddings_get_gradient_and_fixed_ones_are_buffers():
    assert "W_embed" in dict(make_model(d=5, learn=True).named_parameters())
    fixed = make_model()
    assert "W_embed" in dict(fixed.named_buffers())
    assert torch.equal(fixed.W_embed, torch.eye(4))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("T", [1, 5])
def test_a_perfect_denoiser_carries_q_to_q_through_the_sampling_code(schedule, T):
    model = give_oracles(make_model(num_blocks=T, d=3, schedule=schedule))
    y = torch.ones(100_000, dtype=torch.int64)
    u_y = model.W_embed[1]
    path = model.denoise(images_of(y), [torch.Generator().manual_seed(0)])
    for t, (z, _) in enumerate(path):
        alpha_bar = model.alpha_bar[t].float()
        # z_0 starts at N(0, I) where q(z_0 | y) has mean 0.01 u_y, a difference that steps only shrink
        torch.testing.assert_close(z[0].mean(0), alpha_bar.sqrt() * u_y, atol=0.04, rtol=0)
        torch.testing.assert_close(z[0].var(0), (1 - alpha_bar).expand(3), atol=0.02, rtol=0.03)


def test_one_step_keeps_q_in_closed_form():
    model = make_model(num_blocks=10, d=2)
    u_y = torch.tensor([[1.5, -0.5]])
    for t in range(1, 11):
        previous, now = model.alpha_bar[t - 1], model.alpha_bar[t]
        mean = model.step(t, previous.sqrt() * u_y, u_y)
        torch.testing.assert_close(mean, now.sqrt().float() * u_y)
        a, b, c = model.coefficients(t)
        assert (b**2 * (1 - previous) + c).item() == pytest.approx((1 - now).item(), rel=1e-12)


def test_deterministic_inference_starts_at_zero_and_draws_nothing():
    model = make_model().eval()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    x = torch.randn(5, *SHAPE)
    path = [z for z, _ in model.infer(x, [generator], stochastic=False)]
    assert torch.count_nonzero(path[0]) == 0
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(path[-1], [z for z, _ in model.infer(x, stochastic=False)][-1])


def test_image_features_are_computed_once_per_image_for_all_runs():
    model = make_model(num_blocks=3).eval()
    images = []
    for block in model.blocks.values():
        block.image_path.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    generators = [torch.Generator().manual_seed(r) for r in range(7)]
    assert model.sample(torch.randn(5, *SHAPE), generators).shape == (7, 5, 4)
    assert images == [5, 5, 5]


def test_a_run_does_not_depend_on_how_many_runs_there_are():
    model = make_model().eval()
    torch.nn.init.normal_(model.theta_out.weight)
    x = torch.randn(5, *SHAPE)
    many = model.sample(x, [torch.Generator().manual_seed(r) for r in range(3)])
    alone = model.sample(x, [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(many[2], alone[0])


@pytest.mark.parametrize("theta_out", ["as it starts", "drawn"])
def test_an_untrained_model_scores_chance(theta_out):
    model = make_model(num_blocks=5, m=10).eval()
    if theta_out == "drawn":
        torch.nn.init.normal_(model.theta_out.weight)
    y = torch.arange(2000) % 10
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2000, *SHAPE, generator=generator)
    p = model.sample(x, [generator])[0]
    assert (p.argmax(1) == y).float().mean().item() == pytest.approx(0.1, abs=0.04)


def test_the_class_head_sees_z_only():
    model = make_model(d=5)
    torch.nn.init.normal_(model.theta_out.weight)
    assert model.theta_out.in_features == 5
    z = torch.randn(2, 5)
    logits = model.theta_out(z) + F.linear(z, *best_classifier(model.alpha_bar_T, model.W_embed))
    torch.testing.assert_close(model.log_prob(z), logits.log_softmax(1))


def test_posterior_is_the_radial_distance_of_equations_15_and_16():
    logits, W, sigma = torch.randn(6, 4), torch.randn(4, 3), 0.7
    y_tilde, sigma_in_units = logits.softmax(1) @ W, sigma / torch.pdist(W).min().item()
    distance = torch.cdist(y_tilde, W) ** 2
    expected = (-distance / (2 * sigma**2)).softmax(1)
    actual = class_log_prob(logits, W, "posterior", sigma_in_units).exp()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("m", [10, 100])
def test_the_posterior_can_be_sure_by_default(m):
    p = class_log_prob(100 * torch.eye(m), torch.eye(m), "posterior", make_model().posterior_sigma).exp()
    assert p.diagonal().min() > 0.999


def test_u_hat_is_a_convex_combination_of_class_embeddings():
    model = make_model(d=2).eval()
    W = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    u_hat = model.block(1)(torch.randn(50, 2) * 9, torch.randn(50, *SHAPE), W)
    assert u_hat.min() >= 0 and u_hat.max() <= 1


def test_block_size_is_about_that_of_the_paper():
    from models.NoPropBlock import NoPropBlock

    count = sum(p.numel() for p in NoPropBlock((3, 32, 32), 20, 10).parameters())
    assert 2.3e6 < count < 2.7e6


def test_prototype_block_takes_z_as_an_image():
    from models.NoPropBlock import NoPropBlock

    block = NoPropBlock((3, 8, 8), 192, 5, prototype=True)
    W, z, x = torch.randn(5, 192), torch.randn(4, 192), torch.randn(4, 3, 8, 8)
    assert block(z, x, W).shape == (4, 192)
    with pytest.raises(ValueError, match="192"):
        NoPropBlock((3, 8, 8), 20, 5, prototype=True)


def test_inference_builds_no_graph_through_the_blocks():
    *_, (z, weights) = make_model(d=3, learn=True).denoise(torch.randn(2, *SHAPE))
    assert not z.requires_grad and not weights.requires_grad


def test_there_is_no_block_0():
    with pytest.raises(IndexError):
        make_model().block(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_z_0_of_prototypes_does_not_tell_the_class(seed):
    """The best linear classifier of z_0 stays within one point of chance; with a lower end of 1e-4 it would not."""
    generator = torch.Generator().manual_seed(seed)
    W = 48**0.5 * torch.randn(10, 64, generator=generator)  # as long as normalised images of 3 x 32 x 32 pixels
    y, right = torch.arange(40_000) % 10, []
    for clip in (None, (1e-4, 0.999)):
        model = NoPropNetDT(SHAPE, W, prototype=True, num_blocks=2, alpha_bar_clip=clip, blocks=[])
        z_0 = model.q_sample(0, W[y], generator)
        found = F.linear(z_0, *best_classifier(model.alpha_bar[0], W)).argmax(dim=1)
        right.append((found == y).double().mean().item())
    assert abs(right[0] - 0.1) < 0.01 < right[1] - 0.1 - 0.01


def test_the_weights_of_the_loss_follow_a_schedule_that_is_loaded():
    model, other = make_model(num_blocks=3), make_model(num_blocks=3, schedule="linear", alpha_bar_clip=(0.1, 0.7))
    model.load_state_dict(other.state_dict())
    assert (model.loss_weights, model.alpha_bar_T) == (other.loss_weights, other.alpha_bar_T)

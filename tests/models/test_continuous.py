"""Continuous time and flow matching: the learned schedule, the losses, the samplers, features computed once."""

import pytest
import torch
from conftest import SHAPE, images_of
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from models.continuous import draw_times
from models.diffusion import best_classifier, kl_to_noise, q_sample
from models.diffusion_blocks import DiffusionBlocksNet
from models.learned_schedule import LearnedSchedule
from models.NoProp_CT import NoPropNetCT
from models.NoProp_FM import NoPropNetFM
from models.solvers import grid, kept_steps
from models.time_block import TimeBlock, sinusoids

WAYS = [("ancestral", "euler", 200), ("ode", "euler", 1000), ("ode", "heun", 100), ("ode", "dopri5", 50)]


def random_schedule(seed):
    torch.manual_seed(seed)
    schedule = LearnedSchedule()
    for parameter in schedule.parameters():
        nn.init.normal_(parameter, std=2)
    return schedule


class OracleBlock(nn.Module):
    """A perfect denoiser where shift = 0: the first pixel of x is the class. With shift it always errs."""

    def __init__(self, m, shift=0):
        super().__init__()
        self.m, self.shift = m, shift

    def image_part(self, x, generator=None):
        return 1e4 * nn.functional.one_hot((x[:, 0, 0, 0].long() + self.shift) % self.m, self.m).float()

    def time_part(self, t):
        return torch.zeros(len(t), 1)

    def logits(self, z, image_part, time_part, generator=None):
        return image_part

    def forward(self, z, x, t, generator=None):
        return self.image_part(x)


def make_ct(m=4, **kwargs):
    torch.manual_seed(0)
    return NoPropNetCT(SHAPE, torch.eye(m), **kwargs)


def make_fm(m=4, learn=False, **kwargs):
    torch.manual_seed(0)
    return NoPropNetFM(SHAPE, torch.eye(m), learn_embedding=learn, **kwargs)


@pytest.mark.parametrize("seed", range(5))
def test_gamma_falls_strictly_between_its_end_points(seed):
    schedule = random_schedule(seed)
    t = torch.linspace(0, 1, 300, dtype=torch.float64)
    gamma, slope = schedule.gamma_and_slope(t)
    assert (gamma.diff() < 0).all() and (slope < 0).all() and schedule.gamma_0 > schedule.gamma_1
    ends = torch.stack([schedule.gamma_0, schedule.gamma_1]).double()
    torch.testing.assert_close(gamma[[0, -1]], ends, rtol=1e-6, atol=1e-6)
    assert (schedule.alpha_bar_and_snr_slope(t)[1] > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_of_snr_is_that_of_finite_differences(seed):
    schedule, h = random_schedule(seed), 1e-5
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    difference = (torch.exp(-schedule.gamma(t + h)) - torch.exp(-schedule.gamma(t - h))) / (2 * h)
    slope = schedule.alpha_bar_and_snr_slope(t)[1]
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-9)


def test_theta_out_of_ct_starts_at_the_posterior_of_q():
    net = NoPropNetCT(SHAPE, torch.randn(4, 3)).double()
    alpha_bar, z = net.schedule.alpha_bar(net.schedule.ends)[1].detach(), torch.randn(50, 3, dtype=torch.float64)
    law = MultivariateNormal(alpha_bar.sqrt() * net.W_embed, (1 - alpha_bar) * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(net.log_prob(z), law.log_prob(z[:, None]).log_softmax(dim=1), rtol=1e-6, atol=1e-6)


def test_theta_out_of_fm_starts_at_the_embeddings():
    net = NoPropNetFM(SHAPE, torch.eye(4) * 2, learn_embedding=True)
    assert net.theta_out(net.W_embed).argmax(dim=1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(net.theta_out(net.W_embed).diagonal(), torch.ones(4))


def test_the_loss_of_ct_trains_the_schedule_and_stays_monotone():
    net = make_ct()
    y = torch.arange(32) % 4
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    start = {name: p.clone() for name, p in net.schedule.named_parameters()}
    for _ in range(20):
        optimizer.zero_grad()
        sum(net.loss(images_of(y), y)).backward()
        optimizer.step()
    assert all(not torch.equal(start[name], p) for name, p in net.schedule.named_parameters())
    assert (net.schedule.gamma(grid(200, torch.device("cpu"))).diff() < 0).all()


def test_the_denoising_term_integrates_snr():
    """u_hat is another class: 1/2 eta times the integral of SNR' times |e_i - e_j|^2 = 2."""
    net = make_ct(eta=0.7, stratified_time=True)
    net.block = OracleBlock(4, shift=1)
    y = torch.arange(100_000) % 4
    terms = net.loss(images_of(y), y)
    snr_0, snr_1 = torch.exp(-net.schedule.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    assert terms.denoise.item() == pytest.approx(0.7 * (snr_1 - snr_0).item(), rel=1e-4)


class Watches(OracleBlock):
    """Knows the class, and keeps the z and the times that it is asked about."""

    def __init__(self, m):
        super().__init__(m)
        self.asked = []

    def time_part(self, t):
        return t.unsqueeze(1)

    def logits(self, z, image_part, time_part, generator=None):
        self.asked.append((z, time_part))
        return image_part

    def forward(self, z, x, t, generator=None):
        return self.logits(z, self.image_part(x), self.time_part(t))


def test_ct_sees_the_noise_of_the_time_that_it_is_told_and_the_ends_stand_in_their_terms():
    net, y = make_ct(), torch.arange(40_000) % 4
    net.block, u_y = Watches(4), torch.eye(4)[y]
    terms = net.loss(images_of(y), y, torch.Generator().manual_seed(0))
    ((z, t),) = net.block.asked
    level = net.schedule.alpha_bar(t).detach().float()
    eps = (z - level.sqrt() * u_y) / (1 - level).sqrt()
    for part in (eps[t[:, 0] < 0.5], eps[t[:, 0] > 0.5]):
        torch.testing.assert_close(part.mean(0), torch.zeros(4), atol=0.03, rtol=0)
        torch.testing.assert_close(part.std(0), torch.ones(4), atol=0.03, rtol=0)
    noisy, clean = net.schedule.alpha_bar(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(terms.kl, kl_to_noise(noisy, u_y))
    z_1 = q_sample(clean, u_y, torch.Generator().manual_seed(1))
    logits = F.linear(z_1, *best_classifier(clean, torch.eye(4)))
    assert terms.class_nll.item() == pytest.approx(F.cross_entropy(logits, y).item(), rel=0.05)


@pytest.mark.parametrize(
    "make, how", [(make_ct, {"sampler": "ancestral"}), (make_ct, {"sampler": "ode"}), (make_fm, {})]
)
def test_a_step_begins_at_its_time_of_the_grid(make, how):
    net = make()
    net.block = Watches(4)
    net.sample(images_of(torch.tensor([0, 1])), [None], steps=5, **how)
    assert [t.item() for _, t in net.block.asked] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("sampler, solver, steps", WAYS)
def test_a_perfect_denoiser_reproduces_mean_and_deviation_of_q(sampler, solver, steps):
    net = make_ct(m=3)
    net.block = OracleBlock(3)
    n = 40_000
    image_part = net.block.image_part(images_of(torch.zeros(n)))
    generator = torch.Generator().manual_seed(0)
    alpha_bar = net.schedule.alpha_bar(torch.tensor([0.0, *net.times(steps)], dtype=torch.float64)).detach()
    u_y = torch.eye(3)[0]
    z_0 = alpha_bar[0].sqrt() * u_y + (1 - alpha_bar[0]).sqrt() * torch.randn(n, 3, generator=generator)
    with torch.no_grad():
        path = list(net.path(z_0.float(), image_part, [generator], steps, solver, sampler))
    assert len(path) == len(alpha_bar) - 1
    for z, level in zip(path, alpha_bar[1:], strict=True):
        torch.testing.assert_close(z.mean(0), (level.sqrt() * u_y).float(), atol=0.02, rtol=0)
        torch.testing.assert_close(z.std(0), (1 - level).sqrt().float().expand(3), atol=0.02, rtol=0)


class Spy(OracleBlock):
    """Says v = 0 and remembers what it was given."""

    def forward(self, z, x, t, generator=None):
        self.z, self.t = z, t
        return torch.zeros(len(z), 4)


class TrueField(OracleBlock):
    """v = (z_1 - z) / (1 - t), the velocity of the straight line through z that ends at z_1."""

    def time_part(self, t):
        return (1 - t).float().unsqueeze(1)

    def logits(self, z, image_part, time_part, generator=None):
        return (image_part / 1e4 - z) / time_part

    def forward(self, z, x, t, generator=None):
        return self.logits(z, self.image_part(x), self.time_part(t))


def test_the_true_field_has_no_loss():
    net = make_fm(flow_sigma=1e-6)
    net.block = TrueField(4)
    y = torch.arange(1000) % 4
    (flow,) = net.loss(images_of(y), y, torch.Generator().manual_seed(0))
    assert flow.item() < 1e-3


def test_flow_along_the_true_field_ends_at_the_embedding():
    """The last Euler step along it is exact."""
    net = make_fm()
    net.block = TrueField(4)
    y = torch.tensor([0, 1, 2, 3])
    for steps in (1, 7, 50):
        *_, (z, _) = net.denoise(images_of(y), [None, None], steps=steps)
        torch.testing.assert_close(z, torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)
    p = net.sample(images_of(y), [None])
    assert torch.equal(p[0].argmax(dim=1), y)


def test_the_flow_term_is_summed_over_d():
    """v = 0: E |u_y - z_0|^2 = 1 + d."""
    net = make_fm()
    net.block = Spy(4)
    y = torch.arange(100_000) % 4
    (flow,) = net.loss(images_of(y), y, torch.Generator().manual_seed(0))
    assert flow.item() == pytest.approx(5.0, rel=0.01)


def test_flow_sees_z_t_on_the_line_from_noise_to_embedding():
    net = make_fm(flow_sigma=0.5)
    net.block = Spy(4)
    y = torch.zeros(200_000, dtype=torch.int64)
    net.loss(images_of(y), y, torch.Generator().manual_seed(0))
    t = net.block.t.float().unsqueeze(1)
    scaled = (net.block.z - t * torch.eye(4)[0]) / ((1 - t) ** 2 + 0.25).sqrt()
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4), atol=0.01, rtol=0)
    torch.testing.assert_close(scaled.var(0), torch.ones(4), atol=0.02, rtol=0)


def test_the_anchor_trains_learned_embeddings_only():
    y = torch.arange(8) % 4
    for learn, terms in ((False, ("flow",)), (True, ("flow", "anchor"))):
        net = make_fm(learn=learn)
        losses = net.loss(torch.randn(8, *SHAPE), y)
        assert net.loss_terms == terms and len(losses) == len(terms)
        sum(losses).backward()
        assert (net.theta_out.weight.grad is not None) == learn


def test_the_anchor_reads_the_end_of_the_line():
    net, y = make_fm(learn=True, flow_sigma=0.3), torch.arange(1000) % 4
    net.block = TrueField(4)  # from any z_t its line ends at u_y
    _, anchor = net.loss(images_of(y), y, torch.Generator().manual_seed(0))
    expected = F.cross_entropy(net.theta_out(net.W_embed), torch.arange(4))
    torch.testing.assert_close(anchor, expected, rtol=1e-4, atol=1e-5)


def test_the_answer_of_flow_is_the_posterior_of_embeddings_with_noise_of_flow_sigma():
    net = NoPropNetFM(SHAPE, torch.randn(5, 3), flow_sigma=0.3)
    z = torch.randn(2, 40, 3)
    law = MultivariateNormal(net.W_embed, 0.3**2 * torch.eye(3))
    expected = law.log_prob(z.unsqueeze(2)).log_softmax(dim=2)
    torch.testing.assert_close(net.log_prob(z), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [make_ct, make_fm])
def test_image_features_are_computed_once_for_all_steps_and_runs(make):
    net, calls = make().eval(), {"image": 0, "time": 0}
    net.block.image_path.register_forward_hook(lambda *_: calls.update(image=calls["image"] + 1))
    net.block.time_path.register_forward_hook(lambda *_: calls.update(time=calls["time"] + 1))
    assert net.sample(torch.randn(5, *SHAPE), [None] * 3, steps=40).shape == (3, 5, 4)
    assert calls == {"image": 1, "time": 1}


@pytest.mark.parametrize("prototype", [False, True])
def test_the_parts_of_a_block_add_up_to_a_plain_network(prototype):
    d = 64 if prototype else 5
    block = TimeBlock(SHAPE, d, 4, prototype).eval()
    z, x, t = torch.randn(6, d), torch.randn(6, *SHAPE), torch.rand(6)
    features = [block.image_path(x), block.label_path(z), block.time_path(sinusoids(1000 * t))]
    expected = block.head(block.fuse(torch.cat(features, dim=1)).relu())
    torch.testing.assert_close(block(z, x, t), expected, rtol=1e-4, atol=1e-5)
    assert not [part for part in block.modules() if isinstance(part, nn.BatchNorm1d)]


def test_eulers_method_agrees_with_torchdiffeq():
    from torchdiffeq import odeint

    net = make_fm().eval()
    x, z_0 = torch.randn(3, *SHAPE), torch.randn(3, 4)
    with torch.no_grad():
        part = net.block.image_part(x)

        def field(t, z):
            return net.block.logits(z, part, net.block.time_part(t.unsqueeze(0))) @ net.W_embed

        expected = odeint(field, z_0, torch.linspace(0, 1, 101), method="euler")[-1]
        *_, actual = net.path(z_0, part, [None], steps=100)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_stratified_times_lie_one_in_each_part():
    generator = torch.Generator().manual_seed(0)
    t = draw_times(1000, True, generator, torch.device("cpu"))
    assert torch.equal((t * 1000).long(), torch.arange(1000))
    plain = draw_times(100_000, False, generator, torch.device("cpu"))
    assert plain.mean().item() == pytest.approx(0.5, abs=0.005) and plain.std().item() == pytest.approx(
        12**-0.5, rel=0.01
    )


def test_an_unknown_solver_or_sampler_is_no_silent_euler():
    for net, how in ((make_fm(), {"solver": "rk4"}), (make_ct(), {"sampler": "sde"})):
        with pytest.raises(ValueError, match="rk4|sde"):
            net.sample(torch.randn(2, *SHAPE), [None], steps=2, **how)


@pytest.mark.parametrize("steps", [1, 3, 20, 50, 1000])
def test_the_last_step_is_always_shown(steps):
    kept = kept_steps(steps)
    assert kept[-1] == steps and len(kept) == min(steps, 20) and kept == sorted(set(kept))


@pytest.mark.parametrize("kind", [NoPropNetCT, NoPropNetFM, DiffusionBlocksNet])
def test_an_unknown_loss_or_sampler_is_not_taken_for_another(kind):
    with pytest.raises(ValueError, match="no loss 'sqaured'"):
        kind(SHAPE, torch.eye(4), loss="sqaured")
    if kind is not NoPropNetFM:
        with pytest.raises(ValueError, match="no sampler 'ancestrall'"):
            kind(SHAPE, torch.eye(4)).eval().sample(torch.zeros(2, *SHAPE), sampler="ancestrall")

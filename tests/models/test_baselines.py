"""Back-propagation on the blocks of DT, the adjoint method, encoders alone: the same networks, right gradients."""

import pytest
import torch
from conftest import SHAPE, images_of
from helpers import settings, small_data
from torch.nn import functional as F

from assemble import new_model
from models.adjoint import AdjointNet
from models.backprop import BackpropNet
from models.ensemble import EnsembleNet
from models.random_streams import Streams
from runs.report import count_parameters


def build(method, *flags):
    s, streams = settings("--method", method, *flags), Streams(0)
    return new_model(s, small_data(s, streams, count=40), streams)


def test_back_propagation_has_the_very_blocks_of_dt_and_T_scalars():
    dt, baseline = build("dt"), build("backprop")
    assert count_parameters(baseline) == count_parameters(dt) + 3
    states = dt.blocks.state_dict(), baseline.blocks.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_one_step_of_back_propagation_reaches_every_block():
    net = build("backprop")
    y = torch.arange(16) % 4
    sum(net.loss(images_of(y) + torch.randn(16, *SHAPE), y)).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_inference_is_the_chain_that_was_trained():
    net = BackpropNet(SHAPE, torch.eye(4), num_blocks=3).eval()
    x, y = torch.randn(6, *SHAPE), torch.arange(6) % 4
    (loss,) = net.loss(x, y, torch.Generator().manual_seed(1))
    p = net.sample(x, [torch.Generator().manual_seed(1)])[0]
    torch.testing.assert_close(F.nll_loss(p.log(), y), loss)
    alpha = net.w.tanh()
    steps = [z for z, _ in net.denoise(x, [torch.Generator().manual_seed(1)])]
    u_hat = net.blocks["0"](steps[0][0], x, net.W_embed)
    torch.testing.assert_close(steps[1][0], (1 - alpha[0]) * steps[0][0] + alpha[0] * u_hat)


def adjoint_errors(steps, prototype=False):
    """Relative error of the adjoint gradient of every parameter against back-propagation through the solver."""
    from torchdiffeq import odeint

    torch.manual_seed(0)
    W = torch.randn(4, 64) / 8 if prototype else torch.eye(4)
    net = AdjointNet(SHAPE, W, steps=[steps], learn_embedding=True, prototype=prototype).double()
    for module in net.modules():
        if hasattr(module, "drop"):
            module.drop = 0.0
    x, y = torch.randn(8, *SHAPE).double(), torch.arange(8) % 4
    (loss,) = net.loss(x, y, torch.Generator().manual_seed(0))
    loss.backward()
    adjoint = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    state = net.noise([torch.Generator().manual_seed(0)], 8)[0], net.block.image_part(x)
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    path, _ = odeint(net.field, state, times, method="euler")
    plain_loss = F.nll_loss(net.log_prob(path[-1]), y)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-6)
    plain_loss.backward()
    return {name: ((adjoint[name] - p.grad).norm() / p.grad.norm()).item() for name, p in net.named_parameters()}


def test_the_adjoint_gradient_tends_to_that_of_back_propagation_for_the_encoder_too():
    coarse, fine = adjoint_errors(10), adjoint_errors(80)
    assert {"block.image_path.conv1.weight", "block.time_path.0.weight", "W_embed", "theta_out.weight"} <= fine.keys()
    assert max(fine.values()) < 0.06
    assert max(fine.values()) < max(coarse.values()) / 4  # of first order: an eighth


def test_the_adjoint_gradient_is_right_for_prototypes():
    assert max(adjoint_errors(80, prototype=True).values()) < 0.06


def test_the_neural_ode_answers_along_the_field_that_was_trained():
    net = AdjointNet(SHAPE, torch.eye(4), steps=[5]).eval()
    x, y = torch.randn(6, *SHAPE), torch.arange(6) % 4
    (loss,) = net.loss(x, y, torch.Generator().manual_seed(1))
    p = net.sample(x, [torch.Generator().manual_seed(1)])[0]  # in as many steps, unless told otherwise
    torch.testing.assert_close(F.nll_loss(p.log(), y), loss)


@pytest.mark.parametrize("steps", [3, 7, 49, 100])
def test_adjoint_takes_exactly_the_steps_asked_for(steps):
    net, calls = AdjointNet(SHAPE, torch.eye(4), steps=[steps]), []
    net.block.head.register_forward_hook(lambda *_: calls.append(1))
    (loss,) = net.loss(torch.randn(2, *SHAPE), torch.tensor([0, 1]))
    assert len(calls) == steps
    loss.backward()
    assert len(calls) == 2 * steps


def test_an_ensemble_is_the_mean_of_its_members():
    net, x = EnsembleNet(SHAPE, torch.eye(4), num_blocks=3).eval(), torch.randn(5, *SHAPE)
    *_, (z, _) = net.denoise(x, [None, None])
    mean = torch.stack([member(x).softmax(dim=1) for member in net.blocks.values()]).mean(dim=0)
    torch.testing.assert_close(z, mean.expand(2, -1, -1))

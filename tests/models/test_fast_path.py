"""The fast path against a plain one, written here: same weights, same streams, same losses and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hardware.device import compile_networks
from models.NoProp_DT import NoPropNetDT

SHAPE, T, B, M, ETA = (3, 16, 12), 3, 24, 5, 0.1


def make_net(d=None):
    torch.manual_seed(0)
    W = torch.eye(M) if d is None else torch.randn(M, d)
    net = NoPropNetDT(SHAPE, W, num_blocks=T, learn_embedding=d is not None, eta=ETA)
    with torch.no_grad():
        net.theta_out.weight.normal_()
    return net.to(memory_format=torch.channels_last).train()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, *SHAPE, generator=generator), torch.arange(B) % M


def generators():
    return torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)


def plain_dropout(h, generator):
    """h (B, C, H, W), NCHW: booleans from 8 random bits each, drawn in the order (B, H, W, C)."""
    batch, channels, height, width = h.shape
    level = (torch.rand(batch, 1, 1, 1, generator=generator) + 0.2 * 256).floor()
    words = torch.empty(batch, h[0].numel() // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int8).view(batch, height, width, channels).permute(0, 3, 1, 2)
    return torch.where(bits.int() + 128 < level, 0.0, h / 0.8)


def plain_block(block, z, x, W_embed, drop):
    """Figure 6 of the paper, in its own order: convolution, ReLU, pooling, dropout."""
    path = block.image_path
    h = plain_dropout(F.max_pool2d(path.conv1(x.contiguous()).relu(), 2), drop)
    h = plain_dropout(path.conv2(h).relu(), drop)
    h = plain_dropout(F.max_pool2d(path.conv3(h).relu(), 2), drop)
    features = path.norm(path.fc(h.permute(0, 2, 3, 1).flatten(1)))
    label = block.label_path.embed(z)
    label = label + block.label_path.residual(label)
    return block.fuse(torch.cat([features, label], dim=1)).softmax(dim=1) @ W_embed


def plain_loss(net, t, x, y, noise, drop):
    """Eq. 8, term by term."""
    alpha_bar, u_y = net.alpha_bar, net.W_embed[y]
    z_T = alpha_bar[T].sqrt() * u_y + (1 - alpha_bar[T]).sqrt() * torch.empty_like(u_y).normal_(generator=noise)
    z = alpha_bar[t - 1].sqrt() * u_y + (1 - alpha_bar[t - 1]).sqrt() * torch.empty_like(u_y).normal_(generator=noise)
    a_T = alpha_bar[T]
    best = (a_T.sqrt() * z_T @ net.W_embed.T - a_T / 2 * net.W_embed.square().sum(1)) / (1 - a_T)
    class_nll = F.cross_entropy(best + z_T @ net.theta_out.weight.T + net.theta_out.bias, y)
    a, d = alpha_bar[0], u_y.shape[1]
    kl = 0.5 * (a * u_y.square().sum(1) - d * a - d * torch.log(1 - a)).mean()
    gain = alpha_bar[t] / (1 - alpha_bar[t]) - alpha_bar[t - 1] / (1 - alpha_bar[t - 1])
    error = (plain_block(net.block(t), z, x, net.W_embed, drop) - u_y).square().sum(1).mean()
    return class_nll, kl, T / 2 * ETA * gain * error


def gradients(net, terms):
    net.zero_grad()
    sum(terms).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of each tensor; biases before a batch norm have a gradient of zero."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-4)
        assert (actual[name] - value).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("d", [None, 7])
@pytest.mark.parametrize("t", [1, T])
def test_losses_and_gradients_are_those_of_a_plain_block(t, d):
    """In double precision, so that nothing but the mathematics can differ."""
    net, (x, y) = make_net(d).double(), batch()
    x = x.double()
    fast = net.loss(t, x.contiguous(memory_format=torch.channels_last), y, *generators())
    fast_gradients = gradients(net, fast)
    plain = plain_loss(net, t, x, y, *generators())
    torch.testing.assert_close(torch.stack(fast), torch.stack(plain), rtol=1e-9, atol=1e-12)
    assert_close(fast_gradients, gradients(net, plain), 1e-9)
    assert {"theta_out.weight", f"blocks.{t - 1}.image_path.conv1.weight"} <= fast_gradients.keys()


def test_in_single_precision_losses_agree_to_1e_5():
    net, (x, y) = make_net(), batch()
    fast = net.loss(2, x.contiguous(memory_format=torch.channels_last), y, *generators())
    plain = plain_loss(net, 2, x, y, *generators())
    torch.testing.assert_close(torch.stack(fast).double(), torch.stack(plain).double(), rtol=1e-5, atol=1e-6)


def test_each_layer_of_a_list_is_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    network = nn.Module()
    network.first, network.layers = nn.Linear(1, 1), nn.ModuleList([nn.Linear(1, 1), nn.ReLU()])
    compile_networks([network])
    assert compiled == [network.first, *network.layers]


def test_compiled_blocks_agree_with_plain_ones(monkeypatch):
    compile_module = nn.Module.compile
    # the tracing of --compile without the C++ compiler, which takes a minute
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    x, y = batch()
    x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for compiled in (False, True):
        net = make_net()
        if compiled:
            compile_networks(net.networks.values())
        terms = net.loss(2, x, y, *generators())
        results.append((torch.stack(terms), gradients(net, terms)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    assert_close(results[1][1], results[0][1], 1e-4)

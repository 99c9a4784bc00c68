"""The path of CUDA, looked after where there is no GPU: on tensors that have a device but no values.

torch's fake mode raises where an operation mixes devices. Out of its reach is what needs values or the driver: dopri5
(torchdiffeq calls `unique`), the counts of an evaluation (`bincount`), offloaded blocks, CUDA's own random numbers.
"""

from contextlib import contextmanager

import pytest
import torch
import torchdiffeq  # noqa: F401  imported in fake mode it would keep fake constants for the tests after these
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import assemble
from data import training_data
from loaders import RawImages
from models.methods import METHODS
from models.random_streams import Streams
from rules import parse, settle

CUDA = torch.device("cuda:0")
FLAGS = {
    "dt": [],
    "ct": ["--stratified-time", "--steps", 3, "--sampler", "ancestral,ode", "--solver", "euler,heun"],
    "fm": ["--steps", 3, "--solver", "euler,heun"],
    "backprop": ["--num-blocks", 3, "--class-probability", "posterior"],
    "adjoint": ["--steps", 3],
    "diffusionblocks": ["--num-blocks", 3],
}
with_cuda_build = pytest.mark.skipif(  # in the other, autograd ends the whole process at a fake CUDA tensor
    not torch.backends.cuda.is_built(), reason="torch's build for the CPU alone knows no CUDA tensors"
)

asks_no_driver = pytest.mark.skipif(
    torch.__version__ < (2, 14), reason="torch 2.6 asks the driver also of tensors without values, torch 2.14 does not"
)


class StandIn(torch.Generator):
    """A CPU generator that says it is on the device it was asked for: one of CUDA cannot be made without a GPU."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.asked_for = torch.device(device)
        return generator

    device = property(lambda self: self.asked_for)


class Watch(TorchFunctionMode):
    """Wants every draw from a generator on the device of what is drawn: fake mode does not look at generators."""

    draws, in_bfloat16 = 0, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.in_bfloat16 |= isinstance(result, Tensor) and result.dtype == torch.bfloat16
        if (generator := (kwargs or {}).get("generator")) is not None:
            self.draws += 1
            assert generator.device == result.device, f"{func} draws on {result.device} from {generator.device}"
        return result


def walk_back(outputs, gradients, keep, create, inputs, *_, accumulate_grad, **__):
    """Stands in for the loop of torch's backward pass, which asks the driver for the GPU; its functions are called."""
    arrived = {}  # function -> the gradients of its outputs so far; those of the leaves stay in it

    def arrive(node, slot, gradient):
        if node is not None and gradient is not None:
            like = node._input_metadata[slot]
            assert gradient.device == like.device, f"{node} gets a gradient on {gradient.device}"
            gradient = gradient.sum_to_size(like.shape).to(like.dtype)
            slots = arrived.setdefault(node, [None] * len(node._input_metadata))
            slots[slot] = gradient if slots[slot] is None else slots[slot] + gradient

    for output, gradient in zip(outputs, gradients, strict=True):
        arrive(*get_gradient_edge(output)[:2], gradient)
    with torch.no_grad():
        while inner := [node for node in arrived if not hasattr(node, "variable")]:
            last = max(inner, key=lambda node: node._sequence_nr())
            edges, slots = last.next_functions, arrived.pop(last)
            if hasattr(last, "needs_input_grad"):  # written in Python: it answers for arguments that are no tensors too
                results = [g for g, needed in zip(last.apply(*slots), last.needs_input_grad, strict=True) if needed]
                edges = [edge for edge in edges if edge[0] is not None]
            elif not isinstance(results := last(*slots), tuple):
                results = (results,)
            for edge, gradient in zip(edges, results, strict=True):
                arrive(*edge, gradient)
    if accumulate_grad:
        for leaf, (gradient,) in arrived.items():
            leaf.variable.grad = gradient if leaf.variable.grad is None else leaf.variable.grad + gradient
    return tuple(arrived.get(get_gradient_edge(x).node, [None])[0] for x in inputs)


@contextmanager
def fake_cuda(monkeypatch):
    monkeypatch.setattr(torch, "Generator", StandIn)
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", walk_back)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else Module.to keeps the real parameters
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
            yield watch
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def give_any_value(monkeypatch):
    """A value that the CPU asks for is made up: devices do not depend on it."""
    monkeypatch.setattr(Tensor, "item", lambda tensor: 0.5)
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: [0.5] * len(tensor))
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: True)


def parts_of_a_trainer(*flags):
    """Return settings, model and data of a training on 96 random images of 4 classes, on the CPU."""
    s = settle(*parse(["--dataset", "digits", "--batch-size", "32", "--val-fraction", "0.25", *map(str, flags)]))
    images = torch.randint(255, (128, 8, 8, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    streams = Streams(s.seed)
    data = training_data(RawImages(images, torch.arange(128) % 4, list("abcd")), s.val_fraction, streams)
    return s, assemble.new_model(s, data, streams).train(), data


def make_trainer(*flags):
    s, model, data = parts_of_a_trainer(*flags)
    return assemble.make_trainer(s, model, data, Streams(s.seed))


def train_step(trainer, indices):
    blocks = [2] if len(trainer.updates.parts) > 1 else [1]
    (terms,) = trainer.updates.step(blocks, trainer.batches.batch(indices, 1, 0)).values()
    return terms


@with_cuda_build
@asks_no_driver
@pytest.mark.parametrize(("embedding", "amp"), [("one-hot", True), ("learned", False), ("prototype", True)])
@pytest.mark.parametrize("method", FLAGS)
def test_training_and_inference_on_cuda_mix_no_devices(method, embedding, amp, monkeypatch):
    flags = ["--method", method, "--embedding-type", embedding, "--augment", *FLAGS[method], *["--amp"] * amp]
    s, model, data = parts_of_a_trainer(*flags)  # as in main.py all is made on the CPU, then moved
    with fake_cuda(monkeypatch) as watch:
        if method == "adjoint":
            give_any_value(monkeypatch)  # it reads the ends of its path; for the others .item() raises
        streams = Streams(0, CUDA)
        data.train = data.train.to(CUDA)
        trainer = assemble.make_trainer(s, model.to(CUDA), data, streams)
        indices = trainer.batches.indices(streams.get("order", device="cpu"))[0]
        assert indices.device == train_step(trainer, indices).device == CUDA
        assert watch.draws > 4 and watch.in_bfloat16 == amp
        assert {p.device for p in model.parameters()} == {CUDA}

        give_any_value(monkeypatch)  # ancestral sampling reads its coefficients once, before its steps
        model.eval()
        generators = [streams.fresh("validation", run) for run in range(2)]
        for how in [*s.ways, {"stochastic": False}]:
            *_, (z, _) = model.infer(data.info.normalise(data.train.images), generators, **how)
            assert z.device == model.log_prob(z).device == CUDA


@pytest.mark.parametrize("method", FLAGS)
def test_the_walk_back_gives_the_gradients_of_torch(method, monkeypatch):
    _, model, _ = parts_of_a_trainer("--method", method, *FLAGS[method])
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    found = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        sum(model.loss(*[2] * METHODS[method].blocks_alone, x, y)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        monkeypatch.setattr(torch.autograd, "_engine_run_backward", walk_back)
    torch.testing.assert_close(found[1], found[0])


@with_cuda_build
def test_a_draw_on_cuda_from_a_stream_of_the_cpu_is_noticed(monkeypatch):
    with fake_cuda(monkeypatch), pytest.raises(AssertionError, match="draws on cuda:0 from cpu"):
        torch.randn(3, device=CUDA, generator=Streams(0, "cpu").get("noise"))


@pytest.mark.parametrize("method", ["dt", "ct", "fm", "backprop"])  # torchdiffeq's adjoint method looks at its times
def test_a_training_step_does_not_wait_for_the_device(method, monkeypatch):
    def wait(*args, **kwargs):
        raise AssertionError("the step waits for the device")

    trainer = make_trainer("--method", method, "--augment", "--clip-grad-norm", 1)
    train_step(trainer, torch.arange(32))  # the first one makes what is kept
    for name in ("new_tensor", "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, wait)
    monkeypatch.setattr(torch, "tensor", wait)  # its values would be copied from the CPU
    train_step(trainer, torch.arange(32))


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view  # a view starts nothing on the device
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("embedding", ["one-hot", "learned"])
def test_a_step_of_a_block_stays_in_its_budget_of_operations(embedding):
    """On a GPU a small step takes as long as it takes to start its operations, whatever their size."""
    trainer = make_trainer("--embedding-type", embedding)
    batch = trainer.batches.batch(torch.arange(32), 1, 0)
    trainer.updates.update_block(2, batch.x, batch.y)  # the first one makes the state of the optimizer too
    with CountOperations() as operations:
        trainer.updates.update_block(2, batch.x, batch.y)
    assert 100 < operations.count <= 220  # 183 and 201

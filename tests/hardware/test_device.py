"""Which device a process takes, what CPU and CUDA may not mix in silence, and what counts as out of memory."""

import mmap
import shutil

import pytest
import torch
from helpers import as_if_on_cuda

from errors import UserError
from hardware.device import compile_networks, numerics, pick_device, set_numerics
from hardware.memory import is_out_of_memory, peak_memory, reset_peak_memory
from models.random_streams import Streams
from parallel.ranks import choose_backend
from rules import parse
from runs.checkpoint import load_checkpoint, save_checkpoint


def pick(*flags, rank=0):
    s, _ = parse(list(flags))
    return pick_device(s.device, s.no_cuda, rank)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("flags", [(), ("--device", "cuda")])
@pytest.mark.parametrize("rank, index", [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_a_cuda_device_has_its_index_and_ranks_share_what_there_is(two_gpus, flags, rank, index):
    assert pick(*flags, rank=rank) == torch.device("cuda", index)


def test_a_device_that_is_named_is_taken(two_gpus):
    assert pick("--device", "cuda:1") == torch.device("cuda:1")
    assert pick("--device", "cpu") == pick("--no-cuda") == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:2: torch finds 2"):
        pick("--device", "cuda:2")


@pytest.mark.parametrize("devices, ranks, backend", [(0, 2, "gloo"), (2, 2, "nccl"), (1, 2, "cuda:gloo")])
def test_ranks_that_share_a_gpu_do_not_use_nccl(devices, ranks, backend):
    assert choose_backend(devices, ranks).endswith(backend)


def test_a_driver_that_is_too_old_is_told_in_one_line(monkeypatch, capsys):
    def is_available():
        import warnings

        warnings.warn(
            "CUDA initialization: The NVIDIA driver\non your system is too old (Triggered internally at x.cpp)",
            stacklevel=2,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert pick() == torch.device("cpu")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "driver on your system is too old" in err


@pytest.mark.parametrize(
    "words, counts",
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_out_of_memory_is_known_in_all_of_torchs_words(words, counts):
    assert is_out_of_memory(RuntimeError(words)) == counts


def test_peak_memory_forgets_what_was_before_its_reset():
    cpu = torch.device("cpu")
    with mmap.mmap(-1, 200_000_000) as big:  # goes back to the system at once
        big.write(bytes(200_000_000))
        before = peak_memory(cpu)["peak_memory_bytes"]
    reset_peak_memory(cpu)
    assert before - peak_memory(cpu)["peak_memory_bytes"] > 100e6


def test_numerics_are_set_for_cuda_and_left_on_a_cpu(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = numerics()
    set_numerics(torch.device("cpu"), deterministic=True)
    assert numerics() == before
    try:
        set_numerics(torch.device("cuda:0"), deterministic=True)
        assert numerics() == {
            "deterministic": True,
            "cudnn_benchmark": False,
            "tf32": False,
            "cublas_workspace": ":4096:8",
        }
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_that_goes_on_on_another_device_says_that_it_draws_new_noise(digits_run, run_main, tmp_path):
    content = load_checkpoint(digits_run / "last.pt")
    save_checkpoint(tmp_path / "last.pt", as_if_on_cuda(content))
    code, out, _ = run_main("--checkpoint", tmp_path / "last.pt", "--epochs", 3)
    assert code == 0 and any("begin new streams" in line for line in out)
    streams = Streams(0)
    streams.load_state_dict(as_if_on_cuda(content)["streams"])
    assert torch.equal(streams.get("order", device="cpu").get_state(), content["streams"]["states"]["order/0"][1])
    assert torch.equal(streams.get("noise", 1).get_state(), Streams(0).get("noise", 1).get_state())


def test_mps_is_refused_in_one_line_that_says_what_it_lacks():
    with pytest.raises(UserError, match="lacks float64"):
        pick_device("mps")


def test_without_a_compiler_compile_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"install g\+\+, or leave --compile out"):
        compile_networks([])

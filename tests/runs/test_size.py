"""What a training says of its size before it begins, and that one that does not fit is refused before it takes any."""

import pytest
import torch
from conftest import FOUR_BLOCKS
from helpers import settings

from hardware.memory import _limits_of_groups, bytes_of
from models.image_info import ImageInfo
from models.methods import METHODS
from runs.checkpoint import load_checkpoint
from runs.size import describe_choice, describe_classes, describe_size, expected_size

CPU = torch.device("cpu")
LEARNED = "learned prototype"


def size_of(side, *flags, device=CPU, ranks=1):
    info = ImageInfo(list("abcd"), (3, side, side), [0.0] * 3, [1.0] * 3)
    s = settings(*flags)
    held = range(1, s.num_blocks + 1) if METHODS[s.method].blocks_alone else None
    return expected_size(s, info, held, device, ranks)


def test_bytes_of_a_calculation_are_its_largest_sum_of_living_tensors():
    def calculate():
        x = torch.empty(1000, device="meta")
        for _ in range(5):
            x = x + 1  # beside the one before
        return x.view(10, 100)

    assert bytes_of(calculate) == 8000


def test_parameters_and_checkpoint_are_those_of_the_training(digits_run):
    info, content = ImageInfo(list("0123456789"), (1, 8, 8), [0.0], [1.0]), load_checkpoint(digits_run / "last.pt")
    size = expected_size(settings("--embedding-type", "one-hot"), info, [1, 2, 3], CPU)
    assert size.parameters == sum(v.numel() for k, v in content["model"].items() if k.endswith(("weight", "bias")))
    assert size.checkpoint / 2 < (digits_run / "last.pt").stat().st_size < size.checkpoint * 1.1


@pytest.mark.parametrize(
    "method, embedding",
    [
        (name, kind)
        for name, method in METHODS.items()
        for kind in method.defaults.get("embedding_type", LEARNED).split()
    ],
)
def test_larger_images_and_batches_take_more_memory(method, embedding, monkeypatch):
    monkeypatch.setattr("runs.size.memory_now", lambda device: 0)
    flags = ["--method", method, "--embedding-type", embedding]
    small, large = (size_of(side, *flags, "--eval-runs", 1) for side in (8, 32))
    many = size_of(32, *flags, "--batch-size", 512, "--eval-runs", 1)
    assert small.memory < large.memory < many.memory and large.parameters == many.parameters > small.parameters
    layer = 512 * 32 * 32 * 32 * 4  # bytes of the first convolution's output
    assert layer < many.memory < 40 * layer


def test_the_tokens_of_a_transformer_are_counted_for_each_noise_level_and_not_for_each_run(monkeypatch):
    monkeypatch.setattr("runs.size.memory_now", lambda device: 0)
    flags = ["--method", "diffusionblocks", "--network", "vit", "--embedding-type", "one-hot", "--noise-levels"]
    one, four = size_of(32, *flags, 1, "--eval-runs", 1), size_of(32, *flags, 4, "--eval-runs", 50)
    tokens = 2 * 4 * 128 * 65 * 128 * 4  # bytes of one layer's input: 128 images, 65 tokens, width 128
    assert tokens < four.memory - one.memory < 100 * tokens


def test_a_rank_needs_memory_for_its_part_of_a_batch(monkeypatch):
    monkeypatch.setattr("runs.size.memory_now", lambda device: 0)
    flags = ["--method", "ct", "--batch-size", 2048, "--eval-runs", 1]
    assert size_of(32, *flags, ranks=4).memory < size_of(32, *flags).memory / 2


def test_photographs_are_refused_in_one_line_before_anything_is_built(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.size.memory_limit", lambda device: 4 * 10**8)
    monkeypatch.setattr("main.make_model", lambda *_: pytest.fail("a network was built"))
    code, out, err = run_main(*FOUR_BLOCKS, "--checkpoint-dir", tmp_path / "run")
    assert (code, out, len(err)) == (2, [], 1) and "does not fit" in err[0] and "lower --image-size" in err[0]


def test_more_than_half_of_the_memory_is_told(monkeypatch):
    monkeypatch.setattr("runs.size.memory_now", lambda device: 10**9)
    monkeypatch.setattr("runs.size.memory_limit", lambda device: 2 * 10**9)
    assert "\nthat is more than half of the memory" in describe_size(size_of(8))
    monkeypatch.setattr("runs.size.memory_limit", lambda device: 10**11)
    assert "\n" not in describe_size(size_of(8))
    monkeypatch.setattr("runs.size.memory_limit", lambda device: None)
    assert "it will take about 1.1 GB in memory" in describe_size(size_of(8))


def test_the_smallest_limit_of_the_groups_around_a_process_counts(tmp_path):
    own, groups = tmp_path / "proc/self/cgroup", tmp_path / "sys/fs/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text("4:memory:/job\n0::/slice/job\n")
    for folder, name, limit in (("slice", "memory.max", "3000"), ("slice/job", "memory.max", "max")):
        (groups / folder).mkdir(parents=True, exist_ok=True)
        (groups / folder / name).write_text(f"{limit}\n")
    (groups / "memory").mkdir()
    (groups / "memory/memory.limit_in_bytes").write_text("5000\n")
    assert sorted(_limits_of_groups(tmp_path)) == [3000, 5000]
    assert _limits_of_groups(tmp_path / "none") == []


def test_classes_are_told_one_by_one_or_where_they_are_many_by_their_ends():
    assert describe_classes(torch.tensor([0, 1, 1]), ["a", "b\n"]) == "training images by class: a 1, b\\n 2"
    labels = torch.cat([torch.arange(20), torch.tensor([3, 3])])
    told = describe_classes(labels, [f"c{y}" for y in range(20)])
    assert told == "training images in each of 20 classes: from 1 (c0) to 3 (c3)"
    assert len(describe_classes(torch.tensor([0]), ["x" * 300])) < 70


def test_the_standard_error_of_a_choice_is_that_of_its_number_of_images():
    assert describe_choice(100).endswith("is then 90 +- 3.0 %")

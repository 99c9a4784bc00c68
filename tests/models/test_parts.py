"""Small parts: pooling before ReLU, dropout, embeddings, random streams."""

import pytest
import torch
from torch.nn import functional as F

from models.dropout import relu_dropout
from models.embeddings import initial_embedding, medoid, one_hot_embedding, prototype_indices
from models.encoders.paper import PaperCNN
from models.random_streams import Streams


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 12, 9), (1, 4, 4)])
def test_image_path_equals_relu_before_pooling_with_its_gradients(shape, layout):
    path = PaperCNN(shape, drop=0.0).double()  # batch norm over four images magnifies the rounding of float32
    x = torch.randn(4, *shape, dtype=torch.float64).contiguous(memory_format=layout)
    h = F.max_pool2d(path.conv1(x).relu(), 2)
    h = path.conv2(h).relu()
    h = F.max_pool2d(path.conv3(h).relu(), 2)
    expected = path.norm(path.fc(h.permute(0, 2, 3, 1).flatten(1)))
    gradients = torch.autograd.grad(expected.square().sum(), path.parameters())
    actual = path(x)
    torch.testing.assert_close(actual, expected)
    for g, e in zip(torch.autograd.grad(actual.square().sum(), path.parameters()), gradients, strict=True):
        torch.testing.assert_close(g, e)


def test_dropout_keeps_the_stated_share_scaled_and_element_wise():
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(20_000, 10, 7, 7)  # ten million elements: the share is known to 1.3e-4
    out = relu_dropout(x, 0.2, generator)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    kept = out != 0
    assert kept.double().mean().item() == pytest.approx(0.8, abs=3e-4)  # 51 or 52 of 256 would be 8e-4 and more off
    of_image = kept.double().mean(dim=(1, 2, 3))  # (20000,), binomial but for 1/256 between the two levels
    assert of_image.std().item() == pytest.approx((0.16 / 490) ** 0.5, rel=0.03)
    neighbours = (kept[..., 1:] & kept[..., :-1]).double().mean().item()
    channels = (kept[:, 1:] & kept[:, :-1]).double().mean().item()
    assert neighbours == pytest.approx(0.64, abs=1e-3)
    assert channels == pytest.approx(0.64, abs=1e-3)


def test_relu_dropout_equals_relu_then_a_mask_with_its_gradient():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = relu_dropout(x * 1, 0.5, torch.Generator().manual_seed(1))
    ones = relu_dropout(torch.ones_like(x), 0.5, torch.Generator().manual_seed(1))  # 0 where dropped, else 2
    expected = x.relu() * ones
    assert torch.equal(out, expected) and 0 < (ones == 0).sum() < ones.numel()
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (out, expected)]
    assert torch.equal(gradients[0], gradients[1])


def test_dropout_is_off_in_evaluation():
    path = PaperCNN((1, 8, 8)).eval()
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(path(image), path(image))


def test_one_hot_is_the_identity_and_orthogonal_rows_are_orthonormal():
    assert torch.equal(one_hot_embedding(4), torch.eye(4))
    W = initial_embedding(10, 20, "orthogonal", torch.Generator().manual_seed(0))
    torch.testing.assert_close(W @ W.T, torch.eye(10), rtol=0, atol=1e-5)
    with pytest.raises(ValueError):
        initial_embedding(10, 20, "medoid")


def test_medoid_has_the_smallest_median_distance_to_the_others():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, *range(3, 12), 37) * 4:
        points = torch.randn(n, 3, generator=generator)
        expected = 0
        if n > 1:
            medians = []
            for i in range(n):
                others = torch.cat([points[:i], points[i + 1 :]])
                medians.append((others - points[i]).norm(dim=1).median())
            expected = int(torch.stack(medians).argmin())
        assert medoid(points) == expected
        assert medoid(points, chunk_elements=2 * n) == expected  # in chunks of two rows


def test_prototypes_are_images_of_their_class():
    images = torch.randint(256, (30, 4, 4, 1), dtype=torch.uint8)
    labels = torch.arange(30) % 3
    assert labels[prototype_indices(images, labels, 3)].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="class 3"):
        prototype_indices(images, labels, 4)


def test_streams_differ_by_seed_purpose_and_block_and_repeat():
    def draw(seed, purpose, t):
        return torch.randn(3, generator=Streams(seed).get(purpose, t)).tolist()

    names = [(0, "noise", 1), (0, "noise", 2), (0, "dropout", 1), (1, "noise", 1)]
    assert len({tuple(draw(*name)) for name in names}) == 4
    assert draw(0, "noise", 1) == draw(0, "noise", 1)


def test_streams_go_on_after_saving_and_do_not_touch_each_other():
    streams = Streams(0)
    torch.randn(5, generator=streams.get("noise", 1))
    saved = streams.state_dict()
    expected = torch.randn(5, generator=streams.get("noise", 1))
    again = Streams(0)
    torch.randn(9, generator=again.get("noise", 2))
    again.load_state_dict(saved)
    assert torch.equal(torch.randn(5, generator=again.get("noise", 1)), expected)


def test_seeded_layers_do_not_depend_on_the_global_generator():
    def weights():
        with Streams(0).seeded("init", 3):
            return torch.nn.Linear(3, 3).weight

    first = weights()
    torch.randn(7)
    assert torch.equal(first, weights())

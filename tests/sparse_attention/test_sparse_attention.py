# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The operation against the original's pure-torch form in float64, its layer, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hf_segmodels
from hf_segmodels.sparse_attention import SparseAttention, reference_points, sparse_attention


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "sparse_attention"
CASES = ("basic_3lvl", "borders_exact", "paper_dims_small")


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def kinks(locations: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
    """Where bilinear interpolation has no derivative: a coordinate within rounding of a cell's center."""
    cells = spatial_shapes.flip(-1)[:, None]
    position = locations * cells - 0.5
    return ((position - position.round()).abs() < 1e-9).any(-1)


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_of_the_original(name):
    case = golden(name)
    inputs = [case[key].requires_grad_() for key in ("value", "sampling_locations", "attention_weights")]
    value, locations, weights = inputs
    output = sparse_attention(value, case["spatial_shapes"].tolist(), locations, weights)
    output.backward(case["grad_output"])
    torch.testing.assert_close(output, case["output"], atol=1e-10, rtol=0)
    torch.testing.assert_close(value.grad, case["grad_value"], atol=1e-10, rtol=0)
    torch.testing.assert_close(weights.grad, case["grad_attention_weights"], atol=1e-10, rtol=0)
    is_smooth = ~kinks(locations.detach(), case["spatial_shapes"])
    assert is_smooth.any()
    found, expected = (gradient[is_smooth] for gradient in (locations.grad, case["grad_sampling_locations"]))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def random_arguments(shapes=((5, 7), (1, 1), (2, 3)), batch_size=2, queries=4, heads=2, head_dim=3, points=5):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch_size, sum(h * w for h, w in shapes), heads, head_dim, generator=generator)
    locations = torch.rand(batch_size, queries, heads, len(shapes), points, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(batch_size, queries, heads, len(shapes), points, generator=generator)
    return value, list(shapes), locations, weights


def sampled_one_by_one(value, shapes, locations, weights):
    """The definition, point by point."""
    batch_size, queries, heads, _, points = weights.shape
    output = torch.zeros(batch_size, queries, heads, value.shape[-1], dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(shapes):
        cells = value[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        for index in np.ndindex(batch_size, queries, heads, points):
            image, query, head, point = index
            x, y = (locations[image, query, head, level, point] * torch.tensor([width, height]) - 0.5).tolist()
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[image, query, head, level, point]
                        output[image, query, head] += share * cells[image, row, column, head]
    return output.flatten(2)


def test_definition_and_order_of_levels_heads_and_axes():
    value, shapes, locations, weights = random_arguments()
    expected = sampled_one_by_one(value, shapes, locations, weights)
    torch.testing.assert_close(sparse_attention(value, shapes, locations, weights), expected, atol=1e-5, rtol=1e-5)


def test_points_outside_count_as_zero():
    value, shapes, locations, weights = random_arguments()
    assert sparse_attention(value, shapes, locations + 3, weights).abs().max() == 0


def test_no_queries():
    value, shapes, locations, weights = random_arguments()
    assert sparse_attention(value, shapes, locations[:, :0], weights[:, :0]).shape == (2, 0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_locations_and_sums_in_float32(dtype):
    value, shapes, locations, weights = random_arguments(shapes=((64, 64),))
    value, weights = value.to(dtype), weights.to(dtype)
    exact = sparse_attention(value.double(), shapes, locations.double(), weights.double())
    output = sparse_attention(value, shapes, locations, weights)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact, atol=1e-3, rtol=torch.finfo(dtype).eps)


def test_layer_under_autocast_keeps_locations_in_float32():
    torch.manual_seed(0)
    layer = SparseAttention(32, num_heads=4, num_levels=1, num_points=3)
    nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    queries, values = torch.randn(1, 6, 32), torch.randn(1, 64 * 64, 32)
    points = reference_points(64, 64)[1000:1006]
    expected = layer(queries, values, points, [(64, 64)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        locations, _ = layer.sample(queries, points, [(64, 64)])
        output = layer(queries, values, points, [(64, 64)])
    assert locations.dtype == torch.float32
    assert output.dtype == torch.bfloat16
    assert (output - expected).pow(2).mean().sqrt() < 0.05 * expected.std()


def test_inputs_are_left_alone_and_need_not_be_contiguous():
    value, shapes, locations, weights = random_arguments()
    expected = sparse_attention(value, shapes, locations, weights)
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in (value, locations, weights)]
    copies = [tensor.clone() for tensor in strided]
    assert not strided[0].is_contiguous()
    assert torch.equal(sparse_attention(strided[0], shapes, *strided[1:]), expected)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(strided, copies, strict=True))


def test_layer_starts_as_the_paper_says():
    heads, levels, points = 8, 3, 4
    layer = SparseAttention(32, heads, levels, points)
    locations, weights = layer.sample(torch.randn(1, 2, 32), torch.full((2, 2), 0.5), [(8, 16), (4, 8), (1, 2)])
    assert torch.allclose(weights, torch.tensor(1 / (levels * points)))
    offsets = (locations - 0.5) * torch.tensor([[16.0, 8.0], [8.0, 4.0], [2.0, 1.0]])[:, None]
    # heads look right, down right, down, ... by whole cells
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(directions, dtype=torch.float32)[:, None, None] * torch.arange(1.0, 1 + points)[:, None]
    torch.testing.assert_close(offsets, expected.expand(1, 2, heads, levels, points, 2), atol=1e-5, rtol=0)
    assert layer.value_proj.bias.abs().max() == layer.o_proj.bias.abs().max() == 0
    assert 0 < layer.value_proj.weight.abs().max() <= (6 / 64) ** 0.5


def test_layer_attends_to_what_its_reference_point_says():
    layer = SparseAttention(4, num_heads=1, num_levels=1, num_points=1)
    with torch.no_grad():
        for projection in (layer.value_proj, layer.o_proj):
            projection.weight.copy_(torch.eye(4))
        layer.sampling_offsets.bias.zero_()
        values = torch.randn(1, 15, 4)
        output = layer(torch.randn(1, 15, 4), values, reference_points(3, 5), [(3, 5)])
    torch.testing.assert_close(output, values)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    layer = SparseAttention(16, num_heads=2, num_levels=2, num_points=2)
    nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    nn.init.normal_(layer.attention_weights.weight)
    points = torch.rand(5, 2)
    layer(torch.randn(2, 5, 16), torch.randn(2, 14, 16), points, [(2, 4), (2, 3)]).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_gradcheck_away_from_cell_centers():
    torch.manual_seed(0)
    shapes = [(3, 4), (2, 2)]
    cells = torch.tensor([[4.0, 3.0], [2.0, 2.0]], dtype=torch.float64)[:, None]
    # whole cells and a fraction between 0.1 and 0.9 of one
    whole = torch.randint(-1, 4, (1, 3, 2, 2, 2, 2))
    locations = (whole + 0.5 + 0.1 + 0.8 * torch.rand(whole.shape, dtype=torch.float64)) / cells
    arguments = torch.randn(1, 16, 2, 3, dtype=torch.float64), locations, torch.rand(1, 3, 2, 2, 2).double()
    for argument in arguments:
        argument.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda value, places, weights: sparse_attention(value, shapes, places, weights), arguments
    )


@pytest.mark.slow
def test_compiled_without_breaks_for_every_size():
    layer = torch.compile(SparseAttention(16, num_heads=2, num_levels=2, num_points=2), fullgraph=True, dynamic=True)
    for height, width in ((3, 4), (5, 2)):
        shapes = [(height, width), (2, 3)]
        queries, values = torch.randn(2, height * width, 16), torch.randn(2, height * width + 6, 16)
        points = reference_points(height, width)
        expected = layer._orig_mod(queries, values, points, shapes)
        torch.testing.assert_close(layer(queries, values, points, shapes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": [(5, 7), (1, 1)]}, r"has 2 levels, `sampling_locations` 3"),
        ({"shapes": [(5, 7), (1, 1), (2, 4)]}, r"35 \+ 1 \+ 8 = 44 cells, `value` has 42"),
        ({"shapes": [(5, 7), (1, 1), (0, 6)]}, "at least one cell"),
        ({"value": torch.zeros(2, 42, 6)}, "Expected `value` of shape"),
        ({"value": torch.zeros(3, 42, 2, 3)}, "same batch size"),
        ({"value": torch.zeros(2, 42, 3, 3)}, "number of heads"),
        ({"locations": torch.zeros(2, 4, 2, 3, 5)}, "Expected `value` of shape"),
        ({"locations": torch.zeros(2, 4, 2, 3, 5, 2, dtype=torch.bfloat16)}, "compute locations in float32"),
        ({"weights": torch.zeros(2, 4, 2, 3, 4)}, "must have the shape of `sampling_locations` without"),
        ({"weights": torch.zeros(2, 4, 2, 3, 5, device="meta")}, "move them to one device"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    value, shapes, locations, weights = random_arguments()
    arguments = {"value": value, "shapes": shapes, "locations": locations, "weights": weights, **change}
    with pytest.raises(ValueError, match=message):
        sparse_attention(*arguments.values())


def test_it_is_a_module_of_the_package():
    assert hf_segmodels.sparse_attention.sparse_attention is sparse_attention

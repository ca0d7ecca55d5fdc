# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The kernel against float64, in every dtype, at the edges, under torch.compile, and what it refuses."""

from pathlib import Path

import pytest
import torch

from sparse_attention_cases import SHAPES, arguments, exact, grid_sample_attention, relative_rms, with_gradients


GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "fixtures" / "sparse_attention"


@pytest.mark.parametrize("name", ["basic_3lvl", "borders_exact", "paper_dims_small"])
def test_outputs_and_gradients_of_the_original(kernel, device, name):
    numpy = pytest.importorskip("numpy")
    if not GOLDEN.is_dir():
        pytest.skip("the original's outputs lie in the tests of hf_segmodels")
    with numpy.load(GOLDEN / f"{name}.npz") as arrays:
        case = {key: torch.from_numpy(arrays[key]).to(device) for key in arrays.files}
    shapes = case["spatial_shapes"].tolist()
    found = with_gradients(
        kernel.sparse_attention,
        case["value"],
        shapes,
        case["sampling_locations"],
        case["attention_weights"],
        case["grad_output"],
    )
    for tensor, key in zip(found, ("output", "grad_value", None, "grad_attention_weights"), strict=True):
        if key is not None:
            torch.testing.assert_close(tensor, case[key], atol=1e-10, rtol=0)
    # at a cell's center the interpolation has no derivative, and rounding chooses a side
    position = case["sampling_locations"] * case["spatial_shapes"].flip(-1)[:, None] - 0.5
    is_smooth = ((position - position.round()).abs() > 1e-9).all(-1)
    assert is_smooth.any()
    torch.testing.assert_close(found[2][is_smooth], case["grad_sampling_locations"][is_smooth], atol=1e-10, rtol=0)


@pytest.mark.parametrize("head_dim", [1, 3, 8, 16, 32, 40, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_head_dim_against_float64(kernel, device, dtype, head_dim):
    value, locations, weights, gradient = arguments(device, dtype, head_dim=head_dim)
    found = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    expected = exact(value, SHAPES, locations, weights, gradient)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, locations.dtype, weights.dtype]
    # output and gradient of the values are rounded to the dtype once, the others are not rounded below float32
    precise = torch.finfo(locations.dtype).eps
    for tensor, reference, epsilon in zip(
        found, expected, (torch.finfo(dtype).eps, torch.finfo(dtype).eps, precise, precise), strict=True
    ):
        assert relative_rms(tensor, reference) < max(epsilon, 4 * precise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_errors_are_no_larger_than_those_of_grid_sample(kernel, device, dtype):
    shapes = ((30, 30),) * 3
    value, locations, weights, gradient = arguments(
        device, dtype, shapes=shapes, batch_size=1, queries=400, heads=8, points=16, margin=0.0
    )
    weights = weights / weights.sum((-1, -2), keepdim=True)
    expected = exact(value, shapes, locations, weights, gradient)
    found = with_gradients(kernel.sparse_attention, value, shapes, locations, weights, gradient)
    # for half precision the strictest: float32 throughout, rounded once
    single = with_gradients(grid_sample_attention, value.float(), shapes, locations, weights, gradient.float())
    native = [tensor.to(like.dtype) for tensor, like in zip(single, found, strict=True)]
    for tensor, other, reference in zip(found, native, expected, strict=True):
        # 1.02: two orders of summation differ by chance
        assert relative_rms(tensor, reference) <= 1.02 * relative_rms(other, reference)


def test_gradcheck(kernel, device):
    torch.manual_seed(0)
    shapes = [(3, 4), (2, 2)]
    cells = torch.tensor([[4.0, 3.0], [2.0, 2.0]], dtype=torch.float64)[:, None]
    # 0.05 to 0.95 cells from a center, also outside
    whole = torch.randint(-2, 4, (1, 3, 2, 2, 2, 2))
    locations = (whole + 0.5 + 0.05 + 0.9 * torch.rand(whole.shape, dtype=torch.float64)) / cells
    inputs = torch.randn(1, 16, 2, 3, dtype=torch.float64), locations, torch.rand(1, 3, 2, 2, 2, dtype=torch.float64)
    inputs = [tensor.to(device).requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(
        lambda value, places, weights: kernel.sparse_attention(value, shapes, places, weights),
        inputs,
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_operators_fit_torch(kernel, device, dtype):
    value, locations, weights, gradient = arguments(device, dtype, head_dim=4, queries=3)
    flat = [size for shape in SHAPES for size in shape]
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    torch.library.opcheck(kernel.ops.forward.default, (inputs[0], flat, *inputs[1:]), atol=1e-4, rtol=1e-4)
    detached = [tensor.detach() for tensor in inputs]
    torch.library.opcheck(
        kernel.ops.backward.default,
        (gradient, detached[0], flat, *detached[1:], False),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
        atol=1e-4,
        rtol=1e-4,
    )


def test_compiled_without_breaks_and_without_recompiling_for_sizes(kernel, device):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    def scaled(value, shapes, locations, weights):
        return kernel.sparse_attention(value, shapes, locations, weights) * 2

    compiled = torch.compile(scaled, fullgraph=True, dynamic=True, backend=counter)
    # no two sizes alike at first: torch takes those that are for one symbol
    for height, width, queries in ((7, 13, 17), (6, 2, 11), (8, 9, 19)):
        shapes = [(height, width), (23, 29)]
        value, locations, weights, _ = arguments(device, shapes=shapes, queries=queries)
        expected = scaled(value, shapes, locations, weights)
        torch.testing.assert_close(compiled(value, shapes, locations, weights), expected)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_compiled_gradients(kernel, device):
    value, locations, weights, gradient = arguments(device)
    compiled = torch.compile(kernel.sparse_attention, fullgraph=True)
    found = with_gradients(compiled, value, SHAPES, locations, weights, gradient)
    expected = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    torch.testing.assert_close(found, expected)


def test_points_outside_count_as_zero(kernel, device):
    value, locations, weights, gradient = arguments(device)
    found = with_gradients(kernel.sparse_attention, value, SHAPES, locations + 3, weights, gradient)
    assert all(tensor.abs().max() == 0 for tensor in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_points_at_no_place_are_outside_and_get_no_gradient(kernel, device, bad):
    value, locations, weights, gradient = arguments(device)
    elsewhere = locations.clone()
    locations[:, ::2, 1, :, 2] = bad
    elsewhere[:, ::2, 1, :, 2] = 7.0
    found = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    expected = with_gradients(kernel.sparse_attention, value, SHAPES, elsewhere, weights, gradient)
    torch.testing.assert_close(found, expected)
    assert found[2][:, ::2, 1, :, 2].abs().max() == 0
    assert found[3][:, ::2, 1, :, 2].abs().max() == 0


def test_borders_as_grid_sample(kernel, device):
    """Exactly on borders and centers of cells, and just inside and outside, on sizes whose places are exact."""
    shapes = [(4, 8)]
    steps = torch.tensor([-0.5, -0.25, 0.0, 0.5, 1.0, 3.25, 3.5, 4.0, 4.25, 4.5, 7.5, 8.0, 8.5], dtype=torch.float64)
    places = torch.cartesian_prod(steps / 8, steps / 4)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 32, 1, 4, dtype=torch.float64, generator=generator)
    locations = places[None, :, None, None, None]
    weights = torch.rand(1, len(places), 1, 1, 1, dtype=torch.float64, generator=generator)
    gradient = torch.randn(1, len(places), 4, dtype=torch.float64, generator=generator)
    tensors = [tensor.to(device) for tensor in (value, locations, weights, gradient)]
    found = with_gradients(kernel.sparse_attention, tensors[0], shapes, *tensors[1:])
    expected = with_gradients(grid_sample_attention, tensors[0], shapes, *tensors[1:])
    torch.testing.assert_close(found, expected)


def test_infinite_values_stay_where_they_are(kernel, device):
    value, locations, weights, _ = arguments(device, shapes=[(4, 4)], margin=0.0, head_dim=4)
    value[:, 0] = float("inf")
    # right of the first column, and beyond the upper left corner: no cell of these is the infinite one
    locations[..., 0] = locations[..., 0] * 0.5 + 0.45
    locations[:, 0] = -0.5
    output = kernel.sparse_attention(value, [(4, 4)], locations, weights)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("empty", ["queries", "batch_size", "points"])
def test_nothing_to_sample(kernel, device, empty):
    value, locations, weights, gradient = arguments(device, **{empty: 0})
    found = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    assert found[0].shape == gradient.shape
    assert found[0].abs().sum() == found[1].abs().sum() == 0
    assert [tensor.shape for tensor in found[1:]] == [value.shape, locations.shape, weights.shape]


def test_inputs_need_not_be_contiguous_or_aligned_and_are_left_alone(kernel, device):
    value, locations, weights, gradient = arguments(device)
    expected = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    tensors = value, locations, weights, gradient
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in tensors]
    # one element into a storage: the start of no vector; locations stay pairs
    shifted = [torch.cat([tensor.new_zeros(2), tensor.flatten()])[2:].view(tensor.shape) for tensor in tensors]
    shifted[0] = torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)
    for variants in (strided, shifted):
        copies = [tensor.clone() for tensor in variants]
        found = with_gradients(kernel.sparse_attention, variants[0], SHAPES, *variants[1:])
        torch.testing.assert_close(found, expected)
        output = kernel.sparse_attention(variants[0], list(SHAPES), *variants[1:3])
        torch.testing.assert_close(output, expected[0])
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(variants, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_as_autocast_mixes_them(kernel, device, dtype):
    value, locations, weights, gradient = arguments(device, dtype)
    expected = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    rounded = weights.to(dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = with_gradients(kernel.sparse_attention, value, SHAPES, locations, rounded, gradient)
    assert found[0].dtype == dtype
    assert found[3].dtype == dtype
    assert relative_rms(found[0], expected[0].double()) < 2 * torch.finfo(dtype).eps
    single = kernel.sparse_attention(value.float(), list(SHAPES), locations.double(), weights.double())
    assert single.dtype == torch.float32


def test_second_derivatives_are_refused(kernel, device):
    value, locations, weights, gradient = arguments(device, torch.float64, queries=2, head_dim=2)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = kernel.sparse_attention(inputs[0], list(SHAPES), *inputs[1:])
    gradients = torch.autograd.grad(output, inputs, gradient, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        sum(tensor.sum() for tensor in gradients).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(kernel, dtype, batch_size):
    threads = torch.get_num_threads()
    value, locations, weights, gradient = arguments(dtype=dtype, batch_size=batch_size, queries=700, heads=2)
    results = []
    try:
        for number in (1, 2, 7):
            torch.set_num_threads(number)
            results.append(with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


@pytest.mark.parametrize("head_dim", [3, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_many_queries_on_small_levels(kernel, device, dtype, head_dim):
    """On a CPU, the backward pass in one go; with few queries it has two."""
    value, locations, weights, gradient = arguments(device, dtype, queries=1500, heads=2, head_dim=head_dim)
    found = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    expected = exact(value, SHAPES, locations, weights, gradient)
    precise = torch.finfo(locations.dtype).eps
    for tensor, reference, epsilon in zip(
        found, expected, (torch.finfo(dtype).eps, torch.finfo(dtype).eps, precise, precise), strict=True
    ):
        # hundreds of points add to a cell
        assert relative_rms(tensor, reference) < max(epsilon, 32 * precise)


def test_memory_is_that_of_the_results(kernel):
    """UN-EPT's decoder, where results are small beside the levels."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")

    def memory(field):
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024

    shapes = [(64, 64)] * 3
    tensors = arguments(shapes=shapes, batch_size=1, queries=4096, heads=8, points=16)
    inputs = [tensor.requires_grad_() for tensor in tensors[:3]]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        output = kernel.sparse_attention(inputs[0], shapes, *inputs[1:])
        gradients = torch.autograd.grad(output, inputs, tensors[3])
        extra = memory("VmHWM") - before
    finally:
        torch.set_num_threads(threads)
    assert extra <= 1.03 * sum(tensor.nbytes for tensor in (output, *gradients))


def test_deterministic_mode(kernel, device):
    # many points on few cells, so that the order of additions would show
    shapes = [(4, 3), (2, 2)]
    value, locations, weights, gradient = arguments(device, shapes=shapes, queries=2000, heads=2)
    expected = exact(value, shapes, locations, weights, gradient)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            with_gradients(kernel.sparse_attention, value, shapes, locations, weights, gradient) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for tensor, reference in zip(first, expected, strict=True):
        assert relative_rms(tensor, reference) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 72, 96)}, "`value` must have shape"),
        ({"value": torch.zeros(2, 72, 3, 32, dtype=torch.int32)}, "`value` must be float16"),
        ({"value": torch.zeros(2, 72, 3, 32, dtype=torch.float64)}, "`sampling_locations` must be float64"),
        ({"value": torch.zeros(2, 72, 4, 32)}, "same batch size and number of heads"),
        ({"value": torch.zeros(2, 71, 3, 32)}, "the levels have 72 cells, `value` has 71"),
        ({"value": torch.zeros(2, 72, 32, 3).transpose(2, 3)}, "`value` must be contiguous"),
        ({"locations": torch.zeros(2, 11, 3, 3, 5)}, "`sampling_locations` must have shape"),
        (
            {"locations": torch.zeros(2, 11, 3, 3, 5, 2, dtype=torch.bfloat16)},
            "must be float32 where `value` is float32",
        ),
        ({"locations": torch.zeros(2, 11, 3, 3, 2, 5).transpose(4, 5)}, "`sampling_locations` must be contiguous"),
        ({"weights": torch.zeros(2, 11, 3, 3)}, "`attention_weights` must have shape"),
        ({"weights": torch.zeros(2, 11, 3, 3, 4)}, "without its last axis"),
        ({"weights": torch.zeros(2, 11, 3, 3, 5, dtype=torch.float16)}, "`attention_weights` must be float32"),
        ({"weights": torch.zeros(2, 11, 3, 5, 3).transpose(3, 4)}, "`attention_weights` must be contiguous"),
        ({"shapes": [5, 7, 1, 1]}, "height and width of 3 levels, got 4 numbers"),
        ({"shapes": [5, 7, 0, 1, 9, 4]}, "between 1 and"),
        ({"shapes": [5, 7, 1, 1, 9, 2**62]}, "between 1 and"),
        ({"gradient": torch.zeros(2, 11, 95)}, "`grad_output` must have shape"),
        ({"gradient": torch.zeros(2, 11, 96, dtype=torch.bfloat16)}, "`grad_output` must be float32"),
        ({"gradient": torch.zeros(2, 96, 11).transpose(1, 2)}, "`grad_output` must be contiguous"),
    ],
)
def test_operators_refuse_what_does_not_fit(kernel, device, change, message):
    value, locations, weights, gradient = arguments(device)
    flat = [size for shape in SHAPES for size in shape]
    given = {"value": value, "shapes": flat, "locations": locations, "weights": weights, "gradient": gradient}
    given |= {key: item.to(device) if isinstance(item, torch.Tensor) else item for key, item in change.items()}
    if "gradient" not in change:
        with pytest.raises(RuntimeError, match=message):
            kernel.ops.forward(given["value"], given["shapes"], given["locations"], given["weights"])
    with pytest.raises(RuntimeError, match=message):
        kernel.ops.backward(
            given["gradient"], given["value"], given["shapes"], given["locations"], given["weights"], False
        )


def test_half_precision_locations_are_refused(kernel, device):
    value, locations, weights, _ = arguments(device)
    with pytest.raises(TypeError, match="cannot tell the cells"):
        kernel.sparse_attention(value, list(SHAPES), locations.half(), weights)


@pytest.mark.gpu
def test_tensors_on_different_devices_are_refused(kernel):
    value, locations, weights, _ = arguments("cuda")
    with pytest.raises(RuntimeError, match="same device"):
        kernel.sparse_attention(value, list(SHAPES), locations.cpu(), weights)


@pytest.mark.gpu
def test_second_device(kernel):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    value, locations, weights, gradient = arguments("cuda:1")
    found = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    expected = exact(value, SHAPES, locations, weights, gradient)
    assert all(relative_rms(one, other) < 1e-6 for one, other in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
def test_more_than_two_to_the_31_elements(kernel):
    """The last image of a batch whose values have more elements than 32 bits number."""
    shapes = [(512, 512)]
    batch_size = 2**31 // (512 * 512 * 8 * 32) + 2
    value, locations, weights, _ = arguments(
        "cuda", torch.bfloat16, shapes=shapes, batch_size=1, heads=8, queries=64, points=2
    )
    many = torch.zeros(batch_size, *value.shape[1:], device="cuda", dtype=torch.bfloat16)
    many[-1] = value[0]
    assert many.numel() > 2**31
    places, shares = (tensor.expand(batch_size, *tensor.shape[1:]).contiguous() for tensor in (locations, weights))
    output = kernel.sparse_attention(many, shapes, places, shares)
    torch.testing.assert_close(output[-1:], kernel.sparse_attention(value, shapes, locations, weights))
    assert output[:-1].abs().max() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cpu_and_cuda_agree(kernel, dtype):
    value, locations, weights, gradient = arguments("cpu", dtype, queries=200)
    on_cpu = with_gradients(kernel.sparse_attention, value, SHAPES, locations, weights, gradient)
    moved = [tensor.cuda() for tensor in (value, locations, weights, gradient)]
    on_cuda = with_gradients(kernel.sparse_attention, moved[0], SHAPES, *moved[1:])
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert relative_rms(other.cpu(), one.double()) < 8 * torch.finfo(dtype).eps

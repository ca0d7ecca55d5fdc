# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of upsampled scores: equal to `cross_entropy` of `interpolate`, in a fraction of the memory."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation
from hf_segmodels.losses import _upsampled_cross_entropy as operator
from hf_segmodels.losses.semantic_cross_entropy import semantic_cross_entropy
from hf_segmodels.unept.boundary_refinement import gather_at_offsets


# the package's attribute of this name is the function
dispatch = importlib.import_module("hf_segmodels.losses.semantic_cross_entropy")


def random_logits(*shape, dtype=torch.float32, seed=0):
    logits = 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return logits.to(dtype).requires_grad_()


def random_labels(num_labels, *shape, seed=0):
    labels = torch.randint(0, num_labels, shape, generator=torch.Generator().manual_seed(seed))
    labels[:, :2] = 255
    return labels


def upsample(logits, size, align_corners=False):
    return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def value_and_gradient(loss, logits):
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def assert_same(found, expected, tolerance=1e-6):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True)
def path(request, monkeypatch):
    """Bands of a few rows, as in images of real size, or all upsampled scores at once."""
    if getattr(request, "param", "bands") == "bands":
        monkeypatch.setattr(dispatch, "_MAX_DENSE_SCORES", 0)
    monkeypatch.setattr(operator, "_CHUNK_ON_CPU", 5 * 40 * 7)
    monkeypatch.setattr(operator, "_COLUMNS_ON_CPU", 16)


both_paths = pytest.mark.parametrize("path", ["bands", "dense"], indirect=True)


# The value and the gradient


@both_paths
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((6, 5), (48, 40)),
        ((6, 5), (47, 33)),
        ((12, 20), (48, 40)),
        ((48, 40), (48, 40)),
        ((6, 40), (48, 40)),
        ((50, 60), (48, 40)),
        ((1, 1), (9, 7)),
        ((3, 4), (1, 1)),
    ],
)
def test_equals_cross_entropy_of_upsampled_scores(grid, size, align_corners):
    logits, labels = random_logits(2, 7, *grid), random_labels(7, 2, *size)
    labels[0, -1] = 3
    full = upsample(logits, size, align_corners)
    expected = nn.functional.cross_entropy(full, labels, ignore_index=255, reduction="sum")
    count = (labels != 255).sum()
    found = semantic_cross_entropy(logits, labels, align_corners=align_corners)
    assert_same(value_and_gradient(found, logits), value_and_gradient(expected / count, logits))
    found = semantic_cross_entropy(logits, labels, reduction="pixel_mean", align_corners=align_corners)
    expected = nn.functional.cross_entropy(
        upsample(logits, size, align_corners), labels, ignore_index=255, reduction="sum"
    )
    assert_same(value_and_gradient(found, logits), value_and_gradient(expected / labels.numel(), logits))


def test_size_of_the_papers():
    logits, labels = random_logits(1, 150, 32, 32), random_labels(150, 1, 512, 512)
    expected = nn.functional.cross_entropy(upsample(logits, (512, 512)), labels, ignore_index=255)
    assert_same(
        value_and_gradient(semantic_cross_entropy(logits, labels), logits), value_and_gradient(expected, logits)
    )


@both_paths
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [255, -100, 2])
def test_weights_smoothing_and_ignored_label(label_smoothing, weighted, ignore_index):
    logits, labels = random_logits(2, 7, 6, 5), random_labels(7, 2, 48, 40)
    labels[labels == 255] = ignore_index
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 1.5, 0.1]) if weighted else None
    options = {"weight": weight, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    expected = nn.functional.cross_entropy(upsample(logits, (48, 40)), labels, **options)
    found = semantic_cross_entropy(logits, labels, **options)
    assert_same(value_and_gradient(found, logits), value_and_gradient(expected, logits))


def test_pixel_mean_of_weighted_pixels_counts_all_pixels():
    logits, labels, weight = random_logits(1, 3, 4, 4), random_labels(3, 1, 8, 8), torch.tensor([1.0, 2.0, 3.0])
    each = nn.functional.cross_entropy(upsample(logits, (8, 8)), labels, weight, ignore_index=255, reduction="none")
    torch.testing.assert_close(semantic_cross_entropy(logits, labels, 255, "pixel_mean", weight=weight), each.mean())


@both_paths
def test_scores_that_cover_more_than_the_labels():
    logits, labels = random_logits(2, 7, 6, 5), random_labels(7, 2, 41, 33)
    full = upsample(logits, (48, 40))[..., :41, :33]
    expected = nn.functional.cross_entropy(full, labels, ignore_index=255)
    found = semantic_cross_entropy(logits, labels, padded_size=(48, 40))
    assert_same(value_and_gradient(found, logits), value_and_gradient(expected, logits))
    reduced = semantic_cross_entropy(logits, labels, 255, "pixel_mean", padded_size=(48, 40))
    torch.testing.assert_close(reduced, expected * (labels != 255).sum() / labels.numel())


@pytest.mark.parametrize("grid", [(6, 5), (48, 40)])
def test_scores_at_offsets(grid):
    logits, labels = random_logits(2, 7, *grid), random_labels(7, 2, 41, 40)
    offsets = torch.randint(-1, 2, (2, 48, 40, 2), generator=torch.Generator().manual_seed(1))
    full = gather_at_offsets(upsample(logits, (48, 40)), offsets)[..., :41, :]
    weight = torch.linspace(0.5, 2, 7)
    options = {"weight": weight, "label_smoothing": 0.2, "ignore_index": 255}
    expected = nn.functional.cross_entropy(full, labels, **options)
    found = semantic_cross_entropy(logits, labels, padded_size=(48, 40), pixel_offsets=offsets, **options)
    assert_same(value_and_gradient(found, logits), value_and_gradient(expected, logits))


@both_paths
def test_numerical_gradient_in_float64():
    logits, labels = random_logits(1, 3, 3, 2, dtype=torch.float64), random_labels(3, 1, 9, 5)
    offsets = torch.randint(-1, 2, (1, 9, 5, 2), generator=torch.Generator().manual_seed(1))
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": 0.1, "pixel_offsets": offsets}
    assert semantic_cross_entropy(logits, labels, **options).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda scores: 3 * semantic_cross_entropy(scores, labels, **options), logits)


def test_large_scores_lose_nothing():
    # probabilities of the wrong classes underflow, their losses do not
    logits, labels = random_logits(1, 5, 4, 4), random_labels(5, 1, 32, 32)
    with torch.no_grad():
        logits *= 300
    expected = nn.functional.cross_entropy(upsample(logits, (32, 32)), labels, ignore_index=255)
    assert expected > 500
    assert_same(
        value_and_gradient(semantic_cross_entropy(logits, labels), logits), value_and_gradient(expected, logits)
    )


@pytest.mark.parametrize("layout", ["channels last", "transposed tokens", "expanded"])
def test_any_layout_of_the_scores(layout):
    labels = random_labels(7, 2, 48, 40)
    if layout == "channels last":
        source = random_logits(2, 7, 6, 5).detach().to(memory_format=torch.channels_last).requires_grad_()
        logits = source
    elif layout == "transposed tokens":
        source = random_logits(2, 30, 7)
        logits = source.transpose(1, 2).unflatten(2, (6, 5))
    else:
        source = random_logits(1, 7, 6, 5)
        logits = source.expand(2, -1, -1, -1)
    expected = nn.functional.cross_entropy(upsample(logits, (48, 40)), labels, ignore_index=255)
    assert_same(
        value_and_gradient(semantic_cross_entropy(logits, labels), source), value_and_gradient(expected, source)
    )


# Special labels


@both_paths
@pytest.mark.parametrize("reduction", ["valid_mean", "pixel_mean"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_all_ignored_gives_zero_with_a_gradient(reduction, label_smoothing):
    logits, labels = random_logits(2, 7, 6, 5), torch.full((2, 48, 40), 255)
    loss = semantic_cross_entropy(logits, labels, 255, reduction, label_smoothing=label_smoothing)
    value, gradient = value_and_gradient(loss, logits)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@both_paths
def test_classes_without_weight_give_zero_with_a_gradient():
    logits, labels = random_logits(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long)
    weight = torch.tensor([0.0, 1.0, 1.0])
    for label_smoothing in (0.0, 0.1):
        loss = semantic_cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing)
        value, gradient = value_and_gradient(loss, logits)
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(logits))


def test_one_ignored_image_adds_nothing():
    logits, labels = random_logits(2, 7, 6, 5), random_labels(7, 2, 48, 40)
    labels[1] = 255
    found = value_and_gradient(semantic_cross_entropy(logits, labels), logits)
    alone = value_and_gradient(semantic_cross_entropy(logits[:1], labels[:1]), logits)
    assert_same(found, alone)
    assert found[1][1].abs().max() == 0


@both_paths
def test_empty_batch_and_labels_of_small_integers():
    assert semantic_cross_entropy(torch.zeros(0, 7, 6, 5), torch.zeros(0, 48, 40, dtype=torch.long)) == 0
    logits, labels = random_logits(1, 7, 6, 5), random_labels(7, 1, 48, 40)
    expected = semantic_cross_entropy(logits, labels)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(semantic_cross_entropy(logits, labels.to(dtype)), expected)


# Precision


@both_paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = random_logits(2, 7, 6, 5, dtype=dtype), random_labels(7, 2, 48, 40)
    value, gradient = value_and_gradient(semantic_cross_entropy(logits, labels), logits)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    single = logits.detach().float().requires_grad_()
    expected = value_and_gradient(semantic_cross_entropy(single, labels), single)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1].to(dtype))


@both_paths
def test_autocast_changes_nothing():
    logits, labels = random_logits(2, 7, 6, 5), random_labels(7, 2, 48, 40)
    expected = value_and_gradient(semantic_cross_entropy(logits, labels), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = semantic_cross_entropy(logits, labels)
    assert_same(value_and_gradient(loss, logits), expected, tolerance=0)


@both_paths
def test_scaled_losses_keep_gradients_that_float16_would_lose():
    logits, labels = random_logits(1, 7, 6, 5, dtype=torch.float16), random_labels(7, 1, 480, 400)
    loss = semantic_cross_entropy(logits, labels)
    (scaled,) = torch.autograd.grad(loss * 2.0**14, logits)
    single = logits.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(semantic_cross_entropy(single, labels) * 2.0**14, single)
    torch.testing.assert_close(scaled.float(), expected, atol=0, rtol=1e-3)


# Autograd, graphs, processes


@both_paths
def test_gradients_are_computed_only_on_request():
    logits, labels = random_logits(1, 7, 6, 5), random_labels(7, 1, 48, 40)
    expected = semantic_cross_entropy(logits, labels)
    with torch.no_grad():
        loss = semantic_cross_entropy(logits, labels)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)
    assert not semantic_cross_entropy(logits.detach(), labels).requires_grad
    with torch.inference_mode():
        assert torch.equal(semantic_cross_entropy(logits, labels), expected)
    # tensors that inference mode has cached take part in autograd
    torch.autograd.grad(semantic_cross_entropy(logits, labels), logits)


def test_backward_twice_over_a_kept_graph():
    logits, labels = random_logits(1, 7, 6, 5), random_labels(7, 1, 48, 40)
    loss = semantic_cross_entropy(logits, labels)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, logits)
    assert torch.equal(2 * first, second)


def test_second_derivatives_are_refused():
    logits, labels = random_logits(1, 7, 6, 5), random_labels(7, 1, 48, 40)
    (gradient,) = torch.autograd.grad(semantic_cross_entropy(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        gradient.square().sum().backward()


def test_operator_passes_the_checks_of_torch():
    offsets = torch.randint(-1, 2, (1, 9, 5, 2))
    labels, options = random_labels(3, 1, 8, 5), operator.LossOptions(torch.ones(3), offsets, [9, 5], 255, 0.1, False)
    half = random_logits(1, 3, 3, 2, dtype=torch.float16).detach()
    torch.library.opcheck(operator.upsampled_cross_entropy, (half, labels, False, *options))
    # the whole check would differentiate the gradient, which is refused
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    logits = random_logits(1, 3, 3, 2)
    torch.library.opcheck(operator.upsampled_cross_entropy, (logits, labels, True, *options), test_utils=checks)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(backend, dynamic):
    torch.compiler.reset()
    weight = torch.linspace(0.5, 2, 7)

    def loss_of(logits, labels):
        scores = logits * 2
        return semantic_cross_entropy(scores, labels, weight=weight, label_smoothing=0.1, padded_size=(48, 40))

    compiled = torch.compile(loss_of, fullgraph=True, backend=backend, dynamic=dynamic)
    for grid in ((6, 5), (12, 10)):
        logits, labels = random_logits(2, 7, *grid), random_labels(7, 2, 41, 40)
        expected = value_and_gradient(loss_of(logits, labels), logits)
        assert_same(value_and_gradient(compiled(logits, labels), logits), expected)
        with torch.no_grad():
            torch.testing.assert_close(compiled(logits, labels), expected[0])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    logits, labels = random_logits(1, 7, 6, 5), random_labels(7, 1, 48, 40)
    expected = value_and_gradient(semantic_cross_entropy(2 * logits, labels), logits)
    loss = checkpoint(lambda scores: semantic_cross_entropy(2 * scores, labels), logits, use_reentrant=use_reentrant)
    loss.backward()
    assert_same((loss.detach(), logits.grad), expected)


def tiny_segmenter():
    torch.manual_seed(0)
    encoder = PlainViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    return SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=encoder, num_labels=5)).eval()


def test_compiled_model_gives_the_same_gradients():
    torch.compiler.reset()
    model = tiny_segmenter()
    images, labels = torch.randn(2, 3, 30, 32), random_labels(5, 2, 30, 32)
    model(images, labels=labels).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(images, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def _train_in_one_of_two_processes(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(tiny_segmenter())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # equal numbers of valid pixels: the mean of means is the mean
    labels = random_labels(5, 2, 32, 32)
    model(images[rank : rank + 1], labels=labels[rank : rank + 1]).loss.backward()
    if rank == 0:
        torch.save(
            {name: parameter.grad for name, parameter in model.module.named_parameters()}, folder / "gradients.pt"
        )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(_train_in_one_of_two_processes, args=(tmp_path,), nprocs=2)
    model = tiny_segmenter()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model(images, labels=random_labels(5, 2, 32, 32)).loss.backward()
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_gpu(deterministic):
    logits, labels = random_logits(2, 150, 32, 32), random_labels(150, 2, 512, 512)
    offsets = torch.randint(-1, 2, (2, 512, 512, 2), generator=torch.Generator().manual_seed(1))
    torch.use_deterministic_algorithms(deterministic)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        for moved in (None, offsets):
            expected = value_and_gradient(semantic_cross_entropy(logits, labels, pixel_offsets=moved), logits)
            there = logits.detach().cuda().requires_grad_()
            moved = None if moved is None else moved.cuda()
            found = value_and_gradient(semantic_cross_entropy(there, labels.cuda(), pixel_offsets=moved), there)
            assert_same([tensor.cpu() for tensor in found], expected)
    finally:
        torch.use_deterministic_algorithms(False)


# Dispatch


@pytest.mark.parametrize(
    ("num_labels", "size", "options", "expected"),
    [
        (15, (48, 40), {}, "dense"),
        (16, (48, 40), {}, "bands"),
        (15, (49, 40), {}, "bands"),
        (15, (46, 40), {"padded_size": (49, 40)}, "bands"),
        (15, (48, 40), {"pixel_offsets": torch.zeros(2, 48, 40, 2, dtype=torch.long)}, "bands"),
    ],
)
def test_dense_formula_only_for_few_scores_of_few_classes(monkeypatch, num_labels, size, options, expected):
    monkeypatch.setattr(dispatch, "_MAX_DENSE_SCORES", 2 * 15 * 48 * 40)
    taken = []
    monkeypatch.setattr(dispatch, "_dense_cross_entropy", lambda *_: taken.append("dense") or torch.zeros(()))
    monkeypatch.setattr(
        dispatch, "upsampled_cross_entropy", lambda *_: taken.append("bands") or (torch.zeros(()), None)
    )
    semantic_cross_entropy(random_logits(2, num_labels, 6, 5), random_labels(num_labels, 2, *size), **options)
    assert taken == [expected]


# Memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_extra_memory_is_a_fraction_of_the_baseline(repository):
    command = [sys.executable, str(repository / "benchmarks" / "upsampled_loss.py"), "--memory-only"]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    ratios = json.loads(process.stdout.splitlines()[-1])
    assert ratios
    assert all(ratio < 0.35 for ratio in ratios.values()), ratios


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "mean"}, "must be 'valid_mean' or 'pixel_mean'"),
        ({"label_smoothing": 1.5}, "from 0 to 1"),
        ({"weight": torch.ones(4)}, r"`weight` \(4,\) must hold one number for each of 7 classes"),
        ({"padded_size": (47, 40)}, "must be at least the size of the label map"),
        ({"pixel_offsets": torch.zeros(1, 48, 39, 2, dtype=torch.long)}, r"\(1, 48, 40, 2\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        semantic_cross_entropy(torch.zeros(1, 7, 6, 5), torch.zeros(1, 48, 40, dtype=torch.long), **options)


@both_paths
def test_bad_shapes_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"got \(1, 7, 6, 5\) and \(2, 48, 40\)"):
        semantic_cross_entropy(torch.zeros(1, 7, 6, 5), torch.zeros(2, 48, 40, dtype=torch.long))
    for value in (7, -1):
        with pytest.raises(IndexError, match="there are 7 classes"):
            semantic_cross_entropy(torch.zeros(1, 7, 6, 5), torch.full((1, 48, 40), value))
    assert math.isnan(semantic_cross_entropy(torch.full((1, 7, 6, 5), math.nan), random_labels(7, 1, 48, 40)))

# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label maps found without full-resolution scores are those of upsampling every class."""

import pytest
import torch
from torch import nn

from hf_segmodels.inference import UpsampledScores, upsample_argmax
from hf_segmodels.inference.upsampled_argmax import resize_weights


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_entropy_logits(num_labels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A few regions, each with one class well above the others' noise."""
    winners = random_logits(1, min(num_labels, 6), 3, 3, seed=seed)
    winners = nn.functional.interpolate(winners, size=(height, width), mode="bilinear").argmax(1, keepdim=True)
    return random_logits(1, num_labels, height, width, seed=seed).scatter(1, winners, 6.0)


def upsampled(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def assert_same_labels(labels: torch.Tensor, scores: torch.Tensor) -> None:
    """Labels may differ from `scores.argmax(1)` only where two classes are equal up to rounding."""
    assert labels.shape == (scores.shape[0], *scores.shape[2:])
    assert labels.dtype == torch.long
    behind = scores.amax(dim=1) - scores.gather(1, labels[:, None])[:, 0]
    assert behind.max() <= 1e-5 * (scores.max() - scores.min())
    assert (labels != scores.argmax(dim=1)).float().mean() < 1e-3


SIZES = [
    ((32, 32), (512, 512)),  # stride 16
    ((32, 21), (500, 333)),  # not an integer factor
    ((16, 16), (64, 64)),  # stride 4
    ((8, 8), (24, 40)),  # odd factors: pixels on grid entries
    ((12, 20), (13, 19)),
    ((60, 44), (21, 9)),  # down
    ((7, 90), (100, 30)),  # up and down
    ((9, 9), (9, 40)),  # one axis unchanged
    ((1, 1), (33, 17)),
    ((1, 6), (50, 1)),
]


@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("make", [random_logits, low_entropy_logits])
def test_equals_upsampling_every_class(grid, size, make):
    logits = random_logits(2, 19, *grid) if make is random_logits else low_entropy_logits(19, *grid)
    assert_same_labels(upsample_argmax(logits, size), upsampled(logits, size))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the order of rounding is that of MKL's products")
@pytest.mark.parametrize("make", [random_logits, low_entropy_logits])
def test_rounds_as_interpolate_does(make):
    """Scores differ by rounding errors everywhere, so labels are equal only if the arithmetic is."""
    logits = random_logits(1, 2, 32, 32) if make is random_logits else low_entropy_logits(2, 32, 32)
    logits = torch.cat([logits, logits * (1 + 2e-7), logits * (1 - 2e-7)], dim=1)
    assert torch.equal(upsample_argmax(logits, (512, 512)), upsampled(logits, (512, 512)).argmax(1))


@pytest.mark.parametrize("num_labels", [1, 2, 3, 300])
def test_number_of_classes(num_labels):
    logits = random_logits(1, num_labels, 10, 10)
    assert_same_labels(upsample_argmax(logits, (100, 100)), upsampled(logits, (100, 100)))


def test_ties_go_to_the_lower_class():
    logits = random_logits(1, 4, 8, 8)
    labels = upsample_argmax(logits[:, [2, 0, 1, 2, 3, 0]], (96, 96))
    expected = upsampled(logits[:, [2, 0, 1, 3]], (96, 96)).argmax(1)
    assert torch.equal(labels, torch.tensor([0, 1, 2, 4])[expected])
    assert (upsample_argmax(torch.zeros(1, 5, 4, 4), (64, 64)) == 0).all()


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_common_offset(offset):
    logits = random_logits(1, 30, 16, 16) + offset
    assert_same_labels(upsample_argmax(logits, (200, 200)), upsampled(logits, (200, 200)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types(dtype):
    logits = random_logits(1, 20, 16, 16).to(dtype)
    assert_same_labels(upsample_argmax(logits, (250, 250)), upsampled(logits, (250, 250)))


def test_memory_layout_gradients_and_autocast_change_nothing():
    logits = random_logits(2, 12, 10, 14)
    expected = upsample_argmax(logits, (160, 224))
    transposed = logits.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = upsample_argmax(transposed, (160, 224))
    assert torch.equal(labels, expected)
    assert not labels.requires_grad


def test_works_after_inference_mode_has_filled_the_caches():
    logits = random_logits(1, 5, 11, 13)
    with torch.inference_mode():
        inside = upsample_argmax(logits, (77, 91))
    assert torch.equal(upsample_argmax(logits.requires_grad_(), (77, 91)), inside)


def test_masked_classes_never_win():
    logits = random_logits(1, 6, 8, 8)
    expected = upsample_argmax(logits[:, [0, 1, 3, 4, 5]], (128, 128))
    logits[:, 2] = -torch.inf
    assert torch.equal(upsample_argmax(logits, (128, 128)), torch.tensor([0, 1, 3, 4, 5])[expected])


def test_infinite_and_missing_scores_win_where_they_are():
    logits = random_logits(1, 6, 8, 8)
    clean = upsample_argmax(logits, (128, 128))
    for value, classes in ((torch.inf, [4]), (torch.nan, [5]), (torch.nan, [3, 5])):
        label = classes[0]
        broken = logits.clone()
        broken[:, classes, 2, 3] = value
        labels = upsample_argmax(broken, (128, 128))
        # entry (2, 3) is in the middle of rows 32 to 47 and columns 48 to 63, and reaches half an entry further
        assert (labels[:, 32:48, 48:64] == label).all()
        assert torch.equal(labels[:, 64:], clean[:, 64:])
        assert torch.equal(labels[:, :, 96:], clean[:, :, 96:])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_scores_are_numbers_at_full_resolution(value):
    logits = random_logits(1, 3, 6, 6)
    logits[:, 1, 2:] = value
    axis = resize_weights(6, 50, torch.device("cpu"))
    scores = UpsampledScores(logits[0], axis, axis)
    assert scores.evaluate().isfinite().all()
    assert torch.equal(scores.argmax(), scores.evaluate().argmax(0))
    torch.testing.assert_close(scores.evaluate()[[0, 2]], upsampled(logits[:, [0, 2]], (50, 50))[0])


def test_empty_batch():
    assert upsample_argmax(torch.empty(0, 5, 8, 8), (64, 48)).shape == (0, 64, 48)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((5, 8, 8), (64, 64)), ((1, 0, 8, 8), (64, 64)), ((1, 5, 8, 8), (0, 64)), ((1, 5, 0, 8), (8, 8))],
)
def test_bad_input(shape, size):
    with pytest.raises(ValueError, match=r"Expected logits of shape \(batch_size, num_labels, height, width\)"):
        upsample_argmax(torch.empty(shape), size)


@pytest.mark.gpu
@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("make", [random_logits, low_entropy_logits])
def test_gpu(grid, size, make):
    logits = random_logits(2, 19, *grid) if make is random_logits else low_entropy_logits(19, *grid)
    logits = logits.cuda()
    assert_same_labels(upsample_argmax(logits, size), upsampled(logits, size))

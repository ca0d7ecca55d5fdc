# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from hf_segmodels.inference import upsample_argmax
from hf_segmodels.regproxy import homogeneity_loss, paint, region_histograms
from hf_segmodels.regproxy.painting import _paint_by_products, _paint_by_sums, neighbors


def random_regions(batch_size: int, h: int, w: int, rows: int, columns: int, num_labels: int = 5):
    generator = torch.Generator().manual_seed(0)
    affinity = torch.randn(batch_size, 9, h, w, rows, columns, generator=generator).softmax(1)
    return torch.randn(batch_size, rows * columns, num_labels, generator=generator), affinity


def paint_pixel_by_pixel(token_logits: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
    """Equation 6 as it stands: each pixel, each neighbor."""
    batch_size, _, h, w, rows, columns = affinity.shape
    painted = torch.zeros(batch_size, token_logits.shape[2], rows * h, columns * w, dtype=token_logits.dtype)
    for u in range(rows * h):
        for v in range(columns * w):
            (row, r), (column, c) = divmod(u, h), divmod(v, w)
            for n in range(9):
                y, x = row + n // 3 - 1, column + n % 3 - 1
                if 0 <= y < rows and 0 <= x < columns:
                    share = affinity[:, n, r, c, row, column]
                    painted[:, :, u, v] += share[:, None] * token_logits[:, y * columns + x]
    return painted


SHAPES = [(1, 4, 4, 3, 5), (3, 2, 3, 4, 2), (2, 1, 1, 3, 3), (1, 2, 4, 1, 1), (2, 3, 1, 1, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [paint, _paint_by_sums, _paint_by_products])
def test_painting_is_a_weighted_sum_of_the_tokens_around(form, shape):
    token_logits, affinity = random_regions(*shape)
    painted = form(token_logits, affinity)
    torch.testing.assert_close(painted, paint_pixel_by_pixel(token_logits, affinity), atol=1e-6, rtol=1e-6)
    assert painted.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_painting_in_other_precisions(dtype):
    token_logits, affinity = random_regions(2, 4, 4, 3, 5)
    painted = paint(token_logits.to(dtype), affinity)
    assert painted.dtype == dtype
    expected = paint_pixel_by_pixel(token_logits.to(dtype).double(), affinity.to(dtype).double())
    torch.testing.assert_close(
        painted.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps
    )


def test_painting_has_gradients():
    token_logits, affinity = random_regions(2, 2, 2, 3, 2)
    inputs = [tensor.double().requires_grad_() for tensor in (token_logits, affinity)]
    assert torch.autograd.gradcheck(paint, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_painting_on_a_gpu(shape):
    token_logits, affinity = random_regions(*shape)
    expected = paint_pixel_by_pixel(token_logits, affinity)
    for form in (_paint_by_sums, _paint_by_products):
        painted = form(token_logits.cuda(), affinity.cuda()).cpu()
        torch.testing.assert_close(painted, expected, atol=1e-5, rtol=1e-5)


def test_labels_of_painted_logits_need_no_full_size_logits():
    token_logits, affinity = random_regions(2, 4, 4, 6, 9, num_labels=20)
    painted = paint(token_logits, affinity)
    full_size = torch.nn.functional.interpolate(painted, (96, 144), mode="bilinear", align_corners=False)
    assert (upsample_argmax(painted, (96, 144)) == full_size.argmax(1)).float().mean() > 0.9999


# Regions against label maps


def own_cells(h: int, w: int, rows: int, columns: int) -> torch.Tensor:
    """Affinity of 1 to the pixel's own token."""
    affinity = torch.zeros(1, 9, h, w, rows, columns)
    affinity[:, 4] = 1
    return affinity


def test_histogram_of_square_cells_counts_their_pixels():
    labels = torch.randint(0, 4, (1, 48, 64), generator=torch.Generator().manual_seed(0))
    labels[0, :5] = 255
    histograms = region_histograms(own_cells(4, 4, 3, 4), labels, num_labels=4)
    # (1, 48, 64) -> (12 cells, 256 pixels)
    cells = labels.view(3, 16, 4, 16).transpose(1, 2).reshape(12, 256)
    expected = torch.stack([(cells == label).sum(1) for label in range(4)], dim=1).float()
    torch.testing.assert_close(histograms[0], expected)


def test_pixels_count_for_the_tokens_around_by_their_affinity():
    _, affinity = random_regions(2, 2, 4, 3, 4)
    _, is_inside = neighbors(3, 4, affinity.device)
    affinity = affinity * is_inside[:, None, None]
    affinity = affinity / affinity.sum(1, keepdim=True)
    labels = torch.randint(0, 3, (2, 60, 63), generator=torch.Generator().manual_seed(0))
    histograms = region_histograms(affinity, labels, num_labels=3)
    # every labeled pixel is shared out completely
    torch.testing.assert_close(histograms.sum(1), torch.stack([(labels == k).sum((1, 2)) for k in range(3)], 1).float())
    # with one pixel per class and position, a histogram is what painting spreads, turned round
    one_hot = torch.eye(12).expand(2, -1, -1)  # each token a class of its own
    spread = paint(one_hot, affinity)
    spread = torch.nn.functional.interpolate(spread, size=(60, 48), mode="nearest")
    labels = torch.randint(0, 3, (2, 60, 48), generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("bnij,bijk->bnk", spread, torch.nn.functional.one_hot(labels, 3).float())
    torch.testing.assert_close(region_histograms(affinity, labels, num_labels=3), expected, atol=1e-3, rtol=1e-4)


def test_padding_holds_no_pixels():
    labels = torch.ones(1, 40, 50, dtype=torch.long)
    histograms = region_histograms(own_cells(4, 4, 3, 4), labels, num_labels=2, padded_size=(48, 64))
    assert histograms.view(3, 4, 2)[:, :, 1].tolist() == [[256, 256, 256, 32]] * 2 + [[128, 128, 128, 16]]


def test_homogeneity():
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    affinity = own_cells(4, 4, 2, 2)
    assert homogeneity_loss(affinity, labels, num_labels=4).item() == 0
    labels[:, ::2] = 1
    assert homogeneity_loss(affinity, labels, num_labels=4).item() == pytest.approx(1 - 0.5**0.5)
    labels[0, :16] = 255  # regions without labels do not count
    assert homogeneity_loss(affinity, labels, num_labels=4).item() == pytest.approx(1 - 0.5**0.5)

    affinity.requires_grad_()
    loss = homogeneity_loss(affinity, torch.full((1, 32, 32), 255), num_labels=4)
    loss.backward()
    assert loss.item() == 0
    assert not affinity.grad.any()

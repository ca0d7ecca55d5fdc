# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label maps of queries with classes and masks are those of upsampling every mask, without holding them."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_segmodels import PlainViTConfig, SegViTConfig, SegViTForSemanticSegmentation
from hf_segmodels.inference import MaskScores, dense_prediction, mask_argmax
from hf_segmodels.inference.mask_axes import mask_axis
from hf_segmodels.inference.mask_scores import _Search
from hf_segmodels.inference.window_grid import WindowAxis


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_queries(num_queries: int, num_labels: int, height: int, width: int, batch_size: int = 1):
    """Random class and mask logits of queries."""
    return noise(batch_size, num_queries, num_labels + 1), 3 * noise(batch_size, num_queries, height, width, seed=1)


def low_entropy_queries(num_labels: int, height: int, width: int, batch_size: int = 1):
    """Logits like those of a trained model: query k predicts class k and masks a region, or predicts "no object"."""
    winners = noise(batch_size, min(num_labels, 6), 3, 3)
    winners = nn.functional.interpolate(winners, size=(height, width), mode="bilinear").argmax(1, keepdim=True)
    masks = noise(batch_size, num_labels, height, width, seed=1) - 5.0
    masks = masks.scatter_add(1, winners, torch.full_like(winners, 10.0, dtype=torch.float32))
    is_present = torch.zeros(batch_size, num_labels, dtype=torch.bool).scatter(1, winners.flatten(1), True)
    own = torch.arange(num_labels).where(is_present, num_labels)[..., None]
    classes = noise(batch_size, num_labels, num_labels + 1, seed=2)
    return classes.scatter_add(2, own, torch.full_like(own, 10.0, dtype=torch.float32)), masks


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def reference_scores(class_logits, mask_logits, size, prediction_size=None) -> torch.Tensor:
    masks = resize(mask_logits.float(), prediction_size or size).sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", class_logits.float().softmax(-1)[..., :-1], masks)
    return scores if prediction_size is None else resize(scores, size)


def assert_same_labels(labels: torch.Tensor, scores: torch.Tensor) -> None:
    """Labels may differ from `scores.argmax(1)` only where two classes are equal up to rounding."""
    assert labels.shape == (scores.shape[0], *scores.shape[2:])
    assert labels.dtype == torch.long
    behind = scores.amax(dim=1) - scores.gather(1, labels[:, None])[:, 0]
    assert behind.max() <= 2e-6 * scores.max()
    assert (labels != scores.argmax(dim=1)).float().mean() < 1e-3


SIZES = [
    ((32, 32), (512, 512)),  # stride 16
    ((16, 16), (512, 500)),  # stride 32, not an integer factor
    ((32, 21), (500, 333)),
    ((16, 16), (64, 64)),  # stride 4
    ((8, 8), (24, 40)),
    ((60, 44), (21, 9)),  # down
    ((7, 90), (100, 30)),  # up and down
    ((9, 9), (9, 40)),  # one axis unchanged
    ((1, 1), (33, 17)),
    ((1, 6), (50, 1)),
]


@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("prediction_size", [None, (64, 64), (70, 150)])
@pytest.mark.parametrize("make", [random_queries, low_entropy_queries])
def test_equals_upsampling_every_mask(grid, size, prediction_size, make):
    classes, masks = random_queries(19, 19, *grid) if make is random_queries else low_entropy_queries(19, *grid)
    scores = reference_scores(classes, masks, size, prediction_size)
    assert_same_labels(mask_argmax(classes, masks, size, prediction_size), scores)


@pytest.mark.parametrize(("num_queries", "num_labels"), [(1, 1), (1, 5), (7, 3), (3, 40), (200, 150)])
def test_number_of_queries_and_classes(num_queries, num_labels):
    classes, masks = random_queries(num_queries, num_labels, 10, 12, batch_size=2)
    assert_same_labels(mask_argmax(classes, masks, (100, 120)), reference_scores(classes, masks, (100, 120)))


def test_queries_that_predict_other_classes():
    """Labels do not depend on query k predicting class k."""
    classes, masks = low_entropy_queries(20, 16, 16)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        mask_argmax(classes[:, order], masks[:, order], (200, 200)), mask_argmax(classes, masks, (200, 200))
    )


def crossing_queries() -> tuple[torch.Tensor, torch.Tensor]:
    """Two masks that alternate from entry to entry, and a weaker one that is present everywhere."""
    stripes = 10.0 * torch.tensor([1.0, -1.0]).repeat(4).expand(1, 8, 8)
    masks = torch.stack([stripes + 5.0, 5.0 - stripes, torch.full_like(stripes, 1.5)], dim=1)
    return 30.0 * torch.eye(3, 4)[None], masks


@pytest.mark.parametrize("prediction_size", [None, (8, 8), (13, 11), (64, 64)])
@pytest.mark.parametrize("size", [(16, 16), (12, 40), (5, 7)])
def test_no_mask_is_highest_in_all_that_a_pixel_averages(size, prediction_size):
    classes, masks = crossing_queries()
    scores = reference_scores(classes, masks, size, prediction_size)
    assert_same_labels(mask_argmax(classes, masks, size, prediction_size), scores)
    if prediction_size == (8, 8):
        assert (scores.argmax(1) == 2).any()


def test_ties_go_to_the_lower_class():
    classes, masks = random_queries(6, 4, 8, 8)
    doubled = classes[:, :, [2, 0, 1, 2, 3, 0, 4]]
    scores = reference_scores(doubled, masks, (96, 96))
    labels = mask_argmax(doubled, masks, (96, 96))
    assert set(labels.unique().tolist()) <= {0, 1, 2, 4}
    assert_same_labels(labels, scores)
    assert (mask_argmax(torch.zeros(1, 5, 6), torch.zeros(1, 5, 4, 4), (64, 64)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types(dtype):
    classes, masks = (logits.to(dtype) for logits in low_entropy_queries(20, 16, 16))
    assert_same_labels(mask_argmax(classes, masks, (250, 250)), reference_scores(classes, masks, (250, 250)))


def test_memory_layout_gradients_and_autocast_change_nothing():
    classes, masks = low_entropy_queries(12, 10, 14, batch_size=2)
    expected = mask_argmax(classes, masks, (160, 224))
    transposed = masks.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = mask_argmax(classes.requires_grad_(), transposed, (160, 224))
    assert torch.equal(labels, expected)
    assert not labels.requires_grad


def test_saturated_and_missing_masks():
    classes, masks = low_entropy_queries(6, 8, 8)
    clean = mask_argmax(classes, masks, (128, 128))
    for value in (torch.inf, torch.nan):
        broken = masks.clone()
        broken[:, :, 2, 3] = -torch.inf
        broken[:, 4, 2, 3] = value
        certain = classes.clone()
        certain[:, 4] = torch.tensor([0, 0, 0, 0, 30.0, 0, 0])
        labels = mask_argmax(certain, broken, (128, 128))
        # entry (2, 3) is in the middle of rows 32 to 47 and columns 48 to 63, and reaches half an entry further
        expected = 4 if value == torch.inf else 0  # all scores are NaN there
        assert (labels[:, 39:41, 55:57] == expected).all()
        assert torch.equal(labels[:, 64:], mask_argmax(certain, masks, (128, 128))[:, 64:])
    assert clean.shape == (1, 128, 128)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_masks_are_numbers_in_scores_too(value):
    _, masks = random_queries(3, 3, 6, 6)
    masks[:, :, 2:] = value
    axis = mask_axis(WindowAxis((0,), 48, 6, 48, 48, 48), 20, 48, torch.device("cpu"))
    scores = MaskScores(masks[0], torch.eye(3)[None, None], axis, axis)
    assert torch.equal(scores.argmax(), scores.evaluate().argmax(0))
    finite = MaskScores(masks[0].clamp(-1e4, 1e4), torch.eye(3)[None, None], axis, axis)
    torch.testing.assert_close(scores.evaluate()[:, 24:], finite.evaluate()[:, 24:])
    torch.testing.assert_close(scores.evaluate()[:, :8], finite.evaluate()[:, :8])


def test_a_class_is_left_where_products_are_rounded(monkeypatch):
    """TF32 on GPUs rounds to a thousandth."""
    mix = _Search._mix
    monkeypatch.setattr(_Search, "_mix", lambda *arguments: 0.999 * mix(*arguments))
    masks = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 4, 4)
    assert (mask_argmax(30.0 * torch.eye(5, 6)[None], masks, (64, 64)) == 4).all()


def test_missing_class_logits():
    """All scores are NaN: the first class wins, as in `torch.argmax`."""
    classes, masks = random_queries(4, 5, 6, 6)
    classes[:, 1, 2] = torch.nan
    for prediction_size in (None, (30, 20)):
        assert not mask_argmax(classes, masks, (48, 48), prediction_size).any()


def test_empty_batch():
    assert mask_argmax(torch.empty(0, 5, 6), torch.empty(0, 5, 8, 8), (64, 48)).shape == (0, 64, 48)


@pytest.mark.parametrize(
    ("classes", "masks", "size", "message"),
    [
        ((1, 5), (1, 5, 8, 8), (64, 64), "Expected class logits of shape"),
        ((1, 5, 6), (1, 4, 8, 8), (64, 64), "Expected class logits of shape"),
        ((1, 5, 6), (1, 5, 0, 8), (64, 64), "Expected class logits of shape"),
        ((1, 5, 1), (1, 5, 8, 8), (64, 64), "at least one class in addition to"),
        ((1, 5, 6), (1, 5, 8, 8), (0, 64), "at least one class in addition to"),
    ],
)
def test_bad_input(classes, masks, size, message):
    with pytest.raises(ValueError, match=message):
        mask_argmax(torch.empty(classes), torch.empty(masks), size)


@pytest.mark.parametrize("prediction_size", [(0, 8), -1, (8, 8, 8), 2.5])
def test_bad_prediction_size(prediction_size):
    with pytest.raises(ValueError, match="`prediction_size` must be"):
        mask_argmax(torch.zeros(1, 5, 6), torch.zeros(1, 5, 8, 8), (64, 64), prediction_size)


# Speed and memory


class LargestTensor(TorchDispatchMode):
    """Records the number of floats in the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("make", [random_queries, low_entropy_queries])
def test_masks_are_never_held_at_full_resolution(make):
    classes, masks = random_queries(60, 60, 40, 40) if make is random_queries else low_entropy_queries(60, 40, 40)
    with LargestTensor() as largest:
        mask_argmax(classes, masks, (640, 640))
    assert 0 < largest.numel < 60 * 640 * 640 / 8


def candidates(classes: torch.Tensor, masks: torch.Tensor, windows: WindowAxis, target: int) -> torch.Tensor:
    axis = mask_axis(windows, None, target, torch.device("cpu"))
    grid = masks[0].permute(1, 2, 0).contiguous()
    return _Search(grid, classes[0], axis.tiles, axis.tiles)._can_win().sum(dim=1)


def test_few_classes_are_left_in_a_tile():
    class_logits, masks = low_entropy_queries(150, 32, 32)
    probabilities = class_logits.softmax(-1)[:, None, None, :, :-1]
    counts = candidates(probabilities, masks, WindowAxis((0,), 512, 32, 512, 512, 512), 512)
    assert (counts == 1).float().mean() > 0.6
    assert counts.float().mean() < 2

    # two windows in each direction, which overlap by half, and a target of another size
    image = low_entropy_queries(150, 48, 48)[1]
    grid = torch.cat([image[:, :, :32], image[:, :, 16:]], dim=2)
    grid = torch.cat([grid[..., :32], grid[..., 16:]], dim=3)
    probabilities = probabilities.expand(1, 2, 2, 150, 150)
    for target in (768, 1000):
        counts = candidates(probabilities, grid, WindowAxis((0, 256), 512, 32, 512, 768, 768), target)
        assert (counts == 1).float().mean() > 0.5
        assert counts.float().mean() < 4


# Windows, scales and flips


def make_model(**fields) -> SegViTForSemanticSegmentation:
    """A tiny SegViT with patches of 8 pixels, and weights so large that labels vary within an image."""
    encoder = PlainViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32, use_cls_token=False
    )
    config = SegViTConfig(
        backbone_config=encoder,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
        num_labels=5,
        **fields,
    )
    model = SegViTForSemanticSegmentation(config).eval()
    generator = torch.Generator().manual_seed(2)  # the numbers that `init_weights` draws depend on the version
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 if name.startswith("decoder") else 0.1, generator=generator)
        # query k predicts class k
        model.decoder.class_queries.copy_(3.0 * torch.eye(5, 16))
        model.decoder.classifier.weight.copy_(torch.eye(6, 16))
    return model


@torch.no_grad()
def reference_windows(model, image, window, stride, target_size, is_flipped=False):
    """Averaged scores `(num_labels, height, width)` of one image `(1, 3, height, width)`, one window at a time."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    for top in range(0, height, stride[0]):
        for left in range(0, width, stride[1]):
            bottom, right = min(top + window[0], height), min(left + window[1], width)
            first, start = max(bottom - window[0], 0), max(right - window[1], 0)
            place = (..., slice(first, bottom), slice(start, right))
            total[place] += model(image[place], labels=None).logits
            count[first:bottom, start:right] += 1
            if right == width:
                break
        if bottom == height:
            break
    scores = resize(total / count, target_size)[0]
    return scores.flip(-1) if is_flipped else scores


@pytest.mark.parametrize("prediction_size", [None, 32, (24, 40)])
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((75, 101), (32, 32), (24, 24)),  # overlapping, last window shifted back
        ((64, 96), (32, 32), (32, 32)),  # side by side
        ((64, 48), (32, 48), (20, 48)),  # pairs; one axis has a single window
        ((70, 61), (30, 20), (13, 7)),  # windows that are not whole patches, four deep
        ((20, 70), (32, 32), (24, 24)),  # smaller than the window
    ],
)
@pytest.mark.parametrize("target_size", [None, (50, 130), (33, 21)])
def test_windows_equal_a_loop(size, window, stride, target_size, prediction_size):
    model = make_model(prediction_size=prediction_size)
    images = noise(2, 3, *size)
    target_sizes = None if target_size is None else [target_size] * 2
    options = {"target_sizes": target_sizes, "window_size": window, "window_stride": stride}
    expected = [reference_windows(model, image[None], window, stride, target_size or size) for image in images]
    scores = model.predict(images, return_scores=True, max_windows=3, **options)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    labels = model.predict(images, **options)
    assert_same_labels(torch.stack(labels), torch.stack(scores))
    assert all(len(label_map.unique()) > 1 for label_map in labels)


def test_bands_of_rows_are_those_of_the_whole(monkeypatch):
    import hf_segmodels.inference.mask_scores as module

    model = make_model(prediction_size=40)
    images = noise(1, 3, 90, 70)
    options = {"window_size": 32, "window_stride": 20, "target_sizes": [(120, 100)]}
    (expected,), (labels,) = model.predict(images, return_scores=True, **options), model.predict(images, **options)
    monkeypatch.setattr(module, "_BAND", 1)
    torch.testing.assert_close(model.predict(images, return_scores=True, **options), [expected])
    assert torch.equal(model.predict(images, **options)[0], labels)


def test_scales_and_flips_average_softmax_maps():
    model = make_model()
    inputs = [noise(1, 3, 40, 56), noise(1, 3, 40, 56).flip(-1), noise(1, 3, 60, 84, seed=3)]
    flips = [False, True, False]
    with torch.no_grad():
        views = [
            reference_windows(model, x, (32, 32), (20, 20), (50, 70), flip)
            for x, flip in zip(inputs, flips, strict=True)
        ]
        options = {"window_size": 32, "window_stride": 20}
        (scores,) = dense_prediction(model, inputs, flips, [(50, 70)], return_scores=True, **options)
        (labels,) = dense_prediction(model, inputs, flips, [(50, 70)], **options)
        (flipped,) = dense_prediction(model, inputs[1:2], flips[1:2], [(50, 70)], return_scores=True, **options)
    torch.testing.assert_close(flipped, views[1], atol=1e-5, rtol=1e-5)
    expected = torch.stack([view.softmax(0) for view in views]).mean(0)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    assert_same_labels(labels[None], expected[None])


def test_small_images_are_padded_to_the_window_where_asked():
    model = make_model(small_image_mode="pad")
    image = noise(1, 3, 20, 50)
    padded = nn.functional.pad(image, (0, 0, 0, 12))
    expected = reference_windows(model, padded, (32, 32), (24, 24), (32, 50))[:, :20]
    (scores,) = model.predict(image, window_size=32, window_stride=24, return_scores=True)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_forward_slides_as_predict_does():
    model = make_model(window_size=32, window_stride=20)
    images = noise(2, 3, 50, 70)
    with torch.no_grad():
        outputs = model(images)
    torch.testing.assert_close(list(outputs.logits), model.predict(images, return_scores=True))
    assert outputs.masks_queries_logits is None


@pytest.mark.gpu
@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("prediction_size", [None, (70, 150)])
def test_gpu(grid, size, prediction_size):
    for classes, masks in (random_queries(19, 19, *grid), low_entropy_queries(19, *grid)):
        classes, masks = classes.cuda(), masks.cuda()
        scores = reference_scores(classes, masks, size, prediction_size)
        assert_same_labels(mask_argmax(classes, masks, size, prediction_size), scores)

# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`predict` and the sliding `forward` against a loop over windows and, at the end, the original's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation
from hf_segmodels.conversion import convert
from hf_segmodels.inference import WindowGrid, dense_prediction


def make_model(**fields) -> SegmenterForSemanticSegmentation:
    """A tiny Segmenter with patches of 8 pixels, and weights so large that labels vary within an image."""
    torch.manual_seed(0)
    encoder = PlainViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32, drop_path_rate=0.5
    )
    config = SegmenterConfig(backbone_config=encoder, decoder_type="linear", num_labels=5, **fields)
    model = SegmenterForSemanticSegmentation(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight)
    return model


def make_images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def reference_logits(model, image, window, stride, target_size, is_flipped=False):
    """Averaged logits `(1, num_labels, height, width)` of one image `(1, 3, height, width)`, one window at a time."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    # the grid of windows as in mmsegmentation
    rows = max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + window[0], height)
            right = min(column * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            crop = image[..., top:bottom, left:right]
            encoded = model.encode(crop)
            logits, covered = model.decode(encoded).logits, encoded.padded_size
            total[..., top:bottom, left:right] += resize(logits, covered)[..., : bottom - top, : right - left]
            count[top:bottom, left:right] += 1
    logits = resize(total / count, target_size)
    return logits.flip(-1) if is_flipped else logits


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((75, 101), (32, 32), (24, 24)),  # overlapping, last window shifted back
        ((64, 96), (32, 32), (32, 32)),  # side by side
        ((64, 48), (32, 48), (20, 48)),  # pairs; one axis has a single window
        ((70, 61), (30, 20), (13, 17)),  # windows that are not whole patches
        ((40, 40), (40, 40), (8, 8)),  # exactly one
    ],
)
@pytest.mark.parametrize("target_size", [None, (50, 130)])
def test_windows_equal_a_loop(size, window, stride, target_size):
    model = make_model()
    images = make_images(2, 3, *size)
    target_sizes = None if target_size is None else [target_size] * 2
    options = {"target_sizes": target_sizes, "window_size": window, "window_stride": stride}
    expected = [reference_logits(model, image[None], window, stride, target_size or size)[0] for image in images]
    for max_windows in (1, 5):
        scores = model.predict(images, return_scores=True, max_windows=max_windows, **options)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    labels = model.predict(images, **options)
    assert all(torch.equal(one, other.argmax(0)) for one, other in zip(labels, scores, strict=True))
    assert all(len(label_map.unique()) > 1 for label_map in labels)


@pytest.mark.parametrize("size", [(20, 70), (70, 20), (20, 20), (29, 31)])
def test_small_images_are_scaled_up_to_the_window(size):
    model = make_model(small_image_mode="upscale")
    image = make_images(1, 3, *size)
    short = min(size)
    larger = tuple(32 if side == short else int(side / short * 32) for side in size)
    expected = reference_logits(model, resize(image, larger), (32, 32), (24, 24), size)
    (scores,) = model.predict(image, window_size=32, window_stride=24, return_scores=True)
    torch.testing.assert_close(scores, expected[0], atol=1e-4, rtol=1e-4)


def test_small_images_are_padded_to_the_window():
    model = make_model(small_image_mode="pad")
    image = make_images(1, 3, 20, 50)
    padded = nn.functional.pad(image, (0, 0, 0, 12))
    expected = reference_logits(model, padded, (32, 32), (24, 24), (32, 50))[..., :20, :]
    (scores,) = model.predict(image, window_size=32, window_stride=24, return_scores=True)
    torch.testing.assert_close(scores, expected[0], atol=1e-4, rtol=1e-4)
    # padding is cut off before resizing
    (scores,) = model.predict(image, [(40, 75)], window_size=32, window_stride=24, return_scores=True)
    torch.testing.assert_close(scores, resize(expected, (40, 75))[0], atol=1e-4, rtol=1e-4)


def test_small_images_are_left_unchanged():
    model = make_model(small_image_mode="none")
    image = make_images(1, 3, 20, 50)
    expected = reference_logits(model, image, (32, 32), (24, 24), (20, 50))
    (scores,) = model.predict(image, window_size=32, window_stride=24, return_scores=True)
    torch.testing.assert_close(scores, expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(7, 5), (40, 64), (41, 63), (100, 33)])
@pytest.mark.parametrize("mode", ["none", "pad", "upscale"])
def test_number_of_windows_is_that_of_their_starts(size, mode):
    for stride in [(1, 1), (9, 16), (32, 20)]:
        grid = WindowGrid(size, (32, 20), stride, mode)
        assert grid.num_windows == tuple(map(len, grid.starts))


def test_windows_come_from_the_config():
    model = make_model(window_size=[32, 40], window_stride=24)
    images = make_images(1, 3, 75, 101)
    (scores,) = model.predict(images, return_scores=True)
    torch.testing.assert_close(
        scores, reference_logits(model, images, (32, 40), (24, 24), (75, 101))[0], atol=1e-4, rtol=1e-4
    )
    # another window starts from its own stride
    (scores,) = model.predict(images, window_size=40, return_scores=True)
    torch.testing.assert_close(
        scores, reference_logits(model, images, (40, 40), (40, 40), (75, 101))[0], atol=1e-4, rtol=1e-4
    )
    (scores,) = model.predict(images, window_size=0, return_scores=True)
    torch.testing.assert_close(
        scores, reference_logits(model, images, (75, 101), (1, 1), (75, 101))[0], atol=1e-4, rtol=1e-4
    )


def test_scales_and_flip_average_probabilities():
    model = make_model(window_size=32, window_stride=24)
    images = make_images(2, 3, 45, 61)
    target_sizes = [(45, 61), (90, 80)]
    expected = []
    for image, target_size in zip(images[:, None], target_sizes, strict=True):
        probabilities = []
        for size in ((34, 46), (45, 61), (68, 92)):
            for is_flipped in (False, True):
                resized = resize(image, size)
                resized = resized.flip(-1) if is_flipped else resized
                logits = reference_logits(model, resized, (32, 32), (24, 24), target_size, is_flipped)
                probabilities.append(logits.softmax(1))
        expected.append(torch.cat(probabilities).mean(0))
    options = {"target_sizes": torch.tensor(target_sizes), "scales": (0.75, 1.0, 1.5), "flip": True}
    scores = model.predict(images, return_scores=True, **options)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    labels = model.predict(images, **options)
    assert all(torch.equal(one, other.argmax(0)) for one, other in zip(labels, scores, strict=True))


def test_a_single_flipped_input_is_flipped_back():
    model = make_model()
    image = make_images(1, 3, 40, 61)
    (scores,) = dense_prediction(model, [image.flip(-1)], [True], [(40, 61)], 32, 24, return_scores=True)
    expected = reference_logits(model, image.flip(-1), (32, 32), (24, 24), (40, 61), is_flipped=True)
    torch.testing.assert_close(scores, expected[0], atol=1e-4, rtol=1e-4)


def test_dropout_is_off_and_every_module_gets_its_mode_back():
    model = make_model()
    images = make_images(1, 3, 40, 40)
    (expected,) = model.predict(images, return_scores=True)
    model.train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    (scores,) = model.predict(images, return_scores=True)
    assert torch.equal(scores, expected)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="stride"):
        model.predict(images, window_size=16, window_stride=32)
    assert [module.training for module in model.modules()] == modes


def test_half_precision_windows_are_merged_in_float32():
    model = make_model(window_size=32, window_stride=24)
    images = make_images(1, 3, 75, 101)
    (expected,) = model.predict(images, return_scores=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (autocast,) = model.predict(images, return_scores=True)
        (labels,) = model.predict(images)
    (half,) = model.to(torch.bfloat16).predict(images.to(torch.bfloat16), return_scores=True)
    for scores in (autocast, half):
        assert scores.dtype == torch.float32
        assert (scores - expected).pow(2).mean().sqrt() < 0.1 * expected.std()
    # merged scores are not rounded to bfloat16
    assert (autocast != autocast.to(torch.bfloat16)).any()
    assert torch.equal(labels, autocast.argmax(0))


# forward


def test_forward_slides_in_eval_mode():
    model = make_model(window_size=32, window_stride=24)
    images = make_images(2, 3, 75, 101)
    with torch.no_grad():
        outputs = model(images)
        expected = torch.stack(model.predict(images, return_scores=True))
        assert type(outputs) is type(make_model()(images))
        assert torch.equal(outputs.logits, expected)
        (logits,) = model(images, return_dict=False)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("reason", ["small image", "labels", "training", "attentions", "no window"])
def test_forward_does_not_slide(reason):
    model = make_model(window_size=None if reason == "no window" else 32, window_stride=None)
    size = (32, 24) if reason == "small image" else (64, 96)
    arguments = {}
    if reason == "labels":
        arguments["labels"] = torch.zeros(1, *size, dtype=torch.long)
    if reason == "attentions":
        arguments["output_attentions"] = True
        model.set_attn_implementation("eager")
    model.train(reason == "training")
    logits = model(make_images(1, 3, *size), **arguments).logits
    assert logits.shape[-2:] == (size[0] // 8, size[1] // 8)


def test_exported_graph_does_not_slide():
    model = make_model(window_size=32)
    images = make_images(1, 3, 64, 96)
    with torch.no_grad():
        logits = torch.export.export(model, (images,)).module()(images).logits
        expected = model.decode(model.encode(images)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_image_through_windows():
    model = make_model(window_size=32, window_stride=24)
    images = make_images(1, 3, 40, 60)
    with torch.inference_mode():
        model(images)
    images.requires_grad_()
    model(images).logits.sum().backward()
    assert (images.grad.abs().amax(1) > 0).all()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 32, "window_stride": 40}, "a larger stride skips pixels"),
        ({"window_size": 32, "window_stride": 0}, r"must be from 1 to `window_size`"),
        ({"window_size": -1}, "must be an integer or"),
        ({"window_size": (32, 32, 32)}, "must be an integer or"),
        ({"window_size": 32.5}, "must be an integer or"),
        ({"window_size": 32, "max_windows": 0}, "`max_windows` must be at least 1"),
        ({"window_size": 0, "window_stride": 8}, r"`window_stride` 8 needs a `window_size`"),
        ({"window_stride": 8}, r"`window_stride` 8 needs a `window_size`"),
        ({"scales": ()}, "`scales` must be factors"),
        ({"scales": (1.0, 0.001)}, "leave pixels of 40 x 60"),
        ({"target_sizes": [(40, 60)]}, r"`target_sizes` for a batch of 2 images must be"),
        ({"target_sizes": [(40, 60), (0, 60)]}, "at least one pixel"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_model().predict(make_images(2, 3, 40, 60), **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (make_images(3, 40, 60), r"pixel_values\[None\]"),
        (torch.zeros(1, 3, 40, 60, dtype=torch.uint8), "use the image processor"),
        (torch.empty(0, 3, 40, 60), "at least one pixel"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        make_model().predict(images)


def test_wrong_channels_name_the_shape_of_the_image():
    images = make_images(2, 4, 40, 60)
    model = make_model(window_size=32)
    for call in (model, lambda images: model.predict(images, scales=(0.5, 1.0))):
        with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\).*\(2, 4, 40, 60\).*3 channels"):
            call(images)


def test_inputs_and_flips_must_match():
    images = make_images(1, 3, 40, 60)
    with pytest.raises(ValueError, match="Got 1 inputs and 2 flips"):
        dense_prediction(make_model(), [images], [False, True], [(40, 60)])
    with pytest.raises(ValueError, match="Got 0 inputs"):
        dense_prediction(make_model(), [], [], [(40, 60)])


# The original's outputs


@pytest.fixture(scope="module")
def golden() -> Path:
    return Path(__file__).resolve().parents[1] / "fixtures" / "segmenter" / "mask_vit16_slide"


@pytest.fixture(scope="module")
def original(golden: Path) -> SegmenterForSemanticSegmentation:
    model = convert(golden / "checkpoint.pth").model.eval()
    model.config.window_size = json.loads((golden / "config.json").read_text())["window_size"]
    model.config.window_stride = json.loads((golden / "config.json").read_text())["window_stride"]
    return model


def load(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def assert_golden(model, inputs, flips, expected, **tolerance):
    """Scores equal the original's, labels those of the original's scores except for ties within rounding."""
    expected = expected.reshape(-1, *expected.shape[-2:])
    target_sizes = [tuple(expected.shape[-2:])]
    with torch.no_grad():
        (scores,) = dense_prediction(model, inputs, flips, target_sizes, return_scores=True)
        (labels,) = dense_prediction(model, inputs, flips, target_sizes)
    torch.testing.assert_close(scores, expected, **tolerance)
    behind = expected.amax(0) - expected.gather(0, labels[None])[0]
    assert behind.max() < 2e-5


def test_original_sliding_window(original, golden):
    pixel_values = load(golden / "slide_input.npy")
    assert_golden(original, [pixel_values], [False], load(golden / "slide_logits.npy"), atol=1e-4, rtol=0)
    flipped = [pixel_values, pixel_values.flip(-1)]
    assert_golden(original, flipped, [False, True], load(golden / "slide_flip_probs.npy"), atol=1e-5, rtol=0)
    (scores,) = original.predict(pixel_values, return_scores=True)
    expected = load(golden / "slide_probs.npy").reshape(scores.shape)
    torch.testing.assert_close(scores.softmax(0), expected, atol=1e-5, rtol=0)


def test_original_small_image(original, golden):
    pixel_values = load(golden / "slide_small_input.npy")
    (scores,) = original.predict(pixel_values, return_scores=True)
    expected = load(golden / "slide_small_probs.npy").reshape(scores.shape)
    torch.testing.assert_close(scores.softmax(0), expected, atol=1e-5, rtol=0)


def test_original_multi_scale(original, golden):
    arrays = np.load(golden / "ms_inputs.npz")
    settings = json.loads((golden / "config.json").read_text())["slide_files"]["ms"]
    inputs = [torch.from_numpy(arrays[name]).reshape(1, 3, *arrays[name].shape[-2:]) for name in arrays.files]
    assert [list(pixel_values.shape[-2:]) for pixel_values in inputs] == settings["aug_shapes"]
    assert_golden(original, inputs, settings["aug_flip"], load(golden / "ms_probs.npy"), atol=1e-5, rtol=0)

    single_scale = settings["img_ratios"].index(1.0) * 2
    expected = load(golden / "ms_ss_probs.npy")
    with torch.no_grad():
        (scores,) = dense_prediction(
            original, inputs[single_scale : single_scale + 1], [False], [expected.shape[-2:]], return_scores=True
        )
    torch.testing.assert_close(scores.softmax(0), expected.reshape(scores.shape), atol=1e-5, rtol=0)

# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Shared image processors, tested through Segmenter's: pixels of the original pipelines, agreement of the backends, label
maps, padding, channels, errors, round trips.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging import version
from PIL import Image
from transformers import AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_segmodels import SegmenterImageProcessor, SegmenterImageProcessorPil
from hf_segmodels.image_processing import resize_image, resize_label_map, resized_size


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PIPELINES = FIXTURES / "image_processing"
BACKENDS = {"torchvision": SegmenterImageProcessor, "pil": SegmenterImageProcessorPil}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(params=BACKENDS)
def processor_class(request):
    return BACKENDS[request.param]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def to_numpy(image):
    return image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image)


def random_image(rng, height=20, width=30, channels=3):
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


# ------------------------------------------------------------------------------------------- the originals' pixels


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.75])
def test_pixels_of_the_original_pipeline(processor_class, ratio):
    """`mmseg_val_pipeline.npz` holds the output of mmsegmentation's validation pipeline, before normalizing."""
    golden = np.load(PIPELINES / "mmseg_val_pipeline.npz")
    size = {"shortest_edge": int(48 * ratio), "longest_edge": int(192 * ratio)}
    pixel_values = processor_class(size=size)(golden["image"], return_tensors="np").pixel_values
    expected = golden[f"ratio_{ratio}"].astype(np.float32) / 127.5 - 1
    assert pixel_values.dtype == np.float32
    np.testing.assert_allclose(pixel_values[0], expected, rtol=0, atol=1e-6)


def test_pixels_of_the_original_multi_scale_pipeline(processor_class):
    folder = FIXTURES / "segmenter" / "mask_vit16_slide"
    settings = json.loads((folder / "config.json").read_text())["slide_files"]["ms"]
    inputs = np.load(folder / "ms_inputs.npz")
    image = Image.open(folder / "ms_image.png")
    for index, flip in enumerate(settings["aug_flip"]):
        longest, shortest = (int(edge * settings["img_ratios"][index // 2]) for edge in settings["img_scale"])
        processor = processor_class(size={"shortest_edge": shortest, "longest_edge": longest})
        pixel_values = processor(image, return_tensors="np").pixel_values[0]
        expected = inputs[f"aug{index}"]
        np.testing.assert_allclose(pixel_values[..., ::-1] if flip else pixel_values, expected, rtol=0, atol=1e-6)


def test_pixels_and_labels_of_regproxy_pipeline(processor_class):
    golden = np.load(PIPELINES / "regproxy_pipeline.npz")
    for longest, shortest in ((256, 64), (96, 80)):
        processor = processor_class(size={"shortest_edge": shortest, "longest_edge": longest}, **IMAGENET)
        pixel_values = processor(golden["image"], return_tensors="np").pixel_values[0]
        np.testing.assert_allclose(pixel_values, golden[f"scale_{longest}x{shortest}"], rtol=0, atol=2e-6)
    processor = processor_class(do_resize=False, do_reduce_labels=True, num_labels=150)
    labels = processor(golden["image"], golden["label_map"], return_tensors="np").labels[0]
    np.testing.assert_array_equal(labels, golden["label_map_reduced"])


def test_resizing_equals_opencv():
    """`opencv_resize.npz` was made with `cv2.resize` of OpenCV 4.12 (5.0 gives the same)."""
    golden = np.load(PIPELINES / "opencv_resize.npz")
    source = torch.from_numpy(golden["source"]).permute(2, 0, 1).contiguous()
    for name in golden.files:
        kind, _, rest = name.partition("_")
        if kind == "linear":
            resized = resize_image(source, tuple(map(int, rest.split("x"))))
            np.testing.assert_array_equal(resized.permute(1, 2, 0).numpy(), golden[name], err_msg=name)
        elif kind == "nearest":
            in_size, out_size = map(int, rest.split("_"))
            columns = resize_label_map(torch.arange(in_size)[None], (1, out_size))[0]
            rows = resize_label_map(torch.arange(in_size)[:, None], (out_size, 1))[:, 0]
            np.testing.assert_array_equal(columns.numpy(), golden[name], err_msg=name)
            np.testing.assert_array_equal(rows.numpy(), golden[name], err_msg=name)


@pytest.mark.parametrize(
    ("image_size", "size", "expected"),
    [
        ((480, 640), {"shortest_edge": 512, "longest_edge": 2048}, (512, 683)),
        ((100, 1000), {"shortest_edge": 512, "longest_edge": 2048}, (205, 2048)),  # the longer edge decides
        ((61, 97), {"shortest_edge": 84, "longest_edge": 336}, (84, 134)),
        ((61, 97), {"shortest_edge": 24}, (24, 38)),
        ((61, 97), {"height": 8, "width": 9}, (8, 9)),
        ((1, 9000), {"shortest_edge": 512, "longest_edge": 2048}, (1, 2048)),  # never zero
    ],
)
def test_size_rule(image_size, size, expected):
    assert resized_size(*image_size, size) == expected


def test_integer_size_is_the_shortest_edge(processor_class, rng):
    assert processor_class(size=10)(random_image(rng), return_tensors="pt").pixel_values.shape == (1, 3, 10, 15)


def test_antialias_and_resample(rng):
    image = random_image(rng, 64, 64)
    size = {"height": 16, "width": 16}
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "np", "size": size}
    smooth = SegmenterImageProcessor(antialias=True)(image, **options).pixel_values[0]
    reference = np.array(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(smooth.astype(int) - reference).max() <= 1
    plain = SegmenterImageProcessor()(image, **options).pixel_values[0]
    assert smooth.dtype == plain.dtype == np.uint8
    assert smooth.std() < plain.std() / 1.5
    nearest = SegmenterImageProcessor(resample=Image.Resampling.NEAREST)(image, **options).pixel_values[0]
    np.testing.assert_array_equal(nearest, image[::4, ::4].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="bicubic"):
        SegmenterImageProcessor(resample=Image.Resampling.LANCZOS)(image, **options)


# ------------------------------------------------------------------------------------------------ backends agree


@pytest.mark.parametrize("seed", range(6))
def test_backends_agree(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 80, (3, 2)).tolist()
    images = [random_image(rng, *size) for size in sizes]
    maps = [rng.integers(0, 151, size, dtype=np.uint8) for size in sizes]
    options = {
        **IMAGENET,
        "size": {"shortest_edge": int(rng.integers(5, 90)), "longest_edge": int(rng.integers(60, 120))},
        "do_pad": True,
        "do_reduce_labels": True,
        "num_labels": 150,
        "resample": [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST][seed % 3],
        "antialias": seed == 5,
    }
    first, second = (cls(**options)(images, maps, return_tensors="pt") for cls in BACKENDS.values())
    torch.testing.assert_close(first.pixel_values, second.pixel_values, rtol=0, atol=1e-6)
    assert torch.equal(first.labels, second.labels)


def test_fields_may_be_given_for_one_call(processor_class, rng):
    image = random_image(rng)
    changed = {"size": {"height": 7, "width": 9}, "do_rescale": False, **IMAGENET}
    processor = processor_class()
    at_call = processor(image, **changed, return_tensors="pt").pixel_values
    at_init = processor_class(**changed)(image, return_tensors="pt").pixel_values
    assert torch.equal(at_call, at_init)
    assert processor(image, return_tensors="pt").pixel_values.shape[-2:] == (512, 768)


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_return_tensors(processor_class, rng, return_tensors):
    images, maps = [random_image(rng, 8, 9)] * 2, [np.zeros((8, 9), np.uint8)] * 2
    batch = processor_class(size=8)(images, maps, return_tensors=return_tensors)
    if return_tensors is None:
        assert [type(value) for value in (batch.pixel_values, batch.labels)] == [list, list]
        assert [image.shape for image in batch.pixel_values] == [(3, 8, 9)] * 2
    else:
        array = np.ndarray if return_tensors == "np" else torch.Tensor
        assert isinstance(batch.pixel_values, array)
        assert isinstance(batch.labels, array)
        assert (batch.pixel_values.shape, batch.labels.shape) == ((2, 3, 8, 9), (2, 8, 9))
    assert "float32" in str(batch.pixel_values[0].dtype)
    assert "int64" in str(batch.labels[0].dtype)


# ----------------------------------------------------------------------------------------------------- image inputs


def test_any_kind_of_image_gives_the_same_pixels(processor_class, rng):
    array = random_image(rng, 12, 15)
    chw = np.ascontiguousarray(array.transpose(2, 0, 1))
    kinds = {
        "pil": Image.fromarray(array),
        "hwc": array,
        "chw": chw,
        "negative strides": np.ascontiguousarray(array[:, ::-1])[:, ::-1],
        "bgr view": np.ascontiguousarray(array[..., ::-1])[..., ::-1],
        "int64": array.astype(np.int64),
        "big endian": array.astype(">u2"),
        "torch chw": torch.from_numpy(chw),
        "torch hwc": torch.from_numpy(array),
        "torch with grad": torch.from_numpy(chw).float().requires_grad_(),
    }
    read_only = array.copy()
    read_only.flags.writeable = False
    kinds["read only"] = read_only
    processor = processor_class(do_resize=False)
    expected = torch.from_numpy(chw).float() / 127.5 - 1
    for kind, image in kinds.items():
        pixel_values = processor(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixel_values, expected, rtol=0, atol=1e-6, msg=kind)
    batch = processor(list(kinds.values()), return_tensors="pt").pixel_values
    torch.testing.assert_close(batch, expected.expand_as(batch), rtol=0, atol=1e-6)
    stacked = processor(np.stack([array, array]), return_tensors="pt").pixel_values
    torch.testing.assert_close(stacked, expected.expand_as(stacked), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_modes(processor_class, rng, mode):
    image = Image.fromarray(random_image(rng)).convert(mode)
    options = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    pixels = processor_class()(image, **options).pixel_values[0]
    np.testing.assert_array_equal(pixels, np.array(image.convert("RGB")).transpose(2, 0, 1))


def test_transparency_becomes_white(processor_class, rng):
    rgba = random_image(rng, channels=4)
    rgba[:5, :, 3], rgba[5:10, :, 3] = 0, 255
    palette = Image.fromarray(rng.integers(0, 4, (20, 30), dtype=np.uint8), "P")
    palette.putpalette([0, 0, 0] * 4)
    palette.info["transparency"] = 2
    options = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    processor = processor_class()
    pixels = processor(Image.fromarray(rgba), **options).pixel_values[0]
    assert (pixels[:, :5] == 255).all()
    np.testing.assert_array_equal(pixels[:, 5:10], rgba[5:10, :, :3].transpose(2, 0, 1))
    over = Image.alpha_composite(Image.new("RGBA", (30, 20), "white"), Image.fromarray(rgba)).convert("RGB")
    assert np.abs(pixels.astype(int) - np.array(over).transpose(2, 0, 1)).max() <= 1
    np.testing.assert_array_equal(pixels, processor(rgba, **options).pixel_values[0])
    wide = processor(rgba.astype(np.int64), **options).pixel_values[0]
    np.testing.assert_allclose(wide, pixels, atol=0.51)
    fractions = processor(torch.from_numpy(rgba / 255.0), **options).pixel_values[0]
    np.testing.assert_allclose(fractions, pixels / 255, atol=1 / 255)
    pixels = processor(palette, **options).pixel_values[0]
    np.testing.assert_array_equal(pixels[0] == 255, np.array(palette) == 2)


def test_16_and_32_bit_grays_are_not_cut_off(processor_class):
    values = np.array([[0, 257, 32896, 65535]])
    options = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    for dtype in (np.uint16, ">u2", np.int32, np.float32):
        pixels = processor_class()(Image.fromarray(values.astype(dtype)), **options).pixel_values[0]
        assert pixels.tolist() == [[[0, 1, 128, 255]]] * 3


def test_gray_arrays(processor_class, rng):
    gray = rng.integers(0, 256, (11, 13), dtype=np.uint8)
    processor = processor_class(do_resize=False)
    expected = processor(Image.fromarray(gray), return_tensors="pt").pixel_values
    assert expected.shape == (1, 3, 11, 13)
    for image in (gray, gray[..., None], gray[None], torch.from_numpy(gray), [gray]):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)
    single = processor(gray, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5], return_tensors="pt").pixel_values
    assert torch.equal(single, expected[:, :1])


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_any_number_of_channels(processor_class, rng, channels, layout):
    image = rng.integers(0, 10000, (24, 18, channels)).astype(np.uint16)
    mean, std = [0.1 * (index + 1) for index in range(channels)], [0.5 + 0.1 * index for index in range(channels)]
    processor = processor_class(
        do_convert_rgb=False, image_mean=mean, image_std=std, rescale_factor=1e-4, size={"height": 12, "width": 9}
    )
    given = image if layout == "channels_last" else image.transpose(2, 0, 1)
    maps = rng.integers(0, 3, (24, 18))
    batch = processor([given, given], [maps, maps], input_data_format=layout, return_tensors="pt")
    assert batch.labels.shape == (2, 12, 9)
    scaled = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] * 1e-4
    expected = F.interpolate(scaled, size=(12, 9), mode="bilinear")
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(batch.pixel_values, expected.expand(2, -1, -1, -1), rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- label maps


def test_any_kind_of_label_map(processor_class, rng):
    values = rng.integers(0, 5, (10, 14), dtype=np.uint8)
    values[0, :3] = 255
    palette = Image.fromarray(values, "P")
    palette.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    kinds = {
        "L": Image.fromarray(values),
        "P": palette,
        "I;16": Image.fromarray(values.astype(np.uint16)),
        "I": Image.fromarray(values.astype(np.int32)),
        "uint8": values,
        "uint16": values.astype(np.uint16),
        "int32": values.astype(np.int32),
        "int64": values.astype(np.int64),
        "big endian": values.astype(">i4"),
        "flipped view": values[::-1].copy()[::-1],
        "channel first": values[None],
        "channel last": values[..., None],
        "torch uint8": torch.from_numpy(values),
        "torch int64": torch.from_numpy(values).long(),
        "torch with a channel": torch.from_numpy(values)[None],
    }
    processor = processor_class(size={"height": 10, "width": 14}, num_labels=5)
    image = random_image(rng, 10, 14)
    expected = torch.from_numpy(values).long()[None]
    for kind, label_map in kinds.items():
        labels = processor(image, label_map, return_tensors="pt").labels
        assert labels.dtype == torch.int64, kind
        assert torch.equal(labels, expected), kind
        assert torch.equal(processor([image], [label_map], return_tensors="pt").labels, expected), kind
    together = processor([image] * len(kinds), list(kinds.values()), return_tensors="pt").labels
    assert torch.equal(together, expected.expand_as(together))
    stacked = np.stack([values, values])
    for maps in (stacked, torch.from_numpy(stacked), stacked[..., None], stacked[:, None]):
        assert torch.equal(processor([image] * 2, maps, return_tensors="pt").labels, expected.expand(2, -1, -1))


def test_reduced_labels(processor_class, rng):
    label_map = np.array([[0, 1, 2], [150, 255, 0]], dtype=np.uint8)
    processor = processor_class(do_resize=False, do_reduce_labels=True, num_labels=150)
    image = random_image(rng, 2, 3)
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        labels = processor(image, label_map.astype(dtype), return_tensors="np").labels[0]
        np.testing.assert_array_equal(labels, [[255, 0, 1], [149, 255, 255]])
    many_classes = np.array([[0, 255, 256], [65535, 1, 847]], dtype=np.uint16)
    labels = processor(image, many_classes, num_labels=847, ignore_index=65535, return_tensors="np").labels[0]
    np.testing.assert_array_equal(labels, [[65535, 254, 255], [65535, 0, 846]])


def test_labels_follow_the_image(processor_class):
    """A picture whose color is its label stays aligned with it through resizing and padding."""
    label_map = np.arange(12, dtype=np.uint8).reshape(3, 4).repeat(8, axis=0).repeat(8, axis=1)
    image = np.stack([label_map * 20] * 3, axis=-1)
    processor = processor_class(
        size={"shortest_edge": 48}, do_pad=True, pad_size={"height": 60, "width": 80}, do_normalize=False, num_labels=12
    )
    batch = processor(image, label_map, return_tensors="pt")
    labels, pixels = batch.labels[0], batch.pixel_values[0, 0] * 255 / 20
    assert (labels[48:] == 255).all()
    assert (labels[:, 64:] == 255).all()
    centers = torch.arange(8, 48, 16), torch.arange(8, 64, 16)
    inner = labels[centers[0][:, None], centers[1]].float()
    assert torch.equal(inner, torch.arange(12.0).reshape(3, 4))
    torch.testing.assert_close(pixels[centers[0][:, None], centers[1]], inner)


def test_callers_data_is_not_changed(processor_class, rng):
    array = random_image(rng, 16, 16)
    label_map = rng.integers(0, 6, (16, 16), dtype=np.uint8)
    images = [array, torch.from_numpy(array.transpose(2, 0, 1).copy()).float(), Image.fromarray(array)]
    maps = [label_map, torch.from_numpy(label_map).long(), Image.fromarray(label_map)]
    copies = [to_numpy(item).copy() for item in (*images, *maps)]
    lists = list(images), list(maps)
    size = {"height": 16, "width": 16}
    for options in ({}, {"do_resize": False}, {"size": {"height": 8, "width": 8}}):
        processor = processor_class(**{"size": size, **options}, do_reduce_labels=True, do_pad=True, num_labels=5)
        batch = processor(images, maps, do_rescale=False, do_normalize=False, return_tensors=None)
        for pixels in batch.pixel_values:
            pixels[:] = 3
        for labels in batch.labels:
            labels[:] = 3  # the output is not a view of the input
        for item, copied in zip((*images, *maps), copies, strict=True):
            np.testing.assert_array_equal(to_numpy(item), copied)
    assert all(now is before for now, before in zip((*images, *maps), (*lists[0], *lists[1]), strict=True))


@pytest.mark.gpu
def test_on_another_device(rng):
    image, label_map = random_image(rng, 40, 50), rng.integers(0, 5, (40, 50))
    processor = SegmenterImageProcessor(size=24, num_labels=5)
    on_cpu = processor(image, label_map, return_tensors="pt")
    on_gpu = processor(image, label_map, device="cuda", return_tensors="pt")
    assert on_gpu.pixel_values.is_cuda
    assert on_gpu.labels.is_cuda
    torch.testing.assert_close(on_gpu.pixel_values.cpu(), on_cpu.pixel_values, rtol=0, atol=1e-6)
    assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels)


# ------------------------------------------------------------------------------------------------------------ padding


def test_padding(processor_class, rng):
    images = [random_image(rng, 10, 14), random_image(rng, 12, 8)]
    maps = [np.zeros((10, 14), np.uint8), np.zeros((12, 8), np.uint8)]
    processor = processor_class(do_resize=False, do_pad=True)
    batch = processor(images, maps, return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 12, 14)
    assert (batch.pixel_values[0, :, 10:] == 0).all()
    assert (batch.pixel_values[1, :, :, 8:] == 0).all()
    assert (batch.labels[0] == 255).sum() == 2 * 14
    assert (batch.labels[1] == 255).sum() == 12 * 6
    one = processor(images[0], return_tensors="pt").pixel_values[0]
    assert torch.equal(batch.pixel_values[0, :, :10], one)
    fixed = processor(images, maps, pad_size={"height": 16, "width": 20}, ignore_index=-100, return_tensors="pt")
    assert fixed.pixel_values.shape == (2, 3, 16, 20)
    assert (fixed.labels[:, 12:] == -100).all()
    with pytest.raises(ValueError, match="pad_size"):
        processor(images, pad_size={"height": 8, "width": 8})


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_different_sizes_cannot_be_stacked(processor_class, rng, return_tensors):
    images = [random_image(rng, 10, 14), random_image(rng, 12, 8)]
    processor = processor_class(do_resize=False)
    with pytest.raises(ValueError, match=r"(?s)do_pad=True.*size=\{'height'"):
        processor(images, return_tensors=return_tensors)
    assert [image.shape for image in processor(images).pixel_values] == [(3, 10, 14), (3, 12, 8)]


def test_no_images(processor_class):
    for images in ([], (), np.zeros((0, 3, 8, 8), np.uint8)):
        with pytest.raises(ValueError, match="at least one image"):
            processor_class()(images, return_tensors="pt")
    with pytest.raises(ValueError, match="no pixels"):
        processor_class()(np.zeros((0, 8, 3), np.uint8), return_tensors="pt")


def test_wrong_channels(processor_class, rng):
    image = random_image(rng, channels=5)
    processor = processor_class(do_convert_rgb=False)
    with pytest.raises(ValueError, match="input_data_format"):
        processor(image)
    with pytest.raises(ValueError, match=r"images\[0\] has 5 channels but `image_mean` has 3"):
        processor(image, input_data_format="channels_last")
    with pytest.raises(ValueError, match="`image_std` has 3"):
        processor(image, input_data_format="channels_last", image_mean=[0.5] * 5)
    with pytest.raises(ValueError, match="do_convert_rgb=False"):
        processor_class(image_mean=[0.5] * 4, image_std=[0.5] * 4)(random_image(rng, channels=4))


def test_labels_outside_the_classes(processor_class, rng):
    image = random_image(rng, 6, 8)
    good, bad = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    bad[4, 3], bad[5, 0] = 150, 200
    processor = processor_class(size=6, num_labels=150)
    with pytest.raises(
        ValueError, match=r"(?s)segmentation_maps\[1\].*150, 200.*y=4, x=3.*do_reduce_labels.*num_labels"
    ):
        processor([image, image], [good, bad])
    processor(image, bad, num_labels=201)
    with pytest.raises(ValueError, match=r"-1.*y=0, x=0"):
        processor(image, good.astype(np.int64) - 1)
    with pytest.raises(ValueError, match=r"\(reduced\).*199"):
        processor(image, bad, do_reduce_labels=True)


def test_maps_that_do_not_fit(processor_class, rng):
    image = random_image(rng, 6, 8)
    processor = processor_class(size=6)
    label_map = np.zeros((6, 8), np.uint8)
    for maps, message in [
        ([label_map], "1 segmentation maps for 2 images"),
        ([label_map, label_map.T], r"segmentation_maps\[1\].*\(8, 6\).*\(6, 8\)"),
        ([label_map, Image.fromarray(random_image(rng, 6, 8))], "mode 'RGB'"),
        ([label_map, random_image(rng, 6, 8)], r"shape \(6, 8, 3\)"),
        ([label_map, label_map / 2], "float64"),
        ([label_map, torch.zeros(6, 8)], "float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor([image, image], maps)
    colors = random_image(rng, 6, 8)
    for maps in (colors, colors.transpose(2, 0, 1), torch.from_numpy(colors), colors[None]):
        with pytest.raises(ValueError, match=r"one class id per pixel.*colors to class ids"):
            processor(image, maps)
    with pytest.raises(TypeError, match="PIL.Image.open"):
        processor(image, "map.png")
    for maps in (label_map.tolist(), [label_map.tolist()]):
        with pytest.raises(TypeError, match="np.array"):
            processor(image, maps)


def test_unsupported_settings(processor_class, rng):
    image = random_image(rng)
    with pytest.raises(ValueError, match="shortest_edge"):
        processor_class(size={"longest_edge": 10})(image)
    for size in (0, -3, {"height": 0, "width": 5}, {"shortest_edge": 5, "longest_edge": -1}):
        with pytest.raises(ValueError, match="at least one pixel"):
            processor_class(size=size)(image)
    with pytest.raises(ValueError, match="do_center_crop"):
        processor_class(do_center_crop=True, crop_size=8)(image)


# ---------------------------------------------------------------------------------------------------- post-processing


@pytest.mark.parametrize("kind", ["list", "tensor", "equal"])
def test_post_processing(processor_class, kind):
    torch.manual_seed(0)
    outputs = SemanticSegmenterOutput(logits=torch.randn(2, 7, 6, 9))
    sizes = {"list": [(11, 13), (40, 5)], "tensor": torch.tensor([[11, 13], [6, 9]]), "equal": [[17, 20]] * 2}[kind]
    processor = processor_class()
    label_maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    scored = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes, return_segmentation_scores=True)
    for logits, size, label_map, output in zip(outputs.logits, sizes, label_maps, scored, strict=True):
        size = tuple(int(edge) for edge in size)
        expected = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        assert label_map.dtype == torch.int64
        assert torch.equal(label_map, expected.argmax(dim=0))
        assert torch.equal(output.segmentation, label_map)
        torch.testing.assert_close(output.segmentation_scores, expected)


def test_post_processing_without_target_sizes(processor_class):
    outputs = SemanticSegmenterOutput(logits=torch.randn(2, 7, 6, 9))
    label_maps = processor_class().post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(label_maps), outputs.logits.argmax(dim=1))
    with pytest.raises(ValueError, match="batch of 2"):
        processor_class().post_process_semantic_segmentation(outputs, target_sizes=[(4, 4)])


# --------------------------------------------------------------------------------------------------- saving, loading


def test_round_trip_through_auto_class(processor_class, tmp_path, rng):
    fields = {
        **IMAGENET,
        "size": {"shortest_edge": 30, "longest_edge": 90},
        "antialias": True,
        "do_reduce_labels": True,
        "do_pad": True,
        "pad_size": {"height": 96, "width": 100},
        "ignore_index": 7,
        "num_labels": 5,
    }
    processor = processor_class(**fields)
    processor.save_pretrained(tmp_path)
    image, label_map = random_image(rng), np.ones((20, 30), np.uint8)
    expected = processor(image, label_map, return_tensors="pt")
    for backend, loaded_class in BACKENDS.items():
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is loaded_class
        assert loaded.to_dict() == processor.to_dict()
        batch = loaded(image, label_map, return_tensors="pt")
        torch.testing.assert_close(batch.pixel_values, expected.pixel_values, rtol=0, atol=1e-6)
        assert torch.equal(batch.labels, expected.labels)
    assert AutoImageProcessor.from_pretrained(tmp_path, num_labels=9).num_labels == 9


@pytest.mark.parametrize("loader", ["SegmenterImageProcessorPil", "AutoImageProcessor"])
def test_without_torchvision(tmp_path, loader):
    """The PIL backend needs no torchvision, and the Auto class falls back to it."""
    if loader == "AutoImageProcessor" and version.parse(transformers.__version__) < version.parse("5.22"):
        pytest.skip("older versions of transformers' AutoImageProcessor ask for torchvision themselves")
    SegmenterImageProcessor(size=8).save_pretrained(tmp_path)
    script = f"""
import sys
sys.modules["torchvision"] = None
import numpy as np
from hf_segmodels import SegmenterImageProcessorPil
from transformers import AutoImageProcessor
processor = {loader}.from_pretrained(sys.argv[1])
batch = processor(np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8), return_tensors="pt")
print(type(processor).__name__, tuple(batch.pixel_values.shape), tuple(batch.labels.shape))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("SegmenterImageProcessorPil (1, 3, 8, 9) (1, 8, 9)")

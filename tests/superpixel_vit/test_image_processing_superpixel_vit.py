# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_segmodels import SuperpixelViTConfig, SuperpixelViTImageProcessor, SuperpixelViTImageProcessorPil
from hf_segmodels.image_processing.superpixels import slic_superpixels


pytest.importorskip("skimage", reason="scikit-image is part of the `superpixels` and `dev` extras")

PROCESSORS = [SuperpixelViTImageProcessor, SuperpixelViTImageProcessorPil]


def smooth_image(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def two_halves(height: int = 64, width: int = 64) -> torch.Tensor:
    """A red and a blue half, divided between columns 28 and 29."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0, :, :29] = 255
    image[2, :, 29:] = 255
    return image


def border_length(superpixels: torch.Tensor) -> int:
    """Neighboring pixels of different superpixels."""
    return int((superpixels[1:] != superpixels[:-1]).sum() + (superpixels[:, 1:] != superpixels[:, :-1]).sum())


class TestSlic:
    @pytest.mark.parametrize("number", [1, 10, 100, 10**6])
    @pytest.mark.parametrize("size", [(1, 1), (1, 30), (33, 20), (60, 90)])
    def test_numbers_each_pixel_from_zero_without_gaps(self, size, number):
        image = torch.from_numpy(np.array(smooth_image(size[1], size[0]))).permute(2, 0, 1)
        superpixels = slic_superpixels(image, number)
        assert (superpixels.shape, superpixels.dtype) == (size, torch.int64)
        values = superpixels.unique()
        assert torch.equal(values, torch.arange(len(values)))

    def test_follows_edges(self):
        image = two_halves()
        superpixels = slic_superpixels(image, 16)
        assert superpixels.max() > 4
        for number in superpixels.unique():
            assert len(image[0][superpixels == number].unique()) == 1

    def test_range_of_the_values_does_not_matter(self):
        image = torch.from_numpy(np.array(smooth_image())).permute(2, 0, 1)
        assert torch.equal(slic_superpixels(image, 20), slic_superpixels(image / 255, 20))

    @pytest.mark.parametrize(
        ("number", "compactness", "message"),
        [(0, 10.0, "`n_segments` must be at least 1"), (5, 0.0, "`compactness` must be greater than 0")],
    )
    def test_bad_settings(self, number, compactness, message):
        with pytest.raises(ValueError, match=message):
            slic_superpixels(two_halves(), number, compactness)

    def test_scikit_image_is_named_where_it_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
        with pytest.raises(ImportError, match=r"pip install 'hf_segmodels\[superpixels\]'"):
            slic_superpixels(two_halves(), 16)


@pytest.mark.parametrize("processor_class", PROCESSORS)
class TestSuperpixels:
    def test_superpixels_are_those_of_the_resized_image(self, processor_class):
        image = smooth_image(180, 120)
        processor = processor_class(size={"shortest_edge": 60}, do_normalize=False, do_rescale=False)
        inputs = processor(image, return_tensors="pt")
        assert inputs.pixel_values.shape == (1, 3, 60, 90)
        assert (inputs.superpixels.shape, inputs.superpixels.dtype) == ((1, 60, 90), torch.int64)
        assert torch.equal(inputs.superpixels[0], slic_superpixels(inputs.pixel_values[0], round(60 * 90 / 256)))

    def test_settings(self, processor_class):
        image, processor = smooth_image(256, 256), processor_class(do_resize=False)

        def cut(**settings) -> torch.Tensor:
            return processor(image, return_tensors="pt", **settings).superpixels[0]

        few, many = cut(n_segments=20, compactness=50.0), cut(pixels_per_segment=128, compactness=50.0)
        assert 10 <= few.max() + 1 <= 30
        assert 400 <= many.max() + 1 <= 600
        assert torch.equal(cut(n_segments=20, pixels_per_segment=7, compactness=50.0), few)
        assert border_length(cut(compactness=100.0)) < 0.8 * border_length(cut(compactness=1.0))

    def test_padding(self, processor_class):
        images = [smooth_image(90, 60), smooth_image(48, 64, seed=1)]
        labels = [np.zeros((60, 90), np.uint8), np.ones((64, 48), np.uint8)]
        processor = processor_class(do_resize=False, do_pad=True)
        inputs = processor(images, labels, return_tensors="pt")
        assert inputs.superpixels.shape == inputs.labels.shape == (2, 64, 90)
        for image, superpixels, label_map in zip(images, inputs.superpixels, inputs.labels, strict=True):
            alone = processor(image, return_tensors="pt", do_pad=False).superpixels[0]
            assert torch.equal(superpixels[: image.height, : image.width], alone)
            assert torch.equal(superpixels < 0, label_map == 255)
            assert superpixels.min() == -1

    @pytest.mark.parametrize("settings", [{"pixels_per_segment": 0}, {"n_segments": 0}, {"compactness": -1.0}])
    def test_bad_settings(self, processor_class, settings):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
            processor_class(size={"shortest_edge": 32})(smooth_image(), **settings)

    def test_other_images_than_rgb(self, processor_class):
        image = np.random.default_rng(0).random((5, 32, 48), dtype=np.float32)
        processor = processor_class(
            do_resize=False, do_rescale=False, do_convert_rgb=False, image_mean=[0.5] * 5, image_std=[0.5] * 5
        )
        inputs = processor(image, return_tensors="pt", input_data_format="channels_first", n_segments=6)
        assert inputs.superpixels.shape == (1, 32, 48)

    def test_array_types(self, processor_class):
        processor = processor_class(size={"height": 32, "width": 48})
        arrays = processor(smooth_image(), return_tensors="np")["superpixels"]
        tensors = processor(smooth_image(), return_tensors="pt")["superpixels"]
        (plain,) = processor(smooth_image())["superpixels"]
        assert isinstance(arrays, np.ndarray)
        np.testing.assert_array_equal(arrays, tensors)
        np.testing.assert_array_equal(plain, tensors[0])

    def test_round_trip_through_the_auto_class(self, processor_class, tmp_path):
        processor_class(n_segments=12, pixels_per_segment=99, compactness=3.5).save_pretrained(tmp_path)
        SuperpixelViTConfig().save_pretrained(tmp_path)
        backend = "pil" if processor_class is SuperpixelViTImageProcessorPil else "torchvision"
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is processor_class
        assert (loaded.n_segments, loaded.pixels_per_segment, loaded.compactness) == (12, 99, 3.5)


def test_both_backends_give_the_same():
    first, second = (cls(size={"shortest_edge": 40})(smooth_image(), return_tensors="pt") for cls in PROCESSORS)
    assert torch.equal(first.superpixels, second.superpixels)
    torch.testing.assert_close(first.pixel_values, second.pixel_values)


class TestPostProcessing:
    @pytest.fixture
    def outputs(self) -> SimpleNamespace:
        superpixels = torch.tensor([[[0, 0, 1, 1], [0, 2, 2, 1]], [[0, 1, 1, -1], [0, 0, 1, -1]]])
        token_logits = torch.tensor([[[1.0, 0], [0, 1], [3, 4]], [[0, 2], [5, 0], [0, 0]]])
        return SimpleNamespace(token_logits=token_logits, superpixels=superpixels, logits=None)

    def test_paints_labels_and_scores(self, outputs):
        processor = SuperpixelViTImageProcessor()
        expected = [[[0, 0, 1, 1], [0, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]
        assert [labels.tolist() for labels in processor.post_process_semantic_segmentation(outputs)] == expected
        results = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
        assert [result.segmentation.tolist() for result in results] == expected
        assert results[0].segmentation_scores[:, 1].tolist() == [[1, 3, 3, 0], [0, 4, 4, 1]]

    def test_target_sizes(self, outputs):
        processor = SuperpixelViTImageProcessor()
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=torch.tensor([[4, 8], [2, 4]]))
        assert labels[0][::2].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]
        assert labels[1].shape == (2, 4)
        with pytest.raises(ValueError, match="for a batch of 2 images"):
            processor.post_process_semantic_segmentation(outputs, target_sizes=[(4, 8)])

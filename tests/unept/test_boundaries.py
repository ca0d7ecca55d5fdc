# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Boundary targets, directions and refinement against the original's, and their losses."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch
from torch import nn

from hf_segmodels import UNEPTImageProcessor, UNEPTImageProcessorPil
from hf_segmodels.sparse_attention import reference_points
from hf_segmodels.unept import compute_boundary_targets, flip_boundary_targets, read_boundary_targets, unept_losses
from hf_segmodels.unept.boundary_refinement import (
    DIRECTION_OFFSETS,
    gather_at_offsets,
    refinement_offsets,
    resize_boundary_maps,
)
from hf_segmodels.unept.boundary_targets import boundary_labels, direction_labels
from hf_segmodels.unept.context_branch import sine_position_embeddings
from hf_segmodels.unept.loss_unept import balanced_cross_entropy


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "unept"


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / name) as arrays:
        return {key: torch.from_numpy(np.atleast_1d(arrays[key])) for key in arrays.files}


@pytest.fixture(scope="module")
def stored():
    return load("boundary_ops.npz")


@pytest.fixture(scope="module")
def generated():
    """Label map with 255 for unlabeled pixels, and the targets of the original generator."""
    arrays = load("dt_offset.npz")
    raw = arrays["raw_label"].long()
    return torch.where(raw == 0, 255, raw - 1), arrays


# Targets


def exact_targets(label_map, ignore_index=255, min_class_pixels=100):
    """
    Distance map, unrounded angles in degrees from -180 to 180, and where there is an angle. Unlike the generator, this
    computes in float64 and evaluates each class over the whole image.
    """
    y, x = torch.meshgrid(*[torch.arange(-2.0, 3.0, dtype=torch.float64)] * 2, indexing="ij")
    kernel = (torch.stack([y, x]) / (y**2 + x**2).clamp(min=1))[:, None]
    distance = torch.zeros(label_map.shape, dtype=torch.float64)
    gradient = torch.zeros(2, *label_map.shape, dtype=torch.float64)
    for label in label_map.unique().tolist():
        mask = label_map == label
        if label == ignore_index or mask.sum() < min_class_pixels:
            continue
        own = torch.from_numpy(scipy.ndimage.distance_transform_edt(mask.numpy()))
        distance += own
        gradient += nn.functional.conv2d(own[None, None], kernel, padding=2)[0] * mask
    return distance.clamp(max=250).long(), torch.rad2deg(torch.atan2(*gradient)), gradient.norm(dim=0) > 1e-4


def test_targets_are_those_of_the_generator(generated):
    label_map, expected = generated
    distance_map, angle_map = compute_boundary_targets(label_map)
    assert torch.equal(distance_map, expected["distance_map"])
    assert (distance_map == 0)[label_map == 255].all()
    assert (angle_map == 0)[distance_map == 0].all()
    # Angles are rounded down to even degrees. Along straight edges they lie on a border between two steps, up to the
    # rounding of float32 convolution and arctan2, which differs between instruction sets. One step is allowed there.
    _, exact_angles, has_angle = exact_targets(label_map)
    is_inside_step = has_angle & ((exact_angles % 2 - 1).abs() < 1 - 1e-4)
    assert is_inside_step.float().mean() > 0.5
    assert torch.equal(angle_map[is_inside_step], expected["angle_map"][is_inside_step])
    difference = (angle_map - expected["angle_map"] + 180) % 360 - 180
    assert (difference[has_angle].abs() <= 2).all()
    # the directions that are trained are the same in any case
    directions = [direction_labels(angles)[has_angle] for angles in (angle_map, expected["angle_map"])]
    assert torch.equal(*directions)


def test_files_of_the_generator_are_read(generated, tmp_path):
    _, arrays = generated
    contents = {"depth": arrays["depth"].numpy(), "dir_deg": arrays["dir_deg"].numpy(), "deg_reduce": 2}
    scipy.io.savemat(tmp_path / "a.mat", contents)
    distance_map, angle_map = read_boundary_targets(tmp_path / "a.mat", size=(64, 80))
    assert torch.equal(distance_map, arrays["distance_map"])
    assert torch.equal(angle_map, arrays["angle_map"])
    with pytest.raises(
        ValueError, match=r"of shape \(64, 80\).*; the image has .* \(80, 64\)\. Use the file of this image"
    ):
        read_boundary_targets(tmp_path / "a.mat", size=(80, 64))
    scipy.io.savemat(tmp_path / "b.mat", {"depth": arrays["depth"].numpy()})
    with pytest.raises(ValueError, match="not a file of boundary targets"):
        read_boundary_targets(tmp_path / "b.mat")
    (tmp_path / "c.mat").write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected a .mat file with `depth`"):
        read_boundary_targets(tmp_path / "c.mat")
    with pytest.raises(FileNotFoundError):
        read_boundary_targets(tmp_path / "d.mat")


def test_flipped_targets_point_the_other_way(generated):
    label_map, _ = generated
    distance_map, angle_map = flip_boundary_targets(*compute_boundary_targets(label_map))
    expected_distance, expected_angle = compute_boundary_targets(label_map.flip(-1))
    assert torch.equal(distance_map, expected_distance)
    # angles are rounded down to even degrees, before as after
    difference = (angle_map - expected_angle).remainder(360)
    is_close = (difference <= 2) | (difference >= 358)
    assert is_close.float().mean() > 0.98
    unlabeled = label_map.flip(-1) == 255
    assert torch.equal(angle_map[unlabeled], expected_angle[unlabeled])

    padding = torch.full((2, 3), 255)
    assert torch.equal(flip_boundary_targets(padding, padding)[1], padding)
    # flipping twice gives back every angle but the one that has two names
    assert torch.equal(
        flip_boundary_targets(*flip_boundary_targets(torch.ones(1, 5).long(), torch.tensor([[-178, -90, 0, 90, 178]])))[
            1
        ],
        torch.tensor([[-178, -90, 0, 90, 178]]),
    )


def test_a_label_map_without_any_boundary():
    distance_map, angle_map = compute_boundary_targets(torch.full((40, 30), 7))
    assert (distance_map == 250).all()
    assert boundary_labels(distance_map).sum() == 0
    assert angle_map.abs().max() <= 180


def test_small_classes_and_maps_without_labels():
    label_map = torch.zeros(40, 40, dtype=torch.long)
    label_map[:9, :11] = 1  # 99 pixels
    assert (compute_boundary_targets(label_map)[0][:9, :11] == 0).all()
    label_map[9, 0] = 1
    assert (compute_boundary_targets(label_map)[0][:9, :11] > 0).all()
    distance_map, angle_map = compute_boundary_targets(torch.full((5, 5), 255))
    assert (distance_map == 0).all()
    assert (angle_map == 0).all()


def test_directions_point_to_the_interior():
    label_map = torch.zeros(40, 40, dtype=torch.long)
    label_map[10:30, 10:30] = 1
    distance_map, angle_map = compute_boundary_targets(label_map)
    steps = torch.tensor(DIRECTION_OFFSETS)[direction_labels(angle_map)]
    for (row, column), step in {(10, 20): [1, 0], (29, 20): [-1, 0], (20, 10): [0, 1], (9, 20): [-1, 0]}.items():
        assert distance_map[row, column] == 1
        assert steps[row, column].tolist() == step


def test_targets_of_a_float_map_are_refused():
    with pytest.raises(ValueError, match="integer label map"):
        compute_boundary_targets(torch.zeros(3, 4))


@pytest.mark.parametrize("seed", range(4))
def test_targets_of_scattered_regions(seed):
    generator = np.random.default_rng(seed)
    # blocks of 11 pixels; some classes have several blocks, some touch the image's border
    label_map = torch.from_numpy(np.kron(generator.integers(0, 6, (6, 7)), np.ones((11, 11), dtype=np.int64)))[:60, 3:]
    label_map = torch.where(label_map == 5, 255, label_map)
    distance_map, angle_map = compute_boundary_targets(label_map)
    expected_distance, expected_angle, has_angle = exact_targets(label_map)
    assert torch.equal(distance_map, expected_distance)
    # rounded down to even degrees
    difference = (expected_angle - angle_map + 0.01) % 360
    assert (difference < 2.02)[has_angle].all()


def test_targets_do_not_change_the_label_map_and_take_every_integer_type():
    label_map = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(0)).repeat_interleave(20, 1)
    label_map = label_map.repeat_interleave(20, 0)
    copy = label_map.clone()
    expected = compute_boundary_targets(label_map)
    assert torch.equal(label_map, copy)
    for dtype in (torch.uint8, torch.int32):
        for found, maps in zip(compute_boundary_targets(label_map.to(dtype)), expected, strict=True):
            assert torch.equal(found, maps)
            assert found.dtype == torch.int64


def test_files_in_whole_degrees_are_read(tmp_path):
    angles = np.arange(0, 361, dtype=np.int16)[None]
    scipy.io.savemat(tmp_path / "a.mat", {"depth": np.ones_like(angles), "dir_deg": angles, "deg_reduce": 1})
    assert torch.equal(read_boundary_targets(tmp_path / "a.mat")[1], torch.arange(-180, 181)[None])


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_refused(generated, tmp_path, compressed):
    _, arrays = generated
    contents = {"depth": arrays["depth"].numpy(), "dir_deg": arrays["dir_deg"].numpy(), "deg_reduce": 2}
    scipy.io.savemat(tmp_path / "a.mat", contents, do_compression=compressed)
    whole = (tmp_path / "a.mat").read_bytes()
    for length in [*range(0, 300, 7), *range(300, len(whole), len(whole) // 40)]:
        (tmp_path / "b.mat").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"b\.mat (is not a file of boundary targets|holds)"):
            read_boundary_targets(tmp_path / "b.mat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deg_reduce": 0}, r"is not a file of boundary targets \(`deg_reduce` is 0.0\)"),
        ({"deg_reduce": 3}, "angles from -180.0 to .* degrees. Expected distances from 0, and angles"),
        ({"deg_reduce": np.array([1, 2])}, "is not a file of boundary targets"),
        ({"deg_reduce": "2"}, "is not a file of boundary targets"),
        ({"depth": np.full((2, 3), -1)}, "holds distances from -1.0"),
        ({"depth": np.full((2, 3), np.nan)}, "holds distances from nan"),
        ({"depth": np.full((2, 3), np.inf)}, "holds distances from inf"),
        ({"depth": np.full((2, 3), 1j)}, "is not a file of boundary targets"),
        ({"depth": np.array(["abc", "def"])}, "is not a file of boundary targets"),
        ({"depth": np.array([[[1], [2, 3]]], dtype=object)}, "is not a file of boundary targets"),
        ({"depth": {"a": 1}}, "is not a file of boundary targets"),
        ({"dir_deg": np.full((2, 3), np.nan)}, "angles from nan to nan"),
        ({"dir_deg": np.zeros((2, 3, 1, 2))}, r"an angle map of shape \(2, 3, 1, 2\)"),
    ],
)
def test_files_of_something_else_are_refused(change, message, tmp_path):
    contents = {"depth": np.ones((2, 3)), "dir_deg": np.array([[0, 45, 90], [135, 180, 0]]), "deg_reduce": 2, **change}
    scipy.io.savemat(tmp_path / "a.mat", contents)
    with pytest.raises(ValueError, match=message):
        read_boundary_targets(tmp_path / "a.mat")


def test_targets_without_scipy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        compute_boundary_targets(torch.zeros(4, 4, dtype=torch.long))
    with pytest.raises(ImportError, match="pip install scipy"):
        read_boundary_targets(tmp_path / "a.mat")


# Operations of the original code


def test_labels_of_boundaries_and_directions(stored):
    assert torch.equal(boundary_labels(stored["distance_map"]), stored["mask_label"])
    assert torch.equal(direction_labels(stored["angle_map"]), stored["direction_label_no_ignore"])
    assert torch.equal(direction_labels(stored["angles"]), stored["angle_class"])
    assert torch.equal(torch.tensor(DIRECTION_OFFSETS), stored["vectors_hw"])


def test_refinement_offsets_and_gathered_scores(stored):
    steps = refinement_offsets(stored["mask_logits"], stored["dir_logits"])
    assert torch.equal(steps, stored["offset_hw"])
    torch.testing.assert_close(gather_at_offsets(stored["logits"], steps), stored["refined"], atol=2e-5, rtol=0)


def test_position_encoding_and_reference_points(stored):
    # (35, 256) -> (1, 256, 5, 7)
    encoding = sine_position_embeddings(5, 7, 256).T.unflatten(1, (5, 7))[None]
    torch.testing.assert_close(encoding, stored["pos_sine_5x7"], atol=1e-5, rtol=0)
    points = torch.cat([reference_points(2, 3), reference_points(4, 1)])
    torch.testing.assert_close(points[:, None].expand(-1, 2, -1), stored["enc_ref_points_2x3_4x1"][0])
    torch.testing.assert_close(reference_points(3, 3)[:, None].expand(-1, 3, -1), stored["dec_ref_points_3x3"][0])


# Losses


def losses(stored, **options):
    return unept_losses(
        logits=stored["logits"],
        refined_logits=stored["refined"],
        boundary_logits=stored["mask_logits"],
        direction_logits=stored["dir_logits"],
        labels=stored["seg_label"][:, 0],
        distance_maps=stored["distance_map"][:, 0],
        angle_maps=stored["angle_map"][:, 0],
        **options,
    )


def test_boundary_and_direction_losses_weigh_rare_classes_more(stored):
    expected = nn.functional.cross_entropy(
        stored["mask_logits"], stored["mask_label"][:, 0], weight=stored["mask_class_weights"]
    )
    torch.testing.assert_close(losses(stored).boundary, expected)

    targets = stored["direction_label_with_pred_ignore"][:, 0]
    shares = torch.bincount(targets[targets >= 0], minlength=8) / (targets >= 0).sum()
    expected = nn.functional.cross_entropy(stored["dir_logits"], targets, weight=1 - shares, ignore_index=-1)
    torch.testing.assert_close(losses(stored).direction, expected)


def test_coarse_scores_are_refined_without_being_upsampled(stored):
    generator = torch.Generator().manual_seed(0)
    height, width = stored["seg_label"].shape[-2:]
    size = (height + 5, width + 3)
    logits, boundaries, directions = (
        (4 * torch.randn(len(stored["seg_label"]), channels, 6, 7, generator=generator)).requires_grad_()
        for channels in (stored["logits"].shape[1], 2, 8)
    )
    full = nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    refined = gather_at_offsets(full, refinement_offsets(*resize_boundary_maps(boundaries, directions, size)))
    maps = [scores[..., :height, :width] for scores in resize_boundary_maps(boundaries, directions, size)]
    targets = {
        "labels": stored["seg_label"][:, 0],
        "distance_maps": stored["distance_map"][:, 0],
        "angle_maps": stored["angle_map"][:, 0],
    }
    inputs = (logits, boundaries, directions)
    expected = unept_losses(
        logits=full[..., :height, :width],
        refined_logits=refined[..., :height, :width],
        boundary_logits=maps[0],
        direction_logits=maps[1],
        **targets,
    )
    found = unept_losses(
        logits=logits, boundary_logits=boundaries, direction_logits=directions, padded_size=size, **targets
    )
    for name, ours, plain in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(ours, plain, msg=name)
    for ours, plain in zip(
        torch.autograd.grad(sum(found), inputs), torch.autograd.grad(sum(expected), inputs), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)


def test_unlabeled_pixels_are_ignored_only_on_request(stored):
    changed = {key: tensor.clone() for key, tensor in stored.items()}
    ignored = stored["seg_label"] == 255
    assert ignored.any()
    changed["distance_map"][ignored] = 100
    changed["angle_map"][ignored] = 90
    for term in ("boundary", "direction"):
        assert getattr(losses(changed), term) != getattr(losses(stored), term)
        kept, other = (getattr(losses(case, ignore_unlabeled_boundaries=True), term) for case in (stored, changed))
        torch.testing.assert_close(kept, other)


@pytest.mark.parametrize("case", ["no boundary predicted", "no boundary at all", "one direction", "nothing labeled"])
def test_losses_are_defined_where_the_original_gives_nan(stored, case):
    changed = {key: tensor.clone() for key, tensor in stored.items()}
    options = {}
    if case == "no boundary predicted":
        changed["mask_logits"][:, 1] = -50
    elif case == "no boundary at all":
        changed["distance_map"][:] = 250
    elif case == "one direction":
        changed["angle_map"][:] = 0
    else:
        changed["seg_label"][:] = 255
        options = {"ignore_unlabeled_boundaries": True}
    for key in ("logits", "mask_logits", "dir_logits"):
        changed[key].requires_grad_()
    found = losses(changed, **options)
    sum(found).backward()
    is_zero = {name: value.item() == 0 for name, value in found._asdict().items()}
    assert is_zero == {
        "coarse": case == "nothing labeled",
        "refined": case == "nothing labeled",
        "boundary": case in ("no boundary at all", "nothing labeled"),
        "direction": case != "no boundary at all",
    }
    assert all(value.isfinite() for value in found)
    assert all(changed[key].grad.isfinite().all() for key in ("logits", "mask_logits", "dir_logits"))


def test_half_precision_scores_give_float32_losses():
    logits, targets = torch.randn(1, 2, 20, 20), torch.randint(0, 2, (1, 20, 20))
    loss = balanced_cross_entropy(logits.bfloat16(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, balanced_cross_entropy(logits.bfloat16().float(), targets))


# Image processors


@pytest.mark.parametrize("processor_class", [UNEPTImageProcessor, UNEPTImageProcessorPil])
def test_processors_make_targets_of_resized_labels_and_pad_them(processor_class, tmp_path):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (height, 80, 3), dtype=np.uint8) for height in (60, 40)]
    label_maps = [
        np.kron(generator.integers(0, 4, (height // 20, 4)), np.ones((20, 20), dtype=np.uint8)) for height in (60, 40)
    ]
    label_maps[0][0] = 255
    processor = processor_class(size={"shortest_edge": 30}, do_pad=True, do_boundary_targets=True, num_labels=4)
    processor.save_pretrained(tmp_path)
    processor = processor_class.from_pretrained(tmp_path)
    batch = processor(images, segmentation_maps=label_maps, return_tensors="pt")
    assert batch["distance_maps"].shape == batch["angle_maps"].shape == batch["labels"].shape == (2, 30, 60)
    for index, (height, width) in enumerate([(30, 40), (30, 60)]):
        expected = compute_boundary_targets(batch["labels"][index, :height, :width])
        for name, maps in zip(("distance_maps", "angle_maps"), expected, strict=True):
            assert torch.equal(batch[name][index, :height, :width], maps)
            assert (batch[name][index, :, width:] == 255).all()
    padding = batch["distance_maps"][0, :, 40:]
    assert boundary_labels(padding).sum() == direction_labels(padding).sum() == 0

    plain = processor(images, segmentation_maps=label_maps, do_boundary_targets=False, return_tensors="pt")
    assert set(plain) == {"pixel_values", "labels"}

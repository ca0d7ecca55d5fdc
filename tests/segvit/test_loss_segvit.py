# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The loss of Attention-to-Mask against a loop over images and classes."""

import datetime

import pytest
import torch
from torch import nn

from hf_segmodels.segvit import attention_to_mask_loss
from hf_segmodels.segvit.loss_segvit import count_masks, present_classes


def make(batch_size: int = 3, num_labels: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(batch_size, num_labels, num_labels + 1, generator=generator)
    mask_logits = torch.randn(batch_size, num_labels, 5, 7, generator=generator)
    labels = torch.randint(0, num_labels, (batch_size, 40, 56), generator=generator)
    labels[0] = labels[0].clamp(max=1)
    labels[:, :5] = 255
    labels[1] = 255
    return class_logits, mask_logits, labels


def plain_loss(class_logits, mask_logits, labels, no_object_weight=0.1):
    """Written as the definitions read, one mask at a time."""
    num_labels = class_logits.shape[1]
    entropy = weight_sum = focal = dice = torch.zeros(())
    num_masks = 0
    for classes, masks, label_map in zip(class_logits, mask_logits, labels, strict=True):
        masks = nn.functional.interpolate(masks[None], size=label_map.shape, mode="bilinear", align_corners=False)[0]
        present = [label for label in label_map.unique().tolist() if label != 255]
        for query in range(num_labels):
            weight = 1.0 if query in present else no_object_weight
            target = query if query in present else num_labels
            entropy = entropy - weight * classes[query].log_softmax(0)[target]
            weight_sum = weight_sum + weight
        for label in present:
            num_masks += 1
            inside, probability = label_map == label, masks[label].sigmoid()
            right = torch.where(inside, probability, 1 - probability)
            alpha = torch.where(inside, 0.25, 0.75)
            focal = focal - (alpha * (1 - right) ** 2 * right.log()).mean()
            overlap = probability[inside].sum()
            dice = dice + 1 - (2 * overlap + 1) / (probability.sum() + inside.sum() + 1)
    count = max(num_masks, 1)
    return {"loss_ce": entropy / weight_sum, "loss_mask": focal / count, "loss_dice": dice / count}


@pytest.mark.parametrize("no_object_weight", [0.1, 1.0, 0.0])
def test_terms(no_object_weight):
    arguments = make()
    terms = attention_to_mask_loss(*arguments, no_object_weight=no_object_weight)
    torch.testing.assert_close(terms, plain_loss(*arguments, no_object_weight))


def test_masks_that_cover_more_than_the_label_map():
    class_logits, mask_logits, labels = make()
    padded = nn.functional.pad(labels, (0, 8, 0, 8), value=255)
    masks = nn.functional.interpolate(mask_logits, size=(48, 64), mode="bilinear", align_corners=False)[..., :40, :56]
    terms = attention_to_mask_loss(class_logits, mask_logits, labels, padded_size=(48, 64))
    torch.testing.assert_close(terms, attention_to_mask_loss(class_logits, masks, labels))
    # padding is not background
    assert terms["loss_mask"] != attention_to_mask_loss(class_logits, mask_logits, padded)["loss_mask"]


def test_ignored_pixels_are_background_of_the_masks():
    class_logits, mask_logits, labels = make()
    other = labels.clone()
    other[other == 255] = 3
    one = attention_to_mask_loss(class_logits[:1], mask_logits[:1], labels[:1])
    two = attention_to_mask_loss(class_logits[:1], mask_logits[:1], other[:1])
    # the masks of classes 0 and 1 see no difference, that of class 3 is new
    torch.testing.assert_close(plain_loss(class_logits[:1], mask_logits[:1], labels[:1]), one)
    assert one["loss_mask"] != two["loss_mask"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_nothing_to_mask(dtype):
    class_logits, mask_logits, _ = make()
    class_logits.requires_grad_()
    mask_logits.requires_grad_()
    labels = torch.full((3, 40, 56), 255).to(dtype)
    terms = attention_to_mask_loss(class_logits, mask_logits, labels)
    sum(terms.values()).backward()
    expected = -class_logits.log_softmax(-1)[..., -1].mean()
    torch.testing.assert_close(terms["loss_ce"], expected)
    assert terms["loss_mask"] == terms["loss_dice"] == 0
    assert not mask_logits.grad.any()
    assert class_logits.grad.isfinite().all()
    nothing = attention_to_mask_loss(class_logits, mask_logits, labels, no_object_weight=0.0)
    assert nothing["loss_ce"] == 0


def test_certain_queries_have_no_loss():
    _, _, labels = make()
    labels = labels[:1].repeat_interleave(1, 0)
    labels[labels == 255] = 0
    present = present_classes(labels, 4)
    target = torch.arange(4).where(present, 4)
    classes = 60.0 * nn.functional.one_hot(target, 5)
    masks = 60.0 * nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2) - 30.0
    for term in attention_to_mask_loss(classes, masks, labels).values():
        assert abs(term.item()) < 1e-6


def test_half_precision_is_computed_in_float32():
    class_logits, mask_logits, labels = (tensor.bfloat16() if i < 2 else tensor for i, tensor in enumerate(make()))
    terms = attention_to_mask_loss(class_logits, mask_logits, labels)
    expected = attention_to_mask_loss(class_logits.float(), mask_logits.float(), labels)
    assert all(term.dtype == torch.float32 for term in terms.values())
    torch.testing.assert_close(terms, expected)


def test_number_of_masks():
    _, _, labels = make()
    present = present_classes(labels, 4)
    assert present.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]
    assert count_masks(present) == 6
    assert count_masks(present[1:2]) == 1
    assert present_classes(torch.tensor([[[7, 2]]]), 4, ignore_index=7).tolist() == [[False, False, True, False]]


def _count_in_process(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    _, _, labels = make()
    present = present_classes(labels, 4)
    # process 0 has the image of two classes, process 1 those of none and of four
    mine = present[:1] if rank == 0 else present[1:]
    assert count_masks(mine) == 3
    with torch.no_grad():
        # evaluation does not wait for others, which may have no batch
        assert count_masks(mine) == (2 if rank == 0 else 4)
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # starts two processes
def test_number_of_masks_is_the_mean_over_processes(tmp_path):
    torch.multiprocessing.spawn(_count_in_process, args=(str(tmp_path / "store"),), nprocs=2)

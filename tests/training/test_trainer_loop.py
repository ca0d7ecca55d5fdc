# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The loop on transformers' Trainer, on a few synthetic images; compared with the Accelerate loop where the two must agree."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hf_segmodels.training import accelerate_loop, trainer_loop
from hf_segmodels.training.trainer_loop import SegmentationTrainer, train


class Interrupted(Exception):
    pass


def weights(folder):
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


@pytest.fixture
def even(recipe):
    """Recipes whose samples all have the same number of valid pixels."""

    def make(name, **fields):
        defaults = {"scale_range": [1.0, 1.0], "crop_size": [32, 40], "optimizer": "sgd", "learning_rate": 0.1}
        return recipe(name, **(defaults | {"max_steps": 2} | fields))

    return make


def test_learns_and_saves_what_auto_classes_load(recipe):
    run = recipe(max_steps=30)
    scores = train(run)
    assert scores["losses"][-1] < 0.5 * scores["losses"][0]
    assert scores["mean_iou"] > 0.9
    assert AutoModelForSemanticSegmentation.from_pretrained(run.output_dir).config.id2label == {0: "dark", 1: "bright"}
    assert not AutoImageProcessor.from_pretrained(run.output_dir).do_resize
    results = json.loads(Path(run.output_dir, "results.json").read_text())
    assert results["mean_iou"] == scores["mean_iou"]
    assert [entry["loss"] for entry in results["history"] if "loss" in entry] == scores["losses"]
    assert results["cpu_seconds"] >= 1
    assert results["torch"] == torch.__version__.partition("+")[0] or results["torch"] == torch.__version__


def test_equals_the_other_script(even):
    first, second = even("trainer", max_steps=3), even("accelerate", max_steps=3)
    scores, expected = train(first), accelerate_loop.train(second)
    assert scores["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    ours, theirs = weights(first.output_dir), weights(second.output_dir)
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_equal_those_of_a_large_batch(even):
    large = even("large", batch_size=8)
    small = even("small", batch_size=4, gradient_accumulation_steps=2)
    losses = [train(run)["losses"] for run in (large, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first, second = weights(large.output_dir), weights(small.output_dir)
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-6)


BACKBONES = {
    "plain_vit": {},
    # weights of this one have other names in files than in the model
    "dinov2": {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"patch_size": 8, "image_size": 32},
}


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_resumed_run_equals_uninterrupted_one(recipe, backbone):
    model = recipe().model | {"decoder_type": "mask_transformer", "decoder_num_hidden_layers": 1}
    if BACKBONES[backbone]:
        model = model | {"backbone_config": BACKBONES[backbone]}
    fields = {"warmup_steps": 1, "checkpoint_steps": 2, "model": model}
    whole, part = recipe("whole", **fields), recipe("part", **fields)
    expected = train(whole)["losses"]

    save = SegmentationTrainer._save_checkpoint

    def save_then_stop(*arguments, **options):
        save(*arguments, **options)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationTrainer, "_save_checkpoint", save_then_stop)
        with pytest.raises(Interrupted):
            train(part)
    torch.manual_seed(123)
    part.resume = True
    assert train(part)["losses"][-2:] == expected[-2:]
    first, second = weights(whole.output_dir), weights(part.output_dir)
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


def test_stops_on_a_loss_that_is_not_finite(recipe):
    with pytest.raises(FloatingPointError, match="Lower `learning_rate`"):
        train(recipe(learning_rate=1e30, optimizer="sgd", max_steps=20))


def test_refuses_a_moving_average(recipe):
    with pytest.raises(ValueError, match="ema_decay=0"):
        trainer_loop.train(recipe(ema_decay=0.9))

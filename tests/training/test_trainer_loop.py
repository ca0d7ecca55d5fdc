# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The loop on transformers' Trainer, on a few synthetic images; compared with the Accelerate loop where the two must agree."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from common.interrupted_training import train_until_first_checkpoint
from hf_segmodels.training import accelerate_loop, trainer_loop
from hf_segmodels.training.trainer_loop import SegmentationTrainer, train


def weights(folder):
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


@pytest.fixture
def even(recipe):
    """Recipes whose samples all have the same number of valid pixels."""

    def make(name, **fields):
        defaults = {"scale_range": [1.0, 1.0], "crop_size": [32, 40], "optimizer": "sgd", "learning_rate": 0.1}
        return recipe(name, **(defaults | {"max_steps": 2} | fields))

    return make


def test_equals_the_other_script(even):
    first, second = even("trainer", max_steps=3), even("accelerate", max_steps=3)
    scores, expected = train(first), accelerate_loop.train(second)
    assert scores["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    ours, theirs = weights(first.output_dir), weights(second.output_dir)
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-4, atol=1e-6)


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
    train_until_first_checkpoint(train, part, SegmentationTrainer, "_save_checkpoint")
    torch.manual_seed(123)
    part.resume = True
    assert train(part)["losses"][-2:] == expected[-2:]
    first, second = weights(whole.output_dir), weights(part.output_dir)
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


def test_refuses_a_moving_average(recipe):
    with pytest.raises(ValueError, match="ema_decay=0"):
        trainer_loop.train(recipe(ema_decay=0.9))

# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Evaluation in transformers' Trainer: the scores of `predict`, from label maps that are counted at once."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_segmodels import (
    PlainViTConfig,
    RegProxyConfig,
    RegProxyForSemanticSegmentation,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegViTConfig,
    SegViTForSemanticSegmentation,
)
from hf_segmodels.metrics import SegmentationScores, trainer_metrics


OPTIONS = {"boundary_iou": True, "object_sizes": True}
MODELS = {
    "segmenter": (SegmenterConfig, SegmenterForSemanticSegmentation, {}),
    # its outputs hold more than logits
    "regproxy": (RegProxyConfig, RegProxyForSemanticSegmentation, {"token_head_depth": 1}),
    "segvit": (SegViTConfig, SegViTForSemanticSegmentation, {}),
}


def tiny_model(name):
    torch.manual_seed(0)
    config_class, model_class, fields = MODELS[name]
    encoder = PlainViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32)
    return model_class(config_class(backbone_config=encoder, num_labels=5, **fields)).eval()


def tiny_data(length):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (length, 8, 12), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, :2] = 255
    images = torch.randn(length, 3, 32, 48, generator=generator)
    return [{"pixel_values": image, "labels": label_map} for image, label_map in zip(images, labels, strict=True)]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("batch_eval_metrics", [True, False])
def test_a_trainer_gives_the_scores_of_predict(name, batch_eval_metrics, tmp_path):
    model, data = tiny_model(name), tiny_data(5)
    preprocess, compute = trainer_metrics(5, **OPTIONS)
    counted = []

    def compute_and_watch(eval_pred, compute_result=True):
        counted.append(tuple(eval_pred.predictions.shape))
        return compute(eval_pred, compute_result)

    arguments = TrainingArguments(
        tmp_path,
        per_device_eval_batch_size=2,
        batch_eval_metrics=batch_eval_metrics,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        eval_dataset=data,
        preprocess_logits_for_metrics=preprocess,
        compute_metrics=compute_and_watch,
    )
    expected = SegmentationScores(5, **OPTIONS)
    for row in data:
        (prediction,) = model.predict(row["pixel_values"][None])
        expected.update(prediction, row["labels"])
    numbers = {name: value for name, value in expected.compute().items() if isinstance(value, float)}
    assert len(numbers) == 7
    # a second evaluation starts anew
    for _ in range(2):
        found = trainer.evaluate()
        assert {name: found[f"eval_{name}"] for name in numbers} == pytest.approx(numbers, abs=1e-12)
    # label maps, never scores: a batch at a time, or all in the end
    assert counted == 2 * ([(2, 32, 48), (2, 32, 48), (1, 32, 48)] if batch_eval_metrics else [(5, 32, 48)])


def test_padding_of_gathered_batches_does_not_count():
    preprocess, compute = trainer_metrics(3)
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    label_maps = preprocess((logits, torch.zeros(1)), labels)
    assert (label_maps.shape, label_maps.dtype) == ((2, 8, 8), torch.int16)
    expected = compute(EvalPrediction(predictions=label_maps, label_ids=labels))
    padded = [np.pad(values.numpy(), ((0, 0), (0, 3), (0, 0)), constant_values=-100) for values in (label_maps, labels)]
    assert compute(EvalPrediction(predictions=padded[0], label_ids=padded[1])) == expected
    assert expected.keys() == {"mean_iou", "mean_accuracy", "overall_accuracy"}


def test_results_come_with_the_last_batch_only():
    _, compute = trainer_metrics(3)
    maps = torch.tensor([[[0, 1, 2]]])
    assert compute(EvalPrediction(predictions=maps, label_ids=maps), compute_result=False) == {}
    wrong = EvalPrediction(predictions=(maps + 1) % 3, label_ids=maps)
    assert compute(wrong, compute_result=True)["overall_accuracy"] == 0.5
    assert compute(wrong, compute_result=True)["overall_accuracy"] == 0


def test_missing_labels_are_explained():
    preprocess, _ = trainer_metrics(3)
    with pytest.raises(ValueError, match="label_names"):
        preprocess(torch.zeros(1, 3, 4, 4), None)

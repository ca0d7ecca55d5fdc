# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of Segmenter: configurations, image processors, errors."""

from pathlib import Path

import pytest
import torch
import yaml
from fixtures.procedural_weights import procedural_state_dict
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from common.convert_command import main
from common.original_segmenter import segmenter_shapes, tiny_network, variant_yml, write_checkpoint
from hf_segmodels.conversion import ConversionError, convert


def rewrite(checkpoint: Path, **changes) -> None:
    """Changes weights in a checkpoint: a tensor replaces or adds, `None` removes. Dots are given as `__`."""
    weights = torch.load(checkpoint, weights_only=True)["model"]
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    torch.save({"model": weights}, checkpoint)


def change_variant(checkpoint: Path, change) -> None:
    path = checkpoint.with_name("variant.yml")
    variant = yaml.unsafe_load(path.read_text())
    change(variant)
    path.write_text(yaml.dump(variant))


@pytest.mark.parametrize(
    ("dataset", "num_classes", "im_size", "longest_edge", "reduce_labels", "first_labels"),
    [
        ("ade20k", 150, 512, 2048, True, ["wall", "building"]),
        ("cityscapes", 19, 1024, 2048, False, ["road", "sidewalk"]),
        ("pascal_context", 60, 520, 4160, False, ["background", "aeroplane"]),
        ("cityscapes", 4, 1024, 2048, False, ["LABEL_0", "LABEL_1"]),
        ("my_own", 150, 300, None, False, ["LABEL_0", "LABEL_1"]),
    ],
)
def test_the_data_set_decides_labels_and_processor(
    dataset, num_classes, im_size, longest_edge, reduce_labels, first_labels, tmp_path, capsys
):
    network = tiny_network("linear", n_cls=num_classes)
    checkpoint = write_checkpoint(tmp_path, network, dataset=dataset, im_size=im_size, window=(64, 48))
    folder = tmp_path / "converted"
    assert main(["--method", "segmenter", "--checkpoint", str(checkpoint), "--output_dir", str(folder)]) == 0

    config = AutoModelForSemanticSegmentation.from_pretrained(folder).config
    assert config.num_labels == num_classes
    assert [config.id2label[0], config.id2label[1]] == first_labels
    assert config.label2id[first_labels[1]] == 1
    assert (config.window_size, config.window_stride, config.small_image_mode) == (64, 48, "upscale")
    processor = AutoImageProcessor.from_pretrained(folder)
    assert dict(processor.size) == {"shortest_edge": im_size} | ({"longest_edge": longest_edge} if longest_edge else {})
    assert (processor.do_reduce_labels, processor.num_labels) == (reduce_labels, num_classes)
    assert ("LABEL_0" in capsys.readouterr().out) == (first_labels[0] == "LABEL_0")


@pytest.mark.parametrize(("normalization", "mean", "std"), [("vit", 0.5, 0.5), ("deit", 0.485, 0.229)])
def test_normalization(normalization: str, mean: float, std: float, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, tiny_network("linear", normalization=normalization))
    processor = convert(checkpoint).image_processor
    assert (processor.image_mean[0], processor.image_std[0]) == (mean, std)


def test_config_has_the_originals_quirks(checkpoint: Path):
    config = convert(checkpoint).model.config
    backbone = config.backbone_config
    assert backbone.layer_norm_eps == config.decoder_layer_norm_eps == 1e-5
    assert backbone.position_embedding_interpolation == "bilinear"
    assert backbone.position_embedding_resize_rule == "token_count"
    assert (backbone.drop_path_rate, config.decoder_dropout_prob, config.decoder_drop_path_rate) == (0.1, 0.1, 0.0)


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (96, 1), (128, 2), (32, 1)])
def test_decoder_heads_follow_the_width(width: int, heads: int, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, tiny_network(d_model=width))
    assert convert(checkpoint).model.config.decoder_num_attention_heads == heads


def test_decoder_layers_are_counted(checkpoint: Path):
    """The released Cityscapes model has one layer, the original's defaults two."""
    network = tiny_network()
    torch.save({"model": procedural_state_dict(segmenter_shapes(network, num_decoder_layers=1))}, checkpoint)
    model = convert(checkpoint).model
    assert model.config.decoder_num_hidden_layers == len(model.decoder.encoder.layers) == 1


@pytest.mark.parametrize("name", ["linear", "decoder_linear"])
def test_linear_is_any_name_with_it(name: str, tmp_path: Path):
    assert convert(write_checkpoint(tmp_path, tiny_network(name))).model.config.decoder_type == "linear"


def test_distilled_may_be_missing(tmp_path: Path):
    network = tiny_network("linear")
    del network["distilled"]
    model = convert(write_checkpoint(tmp_path, network)).model
    assert not model.config.backbone_config.use_distillation_token


def test_dropout_is_kept(checkpoint: Path):
    change_variant(checkpoint, lambda variant: variant["net_kwargs"].update(dropout=0.2))
    change_variant(checkpoint, lambda variant: variant["net_kwargs"]["decoder"].update(dropout=0.0, drop_path_rate=0.3))
    config = convert(checkpoint).model.config
    assert config.backbone_config.hidden_dropout_prob == config.backbone_config.attention_probs_dropout_prob == 0.2
    assert (config.decoder_dropout_prob, config.decoder_drop_path_rate) == (0.0, 0.3)


def test_only_the_imagenet_classifiers_are_dropped(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, tiny_network(distilled=True))
    assert set(convert(checkpoint).dropped_keys) == {
        "encoder.head.weight", "encoder.head.bias", "encoder.head_dist.weight", "encoder.head_dist.bias"
    }  # fmt: skip


def test_half_precision_weights_become_float32(checkpoint: Path):
    weights = torch.load(checkpoint, weights_only=True)["model"]
    torch.save({"model": {name: tensor.half() for name, tensor in weights.items()}}, checkpoint)
    assert {parameter.dtype for parameter in convert(checkpoint).model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"encoder__norm__bias": None, "decoder__proj_patch": None},
            ["missing: ", "encoder.norm.bias", "decoder.proj_patch"],
        ),
        (
            {"encoder__extra__weight": torch.ones(1), "decoder__odd": torch.ones(1)},
            ["2 keys", "encoder.extra.weight, decoder.odd"],
        ),
        ({"encoder__blocks__7__norm1__bias": torch.ones(64)}, ["left over: encoder.blocks.7.norm1.bias"]),
        (
            {"encoder__norm__weight": torch.ones(3), "decoder__mask_norm__bias": torch.ones(4)},
            ["encoder.norm.weight (3,) instead of (64,)", "decoder.mask_norm.bias (4,) instead of (5,)"],
        ),
        ({"encoder__pos_embed": torch.ones(1, 26, 64)}, ["encoder.pos_embed (1, 26, 64) instead of (1, 17, 64)"]),
        ({"decoder__cls_emb": torch.ones(1, 9, 64)}, ["variant.yml has 5 classes, the weights have 9"]),
        ({"decoder__cls_emb": None}, ["neither `decoder.head.weight`"]),
    ],
)
def test_every_wrong_weight_is_named(changes: dict, messages: list[str], checkpoint: Path):
    rewrite(checkpoint, **changes)
    with pytest.raises(ConversionError) as error:
        convert(checkpoint)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda variant: variant["net_kwargs"].pop("d_model"), "'d_model' is missing"),
        (lambda variant: variant.pop("inference_kwargs"), "'inference_kwargs' is missing"),
        (lambda variant: variant.pop("net_kwargs"), "has no `net_kwargs`"),
        (lambda variant: variant["net_kwargs"].update(n_heads=3), "must be a multiple of `num_attention_heads`"),
        (lambda variant: variant["net_kwargs"].update(n_layers="two"), "num_hidden_layers"),
        (lambda variant: variant["net_kwargs"]["decoder"].update(name="linear"), "decoder.head.weight"),
        (lambda variant: variant["dataset_kwargs"].update(normalization="inception"), "expected one of vit, deit"),
        (lambda variant: variant["inference_kwargs"].pop("im_size"), "expected the shorter edge"),
    ],
)
def test_wrong_variants_are_refused(change, message: str, checkpoint: Path):
    change_variant(checkpoint, change)
    with pytest.raises(ConversionError, match=message):
        convert(checkpoint)


def test_missing_variant_names_the_expected_path(checkpoint: Path):
    variant = checkpoint.with_name("variant.yml")
    text = variant.read_text()
    variant.unlink()
    with pytest.raises(ConversionError, match=f"There is no {variant}"):
        convert(checkpoint)
    elsewhere = checkpoint.with_name("other.yml")
    elsewhere.write_text(text)
    assert convert(checkpoint, elsewhere).model.config.num_labels == 5


@pytest.mark.parametrize(
    "text",
    [
        "net_kwargs: !!python/object/apply:os.system ['touch {marker}']",
        "net_kwargs: !!python/name:os.system",
        "net_kwargs: !!python/tuple [!!python/object/new:os.system ['touch {marker}']]",
    ],
)
def test_variants_never_run_code(text: str, checkpoint: Path, tmp_path: Path):
    marker = tmp_path / "marker"
    checkpoint.with_name("variant.yml").write_text(text.format(marker=marker))
    with pytest.raises(ConversionError, match="could run code"):
        convert(checkpoint)
    assert not marker.exists()


def test_invalid_yaml_is_refused(checkpoint: Path):
    checkpoint.with_name("variant.yml").write_text("net_kwargs: [1, 2")
    with pytest.raises(ConversionError, match="is not valid YAML"):
        convert(checkpoint)


def test_variant_text_has_the_tuple_tag():
    """`yaml.safe_load` fails on the tests' files as it does on the original's."""
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(variant_yml(tiny_network()))

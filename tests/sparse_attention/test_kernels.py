# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Which implementation of sparse attention runs, what is said about it, and that models use it."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers

from common.sparse_attention_kernel import REPOSITORY, build_kernel
from hf_segmodels import PlainViTConfig, UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.sparse_attention import (
    SparseAttention,
    kernels,
    reference_points,
    select_implementation,
    sparse_attention,
    sparse_attention_reference,
    use_hub_kernel,
)


VALUE = torch.zeros(1, 1, 1, 1)
with_transformers = pytest.mark.skipif(
    not transformers.utils.is_kernels_available(), reason="needs transformers and `kernels` that work together"
)


@pytest.fixture(scope="module")
def variant() -> Path:
    return build_kernel()


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch, tmp_path):
    """Nothing in the environment, in the checkout, or asked for; and the same afterwards."""
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    monkeypatch.delenv(kernels.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "CHECKOUT", tmp_path)
    monkeypatch.setattr(kernels, "_requested_kernel", None)
    kernels.load_kernel.cache_clear()
    yield
    kernels.load_kernel.cache_clear()


@pytest.fixture
def local_kernel(variant, monkeypatch) -> Path:
    monkeypatch.setenv("LOCAL_KERNELS", f"someone/else=/nowhere:{kernels.REPOSITORY}={variant.parent}")
    kernels.load_kernel.cache_clear()
    return variant.parent


@pytest.fixture
def messages(monkeypatch):
    """What the module logs."""
    logged = []
    for level in ("info", "warning"):
        monkeypatch.setattr(kernels.logger, level, lambda text, level=level: logged.append((level, text)))
    return logged


def arguments():
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 5), (3, 4)]
    value = torch.randn(2, 42, 2, 8, generator=generator)
    locations = torch.rand(2, 7, 2, 2, 3, 2, generator=generator) * 1.4 - 0.2
    return value, shapes, locations, torch.rand(2, 7, 2, 2, 3, generator=generator)


def test_without_a_kernel_the_reference(messages):
    assert select_implementation(VALUE) is sparse_attention_reference
    assert select_implementation(VALUE) is sparse_attention_reference
    # one line, however often it is asked
    assert [level for level, _ in messages] == ["info"]
    assert "grid_sample" in messages[0][1]


def test_local_kernel_of_the_environment(local_kernel, messages):
    implementation = select_implementation(VALUE)
    assert implementation.__module__.startswith("_sparse_attention_cpu")
    assert messages == [("info", messages[0][1])]
    assert str(local_kernel) in messages[0][1]
    expected = sparse_attention_reference(*arguments())
    torch.testing.assert_close(sparse_attention(*arguments()), expected, atol=1e-5, rtol=1e-5)


def test_build_in_the_checkout(variant, tmp_path, messages):
    (tmp_path / "build").symlink_to(variant.parent, target_is_directory=True)
    assert select_implementation(VALUE) is not sparse_attention_reference
    assert "local build" in messages[0][1]


def test_devices_that_a_build_is_not_for_take_the_reference(local_kernel):
    assert select_implementation(VALUE.to("meta")) is sparse_attention_reference


def test_reference_on_request(local_kernel, monkeypatch, messages):
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, "reference")
    kernels.load_kernel.cache_clear()
    assert select_implementation(VALUE) is sparse_attention_reference
    assert messages[0][0] == "info"


def fake_get_kernel(monkeypatch, module=None):
    import kernels as package

    calls = []

    def get_kernel(repo_id, **options):
        calls.append((repo_id, options))
        if module is None:
            raise FileNotFoundError(f"{repo_id} has no variant for this machine\nand more lines")
        return module

    monkeypatch.setattr(package, "get_kernel", get_kernel)
    return calls


def hub_module():
    return types.SimpleNamespace(__name__="hub", supports=lambda device: device == "cpu", sparse_attention=print)


def test_hub_revision_that_was_asked_for(monkeypatch, messages):
    calls = fake_get_kernel(monkeypatch, hub_module())
    assert select_implementation(VALUE) is sparse_attention_reference
    assert calls == []
    use_hub_kernel("someone/kernel", revision="0123abc", trust_remote_code=True)
    assert select_implementation(VALUE) is print
    expected = {"revision": "0123abc", "version": None, "trust_remote_code": ["someone/kernel"]}
    assert calls == [("someone/kernel", expected)]
    assert "someone/kernel@0123abc" in messages[-1][1]


def test_hub_version_zero(monkeypatch):
    calls = fake_get_kernel(monkeypatch, hub_module())
    use_hub_kernel(version=0)
    assert select_implementation(VALUE) is print
    assert calls[0][1]["version"] == 0


def test_hub_revision_of_the_environment(monkeypatch):
    calls = fake_get_kernel(monkeypatch, hub_module())
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, "someone/kernel@v1")
    assert select_implementation(VALUE) is print
    assert calls[0][1]["revision"] == "v1"


def test_local_kernel_before_the_hub(local_kernel, monkeypatch):
    calls = fake_get_kernel(monkeypatch, hub_module())
    use_hub_kernel(version=1)
    assert select_implementation(VALUE).__module__.startswith("_sparse_attention_cpu")
    assert calls == []


def test_hub_kernel_that_cannot_be_loaded_gives_a_warning_and_the_reference(monkeypatch, messages):
    fake_get_kernel(monkeypatch)
    use_hub_kernel(version=1)
    assert select_implementation(VALUE) is sparse_attention_reference
    assert [level for level, _ in messages] == ["warning", "info"]
    assert "no variant for this machine" in messages[0][1]


@pytest.mark.parametrize("options", [{}, {"revision": "main", "version": 1}])
def test_hub_kernel_needs_one_revision(options):
    with pytest.raises(ValueError, match="Give exactly one of `revision`"):
        use_hub_kernel(**options)


def test_environment_without_a_revision_is_refused(monkeypatch, messages):
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, "someone/kernel")
    assert select_implementation(VALUE) is sparse_attention_reference
    assert "OWNER/NAME@REVISION" in messages[0][1]


@pytest.mark.parametrize(
    "version", ["missing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("broken", "old", "new"))]
)
def test_whatever_the_version_of_kernels_importing_and_running_work(variant, version, tmp_path):
    """A clean process with another `kernels`, or none."""
    package = tmp_path / "kernels"
    package.mkdir()
    code = {
        "missing": "",
        "broken": "raise RuntimeError('not for this Python')",
        "old": "__version__ = '0.4.0'\ndef get_local_kernel(repo_path, package_name):\n    raise AssertionError",
        "new": "__version__ = '0.99.0'",
    }[version]
    (package / "__init__.py").write_text(code)
    script = f"""
import os, sys
sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]
if {version == "missing"}:
    sys.modules["kernels"] = None
os.environ["LOCAL_KERNELS"] = "{kernels.REPOSITORY}={variant.parent}"
import torch
import hf_segmodels
from hf_segmodels.sparse_attention import SparseAttention, reference_points
from hf_segmodels.sparse_attention.operation import select_implementation
layer = SparseAttention(8, num_heads=2, num_levels=1, num_points=2)
layer(torch.randn(1, 6, 8), torch.randn(1, 6, 8), reference_points(2, 3), [(2, 3)]).sum().backward()
print(select_implementation(torch.zeros(1)).__name__)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["sparse_attention_reference"]
    assert "cannot be used" in result.stderr


def test_gradients_through_the_layer(local_kernel, monkeypatch):
    torch.manual_seed(0)
    layer = SparseAttention(16, num_heads=2, num_levels=2, num_points=2)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    inputs = torch.randn(2, 5, 16), torch.randn(2, 14, 16), torch.rand(5, 2), [(2, 4), (2, 3)]

    def gradients():
        layer.zero_grad()
        layer(*inputs).square().sum().backward()
        return [parameter.grad.clone() for parameter in layer.parameters()]

    found = gradients()
    monkeypatch.setenv(kernels.ENVIRONMENT_VARIABLE, "reference")
    kernels.load_kernel.cache_clear()
    torch.testing.assert_close(found, gradients(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_layer(local_kernel):
    layer = SparseAttention(16, num_heads=2, num_levels=2, num_points=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for height, width in ((3, 4), (5, 2)):
        shapes = [(height, width), (2, 3)]
        inputs = torch.randn(2, height * width, 16), torch.randn(2, height * width + 6, 16)
        points = reference_points(height, width)
        torch.testing.assert_close(compiled(*inputs, points, shapes), layer(*inputs, points, shapes))


def test_compiling_is_what_chooses_first(local_kernel):
    """No call before the one that is traced, so that the kernel is found while torch.compile looks on."""
    targets = []

    def backend(module, inputs):
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module

    compiled = torch.compile(lambda *inputs: sparse_attention(*inputs), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*arguments()), sparse_attention_reference(*arguments()), atol=1e-5, rtol=1e-5)
    assert any(target.startswith("_sparse_attention_cpu") for target in targets)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_hold_no_kernel(local_kernel, strict):
    layer = SparseAttention(8, num_heads=2, num_levels=1, num_points=2).eval()
    inputs = torch.randn(1, 6, 8), torch.randn(1, 6, 8), reference_points(2, 3), [(2, 3)]
    program = torch.export.export(layer, inputs, strict=strict)
    assert not any("sparse_attention" in str(node.target) for node in program.graph.nodes)


def test_traced_programs_hold_no_kernel(local_kernel):
    value, shapes, locations, weights = arguments()
    program = torch.jit.trace(
        lambda *tensors: sparse_attention(tensors[0], shapes, *tensors[1:]), (value, locations, weights)
    )
    assert "grid_sample" in str(program.graph)
    assert "_sparse_attention_cpu" not in str(program.graph)


def tiny_model() -> UNEPTForSemanticSegmentation:
    backbone = PlainViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        out_indices=[1, 2],
    )
    config = UNEPTConfig(
        backbone_config=backbone,
        hidden_size=16,
        num_attention_heads=2,
        num_points=2,
        intermediate_size=16,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        spatial_hidden_sizes=[4, 8],
        num_labels=3,
    )
    torch.manual_seed(0)
    return UNEPTForSemanticSegmentation(config).eval()


def replaced_layers(model) -> int:
    return sum("forward" in vars(module) for module in model.modules() if type(module).__name__ == "SparseSampling")


@pytest.fixture
def saved_model(tmp_path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        return tmp_path / "model", images, model(images).logits


@with_transformers
def test_model_with_use_kernels(saved_model, local_kernel):
    folder, images, expected = saved_model
    model = UNEPTForSemanticSegmentation.from_pretrained(folder, use_kernels=True)
    assert model.use_kernels
    # encoder, decoder's self-attention and cross-attention
    assert replaced_layers(model) == 3
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)
    model.train()
    model(images, labels=torch.zeros(1, 32, 32, dtype=torch.long)).loss.backward()


def test_model_without_use_kernels_takes_the_kernel_too(saved_model, local_kernel, messages):
    folder, images, expected = saved_model
    model = UNEPTForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)
    assert replaced_layers(model) == 0
    assert "runs with the kernel" in messages[0][1]


def test_use_kernels_where_transformers_does_not_work_with_kernels(saved_model, local_kernel, monkeypatch, messages):
    folder, images, expected = saved_model
    monkeypatch.setattr(kernels, "is_kernels_available", lambda: False)
    model = UNEPTForSemanticSegmentation.from_pretrained(folder, use_kernels=True)
    assert not model.use_kernels
    assert any(level == "warning" and "has no effect" in text for level, text in messages)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)


def test_use_kernels_without_a_kernel(saved_model, messages):
    folder, images, expected = saved_model
    model = UNEPTForSemanticSegmentation.from_pretrained(folder, use_kernels=True)
    assert not model.use_kernels
    assert messages[-1][0] == "warning"
    with torch.no_grad():
        assert torch.equal(model(images).logits, expected)


@with_transformers
def test_kernelize(local_kernel):
    package = pytest.importorskip("kernels")
    model = tiny_model()
    assert kernels.register_kernel_mapping()
    package.kernelize(model, mode=package.Mode.TRAINING | package.Mode.TORCH_COMPILE, device="cpu")
    assert replaced_layers(model) == 3


def test_name_is_not_one_that_transformers_maps_to_another_kernel():
    hub_kernels = pytest.importorskip("transformers.integrations.hub_kernels")
    mapping = hub_kernels.get_kernel_mapping_transformers() if transformers.utils.is_kernels_available() else {}
    assert kernels.LAYER_NAME not in mapping

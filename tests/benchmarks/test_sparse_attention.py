# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import sys
import types

import pytest
import torch

from hf_segmodels.sparse_attention import sparse_attention_reference


@pytest.fixture
def benchmark(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark", repository / "benchmarks" / "sparse_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comparator_gets_its_own_form_of_the_arguments(benchmark, monkeypatch):
    def ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        assert level_start_index.tolist() == [0, 16]
        return sparse_attention_reference(value, spatial_shapes.tolist(), sampling_locations, attention_weights)

    package = types.SimpleNamespace(ms_deform_attn=ms_deform_attn)
    monkeypatch.setitem(sys.modules, "torch_ms_deform_attn", package)
    inputs, shapes, _ = benchmark.arguments(4, 2, None, torch.device("cpu"))
    found = benchmark.load_comparator()(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(found, sparse_attention_reference(inputs[0], shapes, *inputs[1:]))
    monkeypatch.setitem(sys.modules, "torch_ms_deform_attn", None)
    assert benchmark.load_comparator() is None

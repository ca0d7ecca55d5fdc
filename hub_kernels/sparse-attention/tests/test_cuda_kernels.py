# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The CUDA kernels where there is a toolkit but no GPU: run thread by thread on the CPU, and compiled."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch

from sparse_attention_cases import SHAPES, arguments, exact, relative_rms


PROJECT = Path(__file__).resolve().parents[1]
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


@pytest.fixture(scope="session")
def toolkit(build_local) -> Path:
    compiler = build_local.cuda_compiler()
    if compiler is None:
        pytest.skip("needs the CUDA toolkit")
    return build_local.cuda_home(compiler)


@pytest.fixture(scope="session")
def emulate(toolkit, tmp_path_factory):
    library = tmp_path_factory.mktemp("emulation") / "emulation.so"
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-fPIC", "-shared", "-w"]
    command += [f"-I{toolkit / 'include'}", f"-I{PROJECT / 'csrc'}", str(PROJECT / "tests" / "emulation.cpp")]
    subprocess.run([*command, "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).emulate

    def run(value, shapes, locations, weights, gradient, whole=True, deterministic=False):
        output = torch.full_like(gradient, float("nan"))
        grad_value = torch.zeros(value.shape, dtype=locations.dtype)
        results = [output, grad_value, torch.full_like(locations, torch.nan), torch.full_like(weights, torch.nan)]
        sizes = [*value.shape, locations.shape[1], *locations.shape[3:5]]
        flat = [size for shape in shapes for size in shape]
        function(
            TYPES[value.dtype],
            int(whole),
            int(deterministic),
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_int64 * len(flat))(*flat),
            (ctypes.c_void_p * 8)(*(tensor.data_ptr() for tensor in (gradient, value, locations, weights, *results))),
        )
        return results

    return run


# the channels that a group covers at once, 4, 8 or 16 times 16 bytes, and others, one by one
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "whole"),
    [
        (torch.float32, 16, True),
        (torch.float32, 32, True),
        (torch.float32, 64, True),
        (torch.float32, 40, False),
        (torch.float64, 32, False),
        (torch.float16, 32, True),
        (torch.float16, 3, False),
        (torch.bfloat16, 32, True),
        (torch.bfloat16, 64, True),
        (torch.bfloat16, 128, True),
    ],
)
def test_kernels_thread_by_thread(emulate, dtype, head_dim, whole, deterministic):
    # 70 queries: more than a block takes, and the last block is not full
    value, locations, weights, gradient = arguments(dtype=dtype, head_dim=head_dim, heads=2, queries=70)
    locations[0, 3] = torch.nan
    weights[0, 3, :, :, 1] = 0
    found = emulate(value, SHAPES, locations, weights, gradient, whole, deterministic)
    expected = exact(value, SHAPES, locations.nan_to_num(9.0), weights, gradient)
    precise = 8 * torch.finfo(locations.dtype).eps
    # gradients of the values are still in what is summed in
    for tensor, reference, bound in zip(
        found, expected, (max(torch.finfo(dtype).eps, precise), precise, precise, precise), strict=True
    ):
        assert relative_rms(tensor, reference) < bound


def test_points_more_than_a_group_keeps_and_fewer(emulate):
    for points in (1, 7, 8, 9, 17):
        value, locations, weights, gradient = arguments(points=points, heads=2, queries=3)
        found = emulate(value, SHAPES, locations, weights, gradient)
        expected = exact(value, SHAPES, locations, weights, gradient)
        assert all(relative_rms(one, other) < 1e-6 for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_compiled_for_three_architectures_and_loaded(build_local, toolkit, tmp_path):
    if torch.version.cuda is None:
        pytest.skip("needs torch with CUDA")
    kernels = pytest.importorskip("kernels")
    variant = build_local.build("cuda", ["8.0", "9.0", "10.0"], tmp_path)
    assert variant.name.startswith("torch-stable-abi211-cu")
    library = next(variant.glob("*.so")).read_bytes()
    # names of the kernels' entry points, and libtorch_cuda among the libraries, without which it would not load
    assert all(name in library for name in (b"forward_kernel", b"backward_kernel", b"libtorch_cuda.so"))
    kernel = kernels.get_local_kernel(tmp_path)
    assert kernel.supports("cuda")
    value, locations, weights, gradient = arguments()
    expected = exact(value, SHAPES, locations, weights, gradient)[0]
    assert relative_rms(kernel.sparse_attention(value, list(SHAPES), locations, weights), expected) < 1e-6

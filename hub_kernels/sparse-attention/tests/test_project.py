# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What Hugging Face's tools need of this project: configuration, layout, metadata, symbols, commands."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch


PROJECT = Path(__file__).resolve().parents[1]
kernels = pytest.importorskip("kernels")


def command(*arguments: str) -> subprocess.CompletedProcess:
    """`kernels ...`, without the network."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    code = "import sys; from kernels.cli import main; sys.argv[0] = 'kernels'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=True
    )


def test_configuration_is_valid():
    from kernels._rust import Build

    build = Build.open(PROJECT)
    assert sorted(str(backend).lower() for backend in build.general.backends) == ["cpu", "cuda"]
    config = tomllib.loads((PROJECT / "build.toml").read_text())
    sections = [config["torch"], *config["kernel"].values()]
    assert all((PROJECT / source).is_file() for section in sections for source in section["src"])
    # CPU tensors work with a CUDA build as well
    of_cuda = [
        source for section in config["kernel"].values() if section["backend"] == "cuda" for source in section["src"]
    ]
    assert {"csrc/cpu.cpp", "csrc/cuda.cu"} <= set(of_cuda)


def test_local_build_has_the_official_layout(variant):
    from kernels._rust import Digest, DigestAlgorithm, Metadata

    metadata = Metadata.read_from_file(variant / "metadata.json")
    assert str(metadata.name) == "sparse-attention"
    assert metadata.license == "Apache-2.0"
    assert "local build" in metadata.provenance.kernel_builder.version
    assert metadata.id in (variant / "_ops.py").read_text()
    assert (variant / f"{metadata.id}.abi3.so").is_file()
    assert re.fullmatch(r"torch-stable-abi211-(cpu|cu\d+)-\w+-linux", variant.name)
    # as the loader of signed kernels checks it, byte code aside
    shutil.rmtree(variant / "__pycache__", ignore_errors=True)
    shutil.rmtree(variant / "layers" / "__pycache__", ignore_errors=True)
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))


def test_a_build_that_is_up_to_date_is_kept(build_local, variant):
    library = next(variant.glob("*.so"))
    before = library.stat().st_mtime_ns
    backend = "cuda" if "-cu" in variant.name else "cpu"
    assert build_local.build(backend, output=variant.parent) == variant
    assert library.stat().st_mtime_ns == before


def test_library_needs_only_stable_symbols(variant):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm of binutils")
    library = str(next(variant.glob("*.so")))
    needed = subprocess.run([nm, "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1].split("@")[0] for line in needed.splitlines()]
    allowed = re.compile(
        r"aoti_torch_\w+|torch_\w+"  # torch's stable ABI
        r"|PyModule_Create2"  # Python's limited API
        r"|cuda\w+|__cuda\w+"  # CUDA runtime
        # C and C++ runtimes; no symbol of ATen, c10 or torch's C++ interface
        r"|_ZN?K?[RO]?S\w+|_ZT[ISTV]N?K?S\w+|_ZTVN10__cxxabiv\w+|_ZTIN10__cxxabiv\w+|_Zn\w+|_Zd\w+|__cxa_\w+|__gxx_\w+|_Unwind_\w+"
        r"|_ITM_\w+|__gmon_start__|__libc_single_threaded|__cpu_model|__tls_get_addr|__stack_chk_fail|__assert_fail"
        r"|mem(cpy|move|set|cmp|chr)|str(cmp|len)|dlsym|m(un)?map|localtime|time|free|malloc|abort|floorf?|pthread_\w+"
    )
    assert [name for name in names if not allowed.fullmatch(name)] == []
    defined = subprocess.run([nm, "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    strong = [line.split()[-1] for line in defined.splitlines() if line.split()[1] in "TDB"]
    assert strong == [f"PyInit_{Path(library).name.removesuffix('.abi3.so')}"]


def test_information_without_network(variant, tmp_path):
    (tmp_path / "build").symlink_to(variant.parent, target_is_directory=True)
    found = json.loads(command("info", str(tmp_path), "--json").stdout)
    assert found["name"] == "sparse-attention"
    assert found["version"] == 1
    assert ("cuda" if "-cu" in variant.name else "cpu") in found["backends"]


def test_layer_for_kernelize(kernel):
    layer = kernel.layers.SparseSampling
    # kernels takes only layers without state or members of their own
    assert layer.__init__ is torch.nn.Module.__init__
    assert layer.can_torch_compile
    assert layer.has_backward


def test_card_once_filled_in_shows_code_that_runs(kernel, monkeypatch):
    jinja2 = pytest.importorskip("jinja2")
    general = tomllib.loads((PROJECT / "build.toml").read_text())["general"]
    # the names that kernel-builder fills in, and how
    names = {"repo_id": general["hub"]["repo-id"], "version": general["version"], "license": general["license"].lower()}
    template = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    card = template.from_string((PROJECT / "CARD.md").read_text()).render(**names, has_benchmark=True, source=None)
    assert card.startswith("---\nlibrary_name: kernels\nlicense: apache-2.0\ntags:\n")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    asked_for = []
    monkeypatch.setattr(kernels, "get_kernel", lambda *names, **options: asked_for.append((names, options)) or kernel)
    namespace = {}
    exec(code, namespace)
    assert namespace["output"].shape == (1, 100, 8 * 32)
    assert asked_for == [(("hf-segmodels/sparse-attention",), {"version": 1, "trust_remote_code": True})]


def test_benchmark_without_network(variant, tmp_path, monkeypatch):
    pytest.importorskip("tabulate")
    # named by its own folder, a CPU build also runs with a CUDA build of torch
    repository = tmp_path / "sparse-attention"
    shutil.copytree(variant, repository)
    (repository / "benchmarks").symlink_to(PROJECT / "benchmarks", target_is_directory=True)
    result = tmp_path / "result.json"
    monkeypatch.setenv("SPARSE_ATTENTION_SCALE", "10")
    command("benchmark", str(repository), "--iterations", "1", "--warmup", "0", "--output", str(result))
    found = json.loads(result.read_text())
    assert len(found["results"]) == 8
    # each is compared with grid_sample before it is timed
    assert all(entry["verified"] for entry in found["results"])

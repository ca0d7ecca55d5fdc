# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Builds the kernel for this machine, in the layout that `kernels` loads: `build/<variant>/`.

    python hub_kernels/sparse-attention/tools/build_local.py [--backend cpu|cuda] [--archs 9.0] [--output FOLDER]

It reads `build.toml` and needs a C++ compiler, for CUDA also `nvcc`. This is a local build: what is published on the Hub
is built by kernel-builder from the same files. Without `--backend`, it builds for CUDA where torch has CUDA and `nvcc`
is there, otherwise for CPU. What is up to date is not built again.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch


PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")

# kernel-builder generates a file of this name with these macros
REGISTRATION = """\
#pragma once
#include <Python.h>
#define KERNEL_JOIN_(A, B) A##B
#define KERNEL_JOIN(A, B) KERNEL_JOIN_(A, B)
#define KERNEL_TEXT_(A) #A
#define KERNEL_TEXT(A) KERNEL_TEXT_(A)
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, KEY, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, KEY, MODULE)
#define REGISTER_EXTENSION(NAME)                                                              \\
  PyMODINIT_FUNC KERNEL_JOIN(PyInit_, NAME)(void) {                                           \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, KERNEL_TEXT(NAME), nullptr, 0, nullptr, \\
                                 nullptr, nullptr, nullptr, nullptr};                         \\
    return PyModule_Create(&module);                                                          \\
  }
"""

OPS = """\
import torch

from . import {name}


ops = torch.ops.{name}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{name}::{{op_name}}"
"""


def cuda_compiler() -> Path | None:
    """nvcc of `CUDA_HOME`, or the one on the path."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    return Path(found) if found else None


def cuda_home(compiler: Path) -> Path:
    """The toolkit that a compiler belongs to; `nvcc` itself may be a wrapper elsewhere."""
    lines = subprocess.run([compiler, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    tops = [line.split("=", 1)[1].strip() for line in lines.splitlines() if line.startswith("#$ TOP=")]
    if not tops:
        raise SystemExit(f"{compiler} does not say where its toolkit is; set CUDA_HOME.")
    return Path(tops[0]).resolve()


def cuda_version(compiler: Path) -> tuple[int, int]:
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = text.split("release ")[1].split(",")[0].split(".")
    return int(major), int(minor)


def default_backend() -> str:
    """cuda where torch has CUDA of the same major version as the compiler."""
    compiler = cuda_compiler()
    if torch.version.cuda is None or compiler is None:
        return "cpu"
    return "cuda" if cuda_version(compiler)[0] == int(torch.version.cuda.split(".")[0]) else "cpu"


def machine_archs() -> list[str]:
    """Compute capabilities of the GPUs of this machine, or those the tests compile for."""
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        return [f"{major}.{minor}" for major, minor in sorted(found)]
    return list(DEFAULT_ARCHS)


def variant_name(config: dict[str, Any], backend: str) -> str:
    abi = config["torch"]["stable-abi"][backend].replace(".", "")
    device = "cpu"
    if backend == "cuda":
        compiler = cuda_compiler()
        if compiler is None:
            raise SystemExit("There is no nvcc: install the CUDA toolkit or build with --backend cpu.")
        device = "cu{}{}".format(*cuda_version(compiler))
    return f"torch-stable-abi{abi}-{device}-{platform.machine()}-{platform.system().lower()}"


def compile_commands(
    config: dict[str, Any], backend: str, archs: list[str], name: str, objects: Path
) -> list[tuple[Path, list[str]]]:
    """One (object, command) per source. `objects` also holds the generated `registration.h`."""
    major, minor = (int(part) for part in config["torch"]["stable-abi"][backend].split("."))
    common = [
        f"-DTORCH_TARGET_VERSION=0x{(major << 56) | (minor << 48):016X}ULL",
        "-DPy_LIMITED_API=0x03090000",
        f"-DTORCH_EXTENSION_NAME={name}",
        "-DNDEBUG",
        f"-I{objects}",
        f"-I{sysconfig.get_paths()['include']}",
        "-isystem",
        str(Path(torch.__file__).parent / "include"),
    ]
    common += ["-DCUDA_KERNEL", "-DUSE_CUDA=1"] if backend == "cuda" else ["-DCPU_KERNEL"]
    sections = [{"src": config["torch"]["src"], "cxx-flags": ["-O2", "-fvisibility=hidden"]}]
    sections += [kernel for kernel in config["kernel"].values() if kernel["backend"] == backend]

    commands = []
    for section in sections:
        includes = [f"-I{PROJECT / folder}" for folder in section.get("include", [])]
        for source in (PROJECT / file for file in section["src"]):
            if source.suffix in (".h", ".cuh"):
                continue
            target = objects / f"{source.name}.o"
            if source.suffix == ".cu":
                numbers = [arch.replace(".", "") for arch in archs]
                command = [
                    str(cuda_compiler()),
                    "-std=c++20",
                    "-Xcompiler=-fPIC,-fno-gnu-unique",
                    *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers),
                    *section.get("cuda-flags", []),
                ]
            else:
                command = [os.environ.get("CXX", "g++"), "-std=c++20", "-fPIC", "-fno-gnu-unique"]
                command += section.get("cxx-flags", [])
            commands.append((target, [*command, *includes, *common, "-c", str(source), "-o", str(target)]))
    return commands


def link_command(backend: str, objects: list[Path], target: Path) -> list[str]:
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    if backend == "cuda":
        compiler = cuda_compiler()
        assert compiler is not None
        # torch has loaded the runtime of the same major version
        libraries += [
            "-ltorch_cuda",
            f"-L{cuda_home(compiler) / 'lib64'}",
            f"-L{cuda_home(compiler) / 'lib'}",
            "-lcudart",
        ]
    compiler_name = os.environ.get("CXX", "g++")
    return [compiler_name, "-shared", *map(str, objects), *libraries, "-o", str(target)]


def run_all(commands: list[list[str]]) -> None:
    """Runs compilers side by side; the first that fails ends the build with its message."""

    def run(command: list[str]) -> None:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(run, commands))


def fingerprint(config: dict[str, Any], backend: str, archs: list[str]) -> str:
    """Of everything that goes into a build."""
    digest = hashlib.sha256()
    digest.update(json.dumps([config, backend, archs, torch.__version__, platform.machine()], sort_keys=True).encode())
    files = [*PROJECT.glob("csrc/*"), *PROJECT.glob("torch-ext/**/*"), Path(__file__)]
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".pyc"):
        digest.update(str(file.relative_to(PROJECT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def write_metadata(config: dict[str, Any], name: str, backend: str, archs: list[str], folder: Path) -> None:
    general = config["general"]
    metadata: dict[str, Any] = {
        "name": general["name"],
        "id": name,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend, **({"archs": archs} if backend == "cuda" else {})},
    }
    # SHA-256 of each file but this one, in base64, as kernel-builder writes it
    (folder / "metadata.json").unlink(missing_ok=True)
    digest = _digest(folder)
    if digest is not None:
        metadata["digest"] = {"algorithm": "sha256", "files": digest}
    # where kernel-builder would state its version
    metadata["provenance"] = {"kernel-builder": {"version": "local build (tools/build_local.py)"}}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def _digest(folder: Path) -> dict[str, str] | None:
    try:
        from kernels._rust import Digest, DigestAlgorithm
    except ImportError:  # only `kernels` checks it
        return None
    return Digest.hash_variant(DigestAlgorithm.SHA256, folder).files


def build(backend: str | None = None, archs: list[str] | None = None, output: Path | None = None) -> Path:
    """
    Builds one variant.

    Args:
        backend (`str`, *optional*): `cpu` or `cuda`; see above for the default.
        archs (`list[str]`, *optional*): CUDA compute capabilities such as `9.0`; by default those of this machine.
        output (`Path`, *optional*): Folder of the variants, by default `build` in this project.

    Returns:
        `Path`: the variant's folder.
    """
    config = tomllib.loads((PROJECT / "build.toml").read_text())
    backend = backend or default_backend()
    archs = (archs or machine_archs()) if backend == "cuda" else []
    name = f"_sparse_attention_{backend}_{fingerprint(config, backend, archs)}"
    variants = PROJECT / "build" if output is None else output
    folder = variants / variant_name(config, backend)
    library = folder / f"{name}.abi3.so"
    variants.mkdir(parents=True, exist_ok=True)
    with (
        (variants / ".lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=variants, prefix=".build-") as scratch_name,
    ):
        # of several processes one builds, and the others find its work
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists() and (folder / "metadata.json").exists():
            return folder
        scratch = Path(scratch_name)
        (scratch / "registration.h").write_text(REGISTRATION)
        commands = compile_commands(config, backend, archs, name, scratch)
        run_all([command for _, command in commands])
        fresh = scratch / "variant"
        shutil.copytree(
            PROJECT / "torch-ext" / "sparse_attention", fresh, ignore=shutil.ignore_patterns("__pycache__", "_ops.py")
        )
        (fresh / "_ops.py").write_text(OPS.format(name=name))
        run_all([link_command(backend, [target for target, _ in commands], fresh / library.name)])
        write_metadata(config, name, backend, archs, fresh)
        # whoever loads the folder at this moment sees all of the old one or all of the new one
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("cpu", "cuda"))
    parser.add_argument("--archs", nargs="+", metavar="X.Y", help="CUDA compute capabilities")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    folder = build(options.backend, options.archs, options.output)
    print(f"{folder} (a local build, not for the Hub)")


if __name__ == "__main__":
    main(sys.argv[1:])

# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hf_segmodels
from common.tiny_segmenter import save_tiny_segmenter


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_import_prints_nothing():
    result = run_python("import hf_segmodels")
    assert (result.stdout, result.stderr) == ("", "")


def test_help_of_the_command_loads_no_torch():
    code = """
import sys
sys.argv = ["hf-segmodels", "--help"]
from hf_segmodels.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    assert "segment-dataset" in run_python(code).stdout


def test_importing_everything_prints_nothing():
    # transformers' docstring tools print what they miss
    result = run_python("import hf_segmodels\nfor name in dir(hf_segmodels): getattr(hf_segmodels, name)")
    assert (result.stdout, result.stderr) == ("", "")


def test_pipeline_logs_nothing(tmp_path: Path):
    folder = save_tiny_segmenter(tmp_path)
    # the bar for the weights is transformers' own, and the same for every model
    result = run_python(f"""
import hf_segmodels, numpy as np, transformers
from PIL import Image
transformers.utils.logging.disable_progress_bar()
segmenter = transformers.pipeline("image-segmentation", model={str(folder)!r}, device="cpu")
assert segmenter(Image.fromarray(np.zeros((40, 50, 3), np.uint8)))
""")
    assert (result.stdout, result.stderr) == ("", "")


def test_versions_agree(repository: Path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert hf_segmodels.__version__ == project["version"]


def test_every_module_declares_what_exists():
    for path in Path(hf_segmodels.__file__).parent.rglob("*.py"):
        parts = path.relative_to(Path(hf_segmodels.__file__).parent).with_suffix("").parts
        if parts[-1] in {"__init__", "__main__"}:
            parts = parts[:-1]
        module = importlib.import_module(".".join(["hf_segmodels", *parts]))
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name}, which does not exist"


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def pinned_versions(constraints: Path) -> dict[str, Version]:
    pins = requirements(constraints.read_text().splitlines())
    return {name: Version(str(pin.specifier).removeprefix("==")) for name, pin in pins.items()}


def test_pinned_versions_satisfy_the_project(repository: Path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    required = requirements(project["dependencies"] + extras)
    del required["hf-segmodels"]
    pins = pinned_versions(repository / "constraints.txt")
    assert required.keys() <= pins.keys()
    for name, requirement in required.items():
        for versions in (pins, pinned_versions(repository / "constraints-minimum.txt")):
            if name in versions:
                assert requirement.specifier.contains(versions[name], prereleases=True), f"{name} {versions[name]}"


def test_minimum_versions_are_the_lower_bounds(repository: Path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    bounds = {
        name: Version(specifier.version)
        for name, requirement in requirements(project["dependencies"]).items()
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert bounds == pinned_versions(repository / "constraints-minimum.txt")


@pytest.mark.slow
def test_wheel_holds_the_package_with_its_data(repository: Path, tmp_path: Path):
    # a copy: building leaves files behind
    tracked = subprocess.run(
        ["git", "ls-files", "hf_segmodels", "pyproject.toml", "README.md", "LICENSE"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "source"]
    subprocess.run(command, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked if name.startswith("hf_segmodels/")}

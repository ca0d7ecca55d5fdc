# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Makes the common test suites of the installed transformers importable as the package `transformers_tests`.

The suites (`test_modeling_common.py`, `test_image_processing_common.py`, ...) are part of transformers' source
distribution and of no wheel. They are downloaded once per version into `.cache/` (not tracked by git). What they import
and the distribution lacks is written next to them: empty stand-ins for suites of abilities that no model here has
(text generation) and of the pipelines' own tests, and drawn pictures for the test images that transformers' continuous
integration fetches from the Hub.
"""

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import transformers


PACKAGE = "transformers_tests"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "transformers_suite"

_STANDINS = {
    # the suites execute this file, then take the `transformers` that is imported already
    "src/transformers/__init__.py": "",
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/pipelines/__init__.py": "",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16'}\n"
    ),
    "tests/utils/tiny_model_summary.json": "{}",
    "utils/fetch_hub_objects_for_ci.py": """\
from pathlib import Path


def url_to_local_path(url):
    return str(Path(__file__).resolve().parents[1] / "pictures" / url.rsplit("/", 1)[-1])
""",
}
_PHOTOGRAPHS = ["000000039769.jpg", "ADE_val_00000001.jpg", "ADE_val_00000002.jpg"]
_LABEL_MAPS = ["ADE_val_00000001.png", "ADE_val_00000002.png"]


def install() -> None:
    """
    Registers `transformers_tests` in `sys.modules`, after downloading and preparing it where that has not been done.

    Raises:
        RuntimeError: if the source distribution cannot be downloaded.
    """
    if PACKAGE in sys.modules:
        return
    root = CACHE / transformers.__version__
    if not root.is_dir():
        _prepare(root)
    tests = root / "tests"
    spec = importlib.util.spec_from_file_location(
        PACKAGE, tests / "__init__.py", submodule_search_locations=[str(tests)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def _prepare(root: Path) -> None:
    """Builds `root` aside and moves it into place in one step, so that an interrupted run leaves nothing half done."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        staged = Path(scratch) / "staged"
        _unpack(_download(Path(scratch)), staged)
        _write_standins(staged)
        _draw_pictures(staged / "pictures")
        try:
            staged.rename(root)
        except OSError:  # another process was faster
            if not root.is_dir():
                raise


def _download(folder: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=transformers"]
    command += ["--dest", str(folder), requirement]
    for _ in range(3):
        result = subprocess.run(command, capture_output=True, text=True)
        archives = list(folder.glob("transformers-*.tar.gz"))
        if result.returncode == 0 and archives:
            return archives[0]
    raise RuntimeError(
        f"Could not download the source distribution of {requirement}, which holds the common test suites. Check the "
        f"connection to the package index and run the command again.\n{result.stderr}"
    )


def _unpack(archive: Path, root: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(root, members=_suites(tar), filter="data")


def _suites(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar.getmembers():
        path = Path(member.name)
        if member.isfile() and path.suffix == ".py" and len(path.parts) == 3 and path.parts[1] == "tests":
            member.name = str(Path(*path.parts[1:]))  # without the folder transformers-VERSION
            yield member


def _write_standins(root: Path) -> None:
    standins = dict(_STANDINS)
    for line in (root / "tests" / "test_pipeline_mixin.py").read_text().splitlines():
        if line.startswith("from .pipelines."):
            module, name = line.removeprefix("from .pipelines.").split(" import ")
            standins[f"tests/pipelines/{module}.py"] = f"class {name}:\n    pass\n"
    for path, text in standins.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def _draw_pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rows, columns = np.mgrid[:480, :640]
    for name in _PHOTOGRAPHS:
        waves = [np.sin(rows / a + columns / b) for a, b in ((17, 31), (41, 13), (23, 57))]
        image = (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)
        Image.fromarray(image).save(folder / name, quality=95)
    for name in _LABEL_MAPS:
        Image.fromarray(((rows // 40 + columns // 50) % 151).astype(np.uint8)).save(folder / name)

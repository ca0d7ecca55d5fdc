# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Modules of the package in one flat folder, as transformers expects code on the Hub."""

import ast
import re
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from hf_segmodels.hub import RemoteCodeError, flatten, remote_code


METHODS = ["regproxy", "segmenter", "segvit", "superpixel_vit", "unept"]
KINDS = ["configuration", "image_processing", "image_processing_pil", "modeling"]


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    @pytest.fixture
    def files(self, method: str) -> dict[str, str]:
        return flatten(f"{method}.{kind}_{method}" for kind in KINDS)

    def test_transformers_finds_all_files_and_packages(self, files, method, tmp_path: Path):
        for name, source in files.items():
            (tmp_path / name).write_text(source)
        found = {f"{kind}_{method}.py" for kind in KINDS}
        for name in list(found):
            found |= {Path(path).name for path in get_relative_import_files(tmp_path / name)}
        assert found == files.keys()
        for name in files:
            packages = set(get_imports(tmp_path / name)) - set(remote_code.sys.stdlib_module_names)
            assert packages <= {"PIL", "huggingface_hub", "numpy", "torch", "transformers"}, name

    def test_only_required_modules_are_exported(self, files, method):
        others = [other for other in METHODS if other != method]
        excluded = [
            *others,
            "cli",
            "conversion",
            "data",
            "demo",
            "errors",
            "evaluation",
            "labels",
            "metrics",
            "schedules",
        ]
        assert not [name for name in files if re.search(rf"(^|_)({'|'.join(excluded)})(_|\.)", name)]
        # no module reads data files; the kernel's module looks for a checkout, which may be absent
        assert {name for name, source in files.items() if "__file__" in source} <= {"sparse_attention_kernels.py"}

    def test_same_folder_imports_only(self, files, method):
        for name, source in files.items():
            assert not re.search(
                r"from\s+\.\.|from\s+\.\s+import|import_module|from hf_segmodels\S* import \S+$", source
            ), name
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.ImportFrom):
                    assert node.level <= 1
                    assert node.module.partition(".")[0] != "hf_segmodels"

    def test_same_every_time(self, files, method):
        assert list(flatten(f"{method}.{kind}_{method}" for kind in reversed(KINDS)).items()) == list(files.items())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write modules of a package, by path, and flatten the first."""
    monkeypatch.setattr(remote_code, "ROOT", tmp_path / "pack")
    monkeypatch.setattr(remote_code, "PACKAGE", "pack")
    remote_code._parse.cache_clear()

    def flatten_package(**sources: str) -> dict[str, str]:
        for name, source in {"__init__": "", **sources}.items():
            path = tmp_path / "pack" / f"{name.replace('__of__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        return {
            name: source.partition("\n")[2]
            for name, source in flatten([next(iter(sources)).replace("__of__", ".")]).items()
        }

    yield flatten_package
    remote_code._parse.cache_clear()


SHARED = {"shared__of____init__": "from .inner import one, two as deux\nfrom .other import three\n"}
SHARED |= {"shared__of__inner": "one = two = 1\n", "shared__of__other": "three = 3\n", "shared__of__unused": "x = 1\n"}


def test_names_are_imported_from_where_they_are_defined(package):
    source = (
        "from ..shared import three, one, deux as second  # all\nfrom ..shared.inner import (\n    two,  # why\n)\n"
    )
    files = package(method__of__modeling_x=source, **SHARED)
    assert list(files) == ["modeling_x.py", "shared_inner.py", "shared_other.py"]
    assert files["modeling_x.py"] == (
        "from .shared_inner import one, two as second\nfrom .shared_other import three\nfrom .shared_inner import two\n"
    )


def test_imports_at_any_depth(package):
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ..shared.inner import one
def f():
    "Größe: ü"
    from pack.shared import three
    try:
        import scipy.ndimage
    except ImportError:
        pass
    return three
"""
    files = package(method__of__modeling_x=source, **SHARED)
    assert list(files) == ["modeling_x.py", "shared_inner.py", "shared_other.py"]
    expected = source.replace("..shared.inner", ".shared_inner").replace("pack.shared", ".shared_other")
    assert files["modeling_x.py"] == expected


def test_long_imports_are_wrapped(package):
    names = [f"a_name_of_some_length_{index}" for index in range(8)]
    files = package(
        method__of__x=f"from ..shared import {', '.join(names)}", shared="".join(f"{n} = 1\n" for n in names)
    )
    assert files["method_x.py"] == "from .shared import (\n" + "".join(f"    {name},\n" for name in names) + ")\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from .. import shared\n", r"pack/method/x.py:1 .* imports a whole module"),
        ("from ..shared import inner\n", "imports a whole module"),
        ("import pack.shared\n", "imports a whole module"),
        ("from ..shared import *\n", "imports `\\*`"),
        ("import importlib\n", "`importlib` are not supported"),
        ("\nfrom ..shared import four\n", r"x.py:2 .*`four` is defined in an `__init__`"),
        ("import scipy\n", "scipy may be absent; import it in `try`"),
        ("def f():\n    from scipy.ndimage import label\n", r"x.py:2 .*scipy may be absent"),
        ("import os; from ..shared import one\n", "shares its line"),
        ('"""\nAs in:\n\n    from .somewhere import it\n"""\n', r"method_x.py names modules.*somewhere.py"),
    ],
)
def test_unsupported_imports(package, source, message):
    with pytest.raises(RemoteCodeError, match=message):
        package(method__of__x=source, **SHARED)


def test_modules_of_one_name(package):
    with pytest.raises(RemoteCodeError, match="Two modules get the same file name"):
        package(
            method__of__x="from .modeling_y import a\nfrom ..modeling_y import a as b\n",
            method__of__modeling_y="a = 1\n",
            modeling_y="a = 2\n",
        )

# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The program: help, version, exit codes, and that help and argument errors need no torch."""

import subprocess
import sys

import pytest

import hf_segmodels
from hf_segmodels.cli.main import main


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hf_segmodels.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"hf-segmodels {hf_segmodels.__version__}\n"


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "segment" in out
    assert "convert" in out


def test_help_and_argument_errors_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['hf-segmodels']; from hf_segmodels.cli.main import main; code = main(['segment', 'a.png', '--alpha', '2']); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "--alpha" in result.stderr


def test_exit_code_of_the_process():
    result = run("segment", "a.png", "--model", "m", "--output", "o", "--window", "x")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["convert", "--help"])
    assert exit_.value.code == 0
    assert "--checkpoint" in capsys.readouterr().out

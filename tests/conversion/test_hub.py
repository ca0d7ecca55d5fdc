# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in repositories on the Hub."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoModelForSemanticSegmentation

from common.convert_command import main
from common.original_segvit import write_checkpoint


ARGUMENTS = ["--method", "segvit", "--checkpoint", "someone/models", "--filename", "deep/model.pth"]


def test_file_in_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = write_checkpoint(tmp_path / "cache")
    asked = []

    def download(repository: str, filename: str, revision: str | None = None) -> str:
        asked.append((repository, filename, revision))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert main([*ARGUMENTS, "--output_dir", str(tmp_path / "one"), "--verify"]) == 0
    assert main([*ARGUMENTS, "--revision", "v1", "--output_dir", str(tmp_path / "two")]) == 0
    assert asked == [("someone/models", "deep/model.pth", None), ("someone/models", "deep/model.pth", "v1")]
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "one").config.model_type == "segvit"


def test_an_unreachable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def download(*args, **kwargs):
        raise LocalEntryNotFoundError("no such thing")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert main([*ARGUMENTS, "--revision", "v1", "--output_dir", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert "Cannot get deep/model.pth from someone/models at v1 on the Hub (no such thing)" in error
    assert not (tmp_path / "new").exists()


def test_bad_name_of_a_repository(tmp_path: Path, capsys):
    arguments = [
        "--method",
        "segvit",
        "--checkpoint",
        "a/b/c",
        "--filename",
        "x.pth",
        "--output_dir",
        str(tmp_path / "new"),
    ]
    assert main(arguments) == 2
    assert "Cannot get x.pth from a/b/c on the Hub" in capsys.readouterr().err


def test_repository_without_a_filename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--method", "segvit", "--checkpoint", "someone/models", "--output_dir", str(tmp_path / "new")]
    assert main(arguments) == 2
    assert "name the file in it with --filename" in capsys.readouterr().err
    assert main([*arguments, "--revision", "main"]) == 2
    assert "name its file with --filename" in capsys.readouterr().err


class Repository(http.server.BaseHTTPRequestHandler):
    """`someone/models` with `deep/model.pth`, as the Hub serves it."""

    contents = b""

    def do_HEAD(self) -> None:
        is_known = self.path.split("?")[0] == "/someone/models/resolve/main/deep/model.pth"
        self.send_response(200 if is_known else 404)
        if not is_known:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", '"0123456789"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.contents) if is_known else 0))
        self.end_headers()
        if is_known and self.command == "GET":
            self.wfile.write(self.contents)

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.mark.slow  # two processes that import everything, 20 s
def test_command_with_a_server(tmp_path: Path):
    Repository.contents = write_checkpoint(tmp_path / "original").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Repository) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        command = [sys.executable, "-m", "hf_segmodels.cli", "convert", *ARGUMENTS]
        for name, code, text in (
            ("deep/model.pth", 0, "wrote"),
            ("other.pth", 2, "Cannot get other.pth from someone/models"),
        ):
            command[command.index("--filename") + 1] = name
            process = subprocess.run(
                [*command, "--output_dir", str(tmp_path / f"new-{code}")],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert process.returncode == code, process.stderr
            assert text in process.stdout + process.stderr
        server.shutdown()
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "new-0").config.num_labels == 5

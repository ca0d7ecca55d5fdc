# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels publish` with a mock of the Hub, and loading the published models."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from common.exported_models import make_model, run_clean_process, write_expected
from common.hub_server import TOKEN, Hub, Repository, environment_of, running_hub, use_hub
from common.tiny_segmenter import save_tiny_segmenter
from hf_segmodels.cli.main import main
from hf_segmodels.hub.remote_code import MARK


REPOSITORY = "someone/tiny-segmenter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        use_hub(hub.url, monkeypatch)
        yield hub


def publish(folder: Path, *arguments: str, repo_id: str = REPOSITORY) -> int:
    return main(["publish", str(folder), "--repo-id", repo_id, *arguments])


def test_a_process_without_the_package_loads_what_was_published(hub: Hub, tmp_path: Path):
    model, image_processor = make_model("segmenter-linear")
    model.save_pretrained(tmp_path / "model")
    image_processor.save_pretrained(tmp_path / "model")
    write_expected(model, image_processor, tmp_path / "expected")
    assert publish(tmp_path / "model") == 0
    log = run_clean_process(
        {"published": (REPOSITORY, tmp_path / "expected")}, tmp_path, **environment_of(hub, token=None)
    )
    assert "hf_segmodels" not in log


class TestUpload:
    def test_one_commit_with_all_files(self, hub: Hub, folder: Path, capsys):
        assert publish(folder) == 0
        repository = hub.repositories[REPOSITORY]
        assert repository.messages == ["Upload SegmenterForSemanticSegmentation"]
        assert not repository.private
        output = capsys.readouterr().out
        for name, content in repository.files.items():
            assert f"{len(content):>13,}  {name}\n" in output
        assert f"{hub.url}/{REPOSITORY}/commit/{repository.branches['main']}" in output
        assert {"config.json", "model.safetensors", "modeling_segmenter.py", "preprocessor_config.json"} <= set(
            repository.files
        )
        card = repository.files["README.md"].decode()
        assert f'pipeline("image-segmentation", model="{REPOSITORY}", trust_remote_code=True)' in card

    def test_again(self, hub: Hub, folder: Path):
        repository = hub.repositories[REPOSITORY] = Repository()
        stale = {
            "modeling_old.py": f"{MARK} from somewhere".encode(),
            "model-00001-of-00002.safetensors": b"old",
            "model.safetensors.index.json": b"{}",
            "pytorch_model.bin": b"old",
        }
        kept = {"evaluate.py": b"print('mine')\n", "notes.md": b"mine", "data/tool.py": MARK.encode()}
        repository.commit({**stale, **kept, "config.json": b"{}"}, "First")
        assert publish(folder) == 0
        files = repository.files
        assert not stale.keys() & files.keys()
        assert {name: files[name] for name in kept} == kept
        assert b"segmenter" in files["config.json"]
        assert len(repository.messages) == 2

    def test_private(self, hub: Hub, folder: Path, capsys):
        assert publish(folder, "--private") == 0
        assert hub.repositories[REPOSITORY].private
        hub.repositories[REPOSITORY] = Repository(private=False)
        assert publish(folder, "--private") == 2
        assert "exists and is public" in capsys.readouterr().err
        assert hub.repositories[REPOSITORY].files == {}

    def test_branch(self, hub: Hub, folder: Path):
        assert publish(folder, "--revision", "next") == 0
        repository = hub.repositories[REPOSITORY]
        assert repository.files == {}
        assert "config.json" in repository.commits[repository.branches["next"]]

    def test_pull_request_to_a_repository_of_others(self, hub: Hub, folder: Path, capsys):
        hub.repositories["other/model"] = Repository()
        assert publish(folder, "--create-pr", repo_id="other/model") == 0
        assert f"{hub.url}/other/model/discussions/1" in capsys.readouterr().out
        assert hub.repositories["other/model"].files == {}
        assert publish(folder, "--create-pr", "--revision", "next") == 2

    def test_card_of_the_folder(self, hub: Hub, tmp_path: Path, capsys):
        folder = save_tiny_segmenter(tmp_path)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nMine.")
        assert publish(folder) == 0
        assert hub.repositories[REPOSITORY].files["README.md"].endswith(b"Mine.")
        (folder / "README.md").write_text("---\nlicense: no license of this world\n---\n")
        assert publish(folder) == 2
        assert '"license" must be one of a list' in capsys.readouterr().err


class TestDryRun:
    def test_writes_and_lists_without_network(self, folder: Path, tmp_path: Path, monkeypatch, capsys):
        with running_hub() as hub:
            use_hub(hub.url, monkeypatch, token=None)
            assert publish(folder, "--dry-run", "--output", str(tmp_path / "new")) == 0
            assert hub.requests == []
        output = capsys.readouterr().out
        for path in (tmp_path / "new").iterdir():
            assert f"{path.stat().st_size:>13,}  {path.name}\n" in output
        assert f"nothing was sent to {REPOSITORY}" in output

    def test_lists_only_what_is_uploaded(self, tmp_path: Path, capsys):
        folder = save_tiny_segmenter(tmp_path)
        (folder / "optimizer.pt").write_bytes(b"large")
        (folder / "mine.py").write_text("print('mine')\n")
        assert publish(folder, "--dry-run", "--output", str(folder)) == 0
        output = capsys.readouterr().out
        assert "modeling_segmenter.py" in output
        assert "optimizer.pt" not in output
        assert "mine.py" not in output
        assert (folder / "optimizer.pt").is_file()


class TestErrors:
    @pytest.mark.parametrize(
        ("repo_id", "reason"),
        [
            ("tiny", "the owner is missing"),
            ("a/b/c", "is not a valid repository name"),
            ("me/a b", "is not a valid repository name"),
            ("me/-x", "is not a valid repository name"),
        ],
    )
    def test_malformed_name(self, folder: Path, capsys, repo_id, reason):
        assert publish(folder, "--dry-run", repo_id=repo_id) == 2
        output = capsys.readouterr().err
        assert reason in output
        assert "write OWNER/NAME" in output

    def test_no_folder(self, tmp_path: Path, capsys):
        assert publish(tmp_path / "nowhere", "--dry-run") == 2
        assert "is not a folder" in capsys.readouterr().err
        assert publish(tmp_path, "--dry-run") == 2
        assert "no config.json" in capsys.readouterr().err

    def test_no_token(self, folder: Path, monkeypatch, capsys):
        use_hub("http://127.0.0.1:9", monkeypatch, token=None)
        assert publish(folder) == 2
        assert "run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err

    def test_bad_token(self, hub: Hub, folder: Path, monkeypatch, capsys):
        monkeypatch.setenv("HF_TOKEN", TOKEN[:-1] + "y")
        assert publish(folder) == 2
        assert "the access token is not valid" in capsys.readouterr().err
        assert hub.repositories == {}

    def test_no_permission(self, hub: Hub, folder: Path, capsys):
        assert publish(folder, repo_id="other/new") == 2
        assert "may not write to other/new" in capsys.readouterr().err
        hub.repositories["other/model"] = Repository()
        assert publish(folder, repo_id="other/model") == 2
        assert "may not write to other/model" in capsys.readouterr().err
        assert hub.repositories["other/model"].files == {}

    def test_no_network(self, folder: Path, monkeypatch, capsys):
        use_hub("http://127.0.0.1:9", monkeypatch)
        assert publish(folder) == 2
        assert "cannot reach http://127.0.0.1:9" in capsys.readouterr().err

    def test_offline(self, hub: Hub, folder: Path, monkeypatch, capsys):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert publish(folder) == 2
        assert "HF_HUB_OFFLINE" in capsys.readouterr().err

    def test_server_error(self, hub: Hub, folder: Path, capsys):
        hub.failure = 500
        assert publish(folder) == 2
        assert "try again later" in capsys.readouterr().err


class TestCard:
    """Cards that a dry run creates."""

    @pytest.fixture
    def card(self, tmp_path: Path):
        folder = save_tiny_segmenter(tmp_path / "model")
        num_labels = json.loads((folder / "config.json").read_text())["id2label"].keys()
        scores = {"mean_iou": 0.4321, "mean_accuracy": 0.5, "overall_accuracy": 0.6}
        scores["per_category_iou"] = [0.4321] * len(num_labels)
        (folder / "scores.json").write_text(json.dumps(scores | {"split": "test", "dataset": "somewhere/streets"}))

        def make(*arguments: str) -> ModelCard | None:
            if publish(folder, "--dry-run", "--output", str(tmp_path / "out"), *arguments) != 0:
                return None
            return ModelCard.load(tmp_path / "out" / "README.md")

        make.folder = folder
        return make

    def test_scores_and_license(self, card):
        scores = str(card.folder / "scores.json")
        made = card("--results", scores, "--dataset", "jane/streets", "--license", "mit", "--base-model", "jane/base")
        assert (made.data.license, made.data.base_model, made.data.datasets) == ("mit", "jane/base", ["jane/streets"])
        assert made.data.eval_results[0].metric_value == 0.4321
        assert "43.2" in made.text

    def test_scores_of_a_training_run_are_found(self, card):
        assert not card().data.eval_results
        (card.folder / "scores.json").rename(card.folder / "results.json")
        assert card().data.eval_results[0].metric_value == 0.4321

    def test_invalid_options_and_options_next_to_a_card(self, card, capsys):
        assert card("--license", "mit", "--license-name", "mine") is None
        assert "cannot write the model card" in capsys.readouterr().err
        (card.folder / "README.md").write_text("# Mine\n")
        assert card("--license", "mit") is None
        assert "there is a model card already: leave out license" in capsys.readouterr().err

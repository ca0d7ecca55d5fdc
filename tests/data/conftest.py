# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import pytest


datasets = pytest.importorskip("datasets", reason="part of the `train` and `dev` extras")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))

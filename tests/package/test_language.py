# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The terms of CONTRIBUTING.md: words that have a standard term are not used instead of it. Part of `make quality`."""

import re
import subprocess
from pathlib import Path

import pytest


# regular expression -> what to write
BANNED = {
    r"(?<!there )(?<!where )\bis no (?!longer|more\b|less\b|need|effect|such|way\b|difference|reason|guarantee)[a-z]": (
        "is not a valid ..., is not supported"
    ),
    r"\bthat is none\b|\bthat are none\b": "is not a ...",
    r"\bwanted\b": "target, requested",
    r"\b(?:is|are|was|were|be) told\b|\btold (?:apart|by|what|which)\b": "specified, distinguished",
    r"\bnobody (?:said|says)\b|\bwhat nobody\b": "unknown",
    r"\bfaults?\b|\bfaulty\b": "label issue, error",
    r"\bdoctors?\b": "label checks",
    r"\bcovered_size\b": "padded_size",
    r"\btap(?:s|ped|ping)? (?:layers?|the)\b|\btapped\b": "feature layers",
    r"\bsqueezed? (?:into|to)\b": "resize",
    r"\bslopes\b|\bcarr(?:y|ied|ies) back\b": "gradient",
    r"\bjoints\b|\blaid end to end\b": "tile supports, concatenated",
    r"\bModelShelf\b|\bworkbench\b": "cache, session",
    r"\bthe plain way\b|\bours over plain\b|\bover plain\b": "baseline, speed-up",
    r"\bpeaked\b": "low-entropy logits",
    r"(?<!\.)\bfigures\b(?! \d)": "numbers, metrics, results",
    r"\bdeviations?\b(?<!standard deviation)(?<!standard deviations)": "standard deviation, std",
    r"\brooms?\b|\bhouse rules?\b|\bof the house\b": "module, conventions",
    r"\bst(?:and|ands|ood) on\b|\bst(?:and|ands|ood) (?:beside|over|under)\b": "built on, next to",
    r"\bl(?:ie|ies|ay) beside\b": "next to",
    r"\blent\b|\blean(?:er)?\b": "memory-efficient",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\brising order\b": "ascending order",
    r"\bnone when not given\b|\bwhere not given\b|\bwhen not given\b": "defaults to ..., *optional*",
    r"\bthe rest says\b|\bsay the rest\b": "see ...",
    r"\bin turn\b": "(leave out)",
    r"\bto the digit\b": "exactly",
}
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".html", ".css", ".js", ".cpp", ".cu", ".cuh", ".h", ""}
EXCLUDED = ("LICENSE", "NOTICE", "tests/fixtures/", "tests/package/test_language.py", "CHANGELOG.md", "docs/camvid/")


def text_files(repository: Path) -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    files = [name for name in names.splitlines() if not name.startswith(EXCLUDED)]
    return [repository / name for name in files if Path(name).suffix in TEXT and (repository / name).is_file()]


def test_standard_terms_are_used(repository: Path):
    if not (repository / ".git").exists():
        pytest.skip("not a checkout")
    banned = re.compile("|".join(f"(?P<w{index}>{pattern})" for index, pattern in enumerate(BANNED)), re.IGNORECASE)
    advice = list(BANNED.values())
    found = []
    for path in text_files(repository):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for match in banned.finditer(line):
                index = int(match.lastgroup.removeprefix("w"))
                found.append(f"{path.relative_to(repository)}:{number}: {match.group()!r}: write {advice[index]}")
    assert not found, f"{len(found)} words to replace:\n" + "\n".join(found)

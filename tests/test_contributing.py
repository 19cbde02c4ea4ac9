"""CONTRIBUTING.md is true: what it quotes is in the files it quotes, and the files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUOTES = re.findall(r"^`([\w./]+)`:\n\n```\w*\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL)
NAMED = sorted({w for w in re.findall(r"`([\w./*]+)`", TEXT) if "/" in w or w.endswith(".py")})


def test_there_are_quotations() -> None:
    assert len(QUOTES) == TEXT.count("`:\n\n```") >= 10


@pytest.mark.parametrize(("path", "quote"), QUOTES, ids=[f"{p}-{k}" for k, (p, _) in enumerate(QUOTES)])
def test_quotation_is_in_the_file(path: str, quote: str) -> None:
    assert quote in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMED)
def test_named_file_exists(name: str) -> None:
    places = [ROOT, ROOT / "tests", ROOT / "backends" / "schedule"]
    assert any(
        p.exists() for place in places for p in ([place / name] if "*" not in name else place.glob(name))
    )

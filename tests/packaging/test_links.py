"""Every relative link of the README and of the pages in docs leads to a file that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "docs" / "results"  # `rootlet bench` writes these pages, and may not have yet
LINK = re.compile(r"\]\(([^)\s]+)\)")
CITED = re.compile(r"docs/[A-Za-z0-9_./-]+\.md")


def missing(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(text):
        target = link.partition("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve()
        if not path.exists() and path.parent != RESULTS:
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    assert missing(page, page.read_text()) == []


def test_a_link_to_nothing_is_found() -> None:
    page = ROOT / "docs" / "compiler.md"
    assert missing(page, "[a](bundle.md#top) [b](nowhere.md) [c](https://x.org)") == ["nowhere.md"]


def test_pages_that_the_code_cites_are_there() -> None:
    sources = [
        path
        for folder in ("device_runtime", "sdk", "server")
        for path in (ROOT / folder).rglob("*.py")
    ]
    cited = {
        (path.relative_to(ROOT), page)
        for path in sources
        for page in CITED.findall(path.read_text())
        if not page.startswith("docs/results/")
    }
    assert len(cited) >= 3
    assert [(str(path), page) for path, page in cited if not (ROOT / page).exists()] == []

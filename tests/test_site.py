"""The documentation as a site: built strictly, every link followed, nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests import tracked
from tests.tracked import ROOT


def build(checkout: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("zensical", reason="building the site needs zensical, of the extra [docs]")
    return subprocess.run(
        [sys.executable, checkout / "docs" / "site.py", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tracked.copy(tmp_path_factory.mktemp("checkout"))
    folder = tmp_path_factory.mktemp("built")
    done = build(checkout, folder)
    assert done.returncode == 0, done.stdout
    return folder / "site"


@dataclass
class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that have a name."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        loads = tag != "a" and given.get("rel") not in ("canonical", "next", "prev")
        for name in {"href", "src"} & {*given}:
            (self.loads if loads else self.links).append(given[name])


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def dead(site: Path, pages: dict[Path, Page]) -> list[str]:
    """The links of the pages that lead to no file, or to no such place in it."""
    found = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            lost = not target.is_file() or (
                target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].names
            )
            if not parts.scheme and not parts.netloc and lost:
                found.append(f"{path.relative_to(site)} -> {link}")
    return found


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    # 404.html is for whatever address a server is asked for; page.html is a file that a page links to.
    found = sorted(path for path in site.rglob("*.html") if path.name not in ("404.html", "page.html"))
    return {path: read(path) for path in found}


def test_every_document_is_a_page_that_the_menu_leads_to(site: Path) -> None:
    source = site.parent / "pages"
    documents = {path.relative_to(source).as_posix() for path in source.rglob("*.md")}
    assert documents >= {f"docs/{path.name}" for path in tracked.files("docs") if path.suffix == ".md"}
    assert documents == set(
        re.findall(r"\S+\.md\b", (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"))
    )
    for name in documents:
        page = site / re.sub(r"\bREADME\.md$", "index.md", name)
        assert page.with_suffix(".html").is_file(), name


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert not dead(site, pages)


def test_a_page_loads_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    loaded = {urlsplit(one).netloc for page in pages.values() for one in page.loads}
    assert loaded == {""}


def test_markdown_comes_out_as_it_does_in_the_repository(site: Path) -> None:
    """As many tables and entries of lists as there are: what this dialect reads otherwise would be text."""
    sources = sorted((site.parent / "pages").rglob("*.md"))
    for source in sources:
        text = re.sub(r"^```.*?^```$", "", source.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        place = source.relative_to(site.parent / "pages").as_posix()
        page = (site / re.sub(r"\bREADME\.md$", "index.md", place)).with_suffix(".html")
        (article,) = re.findall(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)
        assert "```" not in article, place
        assert article.count("<table>") == len(re.findall(r"^ *\|[-:| ]+-[-:| ]*\|$", text, re.MULTILINE)), (
            place
        )
        assert article.count("<li>") == len(re.findall(r"^ *(?:[-*]|\d+\.) ", text, re.MULTILINE)), place


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("nowhere.md", "a file that does not exist"),
        ("../README.md#nowhere", "anchor does not exist"),
        ("../benchmarks/nothing.py", "a file that does not exist"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path, link: str, said: str) -> None:
    checkout = tracked.copy(tmp_path / "checkout")
    with (checkout / "docs" / "watch.md").open("a", encoding="utf-8") as file:
        file.write(f"\nSee [that]({link}).\n")
    done = build(checkout, tmp_path / "built")
    assert done.returncode != 0
    assert said in done.stdout
    assert "watch.md" in done.stdout

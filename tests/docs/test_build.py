"""The documentation builds without a warning, and every link within it leads somewhere."""

import os
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.documents import ROOT

pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """Ids of a page, what it points to, and its text outside tags."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            if value and ((tag == "a" and name == "href") or (tag in ("img", "script") and name == "src")):
                self.targets.append(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    options = ("--builder", "html", "--fail-on-warning", "--keep-going", "--fresh-env", "--quiet")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            *options,
            "--doctree-dir",
            str(out / "doctrees"),
            "docs",
            str(out / "html"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    return out / "html"


def test_every_link_within_the_pages_leads_somewhere(built: Path) -> None:
    pages: dict[Path, Links] = defaultdict(Links)
    for path in built.rglob("*.html"):
        pages[path].feed(path.read_text(encoding="utf-8"))
    assert len(pages) > 10
    for path, links in list(pages.items()):
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert found.exists(), f"{path.name}: {target}"
            if parts.fragment and found in pages:
                assert unquote(parts.fragment) in pages[found].ids, f"{path.name}: {target}"


def test_every_press_and_benchmark_has_a_section(built: Path) -> None:
    from longpress.catalogue import benchmarks, presses

    for page, names in (("methods", presses()), ("benchmarks", benchmarks())):
        text = (built / f"{page}.html").read_text(encoding="utf-8")
        for name in names:
            choice = f"{'press' if page == 'methods' else 'benchmark'}={name}"
            assert f'<span class="pre">{choice}</span>' in text, name


def test_nothing_of_the_machine_that_built_them_is_in_them(built: Path) -> None:
    for path in built.rglob("*.html"):
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path.name

"""What the pages point to is there: pages, anchors, files; addresses of other sites are in good form."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.documents import PAGES, ROOT, prose, source

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
SUFFIXES = r"py|md|yaml|json|csv|cff|toml|txt|js|css|html|svg|png|ipynb|tex|jsonl"
FOLDERS = sorted(
    path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "build", "dist"))
)
FILE = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})/[\w./-]*|[\w.-]+\.(?:md|toml|cff)|Makefile|evaluate\.py)")
MADE = ("results/first", "results/ruler-2k-again", "results/norm_ratio", "results/codes", "results/demo")
"""Folders that the commands of the pages fill."""

OF_A_RUN = ("table.md", "fidelity.md")
"""Files in such a folder that could as well be files of the repository by their names."""


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_page_and_to_an_anchor_on_it(page: Path) -> None:
    for target in LINK.findall(source(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_names_exists(page: Path) -> None:
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page)):
        if (
            not FILE.fullmatch(span)
            or "NAME" in span
            or "<" in span
            or span.startswith(MADE)
            or span in OF_A_RUN
        ):
            continue
        assert (ROOT / span).exists() or (page.parent / span).exists(), f"{page.name}: {span}"


def test_the_check_of_files_knows_a_path() -> None:
    assert all(
        FILE.fullmatch(text) for text in ("kvcache/compress.py", "presses/support/", "README.md", "Makefile")
    )
    assert not any(FILE.fullmatch(text) for text in ("press=snapkv", "records/*.jsonl", "compress"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_address_of_another_site_is_in_good_form(page: Path) -> None:
    for address in re.findall(r"\w+://[^\s)>\"'`]+", source(page)):
        parts = urlsplit(address.rstrip(".,;"))
        assert parts.scheme in ("http", "https"), address
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), address
        assert re.fullmatch(r"[\w./~%+@=-]*", parts.path), address


def test_every_page_is_reached_from_the_first() -> None:
    listed = re.findall(
        r"^[a-z][a-z-]+$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(
        page.stem for page in PAGES if page.parent.name == "docs" and page.stem != "index"
    )

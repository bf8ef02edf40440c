"""A real headless Chromium, and what it says of a page: requests, errors, geometry, contrast."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8").strip()


@contextmanager
def chromium() -> Iterator[Any]:
    """The distribution's Chromium where there is one, else the one that Playwright installed."""
    from playwright.sync_api import sync_playwright

    installed = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed, args=["--no-sandbox"]
        )  # which root in a container needs
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> Iterator[Any]:
    """A page that has drawn itself, with growing lists: `requests`, their `failures`, and `complaints`."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
    )
    page = context.new_page()
    page.requests, page.failures, page.complaints = [], [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("requestfailed", lambda request: page.failures.append((request.url, request.failure)))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-ready=true]", state="attached")
    yield page
    context.close()


def layout_problems(page: Any) -> list[str]:
    """What a person would call broken: scrolling sideways, hidden or overlapping text, empty panels."""
    return page.evaluate(f"{CHECKS}.layout()")


def faint_text(page: Any, least: float = 4.5) -> list[str]:
    """Text whose contrast to its ground is below `least` (WCAG 2.1, level AA)."""
    return page.evaluate(f"{CHECKS}.faint({least})")

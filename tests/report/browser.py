"""A real browser to drive a report in: the Chromium or Chrome that the machine has, through Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from bottleneck_opt.diagrams import draw_diff, render_svg
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report import render_html

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOW = (1280, 900)


def find_browser() -> str | None:
    """Path of the machine's Chromium or Chrome."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """The browser, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """An open report.

    Attributes:
        page: The page.
        complaints: What the page wrote to the console as a warning or an error, and errors that nothing caught.
        requests: What it asked for outside of itself.
        dialogs: What it said in alert boxes.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def reload(self) -> Page:
        """The page as it is when it is opened."""
        self.page.goto(self.page.url)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self.page

    def number(self, expression: str) -> float:
        """A number that the page computes."""
        return float(self.page.evaluate(expression))


def open_page(browser: Browser, file: Path, **options: Any) -> Opened:
    """A report in a new window of its own.

    Args:
        browser: The browser.
        file: The page.
        options: Of the window, such as ``color_scheme``.
    """
    size = {"width": WINDOW[0], "height": WINDOW[1]}
    page = browser.new_context(**{"viewport": size, "accept_downloads": True, **options}).new_page()
    opened = Opened(page)
    page.on("console", lambda said: opened.complaints.append(said.text) if said.type != "log" else None)
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("request", lambda asked: opened.requests.append(asked.url))
    page.on("dialog", lambda dialog: opened.dialogs.append(dialog.message))
    page.goto(file.as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready]", state="attached")
    return opened


def write_page(outcome: Outcome, file: Path) -> Path:
    """The report of an outcome as a file."""
    file.write_text(render_html(outcome, render_svg(draw_diff(outcome))), encoding="utf-8")
    return file

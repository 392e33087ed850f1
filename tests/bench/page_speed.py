"""How long a visitor waits: until the page is drawn, and from the click until the first token. In a real browser.

    python tests/bench/page_speed.py [--times 5]

Starts the page with the bundled checkpoint, opens it once to warm up, then prints medians. Needs playwright and a
Chromium, which the environment variable CHROMIUM may name.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, sync_playwright

from tests.page.visit import serve

FIRST_TOKEN = """() => new Promise((resolve) => {
    const started = performance.now();
    new MutationObserver((_, observer) => {
        if (!document.querySelector("#sheet span")?.textContent) return;
        observer.disconnect();
        resolve(performance.now() - started);
    }).observe(document.querySelector("#sheet"), { childList: true, characterData: true, subtree: true });
    document.getElementById("generate").click();
})"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
READY = "performance.now()"


def visit(browser: Browser, url: str) -> tuple[float, float, float]:
    """Milliseconds until something is drawn, until the page can be used, and from a click to the first token."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    times = page.evaluate(PAINTED), page.evaluate(READY)
    page.locator("#prompt textarea").fill("ROMEO:")
    page.wait_for_timeout(500)
    first_token = page.evaluate(FIRST_TOKEN)
    context.close()
    return *times, first_token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), MODEL_ID="") as running, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visit(browser, running.url)
        rows = [visit(browser, running.url) for _ in range(times)]
        browser.close()
    for name, column in zip(("first contentful paint", "ready", "first token"), zip(*rows, strict=True), strict=True):
        print(f"{name}: {median(column):,.0f} ms (of {times}: {min(column):,.0f} to {max(column):,.0f})")


if __name__ == "__main__":
    main()

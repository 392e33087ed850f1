"""The real app in a process of its own, and what a visitor does in front of it; for all tests of the page."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import app

ROOT = Path(app.__file__).resolve().parent
INJECTIONS = (
    "<img src=x onerror=window.hacked=1> ${window.hacked=2} {{7*7}} </b><script>window.hacked=3</script>"
    ' " onmouseover="window.hacked=4 \N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET} \N{RIGHT-TO-LEFT OVERRIDE} '
    "\N{GRINNING FACE}"
)


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def post(self, route: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + route, body, headers), timeout=60) as answer:
            return answer.read()

    def call(self, endpoint: str, data: list) -> dict:
        """The last event of an API call over plain HTTP: {"complete": [...]} or {"error": {...}}."""
        event = json.loads(self.post(f"/gradio_api/call/{endpoint}", json.dumps({"data": data}).encode()))["event_id"]
        with urllib.request.urlopen(f"{self.url}/gradio_api/call/{endpoint}/{event}", timeout=60) as stream:
            name, _, rest = stream.read().decode().strip().split("\n\n")[-1].partition("\n")
        return {name.removeprefix("event: "): json.loads(rest.removeprefix("data: "))}


@contextmanager
def serve(folder: Path, seconds: float = 120, **env: str) -> Iterator[Running]:
    """The app on a free port, from when it answers, which it has so many seconds for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = folder / f"{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")],
            cwd=folder,
            env={**os.environ, "PORT": str(port), "PYTHONIOENCODING": "utf-8", **env},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    running = Running(f"http://127.0.0.1:{port}", process, log_file)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(running.url + "/config", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, running.log()
                time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def sheet(page) -> str:
    """The prompt and the continuation, of the first sample."""
    return "".join(page.locator("#sheet article p").all_text_contents()[:1])


def status(page) -> str:
    return page.locator("#status p").text_content()


def rest(page) -> None:
    """Wait until what was written before is at its end for Gradio too: the last of a text comes a moment earlier, and
    a press between the two is dropped, as the second of a double click is."""
    page.locator("#status [data-testid=status-tracker].hide").wait_for(state="attached")


def begin(page, prompt: str = "ROMEO:", max_tokens: int = 2000) -> None:
    """Set what the next press of Generate writes."""
    rest(page)
    page.get_by_label("number input for Max tokens").fill(str(max_tokens))
    page.locator("#prompt textarea").fill(prompt)


def wait(page, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"waited a minute in vain; status {status(page)!r}, text {sheet(page)[:200]!r}")


def generate(page, prompt: str = "ROMEO:", max_tokens: int = 40) -> str:
    """Write a text to its end and return it, with the prompt."""
    begin(page, prompt, max_tokens)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: sheet(page).startswith(prompt) and status(page).startswith(f"{max_tokens} tokens"))
    return sheet(page)


def press(page, name: str) -> None:
    """Click a button that writes."""
    rest(page)
    page.get_by_role("button", name=name, exact=True).click()


@contextmanager
def crowd(client, n: int) -> Iterator[None]:
    """Others, who are being written for."""
    jobs = [client.submit("ROMEO:", max_new_tokens=2000, api_name="/generate") for _ in range(n)]
    while not all(job.outputs() for job in jobs):
        time.sleep(0.05)
    yield
    for job in jobs:
        job.cancel()


def room(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def open_more(page) -> None:
    """Show the settings that are folded away, and let Gradio finish them: what is typed before is lost."""
    page.get_by_text("More", exact=True).click()
    page.wait_for_timeout(500)


def number(page, label: str, value) -> None:
    """Set the one visible slider of that name, and see that it has moved: what is typed while Gradio still builds it is
    lost."""
    box = page.get_by_label(f"number input for {label}").locator("visible=true")
    slider = page.get_by_label(f"range slider for {label}").locator("visible=true")

    def has_moved() -> bool:
        if float(slider.input_value()) != value:
            box.fill(str(value))
            box.blur()
            page.wait_for_timeout(200)
        return float(slider.input_value()) == value

    wait(page, has_moved)

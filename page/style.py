"""How the page looks: its theme, and what lies in web/ (styles, scripts, icon). Knows nothing of what they show."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import gradio as gr

WEB = Path(__file__).with_name("web")
THEME = gr.themes.Base(
    primary_hue="red",
    neutral_hue="stone",
    radius_size="sm",
    font=["system-ui", "sans-serif"],  # the reader's own: no font is fetched from anywhere
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_text_color_subdued="*neutral_600",  # Base's greys are too faint to read easily
    block_info_text_color="*neutral_600",
    button_primary_background_fill="*primary_800",
    button_primary_background_fill_hover="*primary_900",
    button_primary_background_fill_dark="*primary_800",
    slider_color="*primary_800",
)


def read(name: str) -> str:
    """A file of web/."""
    return (WEB / name).read_text(encoding="utf-8")


def script(name: str) -> str:
    """A script for gr.HTML's js_on_load."""
    return read("dom.js") + read(name)


def head() -> str:
    """What the page's head needs: styles, keys and resets are there before anything is drawn. The icon is no
    favicon_path, for which Gradio would open a route that resizes it to any size."""
    icon = f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{quote(read("icon.svg").strip())}">'
    scripts = "".join(f"<script>{read(name)}</script>" for name in ("keys.js", "reset.js"))
    return f"{icon}<style>{read('page.css')}</style>{scripts}"

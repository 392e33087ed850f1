"""How the page looks, and the keys it answers to. Knows the ids of the widgets, nothing else."""

from __future__ import annotations

import gradio as gr

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
CSS = """
#house { max-width: 1080px; margin: 0 auto; --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; }
#title h1 { font: 600 2.1rem/1.2 var(--serif); margin: 0.4em 0 0.2em; }
#title, #notice, #keys, #status { --block-padding: 0; }
#notice { border-left: 3px solid var(--primary-700); padding-left: 12px; }
#actions { flex-wrap: nowrap; }
#actions button { min-width: 0; }
#keys, #status { color: var(--body-text-color-subdued); font-size: var(--text-sm); line-height: 1.6; }
#keys kbd { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 1px 5px; }
#status p { min-height: 1.6em; margin: 0; }
#sheet { background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: 4px; }
#sheet .html-container { padding: 20px 24px; }
#sheet .sheet { font: 1.15rem/1.65 var(--serif); white-space: pre-wrap; overflow-wrap: anywhere; min-height: 11rem; }
#sheet .sheet:empty::before { content: "What the model writes appears here."; color: var(--body-text-color-subdued); }
#sheet b { color: var(--primary-800); font-weight: 600; }
.dark #sheet b { color: var(--primary-300); }
[data-testid="status-tracker"].hide { display: none; }  /* else a screen reader finds Gradio's unseen "Error" */
@media (max-width: 640px) { #house textarea, #house input { font-size: 16px; } }  /* less, and iOS zooms in */
"""
# Ctrl+Enter or Cmd+Enter writes, Esc stops; not while an input method composes a character.
KEYS = """() => document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const press = (id) => { event.preventDefault(); document.getElementById(id).click(); };
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press("write");
    if (event.key === "Escape") press("stop");
})"""

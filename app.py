"""The page and its API: widgets, wiring, launch. What it shows is computed in gpt2/.

    python app.py                  serves the bundled checkpoint on http://127.0.0.1:7860
    MODEL_ID=user/repo, MODEL_REVISION=v1, PORT=8000     another checkpoint (also a directory), another port

Knows Gradio, and how to say things to a visitor. Knows nothing of how a model computes, a token is chosen or a
checkpoint is read; importing it does nothing.
"""

import os

# Read by gradio and huggingface_hub when they are imported: a visit to this page is nobody else's business.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

try:
    import spaces  # on a ZeroGPU Space; before torch, because it replaces torch's CUDA
except ImportError:
    from types import SimpleNamespace

    spaces = SimpleNamespace(GPU=lambda duration: lambda function: function)

import html
import importlib.util
import math
import platform
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch

import gpt2
from gpt2.checkpoint import read_json
from gpt2.device import usable_cores

MAX_PROMPT_CHARS = 20_000  # checked before anything else: turning megabytes into tokens would itself be the attack
DEADLINE = 60  # seconds a visitor may keep the model from the next one
UPDATES_PER_SECOND = 20  # of the text: more than a screen shows or a phone likes
ZERO_GPU_ABOVE = 300_000_000  # parameters; smaller models are quick on the CPU, which costs no visitor's GPU quota


@dataclass(frozen=True)
class Setting:
    """A number that the visitor may choose: what the slider shows, what the API accepts."""

    name: str
    label: str
    info: str
    low: float
    high: float
    step: float  # a whole number here means that only whole numbers make sense
    default: float


SETTINGS = (
    Setting("max_new_tokens", "Length", "How many tokens to write at most. A token is a short word or a piece of one.",
            1, 2000, 1, 200),
    Setting("top_k", "Top-k", "Choose each token among the k likeliest only. 0 leaves the choice open.",
            0, 200, 1, 50),
    Setting("temperature", "Temperature", "Below 1 plays safe, above 1 takes risks. 0 always takes the likeliest token.",
            0, 2, 0.05, 1.0),
    Setting("top_p", "Top-p", "Choose among the likeliest tokens that make up this share of all chances. 1 keeps all.",
            0.01, 1, 0.01, 1.0),
    Setting("min_p", "Min-p", "Leave out tokens less likely than this fraction of the likeliest one. 0 keeps all.",
            0, 1, 0.01, 0.0),
    Setting("repetition_penalty", "Repetition penalty", "Above 1 avoids tokens that the text already has. 1 is off.",
            1, 2, 0.05, 1.0),
    Setting("seed", "Seed", "The same seed and settings give the same text. -1 draws a new seed every time.",
            -1, 2**53 - 1, 1, -1),
)  # fmt: skip
EXAMPLES = ["ROMEO:", "JULIET:\nO Romeo,", "To be, or not to be", "KING HENRY:\nOnce more unto the breach"]


@dataclass(frozen=True)
class Served:
    """The checkpoint behind the page, and how we came by it."""

    model: gpt2.GPT
    tokenizer: gpt2.Tokenizer
    name: str
    sha: str | None  # the Hub commit
    training: dict[str, str | float | None]
    notice: str = ""  # why this is not the checkpoint that was asked for


@dataclass(frozen=True)
class Progress:
    """How far a text has come."""

    seed: int
    dropped: int  # tokens of the prompt before the model's window
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    stop_reason: str | None = None  # None while it is being written


# --- loading ---------------------------------------------------------------------------------------------------


def load(source: str | Path) -> Served:
    """Load the checkpoint that source names, and what its training.json says.

    Raises:
        ValueError: in one sentence that shows visitors no path of this machine.
    """
    path, shown = Path(source), str(source)
    if path.is_absolute() or path.is_dir():
        path = path.resolve()
        shown = path.parent.name if path.name in ("best", "last") else path.name
    try:
        found = gpt2.find(source)
    except ValueError as error:
        raise ValueError(short(str(error).replace(str(source), shown), 400)) from error
    try:
        # On ZeroGPU every model starts on the CPU: CUDA exists only while a visitor's request runs.
        device = "cpu" if os.environ.get("SPACES_ZERO_GPU") else "auto"
        model, tokenizer = gpt2.load(found.directory, device=device)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sentence = str(error).replace(str(found.directory), shown) or type(error).__name__
        raise ValueError(short(sentence, 400)) from error
    return Served(model, tokenizer, short(shown), found.sha, provenance(found.directory))


def load_or_fall_back(model_id: str, revision: str) -> Served:
    """The checkpoint that was asked for or, with a notice on the page, the bundled one.

    Raises:
        ValueError: where not even that can be loaded.
    """
    if not model_id:
        return load(gpt2.BUNDLED)
    try:
        return load(f"{model_id}@{revision}" if revision and not Path(model_id).is_dir() else model_id)
    except ValueError as error:
        notice = f"The checkpoint that this page should show could not be loaded, so it shows the bundled one: {error}"
        print(notice, file=sys.stderr)
        return replace(load(gpt2.BUNDLED), notice=notice)


def provenance(directory: Path) -> dict[str, str | float | None]:
    """What training.json says about the training, as short strings and plain numbers: anyone may have written it."""
    try:
        record = as_dict(read_json(directory / "training.json"))
    except (ValueError, OSError):
        record = {}
    corpus, figures, data = as_dict(record.get("corpus")), as_dict(record.get("figures")), record.get("data")
    names = [as_text(as_dict(part).get("name")) for part in data[:5]] if isinstance(data, list) else []
    return {
        "preset": as_text(record.get("preset")),
        "corpus": as_text(corpus.get("name")) or ", ".join(filter(None, names)) or None,
        "origin": as_text(corpus.get("origin")),
        "steps": as_number(record.get("steps")),
        "tokens_seen": as_number(record.get("tokens_seen")),
        "seconds": as_number(record.get("seconds")),
        "hardware": as_text(record.get("hardware")),
        "held_out_bits_per_byte": as_number(figures.get("held_out_bits_per_byte")),
        "validation_bits_per_byte": as_number(figures.get("validation_bits_per_byte")),
    }


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str | None:
    return short(value) or None if isinstance(value, str) else None


def as_number(value: Any) -> float | None:
    return value if type(value) in (int, float) and -1e15 < value < 1e15 else None  # also refuses NaN


def short(text: str, limit: int = 80) -> str:
    text = " ".join(whole(text[: 2 * limit]).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def whole(text: str) -> str:
    """text with U+FFFD for lone surrogates (half an emoji): they have no UTF-8 form, so no answer could hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# --- generating ------------------------------------------------------------------------------------------------


def pieces(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, prompt: str, params: gpt2.SamplingParams) -> Iterator:
    """The pieces of the continuation, and gpt2.Outcome as the last item."""
    yield (yield from gpt2.generate(model, tokenizer, prompt, params))


ZERO_GPU_MODEL: list = []  # model, tokenizer. A ZeroGPU worker is a fork and finds them here; arguments are pickled.


@spaces.GPU(duration=DEADLINE + 10)
def pieces_on_zero_gpu(prompt: str, params: gpt2.SamplingParams) -> Iterator:
    yield from pieces(*ZERO_GPU_MODEL, prompt, params)


def checked(prompt: Any, values: tuple) -> tuple[str, gpt2.SamplingParams]:
    """The request in the types that gpt2 expects. Gradio checks none for the API, and no widget binds an API user.

    Args:
        values: one per SETTINGS, None for its default.

    Raises:
        gr.Error: naming what is wrong. Never with the value in it: Gradio shows the message as HTML.
    """
    if not isinstance(prompt, str | None):
        raise refusal("The prompt must be text.")
    prompt = prompt or ""
    if len(prompt) > MAX_PROMPT_CHARS:
        raise refusal(f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARS:,} are read.")
    chosen = {}
    for setting, value in zip(SETTINGS, values, strict=True):
        value = setting.default if value is None else value
        integral = isinstance(setting.step, int)
        in_range = type(value) in (int, float) and setting.low <= value <= setting.high  # False for NaN
        if not in_range or (integral and value != int(value)):
            kind = "a whole number" if integral else "a number"
            raise refusal(f"{setting.name} must be {kind} from {setting.low:,} to {setting.high:,}.")
        chosen[setting.name] = int(value) if integral else float(value)
    if chosen["seed"] < 0:
        chosen["seed"] = secrets.randbelow(2**31)
    return whole(prompt), gpt2.SamplingParams(**chosen, deadline=DEADLINE)


def refusal(sentence: str) -> gr.Error:
    return gr.Error(sentence, title="Nothing was written", print_exception=False)


def write(served: Served, source: Callable[..., Iterator], prompt: Any, values: tuple) -> Iterator[Progress]:
    """Check the request, then yield Progress as the text grows, at most UPDATES_PER_SECOND; the last has a
    stop_reason. Closing this ends the generation.

    Args:
        source: pieces() of the served model, wherever it runs.
    """
    prompt, params = checked(prompt, values)
    dropped = max(0, len(served.tokenizer.encode(prompt)) - served.model.config.block_size)
    now = Progress(params.seed, dropped)
    yield now
    started, shown = time.monotonic(), -math.inf
    try:
        with closing(source(prompt, params)) as stream:
            for piece in stream:
                seconds = time.monotonic() - started
                if isinstance(piece, gpt2.Outcome):
                    tokens, reason = len(piece.new_ids), piece.stop_reason
                    yield replace(now, tokens=tokens, seconds=seconds, stop_reason=reason)
                    return
                now = replace(now, text=now.text + piece, tokens=now.tokens + 1, seconds=seconds)
                if seconds - shown >= 1 / UPDATES_PER_SECOND:
                    shown = seconds
                    yield now
    except ValueError as error:
        raise refusal(html.escape(str(error))) from error


# --- words for the visitor, as HTML ----------------------------------------------------------------------------


def introduction(served: Served) -> str:
    words = f"<b>{html.escape(served.name)}</b>, a GPT-2 with {served.model.config.n_parameters / 1e6:,.1f} million parameters"
    if corpus := served.training["corpus"]:
        words += f", trained on {html.escape(corpus)}"
    if bits := served.training["held_out_bits_per_byte"]:
        words += f": {bits:.2f} bits per byte on held-out text"
    return words + (f". Revision {html.escape(served.sha[:8])}." if served.sha else ".")


def manuscript(prompt: str, text: str) -> str:
    # The continuation comes last and in no element: each update only appends, and that is all Gradio then sends.
    return f"<b>{html.escape(prompt)}</b>{html.escape(text)}"


def report(progress: Progress) -> str:
    """The status line."""
    speed = f"{progress.tokens / progress.seconds:,.0f} tokens/s" if progress.seconds else "reading the prompt"
    if progress.stop_reason is None:
        return f"Writing: {progress.tokens:,} tokens, {speed}."
    why = {
        "length": "the length you set is reached",
        "end-of-text": "the model ended its text here",
        "deadline": f"time is up, {DEADLINE} seconds are the limit",
        "cancelled": "stopped by you",
    }[progress.stop_reason]
    words = f"{progress.tokens:,} tokens, {speed}; {why}. "
    if progress.dropped:
        words += f"The prompt is longer than the model's window: its first {progress.dropped:,} tokens were not read. "
    return words + f"Seed {progress.seed}: enter it under More to repeat this text."


# --- the page --------------------------------------------------------------------------------------------------

THEME = gr.themes.Base(
    primary_hue="red",
    neutral_hue="stone",
    radius_size="sm",
    font=["system-ui", "sans-serif"],  # what the reader has: no font is fetched from anywhere
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_label_text_color="*neutral_700",
    input_background_fill="white",
    input_background_fill_dark="*neutral_900",
    button_primary_background_fill="*primary_800",
    button_primary_background_fill_hover="*primary_900",
    button_primary_background_fill_dark="*primary_800",
    button_primary_background_fill_hover_dark="*primary_700",
    slider_color="*primary_800",
    slider_color_dark="*primary_700",
)
CSS = """
#house { max-width: 1080px; margin: 0 auto; --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; }
#title h1 { font: 600 2.1rem/1.2 var(--serif); margin: 0.4em 0 0.2em; }
#title, #keys, #status { --block-padding: 0; }
#notice { --block-padding: 0; border-left: 3px solid var(--primary-700); padding-left: 12px; }
#actions { flex-wrap: nowrap; }
#actions button { min-width: 0; }
#keys, #status { color: var(--body-text-color-subdued); }
#keys .prose, #status .prose { color: inherit; font-size: var(--text-sm); }
#keys kbd { border: 1px solid var(--border-color-primary); border-bottom-width: 2px; border-radius: 4px; padding: 1px 5px; }
#status p { min-height: 1.6em; margin: 0; }
#manuscript { background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: 4px; }
#manuscript .html-container { padding: 20px 24px; }
#manuscript .manuscript { font: 1.15rem/1.65 var(--serif); white-space: pre-wrap; overflow-wrap: anywhere; min-height: 11rem; }
#manuscript b { color: var(--primary-800); font-weight: 600; }
.dark #manuscript b { color: var(--primary-300); }
"""
WAITING = "Waiting for the model."
# Ctrl+Enter or Cmd+Enter writes, Esc stops; not while an input method is composing a character.
KEYS = """() => document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const press = (id) => { event.preventDefault(); document.getElementById(id)?.click(); };
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press("write");
    if (event.key === "Escape") press("stop");
})"""


def build(served: Served) -> gr.Blocks:
    """The page and its API for one checkpoint."""
    source = pieces_on_zero_gpu if ZERO_GPU_MODEL else partial(pieces, served.model, served.tokenizer)

    def generate(
        prompt: str,
        max_new_tokens: int = 200,
        top_k: int = 50,
        temperature: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = -1,
    ) -> str:  # of each yield: the API's documentation is made from these types
        """Continue a text with this GPT-2. Streams the continuation so far, without the prompt.

        Args:
            prompt: Text to go on from; may be empty. At most 20,000 characters, of which the last ones that fit the
                model's window are read.
            max_new_tokens: How many tokens to write at most, 1 to 2000.
            top_k: Choose each token among the k likeliest only, 0 to 200; 0 keeps all.
            temperature: 0 to 2. Below 1 plays safe, above 1 takes risks, 0 always takes the likeliest token.
            top_p: Choose among the likeliest tokens with this total probability, 0.01 to 1; 1 keeps all.
            min_p: Leave out tokens less likely than this fraction of the likeliest one, 0 to 1; 0 keeps all.
            repetition_penalty: 1 to 2. Above 1 avoids tokens that the text already has.
            seed: The same seed and settings give the same text; -1 draws a new one.
        """
        values = (max_new_tokens, top_k, temperature, top_p, min_p, repetition_penalty, seed)
        with closing(write(served, source, prompt, values)) as progress:
            for now in progress:
                yield now.text

    def model_info() -> dict:
        """Describe the model behind this page: its sizes, where it comes from and what it was trained on."""
        config, weight = served.model.config, served.model.transformer.wte.weight
        return {
            "name": served.name,
            "sha": served.sha,
            "fallback": bool(served.notice),
            "notice": served.notice or None,
            "n_parameters": config.n_parameters,
            "vocab_size": config.vocab_size,
            "block_size": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "device": weight.device.type,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "training": served.training,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "gradio": gr.__version__},
        }

    def respond(prompt, *values):
        """write() for the page: the text, the status line about once a second, and what Stop will report."""
        status, said = gr.skip(), -math.inf
        with closing(write(served, source, prompt, values)) as progress:
            for now in progress:
                if now.stop_reason or now.seconds - said >= 1:  # a screen reader reads every change aloud
                    status, said = report(now), now.seconds
                yield manuscript(whole(prompt or ""), now.text), status, now

    def stopped(progress: Progress | None):
        running = progress is not None and progress.stop_reason is None
        return report(replace(progress, stop_reason="cancelled")) if running else gr.skip()

    def slider(setting: Setting) -> gr.Slider:
        return gr.Slider(
            setting.low, setting.high, setting.default, step=setting.step, label=setting.label, info=setting.info,
            buttons=["reset"], elem_id=setting.name,
        )  # fmt: skip

    with gr.Blocks(title="A GPT-2 of your own", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        with gr.Column(elem_id="house"):
            gr.HTML(f"<h1>A GPT-2 of your own</h1><p>{introduction(served)}</p>", elem_id="title")
            if served.notice:
                gr.HTML(f'<p role="alert">{html.escape(served.notice)}</p>', elem_id="notice")
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    prompt = gr.Textbox(
                        label="Prompt", lines=4, max_lines=12, autofocus=True, elem_id="prompt",
                        placeholder="Begin a text here; the model goes on from it. Left empty, it begins one itself.",
                    )  # fmt: skip
                    with gr.Row(elem_id="actions"):
                        start = gr.Button("Write", variant="primary", elem_id="write")
                        stop = gr.Button("Stop", elem_id="stop")
                    gr.HTML(
                        "<kbd>Ctrl</kbd> + <kbd>Enter</kbd> (or <kbd>Cmd</kbd>) writes, <kbd>Esc</kbd> stops.",
                        elem_id="keys",
                    )
                    text = gr.HTML(elem_id="manuscript", elem_classes="manuscript", apply_default_css=False, max_height=480, autoscroll=True)
                    status = gr.HTML(html_template='<p role="status" aria-live="polite">${value}</p>', elem_id="status")
                    gr.Examples([[example] for example in EXAMPLES], prompt, cache_examples=False, api_visibility="private")
                with gr.Column(scale=2, min_width=280):
                    sliders = [slider(setting) for setting in SETTINGS[:2]]
                    with gr.Accordion("More", open=False):
                        sliders += [slider(setting) for setting in SETTINGS[2:-1]]
                        seed = gr.Number(SETTINGS[-1].default, label=SETTINGS[-1].label, info=SETTINGS[-1].info, elem_id="seed")
        progress = gr.State()
        gr.on([start.click, prompt.submit], None, None, status, js=f"() => '{WAITING}'")
        writing = gr.on(
            [start.click, prompt.submit], respond, [prompt, *sliders, seed], [text, status, progress],
            preprocess=False,  # checked() does it, with one sentence for whatever is wrong
            show_progress="hidden", concurrency_id="model", concurrency_limit=1, api_visibility="private",
        )  # fmt: skip
        writing.failure(None, status, status, js=f"(shown) => shown === '{WAITING}' ? '' : undefined")
        stop.click(stopped, progress, status, cancels=writing, queue=False, api_visibility="private")
        gr.api(generate, api_name="generate", concurrency_id="model", concurrency_limit=1)
        gr.api(model_info, api_name="model_info")
    return demo.queue(max_size=64, default_concurrency_limit=1, api_open=False)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a container's stop is our Ctrl-C
    port = os.environ.get("PORT", "7860")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        print(f"PORT={port[:20]!r} must be a whole number from 1 to 65535.", file=sys.stderr)
        return 2
    torch.set_num_threads(usable_cores())
    try:
        served = load_or_fall_back(os.environ.get("MODEL_ID", ""), os.environ.get("MODEL_REVISION", ""))
        if os.environ.get("SPACES_ZERO_GPU") and served.model.config.n_parameters > ZERO_GPU_ABOVE:
            ZERO_GPU_MODEL.extend([served.model.to("cuda"), served.tokenizer])
        demo = build(served)
        demo.launch(
            server_name="0.0.0.0" if os.environ.get("SPACE_ID") else os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            server_port=int(port),
            theme=THEME,
            css=CSS,
            js=KEYS,
            quiet=True,
            footer_links=["api", "settings"],
            run_history=False,  # the page keeps nothing, not even in the browser
            max_file_size="50kb",  # nothing here takes a file, but Gradio's upload route is always open
            enable_monitoring=False,
            state_session_capacity=200,
            ssr_mode=False,  # a second server, in Node, that this page does not need
            pwa=False,  # its icon route resizes a picture to any size that anyone asks for
            mcp_server=importlib.util.find_spec("mcp") is not None,
            prevent_thread_lock=True,
        )
        print(f"{served.name} on http://127.0.0.1:{port}", flush=True)
        while True:
            time.sleep(3600)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

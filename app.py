"""The page and its API: widgets, wiring, launch. What it shows is computed in gpt2/.

    python app.py                                           the bundled checkpoint on http://127.0.0.1:7860
    MODEL_ID=user/repo MODEL_REVISION=v1 PORT=8000 python app.py    another checkpoint, another port

Knows Gradio, and what to say to a visitor. Knows nothing of how a model computes, how a token is chosen or what a
checkpoint's files look like. Importing it does nothing.
"""

import os

# Read by gradio and huggingface_hub when they are imported: who visits this page is nobody else's business.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

try:
    import spaces  # on a ZeroGPU Space; before torch, whose CUDA it replaces
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

MAX_PROMPT_CHARS = 20_000  # checked first: turning megabytes into tokens would itself be the attack
DEADLINE = 60  # seconds that one visitor may keep the model from the next
UPDATES_PER_SECOND = 20  # of the text; more than that no eye sees
ZERO_GPU_ABOVE = 300_000_000  # parameters; smaller models write fast on the CPU, which costs no visitor's quota


@dataclass(frozen=True)
class Setting:
    """A number that the visitor chooses: what its widget shows, and what the API accepts."""

    name: str
    label: str
    low: float
    high: float
    step: float  # an int where only whole numbers make sense
    default: float
    info: str


SETTINGS = (
    Setting("max_new_tokens", "Max tokens", 1, 2000, 1, 200,
            "How much to write at most. A token is a short word or a piece of one."),
    Setting("top_k", "Top-k", 0, 200, 1, 50,
            "Choose each token among the k likeliest only. 0 leaves the choice open."),
    Setting("temperature", "Temperature", 0, 2, 0.05, 1.0,
            "Below 1 plays safe, above 1 takes risks. 0 always takes the likeliest token."),
    Setting("top_p", "Top-p", 0.01, 1, 0.01, 1.0,
            "Choose among the likeliest tokens that share this much probability. 1 keeps all."),
    Setting("min_p", "Min-p", 0, 1, 0.01, 0.0,
            "Leave out tokens less likely than this fraction of the likeliest. 0 keeps all."),
    Setting("repetition_penalty", "Repetition penalty", 1, 2, 0.05, 1.0,
            "Above 1 avoids tokens that the text already has."),
    Setting("seed", "Seed", -1, 2**53 - 1, 1, -1,  # the largest whole number that a browser holds exactly
            "The same seed and settings give the same text. -1 draws a new seed each time."),
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
    notice: str | None = None  # why this is not the checkpoint that was asked for


@dataclass(frozen=True)
class Progress:
    """How far a text has come."""

    prompt: str  # as the model reads it
    seed: int
    dropped: int  # tokens of the prompt that lie before the model's window
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    stop_reason: str | None = None  # None while it is being written


def load(source: str | Path) -> Served:
    """Load the checkpoint that source names, and what its training.json says.

    Raises:
        ValueError: in one sentence that shows visitors no path of this machine.
    """
    shown, hidden = str(source), str(source)
    try:
        if (path := Path(source)).is_absolute() or path.is_dir():
            path = path.resolve()
            shown = path.parent.name if path.name in ("best", "last") else path.name
        found = gpt2.find(source)
        hidden = str(found.directory)
        # On ZeroGPU a model starts on the CPU: there is no GPU until a visitor's request borrows one.
        device = "cpu" if os.environ.get("SPACES_ZERO_GPU") else "auto"
        model, tokenizer = gpt2.load(found.directory, device=device)
    except Exception as error:  # whatever is wrong with somebody's checkpoint, the page must open
        raise ValueError(short(str(error).replace(hidden, shown), 400) or type(error).__name__) from error
    return Served(model, tokenizer, short(shown), found.sha, provenance(found.directory))


def load_or_fall_back(model_id: str, revision: str) -> Served:
    """The checkpoint that was asked for or, with a notice, the bundled one.

    Raises:
        ValueError: where not even that can be loaded.
    """
    if not model_id:
        try:
            return load(gpt2.BUNDLED)
        except ValueError as error:
            raise ValueError(
                f"The bundled checkpoint could not be loaded ({error}) Set MODEL_ID, or train one: python -m train."
            ) from error
    try:
        return load(f"{model_id}@{revision}" if revision and not os.path.isdir(model_id) else model_id)
    except ValueError as error:
        notice = f"The checkpoint that this page was set up for could not be loaded: {error}"
        print(notice, file=sys.stderr)
    return replace(load_or_fall_back("", ""), notice=f"{notice} You see the bundled one.")


def provenance(directory: Path) -> dict[str, str | float | None]:
    """What training.json says, as short strings and plain numbers: anyone may have written it."""
    try:
        record = read_json(directory / "training.json")
    except (ValueError, OSError):
        record = None

    def at(kind: type, *path: str) -> Any:
        value = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if kind is str:
            return short(value) if isinstance(value, str) else None
        return value if type(value) in (int, float) and abs(value) < 1e15 else None  # False for NaN

    return {
        "corpus": at(str, "corpus", "name"),
        "origin": at(str, "corpus", "origin"),
        "steps": at(float, "steps"),
        "tokens_seen": at(float, "tokens_seen"),
        "held_out_bits_per_byte": at(float, "figures", "held_out_bits_per_byte"),
        "validation_bits_per_byte": at(float, "figures", "validation_bits_per_byte"),
    }


def short(text: str, limit: int = 80) -> str:
    text = " ".join(unicode(text[: 2 * limit]).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def unicode(text: str) -> str:
    """text with U+FFFD in place of lone surrogates (half an emoji), which no UTF-8 answer can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pieces(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, prompt: str, params: gpt2.SamplingParams) -> Iterator:
    """The pieces of the continuation, and gpt2.Outcome as the last item."""
    yield (yield from gpt2.generate(model, tokenizer, prompt, params))


ZERO_GPU_MODEL: list = []  # model, tokenizer: a ZeroGPU worker is a fork and finds them here; arguments are pickled


@spaces.GPU(duration=DEADLINE + 10)
def pieces_on_zero_gpu(prompt: str, params: gpt2.SamplingParams) -> Iterator:
    yield from pieces(*ZERO_GPU_MODEL, prompt, params)


def checked(prompt: Any, values: tuple) -> tuple[str, gpt2.SamplingParams]:
    """A request in the types that gpt2 expects: Gradio checks none, and an API user has no widgets to be held by.

    Args:
        values: one per SETTINGS; None means its default.

    Raises:
        gr.Error: naming what is wrong. Never with the value in it, for Gradio shows the sentence as HTML.
    """
    prompt = "" if prompt is None else prompt
    if not isinstance(prompt, str):
        raise refusal("The prompt must be text.")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise refusal(f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARS:,} are accepted.")
    chosen = {}
    for setting, value in zip(SETTINGS, values, strict=True):
        value = setting.default if value is None else value
        kind, word = (int, "a whole number") if isinstance(setting.step, int) else (float, "a number")
        in_range = type(value) in (int, float) and setting.low <= value <= setting.high  # False for NaN
        if not in_range or kind(value) != value:
            raise refusal(f"{setting.name} must be {word} from {setting.low:,} to {setting.high:,}.")
        chosen[setting.name] = kind(value)
    if chosen["seed"] < 0:
        chosen["seed"] = secrets.randbelow(2**31)
    return unicode(prompt), gpt2.SamplingParams(**chosen, deadline=DEADLINE)


def refusal(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)


def write(served: Served, source: Callable[..., Iterator], prompt: Any, values: tuple) -> Iterator[Progress]:
    """Check a request, then yield Progress as its text grows, at most UPDATES_PER_SECOND; the last has all of it.
    Closing this ends the generation.

    Args:
        source: pieces() of the served model, wherever it runs.
    """
    prompt, params = checked(prompt, values)
    dropped = max(0, len(served.tokenizer.encode(prompt)) - served.model.config.block_size)
    now = Progress(prompt, params.seed, dropped)
    yield now
    started, shown = time.monotonic(), -math.inf
    try:
        with closing(source(prompt, params)) as stream:
            for piece in stream:
                seconds = time.monotonic() - started
                if isinstance(piece, gpt2.Outcome):
                    tokens = len(piece.new_ids)
                    yield replace(now, tokens=tokens, seconds=seconds, stop_reason=piece.stop_reason)
                    return
                now = replace(now, text=now.text + piece, tokens=now.tokens + 1, seconds=seconds)
                if seconds - shown >= 1 / UPDATES_PER_SECOND:
                    shown = seconds
                    yield now
    except ValueError as error:  # the checkpoint's fault: its output is not finite
        yield replace(now, stop_reason="error")
        raise refusal(html.escape(str(error))) from error


def introduction(served: Served) -> str:
    """The sentence under the title, as HTML."""
    size = served.model.config.n_parameters / 1e6
    words = f"<b>{html.escape(served.name)}</b>, a GPT-2 with {size:,.1f} million parameters"
    if corpus := served.training["corpus"]:
        words += f", trained on {html.escape(str(corpus))}"
    if bits := served.training["held_out_bits_per_byte"]:
        words += f": {bits:.2f} bits per byte on held-out text"
    return words + (f". Revision {html.escape(served.sha[:8])}." if served.sha else ".")


def manuscript(prompt: str, text: str) -> str:
    """The prompt and its continuation, as HTML that only ever grows at its end: Gradio sends just what was added."""
    return f"<b>{html.escape(prompt)}</b>{html.escape(text)}"


def report(progress: Progress) -> str:
    """The status line."""
    if progress.stop_reason is None and not progress.tokens:
        return "Reading the prompt."
    count = f"{progress.tokens:,} token{'s' * (progress.tokens != 1)}"
    words = f"{count} in {progress.seconds:.1f} s, {progress.tokens / max(progress.seconds, 1e-3):,.0f} per second"
    if progress.stop_reason is None:
        return f"Writing: {words}."
    words += {
        "length": "; that is the maximum you set. ",
        "end-of-text": "; the model ended its text here. ",
        "deadline": f"; time is up, {DEADLINE} seconds are the limit. ",
        "cancelled": "; stopped by you. ",
        "error": "; ended by an error. ",
    }[progress.stop_reason]
    if progress.dropped:
        words += f"The prompt is longer than the model's window: its first {progress.dropped:,} tokens were not read. "
    return words + f"Seed {progress.seed}: enter it under More to repeat this text."


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
WAITING = "Waiting for the model."


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
    ) -> str:  # what each yield is: Gradio documents the API by these types
        """Continue a text with this GPT-2. Streams the continuation so far, without the prompt.

        Args:
            prompt: text to go on from, at most 20,000 characters; empty starts a new text.
            max_new_tokens: how many tokens to write at most, 1 to 2000.
            top_k: choose each token among the k likeliest only, 0 to 200; 0 leaves the choice open.
            temperature: below 1 plays safe, above 1 takes risks, 0 always takes the likeliest token; at most 2.
            top_p: choose among the likeliest tokens that share this much probability, 0.01 to 1; 1 keeps all.
            min_p: leave out tokens less likely than this fraction of the likeliest, 0 to 1; 0 keeps all.
            repetition_penalty: above 1 avoids tokens that the text already has, 1 to 2.
            seed: the same seed and settings give the same text; -1 draws a new seed.
        """
        values = (max_new_tokens, top_k, temperature, top_p, min_p, repetition_penalty, seed)
        with closing(write(served, source, prompt, values)) as progress:
            for now in progress:
                yield now.text

    def model_info() -> dict:
        """Describe the model behind this page: its sizes, where it comes from, what it was trained on."""
        config, weight = served.model.config, served.model.transformer.wte.weight
        sizes = ("n_parameters", "vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        return {
            "name": served.name,
            "sha": served.sha,
            "fallback": served.notice is not None,
            "notice": served.notice,
            **{name: getattr(config, name) for name in sizes},
            "device": weight.device.type,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "training": served.training,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "gradio": gr.__version__},
        }

    def respond(prompt, *values):
        """write() for the page: the sheet, the status line, and what Stop will have to report."""
        status, said = gr.skip(), -math.inf
        with closing(write(served, source, prompt, values)) as progress:
            for now in progress:
                if now.stop_reason or now.seconds - said >= 1:  # a screen reader reads every change aloud
                    status, said = report(now), now.seconds
                yield manuscript(now.prompt, now.text), status, now

    def interrupted(progress: Progress | None, shown: str):
        """The status line after Stop, or after a refusal."""
        if progress is None or progress.stop_reason:  # nothing was being written yet
            return "" if shown == WAITING else gr.skip(), gr.skip()
        progress = replace(progress, stop_reason="cancelled")
        return report(progress), progress

    def widget(setting: Setting) -> gr.Slider | gr.Number:
        s = setting
        if s.name == "seed":
            return gr.Number(s.default, label=s.label, info=s.info, elem_id=s.name)
        return gr.Slider(
            s.low, s.high, s.default, step=s.step, label=s.label, info=s.info, elem_id=s.name, buttons=["reset"]
        )

    with gr.Blocks(title="A GPT-2 of your own", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        with gr.Column(elem_id="house"):
            gr.HTML(f"<h1>A GPT-2 of your own</h1><p>{introduction(served)}</p>", elem_id="title")
            if served.notice:
                gr.HTML(f'<p role="alert">{html.escape(served.notice)}</p>', elem_id="notice")
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    prompt = gr.Textbox(
                        label="Prompt",
                        placeholder="Begin a text, and the model goes on from it. Left empty, it begins one itself.",
                        lines=4,
                        max_lines=12,
                        autofocus=True,
                        elem_id="prompt",
                    )
                    with gr.Row(elem_id="actions"):
                        start = gr.Button("Write", variant="primary", elem_id="write")
                        stop = gr.Button("Stop", elem_id="stop")
                    gr.HTML(
                        "<kbd>Ctrl</kbd> or <kbd>Cmd</kbd> + <kbd>Enter</kbd> writes, <kbd>Esc</kbd> stops.",
                        elem_id="keys",
                        apply_default_css=False,
                    )
                    sheet = gr.HTML(
                        elem_id="sheet", elem_classes="sheet", apply_default_css=False, max_height=640, autoscroll=True
                    )
                    status = gr.HTML(
                        # Gradio fills a template in place, so the line stays the one that is announced.
                        html_template='<p role="status" aria-live="polite">${value}</p>',
                        elem_id="status",
                        apply_default_css=False,
                    )
                    gr.Examples([[e] for e in EXAMPLES], prompt, cache_examples=False, api_visibility="private")
                with gr.Column(scale=2, min_width=300):
                    widgets = [widget(setting) for setting in SETTINGS[:2]]
                    with gr.Accordion("More", open=False):
                        widgets += [widget(setting) for setting in SETTINGS[2:]]
        progress = gr.State()

        triggers = [start.click, prompt.submit]
        gr.on(triggers, None, None, status, js=f"() => '{WAITING}'")
        writing = gr.on(
            triggers,
            respond,
            [prompt, *widgets],
            [sheet, status, progress],
            preprocess=False,  # checked() does it, with one sentence for whatever is wrong
            show_progress="hidden",
            concurrency_id="model",
            concurrency_limit=1,
            api_visibility="private",
        )
        stop.click(None, None, None, cancels=writing)
        # Gradio calls a cancelled event a failed one. Not a second handler of the click: that would not wait for the
        # cancelling, and a last update of the text could come after it.
        writing.failure(
            interrupted,
            [progress, status],
            [status, progress],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        gr.api(generate, api_name="generate", concurrency_id="model", concurrency_limit=1)
        gr.api(model_info, api_name="model_info")
    return demo.queue(max_size=64, default_concurrency_limit=1, api_open=False)


def main() -> int:
    port = os.environ.get("PORT") or "7860"
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:9]) <= 65535):
        print(f"PORT={port[:20]!r} must be a whole number from 1 to 65535.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a container says Ctrl-C
    try:
        served = load_or_fall_back(os.environ.get("MODEL_ID", ""), os.environ.get("MODEL_REVISION", ""))
        if os.environ.get("SPACES_ZERO_GPU") and served.model.config.n_parameters > ZERO_GPU_ABOVE:
            ZERO_GPU_MODEL.extend([served.model.to("cuda"), served.tokenizer])
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(usable_cores())
        demo = build(served)
        demo.launch(
            server_name="0.0.0.0" if os.environ.get("SPACE_ID") else os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            server_port=int(port),
            theme=THEME,
            css=CSS,
            js=KEYS,
            footer_links=["api", "settings"],
            run_history=False,  # nobody's texts are kept, not even in their own browser
            max_file_size="50kb",  # nothing here takes a file, but Gradio's upload route is always open
            enable_monitoring=False,
            state_session_capacity=200,
            ssr_mode=False,  # a second server, in Node, that this page does not need
            pwa=False,
            mcp_server=importlib.util.find_spec("mcp") is not None,
            prevent_thread_lock=True,
            quiet=True,
        )
        print(f"{served.name}: {demo.local_url}", flush=True)
        while True:
            time.sleep(3600)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError:
        print(f"Port {port} is not free: end what listens there, or set PORT to another.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: it would unwind a thread that torch computes a token in, which aborts the process with a core dump.
    os._exit(code)

"""The page and its API: widgets, wiring, launch. What it shows is computed in gpt2/; page/ holds its rooms.

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
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import gradio as gr
import torch

import gpt2
from gpt2.device import usable_cores
from page.served import Served, load_or_fall_back
from page.style import CSS, KEYS, THEME
from page.writing import DEADLINE, SETTINGS, Progress, Setting, pieces, report, write

ZERO_GPU_ABOVE = 300_000_000  # parameters; smaller models write fast on the CPU, which costs no visitor's quota
EXAMPLES = ["ROMEO:", "JULIET:\nO Romeo,", "To be, or not to be", "KING HENRY:\nOnce more unto the breach"]
WAITING = "Waiting for the model."
ZERO_GPU_MODEL: list = []  # model, tokenizer: a ZeroGPU worker is a fork and finds them here; arguments are pickled


@spaces.GPU(duration=DEADLINE + 10)
def pieces_on_zero_gpu(prompt: str, params: gpt2.SamplingParams) -> Iterator:
    yield from pieces(*ZERO_GPU_MODEL, prompt, params)


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

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
# Where there is matplotlib, Gradio asks it for its backend at the first request: told, it looks for no window.
os.environ.setdefault("MPLBACKEND", "agg")

try:
    import spaces  # on a ZeroGPU Space; before torch, whose CUDA it replaces
except ImportError:
    from types import SimpleNamespace

    spaces = SimpleNamespace(GPU=lambda duration: lambda function: function)

import html
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr
import torch
from starlette.middleware import Middleware

import gpt2
from gpt2.device import threads
from page import api, compare, desk, inside, training
from page.doors import Doors
from page.served import Served, load_or_fall_back
from page.style import THEME, head
from page.writing import DEADLINE, Ask, News, news, news_from

ZERO_GPU_ABOVE = 300_000_000  # parameters; smaller models write fast on the CPU, which costs no visitor's quota
LAST_WORDS = 7  # seconds that texts have to come to their end after SIGTERM; containers are killed after 10
SLOTS = 16  # texts that are written at the same time; others wait in a queue
ZERO_GPU_MODEL: list = []  # model, tokenizer: a ZeroGPU worker is a fork and finds them here; arguments are pickled


@spaces.GPU(duration=DEADLINE + 10)
def news_on_zero_gpu(asks: Sequence[Ask]) -> Iterator[News]:
    """All samples of a visitor in one lease."""
    yield from news(*ZERO_GPU_MODEL, asks)


@spaces.GPU(duration=20)
def on_zero_gpu(function: Callable, *args, **kwargs) -> Any:
    return function(*ZERO_GPU_MODEL, *args, **kwargs)


def introduction(served: Served) -> str:
    """The sentence under the title, as HTML."""
    size = served.model.config.n_parameters / 1e6
    words = f"<b>{html.escape(served.name)}</b>, a GPT-2 with {size:,.1f} million parameters"
    if corpus := served.training["corpus"]:
        words += f", trained on {html.escape(str(corpus))}"
    if bits := served.training["held_out_bits_per_byte"]:
        words += f": {bits:.2f} bits per byte on held-out text"
    return words + (f". Revision {html.escape(served.sha[:8])}." if served.sha else ".")


def build(served: Served, engine: gpt2.Engine | None = None) -> gr.Blocks:
    """The page and its API for one checkpoint, which the engine, where it is given, has too."""
    if ZERO_GPU_MODEL:  # whose workers are forks, where no engine's thread lives
        source, slots = news_on_zero_gpu, 1
    else:
        source, slots = partial(news_from, engine or gpt2.Engine(served.model, served.tokenizer, SLOTS)), SLOTS

    def think(function: Callable, *args, **kwargs) -> Any:
        if ZERO_GPU_MODEL:
            return on_zero_gpu(function, *args, **kwargs)
        return function(served.model, served.tokenizer, *args, **kwargs)

    overlap = training.known_runs(served.directory)

    with gr.Blocks(title="A GPT-2 of your own", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        with gr.Column(elem_id="house"):
            gr.HTML(f"<h1>A GPT-2 of your own</h1><p>{introduction(served)}</p>", elem_id="title")
            if served.notice:
                gr.HTML(f'<p role="alert">{html.escape(served.notice)}</p>', elem_id="notice")
            with gr.Tabs(selected="write") as tabs:
                with gr.Tab("Write", id="write"):
                    writing_desk = desk.room(served, source, slots, demo)
                with gr.Tab("Look inside", id="inside") as tab:
                    inside.room(served, writing_desk, think, overlap, tabs, tab)
                with gr.Tab("Training", id="training") as tab:
                    training.room(served, writing_desk, overlap, tab)
                with gr.Tab("Compare", id="compare") as tab:
                    compare.room(served, writing_desk, source, slots, tab)
        api.offer(served, source, think, slots)
    demo.queue(max_size=64, default_concurrency_limit=1, api_open=False)
    # Gradio looks into its queue a thousand times a second, and takes a core from the model each time.
    demo._queue.sleep_when_free, demo._queue.progress_update_sleep_when_free = 0.02, 0.5
    return demo


def main() -> int:
    port = os.environ.get("PORT") or "7860"
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:9]) <= 65535):
        print(f"PORT={port[:20]!r} must be a whole number from 1 to 65535.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # how a container is told to end
    n_threads, engine = threads(), None
    torch.set_num_threads(1)  # all of them are the engine's, see there
    try:
        served = load_or_fall_back(os.environ.get("MODEL_ID", ""), os.environ.get("MODEL_REVISION", ""))
        if os.environ.get("SPACES_ZERO_GPU") and served.model.config.n_parameters > ZERO_GPU_ABOVE:
            ZERO_GPU_MODEL.extend([served.model.to("cuda"), served.tokenizer])
        else:
            engine = gpt2.Engine(served.model, served.tokenizer, SLOTS, threads=n_threads)
        demo = build(served, engine)
        demo.launch(
            server_name="0.0.0.0" if os.environ.get("SPACE_ID") else os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            server_port=int(port),
            theme=THEME,
            head=head(),
            footer_links=["api", "settings"],
            run_history=False,  # nobody's texts are kept, not even in their own browser
            app_kwargs={"middleware": [Middleware(Doors)]},
            enable_monitoring=False,
            state_session_capacity=200,
            ssr_mode=False,  # a second server, in Node, that this page does not need
            pwa=False,
            mcp_server=api.speaks_mcp(),
            prevent_thread_lock=True,
            quiet=True,
        )
        print(f"{served.name}: {demo.local_url}", flush=True)
        while True:
            time.sleep(3600)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # without a number: Gradio's, of the port
        taken = f"Port {port} is not free: end what listens there, or set PORT to another."
        print(error if error.errno else taken, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except SystemExit:
        if engine and engine.busy:
            engine.close(wait=LAST_WORDS)
            time.sleep(1)  # in which they reach their readers
        return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: it would unwind a thread that torch computes a token in, which aborts the process with a core dump.
    os._exit(code)

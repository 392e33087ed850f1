"""What of Gradio's many routes is open here, and how much anybody may send to one.

Gradio has a public route for uploads, one that fetches any public address for whoever asks, and one that keeps whatever
stands on a visitor's page and shows it to others: nothing here needs any, and each would make strangers a present of
this machine's disk, its network or its other visitors. Knows nothing of the page.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from starlette.responses import PlainTextResponse

MAX_BODY = 2**20  # bytes of a request; the longest prompt has 240 kB, every character of it escaped
SHUT = re.compile(
    r"/gradio_api/(file[=/]|upload|proxy=|dev/|component_server|process_recording|deep_link|vibe-|undo-vibe)"
)


class Doors:
    """ASGI middleware: a route that is shut is not found, and a body that is too large ends its request."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if SHUT.search(scope["path"]):
            return await PlainTextResponse("Not found.", 404)(scope, receive, send)
        if len(declared) > 12 or int(declared) > MAX_BODY:
            return await PlainTextResponse(f"At most {MAX_BODY:,} bytes are accepted.", 413)(scope, receive, send)
        arrived, answering = 0, False

        async def bounded() -> dict:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            return message if arrived <= MAX_BODY else {"type": "http.disconnect"}  # sent in pieces of unknown sum

        async def answer(message: dict) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self.app(scope, bounded, answer)
        except Exception as error:  # Gradio's, for an endpoint or an argument that is not there
            if answering:
                raise
            print(f"{scope['path'][:100]!r}: {type(error).__name__}: {str(error)[:100]!r}", file=sys.stderr)
            await PlainTextResponse("That is no request that this page understands.", 422)(scope, receive, send)

"""Trackers: optional packages that draw the figures of a run while it runs.

Knows their names and how they are opened. Knows nothing of what the figures mean; metrics.jsonl is the record.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol


class Tracker(Protocol):
    """What the journal asks of a tracker."""

    def log(self, entry: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl: its step, and figures by name."""

    def finish(self) -> None:
        """Nothing more will come."""


def open_tracker(kind: str, project: str, run: str, config: dict[str, Any], resume: bool = True) -> Tracker:
    """The tracker of that kind, for a run of a project; with resume it goes on with a run of that name.

    What comes back after a kill sends the steps since its last state a second time.

    Raises:
        ValueError: where the package is missing or does not start.
    """
    if kind != "trackio":
        raise ValueError(f"unknown tracker {kind!r}; there is trackio.")
    try:
        import trackio
    except ImportError as error:
        raise ValueError(f"--track trackio needs its package: pip install trackio ({error}).") from None
    try:
        # No space_id: figures stay on this machine.
        trackio.init(project=project, name=run, config=config, resume="allow" if resume else "never")
    except Exception as error:  # names it does not like, a folder it can not write to
        raise ValueError(f"trackio did not start ({error}); train without --track.") from None
    return _Trackio(trackio)


class Guarded:
    """A tracker that may fail, or be none at all; a training goes on without it, after one sentence to say."""

    def __init__(self, tracker: Tracker | None, say: Callable[[str], None]):
        self._tracker, self._say = tracker, say

    def log(self, entry: dict[str, Any]) -> None:
        self._tell("log", entry)

    def finish(self) -> None:
        self._tell("finish")
        self._tracker = None

    def _tell(self, what: str, *args: Any) -> None:
        try:
            if self._tracker is not None:
                getattr(self._tracker, what)(*args)
        except Exception as error:  # whatever a foreign package raises
            self._tracker = None
            self._say(f"The tracker failed and is left out from here on ({error!r}); metrics.jsonl has every figure.")


class _Trackio:
    def __init__(self, trackio: ModuleType):
        self._trackio = trackio

    def log(self, entry: dict[str, Any]) -> None:
        figures = dict(entry)
        step = figures.pop("step")  # trackio keeps this name for itself
        self._trackio.log(figures, step=step)

    def finish(self) -> None:
        self._trackio.finish()

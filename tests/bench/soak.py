"""A quarter of an hour with fifty readers: what breaks, what grows, who waits.

    python tests/bench/soak.py [--minutes 15] [--readers 50] [--seed 1]

Starts the app with the bundled checkpoint. Every reader pauses, asks for a text and then reads it to its end, stops it,
vanishes in the middle, or never reads it; or it has a text of its own scored. They speak as a browser does: a session,
the queue, a stream of events. An error is whatever is not a text and not a clear "busy". Memory, threads and open files
of the app are read once a second from /proc, so it needs Linux. Prints the counts, writes tests/bench/results/soak.json
and soak.png. Needs nothing else running on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from gpt2.device import describe  # noqa: E402
from tests.bench.record import RESULTS, save  # noqa: E402
from tests.page.visit import serve  # noqa: E402

WAYS = {"reads": 45, "stops": 20, "vanishes": 20, "never reads": 5, "has a text scored": 10}  # in percent
PAUSE = 8.0  # seconds between two requests of a reader, on average
PROMPTS = ("ROMEO:", "JULIET:", "KING HENRY:", "First Citizen:\nWe are", "O, what a", "Enter the", "")


@dataclass
class Asked:
    """One request, in seconds since the start."""

    way: str
    at: float
    first: float | None = None  # when its first text came
    end: str = "went"  # what became of it: went, complete, stopped, busy, or an error
    error: str = ""


@dataclass
class Soak:
    client: httpx.AsyncClient
    functions: dict[str, int]  # name of an endpoint -> its number
    until: float
    asked: list[Asked] = field(default_factory=list)

    async def reader(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, 2 * PAUSE))
        while time.perf_counter() < self.until:
            one = Asked(rng.choices(list(WAYS), list(WAYS.values()))[0], time.perf_counter())
            self.asked.append(one)
            try:
                await self.ask(one, rng)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                one.end, one.error = "error", f"{type(error).__name__}: {error}"[:200]
            await asyncio.sleep(rng.expovariate(1 / PAUSE))

    async def ask(self, one: Asked, rng: random.Random) -> None:
        session, scores = uuid.uuid4().hex[:11], one.way == "has a text scored"
        prompt, length = rng.choice(PROMPTS), rng.randint(1, 200)
        data = [prompt + " To be, or not to be" * 5, 0] if scores else [prompt, length, 50, 1, 1, 0, 1, -1]
        number = self.functions["score" if scores else "generate"]
        answer = await self.client.post(
            "/gradio_api/queue/join", json={"data": data, "fn_index": number, "session_hash": session}
        )
        if answer.status_code == 503 and "full" in answer.text.lower():
            one.end = "busy"
            return
        event = answer.raise_for_status().json()["event_id"]
        if one.way == "never reads":
            return
        leaves_after = rng.randint(1, 20)  # pieces
        async with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            pieces = 0
            async for line in stream.aiter_lines():
                if not line.startswith("data: "):
                    continue
                news = json.loads(line.removeprefix("data: "))
                if news["msg"] == "process_generating":
                    one.first = one.first or time.perf_counter()
                    pieces += 1
                if news["msg"] == "process_completed":
                    said = str(news["output"].get("error") or "")
                    one.first = one.first or time.perf_counter()
                    one.end = "complete" if news["success"] else "busy" if "try again in a moment" in said else "error"
                    one.error = "" if news["success"] else said[:200]
                    return
                if one.way == "vanishes" and pieces == leaves_after:
                    return
                if one.way == "stops" and pieces == leaves_after:
                    one.end = "stopped"
                    body = {"session_hash": session, "fn_index": number, "event_id": event}
                    (await self.client.post("/gradio_api/cancel", json=body)).raise_for_status()
                    return

    def overtaken(self) -> int:
        """By how many later ones a request that wanted text was overtaken, at most."""
        firsts = [one for one in self.asked if one.first and one.way != "has a text scored"]
        return max((sum(b.at > a.at and b.first < a.first for b in firsts) for a in firsts), default=0)


def state_of(pid: int) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    return {
        "MB": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


async def soak(url: str, pid: int, minutes: float, readers: int, seed: int) -> tuple[Soak, list[dict[str, float]]]:
    limits, started = httpx.Limits(max_connections=None), time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        events = (await client.get("/config")).json()["dependencies"]
        functions = {event["api_name"]: event["id"] for event in events}
        it = Soak(client, functions, started + 60 * minutes)
        seen = [state_of(pid)]
        tasks = [asyncio.create_task(it.reader(random.Random(f"{seed} {n}"))) for n in range(readers)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(1)
            seen.append(state_of(pid))
            if len(seen) % 60 == 0:
                print(f"minute {len(seen) // 60}: {len(it.asked):,} asked, {seen[-1]}", flush=True)
        await asyncio.gather(*tasks)
    for _ in range(30):  # in which everything that belongs to a reader must go
        await asyncio.sleep(1)
        seen.append(state_of(pid))
    return it, seen


def draw(seen: list[dict[str, float]], path: Path, title: str) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    left = figure.add_subplot()
    left.set(xlabel="seconds", ylabel="MB", title=title)
    left.plot([now["MB"] for now in seen], label="memory")
    left.set(ylim=(0, None))
    right = left.twinx()
    right.plot([now["threads"] for now in seen], "C1", label="threads")
    right.plot([now["files"] for now in seen], "C2", label="open files")
    right.set(ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), MODEL_ID="", HF_HUB_OFFLINE="1") as running:
        it, seen = asyncio.run(soak(running.url, running.process.pid, args.minutes, args.readers, args.seed))
        log = running.log()
    waits = sorted(one.first - one.at for one in it.asked if one.first and one.way != "has a text scored")
    second, last = seen[60:120] or seen, seen[-90:-30]  # minutes, with readers
    memory = [median(now["MB"] for now in part) for part in (second, last)]
    result = {
        "minutes": args.minutes,
        "readers": args.readers,
        "asked": len(it.asked),
        "ways": Counter(one.way for one in it.asked),
        "ends": Counter(one.end for one in it.asked),
        "errors": Counter(one.error for one in it.asked if one.end == "error"),
        "tracebacks in the log": log.count("Traceback"),
        "first text, ms, median": round(1000 * median(waits)),
        "first text, ms, p90": round(1000 * waits[int(0.9 * len(waits))]),
        "first text, ms, p99": round(1000 * waits[int(0.99 * len(waits))]),
        "overtaken by, at most": it.overtaken(),
        "memory in the second and the last minute, MB": [round(mb) for mb in memory],
        "memory grew by": round(memory[1] / memory[0] - 1, 4),
        "before, and 30 s after the last reader": [seen[0], seen[-1]],
        "threads and files, at most": [max(now[what] for now in seen) for what in ("threads", "files")],
    }
    for name, value in result.items():
        print(f"{name:46} {dict(value) if isinstance(value, Counter) else value}")
    save("soak", {**result, "every tenth second": seen[::10]}, "torch", "gradio")
    draw(seen, RESULTS / "soak.png", f"{args.readers} readers on {describe(torch.device('cpu'))}")


if __name__ == "__main__":
    main()

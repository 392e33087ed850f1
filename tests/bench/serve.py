"""How the page serves a crowd: readers at the same time, and readers who arrive whether or not it keeps up.

    python tests/bench/serve.py [--tokens 100] [--seconds 30]

Starts the app with the bundled checkpoint and reads through its public API, each reader on a connection of its own in
one other process. "At once": 1 to 50 readers who ask in the same moment. "Open loop": readers arrive at random, a
given number a second on average (Poisson), and nobody waits for anybody. Prints both tables, writes
tests/bench/results/serve.json and serve.png. Needs nothing else running on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from gpt2.device import describe  # noqa: E402
from tests.bench.record import RESULTS, save  # noqa: E402
from tests.page.visit import serve  # noqa: E402

AT_ONCE = (1, 2, 4, 8, 16, 32, 50)
ARRIVALS = (1.0, 2.0, 4.0, 8.0)  # readers a second
PROMPTS = ("ROMEO:", "JULIET:", "KING HENRY:", "First Citizen:\nWe are", "O, what a", "Enter the")


@dataclass(frozen=True)
class Reading:
    """What one reader saw, in seconds since it asked."""

    first: float  # until the first piece of text
    last: float  # until the text was complete
    error: str | None = None


async def read(client: httpx.AsyncClient, seed: int, tokens: int) -> Reading:
    """Ask for one text and read it to its end."""
    asked, first = time.perf_counter(), None
    data = [PROMPTS[seed % len(PROMPTS)], tokens, 50, 1.0, 1.0, 0.0, 1.0, seed]
    answer = await client.post("/gradio_api/call/generate", json={"data": data})
    if answer.status_code != 200:
        return Reading(0, 0, f"HTTP {answer.status_code}")
    event = ""
    async with client.stream("GET", f"/gradio_api/call/generate/{answer.json()['event_id']}") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and event == "error":
                return Reading(0, 0, line.removeprefix("data: ")[:100])
            elif line.startswith("data: ") and event in ("generating", "complete") and first is None:
                first = time.perf_counter() - asked if json.loads(line.removeprefix("data: "))[0] else None
    last = time.perf_counter() - asked
    return Reading(first or last, last)


def summary(readings: list[Reading], seconds: float, tokens: int) -> dict[str, float]:
    """Medians and percentiles of those who were served, and how many were not."""
    served = [r for r in readings if not r.error]
    firsts, speeds = sorted(r.first for r in served), sorted(tokens / r.last for r in served)

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")

    return {
        "readers": len(readings),
        "refused": len(readings) - len(served),
        "tok/s, all together": round(len(served) * tokens / seconds, 1),
        "tok/s of a reader, median": round(median(speeds), 1) if speeds else float("nan"),
        "tok/s of the slowest": round(speeds[0], 1) if speeds else float("nan"),
        "first text, ms, median": round(1000 * at(firsts, 0.5)),
        "first text, ms, p90": round(1000 * at(firsts, 0.9)),
        "first text, ms, p99": round(1000 * at(firsts, 0.99)),
    }


async def at_once(client: httpx.AsyncClient, readers: int, tokens: int) -> dict[str, float]:
    started = time.perf_counter()
    readings = await asyncio.gather(*(read(client, seed, tokens) for seed in range(readers)))
    return summary(readings, time.perf_counter() - started, tokens)


async def open_loop(client: httpx.AsyncClient, rate: float, seconds: float, tokens: int) -> dict[str, float]:
    rng, tasks, started = random.Random(int(rate * 1000)), [], time.perf_counter()
    while time.perf_counter() - started < seconds:
        tasks.append(asyncio.create_task(read(client, len(tasks), tokens)))
        await asyncio.sleep(rng.expovariate(rate))
    readings = await asyncio.gather(*tasks)
    return {"arrivals a second": rate} | summary(readings, time.perf_counter() - started, tokens)


async def measure(url: str, tokens: int, seconds: float, runs: int) -> dict[str, list[dict[str, float]]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
        await at_once(client, 4, tokens)  # warm
        rounds = [[await at_once(client, readers, tokens) for readers in AT_ONCE] for _ in range(runs)]
        middle = [{name: median(row[name] for row in rows) for name in rows[0]} for rows in zip(*rounds, strict=True)]
        return {"at once": middle, "open loop": [await open_loop(client, rate, seconds, tokens) for rate in ARRIVALS]}


def draw(rows: list[dict[str, float]], path: Path, machine: str) -> None:
    """Throughput against readers."""
    readers = [row["readers"] for row in rows]
    figure = Figure(figsize=(8, 4), layout="constrained")
    left = figure.add_subplot()
    left.set(xlabel="readers at the same time", ylabel="tokens per second", title=f"The page on {machine}")
    left.plot(readers, [row["tok/s, all together"] for row in rows], "o-", label="all readers together")
    left.plot(readers, [row["tok/s of the slowest"] for row in rows], "s--", label="the slowest reader")
    left.set(ylim=(0, None))
    left.grid(alpha=0.25)
    left.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100, help="length of every text")
    parser.add_argument("--seconds", type=float, default=30, help="of each open loop")
    parser.add_argument("--runs", type=int, default=3, help="of each number of readers at once; medians are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), MODEL_ID="", HF_HUB_OFFLINE="1") as running:
        tables = asyncio.run(measure(running.url, args.tokens, args.seconds, args.runs))
    for title, rows in tables.items():
        print(f"\n{title}\n" + "".join(f"{name:>28}" for name in rows[0]))
        for row in rows:
            print("".join(f"{value:28,.1f}" for value in row.values()))
    save("serve", {"tokens": args.tokens, **tables}, "torch", "gradio")
    draw(tables["at once"], RESULTS / "serve.png", describe(torch.device("cpu")))


if __name__ == "__main__":
    main()

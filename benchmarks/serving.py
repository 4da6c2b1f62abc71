"""The HTTP service under load: requests a second and latencies, with batches and without, on the loopback address.

The service is the command ``serve`` as a process of its own; the clients are those of httpx in this one, and share the
processors with it. Each waits for its answer before it sends its next request, on a connection that stays open.
Variants alternate, so that a machine that slows down slows all.

    python benchmarks/serving.py --checkpoint saved/ADRRec.pth --docs docs/performance.md
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from efficiency import insert
from engine.provenance import hardware, versions
from tabulate import tabulate
from tqdm import tqdm

import recbole_adrrec

VARIANTS = {
    "no batches": ["--batch_size=1"],
    "batches, no wait": ["--batch_wait=0"],
    "batches, wait of 2 ms": ["--batch_wait=2"],
}
HEALTH = "/health, which computes nothing"
FIGURES = ("requests / s", "p50, ms", "p99, ms", "service's processor, ms / request")
WARM_UP = 1.0
"""Seconds before latencies count."""


@contextmanager
def service(checkpoint: Path, options: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a service."""
    command = [sys.executable, "-m", "recbole_adrrec", "serve", "-c", str(checkpoint), "--port=0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            address = re.search(r"http://\S+(?=;)", line)
            if address is None:
                raise ValueError(f"--checkpoint: {checkpoint}: the service didn't start")
            yield address[0], psutil.Process(process.pid)
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise RuntimeError(f"the service ended with exit code {process.returncode}")
        finally:
            process.kill()


async def load(
    url: str, users: Sequence[str] | None, clients: int, seconds: float, seed: int
) -> tuple[list[float], int]:
    """Seconds of each request after the warm-up, and the number of all; to ``/health`` without users.

    Raises
    ------
    RuntimeError
        A request wasn't answered as it should.
    """
    taken: list[float] = []
    sent = 0

    async def one(client: httpx.AsyncClient, draw: np.random.Generator, began: float) -> None:
        nonlocal sent
        while (start := time.perf_counter()) < began + WARM_UP + seconds:
            if users is None:
                reply = await client.get(f"{url}/health")
            else:
                user = users[int(draw.integers(len(users)))]
                reply = await client.post(f"{url}/recommend", json={"users": [user], "top": 10})
            end = time.perf_counter()
            if reply.status_code != 200 or (users is not None and len(reply.json()["users"][0]["items"]) != 10):
                raise RuntimeError(f"{reply.status_code}: {reply.text[:200]}")
            sent += 1
            if start >= began + WARM_UP:
                taken.append(end - start)

    async with AsyncExitStack() as stack:
        # One pool for all clients would take longer than the service.
        made = [await stack.enter_async_context(httpx.AsyncClient(timeout=60, verify=False)) for _ in range(clients)]
        began = time.perf_counter()
        draws = [np.random.default_rng([seed, number]) for number in range(clients)]
        await asyncio.gather(*(one(client, draw, began) for client, draw in zip(made, draws, strict=True)))
    return taken, sent


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each variant and number of clients: medians over the runs."""
    users = recbole_adrrec.load(given.checkpoint).users
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    with ExitStack() as stack:
        services = {name: stack.enter_context(service(given.checkpoint, options)) for name, options in VARIANTS.items()}
        jobs = [(name, clients) for clients in given.clients for name in [*VARIANTS, HEALTH]] * given.runs
        for number, (name, clients) in enumerate(tqdm(jobs, unit=" measurements", disable=not sys.stderr.isatty())):
            url, process = services["batches, no wait" if name == HEALTH else name]
            before = sum(process.cpu_times()[:2])
            taken, sent = asyncio.run(load(url, None if name == HEALTH else users, clients, given.seconds, number))
            p50, p99 = np.percentile(taken, [50, 99]) * 1000
            processor = (sum(process.cpu_times()[:2]) - before) / sent * 1000
            found.setdefault((name, clients), []).append((len(taken) / given.seconds, p50, p99, processor))
    return [
        {"clients": clients, "service": name, **dict(zip(FIGURES, np.median(runs, axis=0), strict=True))}
        for (name, clients), runs in found.items()
    ]


def report(rows: Sequence[dict[str, Any]], given: argparse.Namespace) -> str:
    """The rows as Markdown, with what they were measured on."""
    body = [[row["clients"], row["service"], *(f"{row[key]:.3g}" for key in FIGURES)] for row in rows]
    head = ["clients", "service", *FIGURES]
    machine = hardware()
    note = f", {given.note}" if given.note else ""
    return (
        f"{tabulate(body, head, 'pipe', disable_numparse=True, colalign=('right', 'left', *['right'] * 4))}\n\n"
        f"One user of ten items a request; medians of {given.runs} runs of {given.seconds:g} s; {machine['cpu']}, "
        f"{machine['cores']} cores, which clients and service share, torch {versions()['torch']}{note}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table; exit code 2 if something given is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", "-c", type=Path, required=True, help="of the model to serve")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="at a time (default: 1 8 32)")
    parser.add_argument("--runs", type=int, default=3, help="for each figure (default: 3)")
    parser.add_argument("--seconds", type=float, default=5, help="of each run (default: 5)")
    parser.add_argument("--note", help="remark on the machine, as: beside other work")
    parser.add_argument("--docs", type=Path, help="Markdown file with marks: the table replaces what is there")
    given = parser.parse_args(argv)
    try:
        text = report(measure(given), given)
        if given.docs:
            insert(given.docs, "serving", text)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

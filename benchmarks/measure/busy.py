"""Training beside other programs that keep the same cores busy: ``efficiency.py --busy``.

With ``OMP_WAIT_POLICY`` active, threads of OpenMP spin while they wait for one another, and so take from each other
what another program leaves them; passive, they sleep. The variable is read when torch's OpenMP is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from measure.children import call
from measure.ledger import Job
from measure.tables import markdown, median, shown

POLICIES = ("unset", "active", "passive")
"""Of ``OMP_WAIT_POLICY``; unset: OpenMP's own choice, which is to spin for a while and then to sleep."""

BUSY_VARIANTS = ("SASRec, windows", "ADRRec, windows")

# Ends by itself when its parent is gone, however that ended.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


@contextmanager
def company(count: int, cores: int) -> Iterator[None]:
    """Keep this process, those that it starts and so many busy ones on the same cores while this lasts.

    Parameters
    ----------
    count : int
        Busy processes of one thread each.
    cores : int
        How many of this process's cores are used, where the system can say so (Linux).
    """
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    working: list[subprocess.Popen[bytes]] = []
    try:
        if before is not None:
            os.sched_setaffinity(0, sorted(before)[:cores])
        working = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        yield
    finally:
        for process in working:
            process.kill()
            process.wait()
        if before is not None:
            os.sched_setaffinity(0, before)


def report(session: Any) -> str:
    """Measure each variant beside so many busy processes under each policy, by turns; tables in Markdown."""
    arguments = session.arguments
    variants = [variant for variant in session.variants(BUSY_VARIANTS) if variant.source != "peer"]
    jobs = []
    for run in range(arguments.runs):
        for count in arguments.busy:
            for variant in variants:
                for policy in arguments.wait:
                    job = session.training_job(
                        "busy", variant, run, arguments.dataset, arguments.data_path, evaluate=False
                    )
                    job.given |= {"busy": count, "wait": policy}
                    jobs.append(Job(job.kind, job.variant, job.given, run, _work(session, job.child, count, policy)))
    found = table(session.do(jobs, "beside busy processes"))
    session.ledger.note("busy", found)
    title = f"### Beside busy processes of one thread, {arguments.dataset}"
    return f"{title}\n\n{session.settings()}\n\n{table_text(found, arguments.busy)}"


def _work(session: Any, child: dict[str, Any], count: int, policy: str) -> Any:
    threads, timeout = session.arguments.threads, session.arguments.timeout
    environment = {"OMP_WAIT_POLICY": None if policy == "unset" else policy}

    def work() -> dict[str, Any]:
        with company(count, threads):
            return call("measure.training:measure", child, threads=threads, timeout=timeout, environment=environment)

    return work


def table(measurements: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each variant and policy.

    Keys: ``variant``, ``wait``, ``epoch_s`` (by number of busy processes, as text: the median, null if it failed),
    ``ratio`` (the same over that policy's own idle time), ``error``.
    """
    rows = []
    for name, policy in dict.fromkeys((one["variant"], one["given"]["wait"]) for one in measurements):
        own = [one for one in measurements if (one["variant"], one["given"]["wait"]) == (name, policy)]
        seconds = {
            str(count): median(
                [
                    second
                    for one in own
                    if one["given"]["busy"] == count and one["result"] is not None
                    for second in one["result"]["epoch_s"]
                ]
            )
            for count in sorted({one["given"]["busy"] for one in own})
        }
        idle = seconds.get("0")
        ratio = {count: value / idle if value and idle else None for count, value in seconds.items()}
        errors = [one["error"] for one in own if one["error"]]
        rows.append(
            {
                "variant": name,
                "wait": policy,
                "epoch_s": seconds,
                "ratio": ratio,
                "error": errors[-1] if errors else None,
            }
        )
    return rows


def table_text(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> str:
    """Markdown of :func:`table`."""
    head = ["", "OMP_WAIT_POLICY", *(f"{count} busy: s / epoch (over idle)" for count in sorted(counts))]
    cells = []
    for row in rows:
        numbers = [(row["epoch_s"].get(str(count)), row["ratio"].get(str(count))) for count in sorted(counts)]
        told = [f"{shown(seconds)} ({shown(ratio)})" for seconds, ratio in numbers]
        cells.append([row["variant"], row["wait"], *told])
    failed = [f"- {row['variant']}, {row['wait']}: {row['error']}" for row in rows if row["error"]]
    return "\n\n".join([markdown(head, cells), *(["\n".join(failed)] if failed else [])])

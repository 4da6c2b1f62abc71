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
from functools import partial
from typing import TYPE_CHECKING, Any

from measure.tables import Row, medians, ratio, text

if TYPE_CHECKING:
    from measure.session import Session

POLICIES: dict[str, dict[str, str | None]] = {
    "unset": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None},
    "active": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": None},
    "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": None},
    "short": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "4000"},
}
"""Environments; unset: OpenMP's own choice; short: the command line's, a short spin before threads sleep."""

VARIANTS = ("SASRec, windows", "ADRRec, windows")

# Ends by itself when its parent, whose number it is given, is gone, however and however early that ended.
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"


@contextmanager
def busy_processes(count: int, cores: int) -> Iterator[None]:
    """Keep this process, those that it starts and ``count`` busy ones of one thread on the same cores while this lasts.

    ``cores`` is how many of this process's cores are used, where the system can say so (Linux).
    """
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    working: list[subprocess.Popen[bytes]] = []
    try:
        if before is not None:
            os.sched_setaffinity(0, sorted(before)[:cores])
        working = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(count)]
        yield
    finally:
        for process in working:
            process.kill()
            process.wait()
        if before is not None:
            os.sched_setaffinity(0, before)


def report(session: Session) -> str:
    """Measure each variant beside so many busy processes under each policy, by turns; table in Markdown."""
    arguments, jobs = session.arguments, []
    variants = [variant for variant in session.variants(VARIANTS) if variant.source != "peer"]
    for run in range(arguments.runs):
        for count in arguments.busy:
            for variant in variants:
                for policy in arguments.wait:
                    job = session.training_job("busy", variant, run, evaluate=False, busy=count, wait=policy)
                    job.call["environment"] = POLICIES[policy]
                    job.around = partial(busy_processes, count, arguments.threads)
                    jobs.append(job)
    rows = table(session.measure(jobs, "beside busy processes"))
    session.store.note("busy", rows)
    columns = {"epoch_s": "s / epoch", "over_idle": "over idle"}
    title = f"### Beside busy processes of one thread, {arguments.dataset}"
    return f"{title}\n\n{session.settings()}\n\n{text(rows, columns)}"


def table(measurements: Sequence[Row]) -> list[Row]:
    """One row for each variant, policy and number of busy processes: ``epoch_s``, and ``over_idle`` of that policy."""

    def name(given: dict[str, Any], variant: str, busy: int) -> str:
        return f"{variant}, OMP_WAIT_POLICY {given['wait']}, {busy} busy"

    named, idle = [], {}
    for one in measurements:
        label = name(one["given"], one["variant"], one["given"]["busy"])
        named.append({**one, "variant": label})
        idle[label] = name(one["given"], one["variant"], 0)
    rows = {row["variant"]: row for row in medians(named, sorted(idle), ["epoch_s"])}
    for label, row in rows.items():
        row["over_idle"] = ratio(row.get("epoch_s"), rows.get(idle[label], {}).get("epoch_s"))
    return list(rows.values())

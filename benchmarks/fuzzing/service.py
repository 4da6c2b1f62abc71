"""Send wrong and right requests to the HTTP service, in this process, and check each reply."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from tqdm import tqdm

from recbole_adrrec.service.options import ServiceOptions
from recbole_adrrec.times import iso, seconds
from recbole_adrrec.tools.recommend import Recommender

REFUSALS = {400, 404, 405, 413, 415, 422}
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerances of scores: batches of another composition round differently."""

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**18, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "0", "nan"),
    *("[PAD]", "\ud800", "\x00", "é\u202e", "9" * 5000, "2024", "20240501", "2024-02-30", "1969-12-31", "now", "@1e30"),
    *([], [[]], [None], {}, {"users": ["1"]}, [["1", 1], ["1", 1]], [["1"]], [["1", 1, 1]], ["1"] * 200, "x" * 3000),
]
"""Values to put in a right one's place."""

CONTENT_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "",
    "application/json; charset=utf-16",
    "a/b/c",
    "é",
]


@dataclass
class Case:
    """A request, its kind, and whether it is right."""

    kind: str
    body: bytes
    right: bool = False
    method: str = "POST"
    path: str = "/recommend"
    content_type: str = "application/json"


@dataclass
class Found:
    """Replies by kind and status, and what was wrong with some."""

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    compared: int = 0


class Cases:
    """Draws requests; parameters as of :class:`Fuzz`."""

    def __init__(self, recommender: Recommender, options: ServiceOptions, seed: int) -> None:
        self.random = random.Random(seed)
        self.users, self.items = recommender.users, recommender.items
        self.options = options
        self.last = recommender.last_time or 0

    def right(self) -> dict[str, Any]:
        """Fields of a request that is to be answered."""
        draw = self.random
        query: dict[str, Any] = {}
        if draw.random() < 0.5:
            query["users"] = [self._name(self.users) for _ in range(draw.choice([1, 1, 1, 2, 5]))]
            moments = [self.last, self.last + 10**7]
        else:
            start = draw.randrange(self.last)
            count = draw.choice([1, 2, 5, 20, 80])
            times = [start + draw.randrange(10**6) for _ in range(count)]
            query["history"] = [[self._name(self.items), draw.choice([time, float(time), iso(time)])] for time in times]
            moments = [max(times), max(times) + 10**6]
        if draw.random() < 0.5:
            moment = draw.choice(moments)
            query["at"] = draw.choice([moment, iso(moment), f"@{moment}"])
        if draw.random() < 0.5:
            query["top"] = draw.choice([1, 5, 10, 10, self.options.max_top])
        if draw.random() < 0.3:
            query["seen"] = draw.random() < 0.5
        return query

    def _name(self, names: Sequence[str]) -> str | int:
        name = self.random.choice(names)
        return int(name) if name.isdigit() and str(int(name)) == name and self.random.random() < 0.3 else name

    def draw(self) -> Case:
        """A request of a random kind."""
        query = self.right()
        text = json.dumps(query).encode()
        kinds = {
            "right": lambda: Case("right", text, right=True),
            "odd value": lambda: Case("odd value", json.dumps(self._odd(query)).encode()),
            "changed bytes": lambda: Case("changed bytes", self._changed(text)),
            "random bytes": lambda: Case("random bytes", self.random.randbytes(self.random.randrange(200))),
            "nested": lambda: Case("nested", self._nested()),
            "too long": lambda: Case("too long", text + b" " * (self.options.max_body + self.random.randrange(9999))),
            "content type": lambda: Case("content type", text, content_type=self.random.choice(CONTENT_TYPES)),
            "path, method": lambda: Case(
                "path, method",
                text,
                method=self.random.choice(["GET", "PUT", "DELETE", "POST"]),
                path=self.random.choice(["/recommend", "/recommend/1", "/%00", "/..", "/health", "//"]),
            ),
        }
        weights = [30, 30, 30, 4, 2, 0.5, 1.5, 2]
        return kinds[self.random.choices(list(kinds), weights)[0]]()

    def _odd(self, query: dict[str, Any]) -> Any:
        """The query with one of its values, at any depth, replaced, removed or renamed."""
        draw = self.random
        value = draw.choice(ODD)
        if draw.random() < 0.05:
            return value
        key = draw.choice([*query, "users", "history", "at", "top", "seen", "k", ""])
        inner = query.get(key)
        if isinstance(inner, list) and draw.random() < 0.7:
            place = draw.randrange(len(inner))
            if isinstance(inner[place], list) and draw.random() < 0.7:
                inner[place][draw.randrange(2)] = value
            else:
                inner[place] = value
        elif draw.random() < 0.1:
            query.pop(key, None)
        else:
            query[key] = value
        return query

    def _changed(self, text: bytes) -> bytes:
        draw, changed = self.random, bytearray(text)
        for _ in range(draw.choice([1, 1, 2, 5])):
            place = draw.randrange(len(changed) + 1)
            match draw.randrange(4):
                case 0:
                    changed[place:place] = draw.choice(
                        [b'"', b"[", b"]", b"{", b",", b"9", b"\\u", b"-", b"\xff", b"e9"]
                    )
                case 1:
                    del changed[place : place + draw.randrange(1, 8)]
                case 2 if place < len(changed):
                    changed[place] ^= 1 << draw.randrange(8)
                case 3:
                    other = draw.randrange(len(changed) + 1)
                    changed[place:place] = changed[other : other + draw.randrange(20)]
        return bytes(changed)

    def _nested(self) -> bytes:
        depth = self.random.choice([10, 500, 5000, 100_000])
        opening, closing = self.random.choice([(b"[", b"]"), (b'{"users":', b"}"), (b'{"a":[', b"]}")])
        depth = min(depth, self.options.max_body // (len(opening) + len(closing)) - 2)
        return opening * depth + b"1" + closing * depth * self.random.randrange(2)


class Fuzz:
    """Sends requests to an application and checks replies.

    Parameters
    ----------
    recommender : Recommender
    options : ServiceOptions
    seed : int
    """

    def __init__(self, recommender: Recommender, options: ServiceOptions, seed: int) -> None:
        self.recommender = recommender
        self.options = options
        self.cases = Cases(recommender, options, seed)
        self.found = Found()
        self._answered: list[tuple[Case, dict[str, Any]]] = []

    async def run(self, app: FastAPI, inputs: int, concurrency: int = 32, chunk: int = 1000) -> Found:
        """Send ``inputs`` requests, ``concurrency`` at a time."""
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=600) as client:
                with tqdm(total=inputs, unit=" requests", disable=not sys.stderr.isatty()) as bar:
                    for start in range(0, inputs, chunk):
                        left = iter([self.cases.draw() for _ in range(min(chunk, inputs - start))])
                        await asyncio.gather(*(self._client(client, left, bar) for _ in range(concurrency)))
                        self._compare()
                health = await client.get("/health")
                if health.status_code != 200:
                    self.found.failures.append(f"health afterwards: {health.status_code}")
        return self.found

    async def _client(self, client: httpx.AsyncClient, cases: Any, bar: Any) -> None:
        for case in cases:
            headers = {"Content-Type": case.content_type.encode()} if case.content_type else {}
            reply = await client.request(case.method, case.path, content=case.body, headers=headers)
            self.found.counts[case.kind, reply.status_code] += 1
            problem = self._problem(case, reply)
            if problem:
                self.found.failures.append(f"{problem}: {case} gave {reply.status_code} {reply.text[:300]}")
            bar.update()

    def _problem(self, case: Case, reply: httpx.Response) -> str:
        document = reply.json() if reply.headers.get("content-type") == "application/json" else None
        if reply.status_code in REFUSALS and not case.right:
            says = isinstance(document, dict) and isinstance(document.get("detail"), str) and document["detail"]
            return "" if says else "refused without a message"
        if reply.status_code != 200 or document is None:
            return "neither answered nor refused"
        if case.path == "/recommend" and b"now" not in case.body:  # which is another moment by the next second
            self._answered.append((case, document))
        return ""

    def _compare(self) -> None:
        """Hold the answers of a chunk against those of the library."""
        names: list[str] = []
        events: list[tuple[str, str, int]] = []
        wanted: list[tuple[Case, dict[str, Any], str, int, int, bool]] = []
        for number, (case, document) in enumerate(self._answered):
            query = json.loads(case.body)
            at = query.get("at")
            users = query.get("users")
            last = self.cases.last
            if users is None:
                users = [f"history {number}"]
                added = [(users[0], str(item), seconds(time)) for item, time in query["history"]]
                events += added
                last = max(last, *(time for *_, time in added))
            moment = last if at is None else seconds(at)
            if len(users) != len(document["users"]):
                self.found.failures.append(f"{len(document['users'])} answers for {len(users)} users: {case}")
                continue
            for user, answer in zip(users, document["users"], strict=True):
                wanted.append((case, answer, str(user), moment, query.get("top", 10), query.get("seen", False)))
            names += map(str, users)
        self._answered.clear()
        columns = [[event[place] for event in events] for place in range(3)]
        extended = self.recommender.append(columns[0], columns[1], columns[2])
        for top, seen in {entry[4:] for entry in wanted}:
            some = [entry for entry in wanted if entry[4:] == (top, seen)]
            right = extended.recommend([entry[2] for entry in some], [entry[3] for entry in some], top, seen)
            for (case, answer, user, moment, *_), (_, items) in zip(some, right, strict=True):
                self.found.compared += 1
                got = [(item["item"], item["score"]) for item in answer["items"]]
                if answer["at"] != iso(moment) or not self._same(got, items, extended, user, moment):
                    self.found.failures.append(f"wrong answer to {case}: {got}, not {items}")

    @staticmethod
    def _same(got: Any, right: Any, recommender: Recommender, user: str, moment: int) -> bool:
        """Same items with the same scores; items of nearly equal scores may change places."""
        if len(got) != len(right) or not np.allclose([b for _, b in got], [b for _, b in right], RELATIVE, ABSOLUTE):
            return False
        if [item for item, _ in got] == [item for item, _ in right]:
            return True
        ((_, everything),) = recommender.recommend([user], moment, len(recommender.items), seen=True)
        scores = dict(everything)
        distinct = len({item for item, _ in got}) == len(got)
        return distinct and all(np.isclose(score, scores[item], RELATIVE, ABSOLUTE) for item, score in got)

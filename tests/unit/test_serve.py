"""The HTTP service: the same answers as the library's, clear refusals, and a stop that loses nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager

import httpx
import numpy as np
import pytest
from fuzzing import service as requests
from trained import train, train_once

from recbole_adrrec import cli, load
from recbole_adrrec.service import app as service
from recbole_adrrec.service.batches import BatchWorker, QueueFullError
from recbole_adrrec.service.options import ServiceOptions

MODELS = {
    "ADRRec": {"use_query_time": True, "epochs": 1, "learning_rate": 0.03},
    "ADRRec inexact": {"exact_time": False},
    "TiSASRec": {"epochs": 1, "learning_rate": 0.03},
    "SASRec": {},
    "FPMC": {},
}
CLIENTS = 12
EVENTS = [["50", 891000000], ["181", "1998-03-28"], [100, 890000000.5], ["258", "@889000000"], ["100", 891000000]]


@pytest.fixture(scope="module")
def checkpoints(small_data, tmp_path_factory):
    """Gives the checkpoint of a model, trained when it is first needed."""
    get = train_once(MODELS, small_data, tmp_path_factory.mktemp("saved"))
    return lambda name: get(name).path


@asynccontextmanager
async def client_of(recommender, **options):
    app = service.make_app(recommender, ServiceOptions(**options))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            client.app = app
            yield client


def ask(recommender, *bodies, **options):
    """Replies to requests that are sent at once."""

    async def send():
        async with client_of(recommender, **options) as client:
            return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))

    return asyncio.run(send())


def items_of(answer):
    return [(item["item"], item["score"]) for item in answer["items"]]


def assert_same(got, right):
    assert [item for item, _ in got] == [item for item, _ in right]
    np.testing.assert_allclose([score for _, score in got], [score for _, score in right], rtol=1e-4, atol=1e-5)


# Answers


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_library_whatever_else_is_in_the_batch(checkpoints, name):
    recommender = load(checkpoints(name))
    users = recommender.users[:3]
    at = "1998-04-25T12:00"
    bodies = [
        {"users": users, "at": at, "top": 5},
        {"users": users[:1]},
        {"users": users[1:], "at": at, "seen": True, "top": 7},
        *([{"history": EVENTS, "at": at}, {"history": EVENTS, "seen": True}] if name != "FPMC" else []),
    ]
    replies = ask(recommender, *bodies, batch_wait=200)
    new = recommender.append(["new"] * len(EVENTS), [e[0] for e in EVENTS], [e[1] for e in EVENTS])
    for body, reply in zip(bodies, replies, strict=True):
        assert reply.status_code == 200, reply.text
        names = body.get("users", ["new"])
        right = (new if "history" in body else recommender).recommend(
            names, body.get("at"), body.get("top", 10), body.get("seen", False)
        )
        got = reply.json()
        assert got["notes"] == list(right.notes)
        assert (got["model"], got["dataset"]) == (name.split()[0], "small")
        assert [entry["user"] for entry in got["users"]] == [None if name == "new" else name for name in names]
        for entry, (_, items) in zip(got["users"], right, strict=True):
            assert_same(items_of(entry), items)


def test_a_model_of_users_by_themselves_refuses_a_history(checkpoints):
    (reply,) = ask(load(checkpoints("FPMC")), {"history": EVENTS})
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith("history: FPMC learned something for each user of training")


def test_a_checkpoint_without_users_answers_for_histories(small_data, tmp_path):
    recommender = load(train("ADRRec", small_data, tmp_path, checkpoint_data=False).path)
    known, unknown = ask(recommender, {"history": EVENTS}, {"users": ["196"]})
    assert (known.status_code, unknown.status_code) == (200, 404)
    assert known.json()["users"][0]["at"] == "1998-03-28"


def test_requests_that_wait_are_computed_together(checkpoints, monkeypatch):
    recommender = load(checkpoints("ADRRec"))
    sizes = []
    monkeypatch.setattr(service, "answer", lambda made, asked: sizes.append(len(asked)) or [[("1", 1.0)]] * len(asked))
    bodies = [{"users": [user]} for user in recommender.users[:40]]
    assert all(reply.status_code == 200 for reply in ask(recommender, *bodies, batch_size=16, batch_wait=500))
    assert sizes == [16, 16, 8]
    sizes.clear()
    ask(recommender, *bodies, batch_size=1)
    assert sizes == [1] * 40


def test_a_full_queue_refuses_and_loses_nothing():
    free, busy = threading.Event(), threading.Event()

    def compute(questions):
        busy.set()
        free.wait(10)
        return [-question for question in questions]

    worker = BatchWorker(compute, ServiceOptions(batch_size=2, batch_wait=0, queue=5, max_users=5))
    first = worker.submit([1])
    assert busy.wait(10)
    second, third, cancelled = worker.submit([2, 3, 4]), worker.submit([5]), worker.submit([6])
    assert cancelled.cancel()
    with pytest.raises(QueueFullError):
        worker.submit([7])
    assert worker.waiting == 5
    free.set()
    worker.close()
    assert [first.result(), second.result(), third.result()] == [[-1], [-2, -3, -4], [-5]]
    assert not worker.alive
    with pytest.raises(QueueFullError):
        worker.submit([8])


def test_an_error_of_the_model_reaches_its_batch_and_no_other():
    def compute(questions):
        if 0 in questions:
            raise ZeroDivisionError
        return questions

    worker = BatchWorker(compute, ServiceOptions(batch_size=1))
    futures = [worker.submit([number]) for number in (1, 0, 2)]
    worker.close()
    assert [type(future.exception()) for future in futures] == [type(None), ZeroDivisionError, type(None)]


def test_more_than_may_wait_is_refused_with_a_time_to_repeat(checkpoints, monkeypatch):
    recommender = load(checkpoints("ADRRec"))
    monkeypatch.setattr(service, "answer", lambda made, asked: time.sleep(0.3) or [[("1", 1.0)]] * len(asked))
    bodies = [{"users": recommender.users[:1]}] * 9
    replies = ask(recommender, *bodies, batch_size=1, queue=4, max_users=4)
    statuses = Counter(reply.status_code for reply in replies)
    assert set(statuses) == {200, 503}
    assert statuses[200] in (4, 5)
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["detail"] == "too many questions wait; repeat the request in a second"


# Refusals


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "body: no JSON (Expecting property name enclosed in double quotes at character 1)"),
        (b"\xff\xfe{}", 400, ""),
        ("", 422, "body: nothing; give an object with users or history"),
        ("[]", 422, "body: []; give an object with users or history"),
        ({}, 422, "users, history: give one of the two"),
        ({"users": ["196"], "history": [["50", 1]]}, 422, "users, history: give one of the two"),
        ({"user": ["196"]}, 422, "'user': no such field; did you mean users? (users, history, at, top, seen)"),
        ({"users": "196"}, 422, "users: '196' is wrong; users is a list of users, named as in the data"),
        ({"users": ["196", True]}, 422, "users[1]: True is wrong; users is"),
        ({"users": []}, 422, "users: 0 names; give from 1 to 4 in a request"),
        ({"users": ["196"] * 5}, 422, "users: 5 names; give from 1 to 4 in a request"),
        ({"users": ["nobody"]}, 404, "users: 'nobody' is unknown; give the events of a new user as history"),
        ({"users": ["196", "a", "b"]}, 404, "users: 2 of 3 are unknown, the first 'a'; give"),
        ({"users": ["[PAD]"]}, 404, "users: '[PAD]' is unknown"),
        ('{"users": ["\\ud800"]}', 404, "users: '\\ud800' is unknown"),
        ({"users": ["196"], "at": "yesterday"}, 422, "at: time 'yesterday' is neither a number nor ISO 8601; write"),
        ({"users": ["196"], "at": 10**400}, 422, "at: 1000"),
        ('{"users": ["196"], "at": NaN}', 422, "at: nan is no moment"),
        ({"users": ["196"], "at": True}, 422, "at: True is wrong; at is the moment: seconds since 1970"),
        ({"users": ["196"], "at": "2024"}, 422, "at: '2024' may be a date or seconds; write 2024-05-01, or @2024"),
        ({"users": ["196"], "at": 5}, 422, "users: '196' has no event up to 1970-01-01T00:00:05Z; choose a later"),
        ({"users": ["196"], "top": 0}, 422, "top: 0 is out of range; give a number from 1 to 100"),
        ({"users": ["196"], "top": 10**30}, 422, "top: 1000000000000000000000000000000 is out of range"),
        ({"users": ["196"], "top": "5"}, 422, "top: '5' is wrong; top is the number of items for each"),
        ({"users": ["196"], "seen": 1}, 422, "seen: 1 is wrong; seen is true to recommend items that were met"),
        ({"history": []}, 422, "history: 0 events; give from 1 to 6, the latest"),
        ({"history": [["50", 1]] * 7}, 422, "history: 7 events; give from 1 to 6, the latest"),
        ({"history": [["50", 1], ["x", 2]]}, 422, "history[1]: item 'x' is unknown to the model, as 1 of 2 are"),
        ({"history": [["50", 1], ["50"]]}, 422, "history[1]"),
        ({"history": [["50", "soon"]]}, 422, "history[0]: time 'soon' is neither a number nor ISO 8601"),
        ({"history": [["50", -1]]}, 422, "history[0]: -1 seconds are before 1970"),
        ({"history": [["50", 9]], "at": 5}, 422, "history: there is no event up to 1970-01-01T00:00:05Z; choose"),
        ({"users": ["196" * 400]}, 413, "body: more than 1,000 bytes; send shorter lists"),
        ("[" * 900, 400, "body"),
    ],
)
def test_refusals_name_field_value_and_remedy(checkpoints, body, status, message):
    recommender = load(checkpoints("ADRRec"))

    async def send():
        async with client_of(recommender, max_users=4, max_events=6, max_body=1000) as client:
            content = body if isinstance(body, str | bytes) else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            reply = await client.post("/recommend", content=content, headers=headers)
            assert (await client.get("/health")).json()["status"] == "ready"
            return reply

    reply = asyncio.run(send())
    assert reply.status_code == status, reply.text
    assert reply.json()["detail"].startswith(message)
    assert len(reply.json()["detail"]) <= 500


def test_bodies_of_unknown_length_late_ones_and_other_types_are_refused(checkpoints, monkeypatch):
    recommender = load(checkpoints("ADRRec"))
    monkeypatch.setattr(service, "BODY_SECONDS", 0.2)

    async def parts(count, pause=0.0):
        for _ in range(count):
            yield b" " * 100
            await asyncio.sleep(pause)

    async def send():
        async with client_of(recommender, max_body=1000) as client:
            headers = {"Content-Type": "application/json"}
            yield await client.post("/recommend", content=parts(11), headers=headers)
            yield await client.post("/recommend", content=parts(5, 0.2), headers=headers)
            headers = {"Content-Type": "text/plain"}
            yield await client.post("/recommend", content=b'{"users": ["196"]}', headers=headers)

    async def collect():
        return [reply async for reply in send()]

    replies = asyncio.run(collect())
    assert [reply.status_code for reply in replies] == [413, 408, 415]
    assert [reply.headers.get("connection") for reply in replies] == ["close", "close", None]
    assert "Content-Type: application/json" in replies[2].json()["detail"]


def test_health_and_documentation(checkpoints):
    recommender = load(checkpoints("ADRRec"))

    async def send():
        async with client_of(recommender) as client:
            replies = [await client.get(path) for path in ("/health", "/docs", "/openapi.json")]
            client.app.state.stopping = True
            return [*replies, await client.get("/health")]

    health, docs, schema, stopping = asyncio.run(send())
    assert health.json() == {
        **{"status": "ready", "waiting": 0, "model": "ADRRec", "dataset": "small"},
        **{"users": 60, "items": len(recommender.items), "knows_query_time": True},
        "version": importlib.metadata.version("recbole_adrrec"),
    }
    assert docs.status_code == 200
    assert {"200", "404", "413", "422", "503"} <= schema.json()["paths"]["/recommend"]["post"]["responses"].keys()
    assert (stopping.status_code, stopping.json()["status"]) == (503, "stopping")


@pytest.mark.parametrize("name", ["ADRRec", "TiSASRec"])
def test_generated_requests_are_answered_rightly_or_refused(checkpoints, name):
    recommender = load(checkpoints(name))
    options = ServiceOptions(max_body=4000)
    fuzz = requests.Fuzz(recommender, options, seed=1)
    found = asyncio.run(fuzz.run(service.make_app(recommender, options), 400, chunk=200))
    assert found.failures == []
    assert found.counts.total() == 400
    assert found.compared > 100
    assert {200, 400, 404, 422} <= {status for _, status in found.counts}


# The command


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port=70000"], "--port: 70000 is not a number from 0 to 65535"),
        (["--batch_size=0"], "--batch_size: 0 is not a whole number of at least 1"),
        (["--batch_wait=nan"], "--batch_wait: nan is not a number of milliseconds from 0 to 1000"),
        (["--queue=50"], "--queue: 50 is less than --max_users, 100; give at least that"),
        (["--host=198.51.100.1"], "--host, --port: 198.51.100.1 8000: "),
        (["--port=0"], "none.pth"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(capsys, argv, message):
    assert cli.main(["serve", "-c", "none.pth", *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_and_a_missing_extra_are_named(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", "-c", "none.pth", f"--port={taken.getsockname()[1]}"]) == 2
    assert "Address already in use; choose another port (0 finds a free one)" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["serve", "-c", "none.pth"]) == 2
    assert "serve needs fastapi and uvicorn: pip install 'recbole_adrrec[serve]'" in capsys.readouterr().err


@contextmanager
def process_of(checkpoint, *options):
    """The command as a process of its own, and its address."""
    command = [sys.executable, "-m", "recbole_adrrec", "serve", "-c", str(checkpoint), "--port=0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield process, re.search(r"http://\S+(?=;)", line)[0]
        finally:
            process.kill()


class Load:
    """Clients that send requests without a pause until the service is gone, and count what becomes of them.

    A request is refused if no connection is made, and unanswered if one closes before any part of an answer.
    """

    def __init__(self, url, right):
        self.url, self.right = url, right
        self.counts = Counter()

    async def client(self, keep_alive):
        limits = httpx.Limits(max_keepalive_connections=1 if keep_alive else 0)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            for number in range(10**6):
                user = list(self.right)[number % len(self.right)]
                try:
                    reply = await client.post(f"{self.url}/recommend", json={"users": [user], "top": 5})
                except httpx.ConnectError:
                    self.counts["refused"] += 1
                    return
                except httpx.TransportError as error:
                    cut = "incomplete" in str(error) or "peer closed" in str(error)
                    self.counts["cut" if cut else "unanswered"] += 1
                    continue
                items = [item["item"] for item in reply.json()["users"][0]["items"]] if reply.status_code == 200 else []
                self.counts["right" if items == self.right[user] else "wrong"] += 1

    async def run(self, answers, stop):
        clients = [asyncio.create_task(self.client(keep_alive=bool(number % 2))) for number in range(CLIENTS)]
        while self.counts["right"] < answers and not any(task.done() for task in clients):
            await asyncio.sleep(0.01)
        stop()
        await asyncio.wait_for(asyncio.gather(*clients), 120)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_under_load_answers_all_that_was_accepted(checkpoints, name):
    recommender = load(checkpoints("ADRRec"))
    answers = recommender.recommend(recommender.users[:20], top=5)
    right = {user: [item for item, _ in items] for user, items in answers}
    with process_of(checkpoints("ADRRec")) as (process, url):
        load_test = Load(url, right)
        asyncio.run(load_test.run(100, lambda: process.send_signal(getattr(signal, name))))
        out, err = process.communicate(timeout=120)
    counts = load_test.counts
    assert process.returncode == 0, err
    assert counts["right"] >= 100
    assert counts["refused"] == CLIENTS
    # HTTP can't tell a client that wakes up late that its open connection closes just now: no part of an answer then.
    assert counts["wrong"] == counts["cut"] == 0
    assert counts["unanswered"] <= CLIENTS
    assert out == f"Stopped: {counts['right']:,} requests answered\n"
    assert err == ""

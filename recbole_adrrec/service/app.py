"""The application: ``/recommend`` and ``/health``, limits, and errors that say what to do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.options import suggestion
from recbole_adrrec.service.batches import BatchWorker, QueueFullError
from recbole_adrrec.service.options import ServiceOptions
from recbole_adrrec.service.questions import (
    MEANING,
    Answer,
    Query,
    Question,
    QuestionReader,
    UnknownUserError,
    answer,
    shown,
)
from recbole_adrrec.times import iso
from recbole_adrrec.tools.recommend import Recommender
from recbole_adrrec.version import __version__

BODY_SECONDS = 10
"""Longest time in which a body has to arrive."""

READ_AWAY = 16 * 1024 * 1024
"""Bytes beyond the limit that are read and dropped: a client that is still sending might not see the refusal."""

LONGEST_DETAIL = 500
"""Characters of an error's message."""


class Item(BaseModel):
    """An item with its score, which compares with others of the same user."""

    item: str
    score: float


class UserAnswer(BaseModel):
    """Items for a user, or for a history (``user`` is null then), best first."""

    user: str | None
    at: str
    items: list[Item]


class Answers(BaseModel):
    """Answers in the order of ``users``."""

    model: str
    dataset: str
    notes: list[str]
    users: list[UserAnswer]


class Health(BaseModel):
    """The service, its model and data."""

    status: str
    model: str
    dataset: str
    users: int
    items: int
    knows_query_time: bool
    waiting: int
    version: str


class Refusal(BaseModel):
    """Why a request was refused, and the remedy."""

    detail: str


MEANING_OF_STATUS = {
    400: "The body is no JSON",
    404: "A user is unknown",
    408: "The body took too long",
    413: "The body is too long",
    415: "The body isn't sent as JSON",
    422: "A field is wrong",
    503: "Too many questions wait; repeat after Retry-After",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": meaning} for status, meaning in MEANING_OF_STATUS.items()
}


class BodyLimit:
    """ASGI middleware that reads the body of a request before the application does, or refuses it by its length."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self.app = app
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await asyncio.wait_for(self._read(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            refusal = _refusal(408, f"body: it didn't arrive in {BODY_SECONDS} seconds; send it at once")
        else:
            if body is None:
                return None
            if len(body) <= self.max_body:
                return await self.app(scope, _replay(bytes(body), receive), send)
            refusal = _refusal(413, f"body: more than {self.max_body:,} bytes; send shorter lists")
        # What is left of the body isn't read.
        refusal.headers["Connection"] = "close"
        return await refusal(scope, receive, send)

    async def _read(self, receive: Receive) -> bytearray | None:
        """The body, or more than ``max_body`` bytes of a longer one; None if the client goes."""
        body, total = bytearray(), 0
        while total <= self.max_body + READ_AWAY:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            total += len(part)
            if len(body) <= self.max_body:
                body += part
            if not message.get("more_body"):
                break
        return body


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def make_app(recommender: Recommender, options: ServiceOptions) -> FastAPI:
    """The application of a model."""
    reader = QuestionReader(recommender, options)
    compute = partial(answer, recommender)
    facts = {"model": recommender.config["model"], "dataset": recommender.data.dataset}
    more_facts = {
        "users": recommender.n_users,
        "items": len(recommender.items),
        "knows_query_time": recommender.knows_query_time,
        "version": __version__,
    }

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.worker = BatchWorker(compute, options)
        yield
        await asyncio.to_thread(app.state.worker.close)

    app = FastAPI(
        title="recbole_adrrec",
        version=__version__,
        summary=f"Recommendations of {facts['model']}, trained on {facts['dataset']}",
        lifespan=lifespan,
    )
    app.state.stopping = False
    app.add_middleware(BodyLimit, max_body=options.max_body)
    _add_refusals(app)

    @app.post("/recommend", responses={200: {"model": Answers}, **REFUSALS})
    async def recommend(query: Query) -> JSONResponse:
        """Best items of users, or of a history, at a moment."""
        questions, notes = reader.read(query)
        answers = await asyncio.wrap_future(app.state.worker.submit(questions))
        users = [_user_answer(*pair) for pair in zip(questions, answers, strict=True)]
        return JSONResponse({**facts, "notes": notes, "users": users})

    @app.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> JSONResponse:
        """Readiness (status 200, else 503), model, data and version."""
        ready = app.state.worker.alive and not app.state.stopping
        status = {"status": "ready" if ready else "stopping", "waiting": app.state.worker.waiting}
        return JSONResponse({**status, **facts, **more_facts}, 200 if ready else 503)

    return app


def _user_answer(question: Question, items: Answer) -> dict[str, Any]:
    return {
        "user": question.name,
        "at": iso(question.at),
        "items": [{"item": item, "score": score} for item, score in items],
    }


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    # Lone surrogates, which JSON may hold, can't be sent as UTF-8.
    detail = detail.encode("ascii", "backslashreplace").decode() if not detail.isprintable() else detail
    if len(detail) > LONGEST_DETAIL:
        detail = detail[: LONGEST_DETAIL - 3] + "..."
    return JSONResponse({"detail": detail}, status, headers)


def _add_refusals(app: FastAPI) -> None:
    for error, status in ((UnknownUserError, 404), (DataError, 422), (OptionError, 422)):

        @app.exception_handler(error)
        async def refuse(request: Request, error: Exception, status: int = status) -> JSONResponse:
            return _refusal(status, str(error))

    @app.exception_handler(QueueFullError)
    async def refuse_more(request: Request, error: QueueFullError) -> JSONResponse:
        return _refusal(503, "too many questions wait; repeat the request in a second", {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place, value = first["loc"][1:], first.get("input")
        if first["type"] == "json_invalid":
            return _refusal(400, f"body: no JSON ({first['ctx']['error']} at character {place[0]}); correct it")
        if isinstance(value, bytes):
            return _refusal(415, "body: not sent as JSON; add the header Content-Type: application/json")
        if not place:
            return _refusal(
                422, f"body: {'nothing' if value is None else shown(value)}; give an object with users or history"
            )
        name = str(place[0])
        if first["type"] == "extra_forbidden":
            return _refusal(422, f"{shown(name)}: no such field{suggestion(name, MEANING)} ({', '.join(MEANING)})")
        where = name + "".join(f"[{part}]" for part in place[1:] if isinstance(part, int))
        return _refusal(422, f"{where}: {shown(value)} is wrong; {name} is {MEANING[name]}")

"""Batches of what waits, computed by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from recbole_adrrec.service.options import ServiceOptions
from recbole_adrrec.service.questions import Answer, Question


class QueueFullError(Exception):
    """As many questions wait as may."""


@dataclass(frozen=True)
class _Request:
    questions: Sequence[Question]
    future: Future[list[Answer]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class BatchWorker:
    """A thread that answers questions in batches, in the order of requests; ``compute`` gives an answer for each."""

    def __init__(self, compute: Callable[[Sequence[Question]], list[Answer]], options: ServiceOptions) -> None:
        self._compute = compute
        self._options = options
        self._requests: deque[_Request] = deque()
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions that wait."""
        return self._waiting

    @property
    def alive(self) -> bool:
        """True while questions are taken."""
        return self._thread.is_alive() and not self._closed

    def submit(self, questions: Sequence[Question]) -> Future[list[Answer]]:
        """A request's questions; their answers come together. Raises QueueFullError where they find no room."""
        with self._changed:
            if self._closed or self._waiting + len(questions) > self._options.queue:
                raise QueueFullError
            request = _Request(questions)
            self._requests.append(request)
            self._waiting += len(questions)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Take no more questions, answer those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        # Several processes use more processors better than several threads of one small batch.
        torch.set_num_threads(1)
        while (requests := self._next()) is not None:
            questions = [question for request in requests for question in request.questions]
            try:
                answers = iter(self._compute(questions) if questions else [])
                for request in requests:
                    request.future.set_result([next(answers) for _ in request.questions])
            except Exception as error:
                for request in requests:
                    if not request.future.done():
                        request.future.set_exception(error)

    def _next(self) -> list[_Request] | None:
        """The next batch, as soon as it is full or has waited; None once the worker is closed and all is answered."""
        size = self._options.batch_size
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            if not self._requests:
                return None
            if size > 1:
                left = self._requests[0].arrived + self._options.batch_wait / 1000 - time.monotonic()
                self._changed.wait_for(lambda: self._waiting >= size or self._closed, max(0, left))
            taken: list[_Request] = []
            count = 0
            while self._requests and (not taken or count + len(self._requests[0].questions) <= size):
                request = self._requests.popleft()
                self._waiting -= len(request.questions)
                if request.future.set_running_or_notify_cancel():
                    taken.append(request)
                    count += len(request.questions)
            return taken

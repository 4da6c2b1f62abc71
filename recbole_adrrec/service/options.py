"""Options of the service."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from recbole_adrrec.errors import OptionError

LONGEST_WAIT = 1000
"""Milliseconds."""


def _limit(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class ServiceOptions:
    """Batches and limits; raises OptionError where one is out of range, or the queue can't take the largest request."""

    batch_size: int = _limit(64, "users computed together; 1: no batches")
    batch_wait: float = _limit(0.0, "milliseconds to wait for others while the model is free")
    queue: int = _limit(512, "users that may wait; more are refused with 503")
    max_users: int = _limit(100, "users of a request")
    max_events: int = _limit(1000, "events of a history")
    max_top: int = _limit(100, "items for each user")
    max_body: int = _limit(256 * 1024, "bytes of a request's body")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "batch_wait" and value < 1:
                raise OptionError(f"--{each.name}: {value} is not a whole number of at least 1")
        if not 0 <= self.batch_wait <= LONGEST_WAIT:
            raise OptionError(
                f"--batch_wait: {self.batch_wait} is not a number of milliseconds from 0 to {LONGEST_WAIT}"
            )
        if self.max_users > self.queue:
            raise OptionError(f"--queue: {self.queue} is less than --max_users, {self.max_users}; give at least that")

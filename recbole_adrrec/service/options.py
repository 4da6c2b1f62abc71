"""Options of the service."""

from __future__ import annotations

from dataclasses import dataclass, fields

from recbole_adrrec.errors import OptionError

LONGEST_WAIT = 1000
"""Milliseconds."""


@dataclass(frozen=True)
class ServiceOptions:
    """Batches and limits.

    Attributes
    ----------
    batch_size : int
        Users computed together; those of one request always are. 1 computes each request by itself.
    batch_wait : float
        Milliseconds that a question waits for others while the model is free.
    queue : int
        Users that may wait in all.
    max_users : int
        Users of a request.
    max_events : int
        Events of a history.
    max_top : int
        Items for each user.
    max_body : int
        Bytes of a request's body.

    Raises
    ------
    OptionError
        One is out of range, or the queue has no room for the largest request.
    """

    batch_size: int = 64
    batch_wait: float = 0.0
    queue: int = 512
    max_users: int = 100
    max_events: int = 1000
    max_top: int = 100
    max_body: int = 256 * 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "batch_wait" and value < 1:
                raise OptionError(f"--{field.name}: {value} is not a whole number of at least 1")
        if not 0 <= self.batch_wait <= LONGEST_WAIT:
            raise OptionError(
                f"--batch_wait: {self.batch_wait} is not a number of milliseconds from 0 to {LONGEST_WAIT}"
            )
        if self.max_users > self.queue:
            raise OptionError(f"--queue: {self.queue} is less than --max_users, {self.max_users}; give at least that")

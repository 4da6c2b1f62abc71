"""The server process: one address, one application, and a stop that leaves no accepted request without its answer."""

from __future__ import annotations

import asyncio
import socket
import time

import uvicorn
from fastapi import FastAPI

from recbole_adrrec.errors import OptionError

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than reverse proxies keep theirs, who then close them."""

LAST_REQUESTS = 1.0
"""Seconds in which connections that are open at a stop may bring further requests, each answered with a farewell."""

LONGEST_STOP = 20
"""Seconds after which a stop waits no longer for clients that send or read slowly."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which refuses connections until it is served; raises OptionError where there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"--host, --port: {host} {port}: {reason}; choose another port (0 finds a free one) or an address of this "
            "machine"
        ) from error
    return made


class Server(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT, then answers all requests that were accepted."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LONGEST_STOP,
            )
        )

    @property
    def answered(self) -> int:
        """Requests that were answered, whatever the status."""
        return self.server_state.total_requests

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, close open connections with their next answer, and wait for what was accepted."""
        self.app.state.stopping = True
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        end = time.monotonic() + LAST_REQUESTS
        while self.server_state.connections and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

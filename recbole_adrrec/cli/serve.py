"""``serve``: recommendations over HTTP, from a checkpoint alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from recbole_adrrec.cli.commands import add_checkpoint, add_device
from recbole_adrrec.errors import OptionError, require
from recbole_adrrec.service.options import ServiceOptions

EXAMPLES = """examples:
  serve -c saved/ADRRec.pth --port 8000
  curl localhost:8000/recommend -H 'Content-Type: application/json' -d '{"users": ["196"], "top": 5}'
  curl localhost:8000/health

http://127.0.0.1:8000/docs shows the fields of requests and answers; docs/serving.md says more. SIGTERM or Ctrl-C
stops it: all requests that were accepted are answered first. Exit code: 0 stopped so, 2 something given is wrong.
Needs pip install 'recbole_adrrec[serve]'."""


def add_arguments(add: Any) -> None:
    """The arguments of ``serve``."""
    add_checkpoint(add)
    add("--port", "-p", type=int, default=8000, help="default: 8000; 0 finds a free one")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add_device(add)
    for field in fields(ServiceOptions):
        meaning = f"{field.metadata['meaning']} (default: {field.default:g})"
        add(f"--{field.name}", type=type(field.default), default=field.default, help=meaning)


def run(given: Any) -> int:
    """Serve until stopped."""
    require(("fastapi", "uvicorn"), "serve", "serve")
    if not 0 <= given.port < 2**16:
        raise OptionError(f"--port: {given.port} is not a number from 0 to 65535")
    options = ServiceOptions(**{field.name: getattr(given, field.name) for field in fields(ServiceOptions)})
    from recbole_adrrec.service.server import Server, bind

    with bind(given.host, given.port) as listener:
        import recbole_adrrec

        recommender = recbole_adrrec.load(given.checkpoint, given.device)
        from recbole_adrrec.service.app import make_app

        server = Server(make_app(recommender, options))
        listener.listen()  # who connects from now on is served as soon as the server runs
        host, port = listener.getsockname()[:2]
        model, data = recommender.config["model"], recommender.data.dataset
        print(
            f"Serving {model} of {data} ({recommender.n_users:,} users, {len(recommender.items):,} items) on "
            f"http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C stops",
            flush=True,
        )
        try:
            server.run([listener])
        except KeyboardInterrupt:
            # uvicorn raises the signal again after an orderly stop.
            if server.force_exit or not server.started:
                raise
    print(f"Stopped: {server.answered:,} requests answered", flush=True)
    return 0

"""``serve``: recommendations over HTTP, from a checkpoint alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_adrrec.cli.commands import Parser, guarded
from recbole_adrrec.errors import OptionError
from recbole_adrrec.service.options import ServiceOptions

PACKAGES = ("fastapi", "uvicorn")

DEFAULTS = ServiceOptions()

OPTIONS = {
    "batch_size": "users computed together; 1: no batches",
    "batch_wait": "milliseconds to wait for others while the model is free",
    "queue": "users that may wait; more are refused with 503",
    "max_users": "users of a request",
    "max_events": "events of a history",
    "max_top": "items for each user",
    "max_body": "bytes of a request's body",
}

EXAMPLES = """examples:
  serve -c saved/ADRRec.pth --port 8000
  curl localhost:8000/recommend -H 'Content-Type: application/json' -d '{"users": ["196"], "top": 5}'
  curl localhost:8000/health

http://127.0.0.1:8000/docs shows the fields of requests and answers; docs/serving.md says more. SIGTERM or Ctrl-C
stops it: all requests that were accepted are answered first. Exit code: 0 stopped so, 2 something given is wrong.
Needs pip install 'recbole_adrrec[serve]'."""


def parser() -> Parser:
    """The arguments of ``serve``."""
    made = Parser("serve", "Answer recommendation requests over HTTP.", EXAMPLES)
    add: Any = made.add_argument
    add("--checkpoint", "-c", type=Path, required=True, help="a model saved by training, as saved/ADRRec-....pth")
    add("--port", "-p", type=int, default=8000, help="default: 8000; 0 finds a free one")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--device", default="cpu", help="where to compute, as cpu or cuda (default: cpu)")
    for name, meaning in OPTIONS.items():
        default = getattr(DEFAULTS, name)
        add(f"--{name}", type=type(default), default=default, help=f"{meaning} (default: {default:g})")
    add("--debug", action="store_true", help="show where an error came from")
    return made


def _serve(given: Any) -> int:
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise OptionError(f"serve needs {' and '.join(missing)}: pip install 'recbole_adrrec[serve]'")
    if not 0 <= given.port < 2**16:
        raise OptionError(f"--port: {given.port} is not a number from 0 to 65535")
    options = ServiceOptions(**{name: getattr(given, name) for name in OPTIONS})
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


def main(argv: Sequence[str]) -> int:
    """Run the command with the arguments after its name, and give the exit code."""
    return guarded(lambda: _serve(parser().parse_args(list(argv))), "--debug" in argv)

"""Seconds to the best validation score: ``efficiency.py --to_best``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from measure.tables import medians, text
from measure.training import Stages, config_of, prepare, start

if TYPE_CHECKING:
    from measure.session import Session

COLUMNS = {
    "best_s": "s to the best score",
    "best_epoch": "epoch of it",
    "best_valid": "validation NDCG@10",
    "total_s": "s to early stopping",
}


def report(session: Session) -> str:
    """Train each variant to early stopping; table in Markdown."""
    arguments = session.arguments
    variants = [one for one in session.variants(("RecBole BERT4Rec", "MEANTIME")) if one.source != "peer"]
    jobs = [
        session.training_job(
            "to_best", variant, 0, function="measure.to_best:measure", epochs=arguments.most_epochs, steps=0
        )
        for variant in variants
    ]
    found = session.measure(jobs, "to the best score")
    rows = medians(found, [variant.name for variant in variants], [*COLUMNS, "epochs"])
    session.store.note("to_best", rows)
    return f"### Time to the best validation score on {arguments.dataset}\n\n{text(rows, COLUMNS)}"


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train to early stopping, for ``epochs`` at most, and note when each validation score was reached.

    Given is what :func:`measure.training.measure` takes. Found are ``best_s`` and ``best_epoch`` (seconds of training
    and validation up to the best score), ``best_valid``, ``total_s``, ``epochs`` run, and ``curve`` (``[seconds,
    score]`` after each epoch).
    """
    start(given["source"])
    run = prepare(config_of(given, epochs=given["epochs"]), Stages(), seed_again=True)
    curve: list[tuple[float, float]] = []
    begin = time.perf_counter()

    def note(epoch: int, score: float) -> None:
        curve.append((time.perf_counter() - begin, float(score)))

    run.trainer.fit(run.train, run.valid, saved=False, show_progress=False, callback_fn=note)
    best = max(range(len(curve)), key=lambda epoch: curve[epoch][1])
    return {
        "best_s": curve[best][0],
        "best_epoch": best + 1,
        "best_valid": curve[best][1],
        "total_s": curve[-1][0],
        "epochs": len(curve),
        "curve": curve,
    }

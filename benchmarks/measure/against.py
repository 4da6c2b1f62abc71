"""This checkout against another commit, with the same arithmetic: ``efficiency.py --against COMMIT``.

Both packages are copied into folders of their own, from which the children import them; what is installed, or edited
meanwhile, plays no part. The code that measures is this checkout's for both.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure.children import BENCHMARKS, call
from measure.ledger import Job
from measure.settings import common
from measure.tables import markdown, median, shown
from measure.variants import CE, Variant
from recbole_adrrec.options import SASREC_BLOCK

ROOT = BENCHMARKS.parent
PARTS = ("recbole_adrrec", "properties")
"""What a package is made of, in a checkout."""

SIDES = BEFORE, HERE = "before", "here"

SIZES: dict[str, Any] = {
    **CE,
    "train_rows": "sequence",
    "n_layers": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "hidden_dropout_prob": 0.2,
    "attn_dropout_prob": 0.2,
    "label_smoothing": 0.0,
    "trend_rank": 0,
}

SASREC: dict[str, Any] = {
    **SIZES,
    "backbone": "sasrec",
    "refinement": "none",
    "n_heads": 2,
    **SASREC_BLOCK,
}
"""RecBole's SASRec."""

ONE_HEAD_EACH: dict[str, Any] = {
    **SIZES,
    "mixture": "heads",
    "absolute_kernels": ["position", "day"],
    "relative_kernels": ["sinusoid", "distance"],
    "time_unit": 60,
    "kernel_freq": 10000,
    "lni_weight": 0.0,
    "norm_order": "pre",
    "drop_residual": True,
    "input_position": False,
    "input_norm": False,
    "input_scale": False,
    "final_norm": False,
    "activation": "gelu_tanh",
    "inner_dropout_prob": 0.2,
    "item_head": "projected",
    "layer_norm_eps": 1e-5,
}
"""MEANTIME's block with one head for each kernel, as ADRRec had it up to version 0.2, without noise injection."""

ROWS: tuple[Variant, ...] = (
    Variant("SASRec, windows", "ours", "AWRSR", SASREC),
    Variant("ADRRec, one head for each kernel", "ours", "ADRRec", ONE_HEAD_EACH),
)
"""Measured in both packages."""

DEFAULTS = Variant("ADRRec, defaults", "ours", "ADRRec", dict(CE))
"""Measured here alone, and held against the last of ``ROWS`` before."""

PEERS = ("RecTools SASRec",)

PEER_STEPS = 20
"""Of each epoch of a peer: all its steps are alike, and a whole epoch of short histories takes it minutes."""

DROPOUTS = ("hidden_dropout_prob", "attn_dropout_prob", "inner_dropout_prob")


@dataclass(frozen=True)
class Tree:
    """A copy of a package.

    Attributes
    ----------
    name : str
        ``before`` or ``here``.
    folder : Path
        What stands on the children's path.
    digest : str
        Of its files.
    """

    name: str
    folder: Path
    digest: str


def tree_of(commit: str | None, folder: Path) -> Tree:
    """Copy the package of a commit, or this checkout's as it is now.

    Raises
    ------
    ValueError
        There is no such commit, or no git here.
    """
    folder.mkdir(parents=True)
    if commit is None:
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        try:
            done = subprocess.run(["git", "archive", commit, *PARTS], cwd=ROOT, capture_output=True)
        except OSError as error:
            raise ValueError(f"--against: {commit} can't be read from git ({error})") from error
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()
            raise ValueError(f"--against: {commit} is no commit of {ROOT} that holds {' and '.join(PARTS)} ({reason})")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
    # An installed package leads Python to the defaults of its own checkout, unless they are found in the package.
    (folder / "properties").rename(folder / "recbole_adrrec" / "properties")
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return Tree(BEFORE if commit else HERE, folder, digest.hexdigest()[:12])


def readable(given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The options that a package has; RecBole's own (``CE``) always."""
    return {name: value for name, value in given.items() if name in known or name in CE}


def report(session: Any) -> str:
    """Measure both packages by turns.

    Parameters
    ----------
    session : efficiency.Session
        Its arguments say which commit, data and how often.

    Returns
    -------
    str
        Tables in Markdown.

    Raises
    ------
    ValueError
        As of :func:`tree_of`.
    """
    arguments = session.arguments
    trees = [tree_of(arguments.against, session.scratch / BEFORE), tree_of(None, session.scratch / HERE)]
    jobs, left_out = [], {}
    known = {
        (tree.name, model): call(
            "measure.training:known", {"tree": str(tree.folder), "model": model}, threads=1, tree=tree.folder
        )["options"]
        for tree in trees
        for model in sorted({row.model for row in ROWS})
    }
    peers = [variant for variant in session.variants(PEERS) if variant.source == "peer"]
    for run in range(arguments.runs):
        for row in (*ROWS, DEFAULTS):
            # Every other run the other way round, so that being second favours nobody.
            for tree in trees if run % 2 == 0 else reversed(trees):
                if row is DEFAULTS and tree.name == BEFORE:
                    continue
                given = dict(row.options)
                if arguments.dropout is not None and row is not DEFAULTS:
                    given |= dict.fromkeys(DROPOUTS, arguments.dropout)
                    given |= {"inner_dropout_prob": given["inner_dropout_prob"] if row.model == "ADRRec" else 0.0}
                taken = readable(given, known[tree.name, row.model])
                left_out[row.name, tree.name] = sorted(set(given) - set(taken))
                jobs.append(_job(session, row, tree, taken, run))
        for peer in peers:
            steps = arguments.steps or PEER_STEPS
            jobs.append(session.training_job("against", peer, run, arguments.dataset, arguments.data_path, steps=steps))
    done = session.do(jobs, f"against {arguments.against}")
    found = table(done)
    session.ledger.note("against", found)
    title = f"### This checkout against {arguments.against}, {arguments.dataset}"
    parts = [title, _settings(session, trees), table_text(found, arguments.against)]
    if peers:
        beside = [one for one in done if one["variant"] in (peers[0].name, ROWS[0].name)]
        parts.append(peer_text(beside, peers[0].name))
    lines = [f"- {name}, {where}: {', '.join(names)}" for (name, where), names in left_out.items() if names]
    if lines:
        parts.append("Options that a package doesn't have, and that were left out there:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _settings(session: Any, trees: Sequence[Tree]) -> str:
    codes = ", ".join(f"{tree.name} {tree.digest}" for tree in trees)
    dropout = "" if session.arguments.dropout is None else f"dropout {session.arguments.dropout:g}; "
    return (
        f"{session.settings()}; {dropout}medians of the epochs after the first, validation users ranked; ratios: "
        f"median over the runs of the pairs measured one after the other; code: {codes}"
    )


def _job(session: Any, row: Variant, tree: Tree, options: Mapping[str, Any], run: int) -> Job:
    """One training in one package; where its copy lies is no part of what is kept."""
    arguments = session.arguments
    data = common(arguments.dataset, arguments.data_path, arguments.length, arguments.batch, arguments.device)
    given = {
        "source": row.source,
        "model": row.model,
        "dataset": arguments.dataset,
        "epochs": arguments.epochs,
        "steps": arguments.steps,
        "evaluate": True,
        "ranked": "valid",
        "threads": arguments.threads,
        "options": {**data, **options},
    }
    child = {**given, "tree": str(tree.folder)}

    def work() -> dict[str, Any]:
        return call(
            "measure.training:measure", child, threads=arguments.threads, timeout=arguments.timeout, tree=tree.folder
        )

    kept = {name: value for name, value in given["options"].items() if name != "data_path"}
    return Job("against", row.name, {**given, "options": kept, "tree": tree.name, "code": tree.digest}, run, work)


def epoch_seconds(result: Mapping[str, Any]) -> float:
    """Median of a run's epochs after the first; the first where it is the only one."""
    found = median(result["epoch_s"][1:] or result["epoch_s"])
    assert found is not None
    return found


def table(measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each of ``ROWS`` and ``DEFAULTS``.

    Keys: ``variant``, ``runs``, ``error``; for ``epoch_s`` and ``eval_s`` a mapping with ``before``, ``here`` (medians
    over runs) and ``ratio`` (median over the runs); ``loss``, ``metrics``, ``peak_mib`` with ``before`` and ``here``.
    """
    rows = []
    for row in (*ROWS, DEFAULTS):
        other = ROWS[-1] if row is DEFAULTS else row
        sides = {BEFORE: _by_run(measurements, other.name, BEFORE), HERE: _by_run(measurements, row.name, HERE)}
        pairs = sorted(set(sides[BEFORE]) & set(sides[HERE]))
        found: dict[str, Any] = {"variant": row.name, "runs": len(pairs), "error": None}
        if not pairs:
            names = (row.name, other.name)
            errors = [one["error"] for one in measurements if one["variant"] in names and one["error"]]
            rows.append({**found, "error": errors[-1] if errors else "not measured"})
            continue
        for key, of in (("epoch_s", epoch_seconds), ("eval_s", lambda result: float(result["eval_s"]))):
            values = {side: [of(results[run]) for run in pairs] for side, results in sides.items()}
            ratios = [here / before for before, here in zip(values[BEFORE], values[HERE], strict=True)]
            found[key] = {**{side: median(each) for side, each in values.items()}, "ratio": median(ratios)}
        for key in ("loss", "peak_mib"):
            found[key] = {side: median([results[run][key] for run in pairs]) for side, results in sides.items()}
        first = {side: results[pairs[0]]["metrics"] for side, results in sides.items()}
        found["metrics"] = {
            name: {side: median([results[run]["metrics"][name] for run in pairs]) for side, results in sides.items()}
            for name in first[HERE]
            if name in first[BEFORE]
        }
        rows.append(found)
    return rows


def _by_run(measurements: Sequence[Mapping[str, Any]], name: str, side: str) -> dict[int, Any]:
    return {
        one["run"]: one["result"]
        for one in measurements
        if one["variant"] == name and one["given"].get("tree") == side and one["result"] is not None
    }


def table_text(rows: Sequence[Mapping[str, Any]], commit: str) -> str:
    """Markdown of :func:`table`."""
    metrics = list(dict.fromkeys(name for row in rows if row["runs"] for name in row["metrics"]))
    head = ["", *(f"{what} {word}" for what in ("epoch s", "rank s") for word in (commit[:12], "here", "ratio"))]
    head += [f"{what} {word}" for what in ("loss", *metrics, "peak MiB") for word in (commit[:12], "here")]
    cells, failed = [], []
    for row in rows:
        if not row["runs"]:
            cells.append([row["variant"], *["–"] * len(head)])
            failed.append(f"- {row['variant']}: {row['error']}")
            continue
        numbers = [row[key][side] for key in ("epoch_s", "eval_s") for side in (BEFORE, HERE, "ratio")]
        figures = [row["loss"], *(row["metrics"].get(name, {}) for name in metrics)]
        agreeing = [
            "–" if (value := figure.get(side)) is None else f"{value:.4f}" for figure in figures for side in SIDES
        ]
        memory = [shown(row["peak_mib"][side]) for side in SIDES]
        cells.append([row["variant"], *map(shown, numbers), *agreeing, *memory, str(row["runs"])])
    text = markdown([*head, "runs"], cells)
    note = f"{DEFAULTS.name} is held against {ROWS[-1].name}, without noise injection, of {commit[:12]}."
    return "\n\n".join([text, note, *(["\n".join(failed)] if failed else [])])


def peer_text(measurements: Sequence[Mapping[str, Any]], peer: str) -> str:
    """Targets a second of SASRec here and of a peer, by turns in the same runs."""
    speeds: dict[str, list[float]] = {peer: [], ROWS[0].name: []}
    errors = []
    for one in measurements:
        if one["variant"] == ROWS[0].name and one["given"].get("tree") != HERE:
            continue
        if one["result"] is None:
            errors.append(f"- {one['variant']}: {one['error']}")
            continue
        # The peer leaves its first epoch out by itself.
        seconds = median(one["result"]["epoch_s"]) if one["variant"] == peer else epoch_seconds(one["result"])
        assert seconds is not None
        speeds[one["variant"]].append(one["result"]["targets"] / seconds)
    theirs, ours = median(speeds[peer]), median(speeds[ROWS[0].name])
    ratio = ours / theirs if ours and theirs else None
    rows = [[peer, shown(theirs), "1"], [f"{ROWS[0].name}, here", shown(ours), shown(ratio)]]
    text = markdown(["", "targets / s", "times"], rows)
    return "\n\n".join([text, *(["\n".join(dict.fromkeys(errors))] if errors else [])])

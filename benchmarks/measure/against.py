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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from measure.tables import Row, medians, text, values
from measure.variants import CE, Variant

if TYPE_CHECKING:
    from measure.session import Job, Session

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("recbole_adrrec", "properties")
"""Folders of a checkout that make up the package."""

BEFORE, HERE = "before", "here"

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

SASREC_BLOCK: dict[str, Any] = {
    "norm_order": "post",
    "drop_residual": False,
    "input_position": True,
    "input_norm": True,
    "input_scale": False,
    "final_norm": False,
    "activation": "gelu",
    "inner_dropout_prob": 0.0,
    "item_head": "plain",
    "layer_norm_eps": 1e-12,
}
"""The Transformer block of RecBole's SASRec, which is the default of ADRRec and AWRSR."""

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
    "day_spacing": None,
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

COLUMNS = {
    "later_epoch_s": "s / epoch",
    "epoch_ratio": "over before",
    "eval_s": "rank s",
    "eval_ratio": "over before's",
    "loss": "loss",
    "ndcg@10": "NDCG@10",
    "peak_mib": "peak MiB",
}


@dataclass(frozen=True)
class Tree:
    """A copy of a package: its ``folder``, the path of the children, and a digest of its files."""

    name: str
    folder: Path
    digest: str

    def options(self, model: str) -> set[str]:
        """Options that the package has for a model of its own."""
        files = [Path("overall.yaml"), Path("model", f"{model}.yaml")]
        texts = [(self.folder / "recbole_adrrec" / "properties" / file).read_text(encoding="utf-8") for file in files]
        return {option for each in texts for option in yaml.safe_load(each)}


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


def report(session: Session) -> str:
    """Measure both packages by turns; table in Markdown.

    Raises
    ------
    ValueError
        As of :func:`tree_of`.
    """
    arguments = session.arguments
    trees = [tree_of(arguments.against, session.scratch / BEFORE), tree_of(None, session.scratch / HERE)]
    jobs, left_out = [], {}
    for run in range(arguments.runs):
        for row in (*ROWS, DEFAULTS):
            # Every other run the other way round, so that being second favours nobody.
            for tree in trees if run % 2 == 0 else reversed(trees):
                if row is DEFAULTS and tree.name == BEFORE:
                    continue
                options, missing = options_for(row, tree, arguments.dropout)
                jobs.append(_job(session, row, tree, options, run))
                if missing:
                    left_out[f"{row.name}, {tree.name}"] = ", ".join(missing)
    rows = table(session.measure(jobs, f"against {arguments.against}"))
    session.store.note("against", rows)
    dropout = "" if arguments.dropout is None else f"dropout {arguments.dropout:g}; "
    codes = ", ".join(f"{tree.name} {tree.digest}" for tree in trees)
    parts = [
        f"### This checkout against {arguments.against}, {arguments.dataset}",
        f"{session.settings()}; {dropout}epochs after a run's first, validation users ranked; ratios: median over the "
        f"runs of the pairs measured one after the other; code: {codes}",
        text(rows, COLUMNS, {"loss": 5, "ndcg@10": 4}),
        f"Before: {arguments.against}. {DEFAULTS.name} is held against {ROWS[-1].name}, before.",
    ]
    if left_out:
        lines = [f"- {name}: {missing}" for name, missing in left_out.items()]
        parts.append("Options that a package doesn't have, and that were left out there:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def options_for(row: Variant, tree: Tree, dropout: float | None) -> tuple[dict[str, Any], list[str]]:
    """Options of a row that a package has (RecBole's own, ``CE``, always), and names of those that it lacks."""
    options = dict(row.options)
    if dropout is not None and row is not DEFAULTS:
        options |= {name: dropout for name in options if name.endswith("dropout_prob") and options[name]}
    known = tree.options(row.model) | set(CE)
    return {name: value for name, value in options.items() if name in known}, sorted(set(options) - known)


def _job(session: Session, row: Variant, tree: Tree, options: dict[str, Any], run: int) -> Job:
    given: dict[str, Any] = {
        "ranked": "valid",
        "options": {**session.options(), **options},
        "tree": tree.name,
        "code": tree.digest,
    }
    job = session.training_job("against", row, run, **given)
    job.places["tree_folder"] = str(tree.folder)
    job.call["tree"] = tree.folder
    return job


def table(measurements: Sequence[Row]) -> list[Row]:
    """One row for each of ``ROWS`` before and here, and one for ``DEFAULTS``.

    Medians of the keys of ``COLUMNS``; ``epoch_ratio`` and ``eval_ratio`` are medians over the runs that both sides
    have, in the rows of this checkout alone.
    """
    named = [{**one, "variant": f"{one['variant']}, {one['given']['tree']}"} for one in measurements]
    rows = []
    for row in (*ROWS, DEFAULTS):
        before, here = f"{(ROWS[-1] if row is DEFAULTS else row).name}, {BEFORE}", f"{row.name}, {HERE}"
        names = [here] if row is DEFAULTS else [before, here]
        rows += medians(named, names, [key for key in COLUMNS if not key.endswith("ratio")])
        rows[-1]["epoch_ratio"] = _paired_ratio(named, before, here, "later_epoch_s")
        rows[-1]["eval_ratio"] = _paired_ratio(named, before, here, "eval_s")
    return rows


def _paired_ratio(measurements: Sequence[Row], before: str, here: str, quantity: str) -> float | None:
    """Median over the runs that two rows share of the second's quantity over the first's."""
    found = {(one["variant"], one["run"]): values(one["result"], quantity)[0] for one in measurements if one["result"]}
    ratios = [
        found[here, run] / value for (name, run), value in found.items() if name == before and (here, run) in found
    ]
    return float(np.median(ratios)) if ratios else None

"""Quality of training rows: one row a target (``prefix``) against one pass a user (``sequence``).

Trains models both ways on the first users of ml-100k, with several seeds, to early stopping, and compares NDCG@10 user
by user. A run that was finished is kept (one JSON file each) and not repeated, so that the command can be stopped and
given again.

    python benchmarks/rows.py --out results/rows
    python benchmarks/rows.py --out results/rows-all --users 0 --seeds 2020
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from measure.children import ChildError, call
from measure.store import insert, read_json, write_json, write_text
from tqdm import tqdm

MODELS: dict[str, dict[str, Any]] = {
    "ADRRec without LNI": {"model": "ADRRec", "lni_weight": 0},
    "AWRSR without refinement (SASRec)": {"model": "AWRSR", "backbone": "sasrec", "refinement": "none"},
    "ADRRec": {"model": "ADRRec"},
}
"""Models by the names shown, each with its options. The noise of LNI doubles the time, so the first two are run unless
others are named."""

ROWS = ("prefix", "sequence")


def subset(folder: Path, users: int) -> tuple[str, Path]:
    """Write the first users that ml-100k's file names as a data set of their own.

    Parameters
    ----------
    folder : Path
        Where the data set is put.
    users : int
        How many; 0 for all.

    Returns
    -------
    str, Path
        The data set's name and the folder that holds it.
    """
    name = f"ml-100k-{users or 'all'}-users"
    path = folder / name / f"{name}.inter"
    if not path.exists():
        import recbole

        source = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
        head, *lines = source.read_text().splitlines()
        first = list(dict.fromkeys(line.split("\t", 1)[0] for line in lines))
        kept = set(first[: users or None])
        write_text(path, "\n".join([head, *(line for line in lines if line.split("\t", 1)[0] in kept)]) + "\n")
    return name, folder


def plan(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs, those of one seed together: ``id`` and what :func:`measure.quality.train_and_score` takes."""
    name, folder = subset(arguments.out / "data", arguments.users)
    runs = []
    for seed, label, rows in itertools.product(arguments.seeds, arguments.models, arguments.rows):
        options = {
            **MODELS[label],
            "train_rows": rows,
            "seed": seed,
            "data_path": str(folder.resolve()),
            "MAX_ITEM_LIST_LENGTH": arguments.length,
            "train_batch_size": arguments.batch,
            "epochs": arguments.epochs,
            "stopping_step": arguments.patience,
        }
        model = options.pop("model")
        runs.append(
            {
                "id": f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', label).strip('-')}-{rows}-s{seed}",
                "label": label,
                "rows": rows,
                "seed": seed,
                "model": model,
                "dataset": name,
                "settings_of": "ml-100k",
                "options": options,
            }
        )
    return runs


def run_all(runs: list[dict[str, Any]], folder: Path, jobs: int, threads: int) -> list[str]:
    """Do the runs that have no result yet.

    Returns
    -------
    list of str
        What failed, a line each.
    """
    missing = [run for run in runs if not done(folder, run)]
    failed = []
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(runs), initial=len(runs) - len(missing), desc="runs", unit="run") as bar,
    ):
        running = {pool.submit(call, "measure.quality:train_and_score", run, threads=threads): run for run in missing}
        try:
            for future in as_completed(running):
                run = running[future]
                try:
                    write_json(path_of(folder, run), {**run, **future.result()})
                except ChildError as error:
                    failed.append(f"{run['id']}: {error}")
                bar.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def path_of(folder: Path, run: dict[str, Any]) -> Path:
    """The file of a run's result."""
    return folder / f"{run['id']}.json"


def done(folder: Path, run: dict[str, Any]) -> bool:
    """Whether a result of the same run, options and all, is there."""
    found = read_json(path_of(folder, run))
    return found is not None and all(found.get(key) == value for key, value in run.items())


def compare(results: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Rows by sequence less rows by prefix, of one model, on ``valid`` or ``test``.

    Users are paired, each with the mean over the seeds that both kinds of rows have. The standard error is that of the
    mean over users.
    """
    scores = {rows: {run["seed"]: run for run in results if run["rows"] == rows} for rows in ROWS}
    seeds = sorted(set(scores["prefix"]) & set(scores["sequence"]))
    if not seeds:
        return {}
    users = scores["prefix"][seeds[0]]["users"]
    by_user = {}
    for rows in ROWS:
        arrays = []
        for seed in seeds:
            place = {user: at for at, user in enumerate(scores[rows][seed]["users"])}
            arrays.append(np.array(scores[rows][seed][part])[[place[user] for user in users]])
        by_user[rows] = np.stack(arrays)  # [seeds, users]
    difference = (by_user["sequence"] - by_user["prefix"]).mean(0)
    means = {rows: by_user[rows].mean(1) for rows in ROWS}
    spread = {rows: float(means[rows].std(ddof=1)) if len(seeds) > 1 else None for rows in ROWS}
    return {
        "seeds": seeds,
        "users": len(users),
        "mean": {rows: float(means[rows].mean()) for rows in ROWS},
        "sd": spread,
        "difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / np.sqrt(len(users))),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each model and part of the data."""
    lines = [
        "| model | part | prefix, mean (sd over seeds) | sequence, mean (sd over seeds) | sequence - prefix "
        "(standard error over users) | seeds, users | best epoch, prefix | best epoch, sequence | training s, prefix | "
        "training s, sequence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label in dict.fromkeys(run["label"] for run in results):
        of_model = [run for run in results if run["label"] == label]
        for part in ("valid", "test"):
            found = compare(of_model, part)
            if not found:
                continue
            sides = []
            for rows in ROWS:
                sd = found["sd"][rows]
                sides.append(f"{found['mean'][rows]:.4f} ({'one seed' if sd is None else f'{sd:.4f}'})")
            both = [[run for run in of_model if run["rows"] == rows and run["seed"] in found["seeds"]] for rows in ROWS]
            best = [", ".join(str(run["best_epoch"]) for run in runs) for runs in both]
            took = [f"{np.median([run['train_s'] for run in runs]):.0f}" for runs in both]
            difference = f"{found['difference']:+.4f} ({found['standard_error']:.4f})"
            many = f"{len(found['seeds'])}, {found['users']}"
            lines.append("| " + " | ".join([label, part, *sides, difference, many, *best, *took]) + " |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/rows"), help="folder of the results")
    parser.add_argument("--users", type=int, default=150, help="first users of ml-100k; 0: all (default 150)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(MODELS),
        default=list(MODELS)[:2],
        metavar="LABEL",
        help=f"of {', '.join(repr(label) for label in MODELS)} (default: the first two)",
    )
    parser.add_argument("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH (default 50)")
    parser.add_argument("--batch", type=int, default=128, help="targets of a training step (default 128)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=200, help="at most so many (default 200)")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better score (default 10)")
    parser.add_argument("--docs", type=Path, help="Markdown file with marks: the table replaces what is there")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default 1)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing and print the table.

    Returns
    -------
    int
        0, or 1 if a run failed.
    """
    arguments = parse(argv)
    runs = plan(arguments)
    folder = arguments.out / "runs"
    try:
        failed = run_all(runs, folder, arguments.jobs, arguments.threads)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished runs are in {folder}, the same command goes on from there", file=sys.stderr)
        return 130
    results = [{**read_json(path_of(folder, run))} for run in runs if done(folder, run)]
    text = table(results)
    comparisons = {
        label: {part: compare([run for run in results if run["label"] == label], part) for part in ("valid", "test")}
        for label in dict.fromkeys(run["label"] for run in results)
    }
    write_json(arguments.out / "rows.json", {"format": 1, "metric": "ndcg@10", "models": comparisons})
    write_text(arguments.out / "rows.md", text + "\n")
    if arguments.docs:
        insert(arguments.docs, "rows", text)
    print(text)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

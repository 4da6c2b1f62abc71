"""Results folders as a study leaves them, made of random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from engine.store import write_json
from study import report
from study.measurements import path_of

LEAVE_ONE_OUT = {"split": "leave_one_out", "candidates": "full", "seen": "all"}
HARDWARE = {"cpu": "Simulated CPU", "cores": 2, "gpu": None, "ram_gib": 23.4}
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "recbole": "1.2.1", "recbole_adrrec": "0.2.0"}
SPLIT = {
    "train_before": 1_000_000_000,
    "test_from": 1_100_000_000,
    "events": {"train": 9, "valid": 8, "test": 7},
    "cold_items": 11,
    "cold_item_events": {"train": 0, "valid": 1, "test": 12},
    "cold_items_are": "kept",
    "cold_users": 13,
    "cold_user_events": {"train": 0, "valid": 1, "test": 14},
    "cold_users_are": "dropped",
}
GAINS = np.concatenate([[0.0], 1 / np.log2(np.arange(2, 12))])


def write_run(
    folder,
    label,
    seed,
    model=None,
    dataset="simulated",
    shift=0.0,
    n_users=300,
    protocol=LEAVE_ONE_OUT,
    query_time=False,
    options=None,
    error=None,
    valid=None,
    users=None,
    metrics=("ndcg@10", "recall@10"),
):
    """Write one run whose users' values are drawn alike but for ``shift``; give its id."""
    drawn = np.random.default_rng([seed, 99])
    hits = drawn.random((1, n_users)) * 14
    own = np.random.default_rng([seed, *label.encode()])
    place = np.floor(np.maximum(0, hits - 4 + own.normal(0, 1.5, (len(metrics), n_users)) + 10 * shift)).astype(int)
    values = GAINS[::-1][np.clip(place, 0, 10)] * (place > 0)
    listed = "-".join(protocol.values())
    name = f"{dataset}-{label}-{listed}-s{seed}".replace(" ", "_").replace("/", "_")
    facts = {
        "format": 1,
        "study": "simulated",
        "label": label,
        "model": model or label.split()[0],
        "dataset": dataset,
        "seed": seed,
        "protocol": protocol,
        "options": options or {},
        "command": "python benchmarks/compare.py --models ADRRec,SASRec --seeds 3",
        "commit": "0123abc",
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "started": "2026-01-01T00:00:00+00:00",
        "wall_s": 61.0 + seed,
        "query_time": query_time,
        "status": "failed" if error else "done",
    }
    runs = Path(folder) / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    if error:
        facts["error"] = error
    else:
        means = {metric: float(row.mean()) for metric, row in zip(metrics, values, strict=True)}
        scores = [means[metrics[0]] * (1 - 0.8 * 0.6**epoch) for epoch in range(6)]
        facts |= {
            "train_s": 50.0 + seed,
            "epochs": 6,
            "best_epoch": 6,
            "best_valid": means[metrics[0]] if valid is None else valid,
            "valid_metric": "NDCG@10",
            "n_parameters": 123456,
            "metrics": means,
            "data": {
                "items": 1234,
                "train_targets": 5000,
                "test_rows": n_users,
                "test_users": n_users,
                "test_targets_never_trained": 7,
                "test_targets_met_before": 3,
                "split": SPLIT if protocol["split"] == "temporal" else None,
            },
            "saved": None,
            "curve": [
                {
                    "epoch": epoch,
                    "train_s": 10.0 * (epoch + 1) * (1 + 0.2 * len(label)),
                    "loss": 7 - epoch,
                    "valid": score,
                }
                for epoch, score in enumerate(scores)
            ],
        }
        users = np.array([f"u{number}" for number in range(n_users)]) if users is None else np.asarray(users)
        np.savez(runs / f"{name}.npz", users=users, **dict(zip(metrics, values, strict=True)))
    (runs / f"{name}.json").write_text(json.dumps(facts))
    return name


def write_settings(folder, **settings):
    """Write ``report.json``."""
    (Path(folder) / "report.json").write_text(json.dumps(settings))


def write_measured(folder, run_id, scale=1.0, seed=0):
    """Write measurements of a run that was written before."""
    rng = np.random.default_rng(seed)
    robustness = [
        {"kind": kind, "share": share, "clean": 0.1, "value": 0.1 * (1 - scale * share * weight), "low": None,
         "high": None, "drop": scale * share * weight + rng.normal(0, 0.01)}
        for kind, weight in (("replace", 0.9), ("drop", 0.5), ("jitter", 0.2), ("noise", 0.1))
        for share in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]  # fmt: skip
    heads = [
        {"layer": layer, "head": head, "kind": kind, "value": 0.1, "drop": drop, "entropy": entropy}
        for layer in (1, 2)
        for head, kind, drop, entropy in (
            ("position", "absolute", 0.2, 0.7), ("day", "absolute", 0.05, 0.9),
            ("sinusoid", "relative", -0.02, 0.5), ("distance", "relative", 0.4, 0.3),
        )
    ]  # fmt: skip
    command = "python benchmarks/ablate.py --measure"
    facts = {"run": run_id, "metric": "ndcg@10", "command": command, "wall_s": 12.0}
    write_json(path_of(Path(folder), run_id), {**facts, "robustness": robustness, "heads": heads})


def write_study(folder):
    """A folder with some of everything: two protocols, an ablation, failures, gaps, measurements."""
    sampled = {"split": "leave_one_out", "candidates": "pop100", "seen": "all"}
    for seed in (1, 2, 3):
        for label, shift in (("ADRRec", 0.3), ("AWRSR", 0.03), ("SASRec", 0.0), ("BERT4Rec", -0.2)):
            name = write_run(folder, label, seed, shift=shift)
            if label in ("ADRRec", "SASRec", "AWRSR"):
                write_measured(folder, name, scale=1.0 if label == "ADRRec" else 1.4, seed=seed)
        for label, shift in (("ADRRec", 0.6), ("SASRec", 0.5)):
            write_run(folder, label, seed, shift=shift, protocol=sampled)
        write_run(folder, "MEANTIME", seed, shift=0.4, query_time=True)
        for label, shift in (("ADRRec -day", 0.29), ("ADRRec -position", 0.05), ("ADRRec -LNI", 0.2)):
            write_run(folder, label, seed, shift=shift)
        for length in (10, 50):
            write_run(
                folder, f"ADRRec length {length}", seed, shift=length / 200, options={"MAX_ITEM_LIST_LENGTH": length}
            )
    write_run(folder, "STOSA", 1, shift=0.01)
    write_run(folder, "STOSA", 2, error="Traceback\nRuntimeError: out of_memory & more | 50 %")
    variants = ["ADRRec -day", "ADRRec -position", "ADRRec -LNI", "ADRRec length 10", "ADRRec length 50"]
    write_settings(
        folder,
        title="A simulated study",
        references=dict.fromkeys(variants, "ADRRec"),
        groups={"Kernels and noise": ["ADRRec", *variants[:3]], "Length": variants[3:]},
        notes=["Random numbers; nothing was trained."],
    )


_REPORTED = []


def reported_study(tmp_path_factory):
    """A simulated study and its report's files, drawn once in a session."""
    if not _REPORTED:
        folder = tmp_path_factory.mktemp("study")
        write_study(folder)
        _REPORTED.append((folder, report.write(folder)))
    return _REPORTED[0]

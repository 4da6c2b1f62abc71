"""A model updated on the weeks after its training, beside one trained anew: its share of the gain, and its steps.

ml-100k is cut at two moments, ``--share`` of its time and ``--weeks`` later. Every event after the second one is
predicted from all events before it, by three models of each seed:

not updated
    trained to early stopping on what lay before the first moment; items that came later have the rows that
    ``init_from`` gives them, and no step is trained;
anew
    trained to early stopping on what lay before the second moment;
updated
    the first, trained by ``init_from`` on the data of the second for a tenth of the epochs that the second ran.

Validation takes the ``--days`` before each moment. Items first met in validation or test are left out.

    python benchmarks/update.py --seeds 2020 2021 2022 --json update.json
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from engine.provenance import hardware, versions
from engine.store import write_json
from measure.tables import markdown
from tqdm import tqdm

from recbole_adrrec.times import SECONDS_A_DAY, iso

METRIC = "ndcg@10"
PART = 10
"""An update has one step for so many of training anew."""


@dataclass(frozen=True)
class Outcome:
    """A trained model: its file, test NDCG@10, epochs run, the best of them, and steps run."""

    file: str
    score: float
    epochs: int
    best_epoch: int
    steps: int


def moments(share: float, weeks: float) -> tuple[int, int]:
    """The two cuts of ml-100k, in seconds since 1970."""
    import pandas as pd
    import recbole

    file = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    times = pd.read_csv(file, sep="\t")["timestamp:float"]
    first = int(times.min() + share * (times.max() - times.min()))
    return first, int(first + weeks * 7 * SECONDS_A_DAY)


def train(arguments: argparse.Namespace, folder: Path, cut: int, days: float, seed: int, **options: Any) -> Outcome:
    """Train on the events before ``days`` before a cut, validate up to the cut, and test on all events after it."""
    recbole = importlib.import_module("recbole.quick_start.quick_start")
    split = {"times": [int(cut - days * SECONDS_A_DAY), cut], "targets": "successive"}
    given = {
        "seed": seed,
        "eval_args": {"split": {"GT": split}, "order": "TO", "group_by": "user", "mode": "full"},
        "user_inter_num_interval": None,
        "item_inter_num_interval": None,
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "checkpoint_dir": str(folder),
        "checkpoint_last": 0,
        "show_progress": False,
        "state": "warning",
        "epochs": arguments.epochs,
        **options,
    }
    config = recbole.Config(model=arguments.model, dataset="ml-100k", config_dict=given)
    recbole.init_seed(config["seed"], config["reproducibility"])
    recbole.init_logger(config)
    train_data, valid_data, test_data = recbole.data_preparation(config, recbole.create_dataset(config))
    recbole.init_seed(config["seed"], config["reproducibility"])
    model = recbole.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    trainer = recbole.get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    scores: list[float] = []
    trainer.fit(
        train_data,
        valid_data,
        verbose=False,
        callback_fn=lambda epoch, score: scores.append(float(score)),
    )
    result = trainer.evaluate(test_data, load_best_model=bool(scores))
    best = scores.index(max(scores)) + 1 if scores else 0
    return Outcome(trainer.saved_model_file, float(result[METRIC]), len(scores), best, len(scores) * len(train_data))


def measure(arguments: argparse.Namespace, seed: int, folder: Path, bar: Any) -> dict[str, Any]:
    """The three models of a seed."""
    first, second = moments(arguments.share, arguments.weeks)
    days = arguments.days

    def note(name: str) -> None:
        bar.set_postfix_str(f"seed {seed}, {name}")

    note("before the first moment")
    old = train(arguments, folder / "old", first, days, seed)
    bar.update()
    note("not updated")
    kept = train(arguments, folder / "kept", second, days, seed, init_from=old.file, epochs=0)
    bar.update()
    note("anew")
    anew = train(arguments, folder / "anew", second, days, seed)
    bar.update()
    note("updated")
    epochs = max(1, anew.epochs // PART)
    updated = train(arguments, folder / "updated", second, days, seed, init_from=old.file, epochs=epochs)
    bar.update()
    gain = anew.score - kept.score
    return {
        "seed": seed,
        "not updated": kept.score,
        "anew": anew.score,
        "updated": updated.score,
        "share of the gain": (updated.score - kept.score) / gain if gain else None,
        "epochs": {"before": old.epochs, "anew": anew.epochs, "anew, best": anew.best_epoch, "updated": updated.epochs},
        "steps": {"anew": anew.steps, "updated": updated.steps},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Scores of each seed and their means, in Markdown; the last share is that of the means."""
    head = ["seed", "not updated", "anew", "updated", "share of the gain", "steps anew", "steps of the update"]
    cells = [
        [
            str(row["seed"]),
            *(f"{row[name]:.4f}" for name in head[1:4]),
            "-" if row[head[4]] is None else f"{row[head[4]]:.0%}",
            f"{row['steps']['anew']:,}",
            f"{row['steps']['updated']:,}",
        ]
        for row in rows
    ]
    kept, anew, updated = (fmean(row[name] for row in rows) for name in head[1:4])
    share = f"{(updated - kept) / (anew - kept):.0%}" if anew != kept else "-"
    steps = [f"{fmean(row['steps'][name] for row in rows):,.0f}" for name in ("anew", "updated")]
    cells.append(["mean", f"{kept:.4f}", f"{anew:.4f}", f"{updated:.4f}", share, *steps])
    return markdown(head, cells)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("--model", default="ADRRec", help="ADRRec by default")
    add("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    add("--share", type=float, default=0.8, help="share of the time of all events that lies before the first moment")
    add("--weeks", type=float, default=4, help="weeks from the first moment to the second")
    add("--days", type=float, default=7, help="days of validation before each moment")
    add("--epochs", type=int, default=300, help="most epochs of a training")
    add("--json", type=Path, help="file for the figures, written after each seed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    arguments = parse(argv)
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.integration.register import command_line

    cuts = [iso(moment) for moment in moments(arguments.share, arguments.weeks)]
    rows: list[dict[str, Any]] = []
    bars = tqdm(total=4 * len(arguments.seeds), unit="model")
    with tempfile.TemporaryDirectory() as scratch, bars as bar, command_line({}, strict=False):
        for seed in arguments.seeds:
            rows.append(measure(arguments, seed, Path(scratch, str(seed)), bar))
            if arguments.json:
                stated = {"cuts": cuts, "arguments": vars(arguments)}
                write_json(arguments.json, {**stated, "hardware": hardware(), "versions": versions(), "rows": rows})
    print(f"ml-100k, {arguments.model}, cut at {cuts[0]} and {cuts[1]}; test NDCG@10\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A model updated on the weeks after its training, beside one trained anew: its share of the gain, and its steps.

ml-100k is cut at two moments, ``--share`` of its time and ``--weeks`` later. Every event after the second one is
predicted from all events before it, by four models of each seed:

not updated
    trained to early stopping on what lay before the first moment; items that came later have the rows that
    ``init_from`` gives them, and no step is trained;
anew
    trained to early stopping on what lay before the second moment;
updated on all events, updated on new events
    the first, trained by ``init_from`` on the data of the second in at most a tenth of the steps that the second ran:
    on all events, or on those alone that the first was not trained on (``train_from``), from the same histories.

Validation takes the ``--days`` before each moment. Items first met in validation or test are left out.

    python benchmarks/update.py --seeds 2020 2021 2022

Models and figures are kept in ``--results``; the same command goes on where it was ended, and prints the table.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from engine.data import data_file
from engine.provenance import hardware, versions
from engine.store import read_json, write_json
from measure.tables import markdown
from tqdm import tqdm

from recbole_adrrec.times import SECONDS_A_DAY, iso

METRIC = "ndcg@10"
PART = 10
"""An update has one step for so many of training anew."""

OPTIONS: dict[str, Any] = {
    "user_inter_num_interval": None,  # a filter over all events would look ahead
    "item_inter_num_interval": None,
    "metrics": ["NDCG"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "checkpoint_last": 0,
    "show_progress": False,
    "state": "warning",
}


@dataclass(frozen=True)
class Outcome:
    """A trained model: its file, test NDCG@10 (NaN: not tested), epochs run, the best of them, and steps run."""

    file: str
    score: float
    epochs: int
    best_epoch: int
    steps: int


def moments(share: float, weeks: float) -> tuple[int, int]:
    """The two cuts of ml-100k, in seconds since 1970."""
    times = pd.read_csv(data_file("ml-100k"), sep="\t")["timestamp:float"]
    first = int(times.min() + share * (times.max() - times.min()))
    return first, int(first + weeks * 7 * SECONDS_A_DAY)


def train(given: Mapping[str, Any], model: str, test: bool, most_steps: int | None) -> Outcome:
    """Train a model on a part of ml-100k to early stopping, and test its best epoch; without an epoch, as it begins.

    It is trained for whole epochs, of ``most_steps`` together or less, but for one at least.
    """
    recbole = importlib.import_module("recbole.quick_start.quick_start")
    config = recbole.Config(model=model, dataset="ml-100k", config_dict={**OPTIONS, **given})
    recbole.init_seed(config["seed"], config["reproducibility"])
    recbole.init_logger(config)
    train_data, valid_data, test_data = recbole.data_preparation(config, recbole.create_dataset(config))
    if most_steps is not None:
        config["epochs"] = max(1, most_steps // len(train_data))
    recbole.init_seed(config["seed"], config["reproducibility"])
    made = recbole.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    trainer = recbole.get_trainer(config["MODEL_TYPE"], config["model"])(config, made)
    scores: list[float] = []
    trainer.fit(train_data, valid_data, verbose=False, callback_fn=lambda epoch, score: scores.append(float(score)))
    score = float(trainer.evaluate(test_data, load_best_model=bool(scores))[METRIC]) if test else float("nan")
    best = scores.index(max(scores)) + 1 if scores else 0
    file = Path(trainer.saved_model_file).name
    return Outcome(file, score, len(scores), best, len(scores) * len(train_data))


@dataclass(frozen=True)
class Seed:
    """The models of one seed, each trained once: what a folder holds already is read."""

    number: int
    arguments: argparse.Namespace
    bar: Any

    def outcome(self, name: str, cut: int, test: bool = True, most_steps: int | None = None, **options: Any) -> Outcome:
        """Train on the events before the days before a cut, validate up to the cut, test on all events after it."""
        folder = self.arguments.results / f"{self.number}-{name.replace(' ', '_')}"
        found = read_json(folder / "outcome.json")
        if found is None:
            self.bar.set_postfix_str(f"seed {self.number}, {name}")
            split = {"times": [self.validation(cut), cut], "targets": "successive", **options.pop("split", {})}
            given = {
                "seed": self.number,
                "eval_args": {"split": {"GT": split}, "order": "TO", "group_by": "user", "mode": "full"},
                "checkpoint_dir": str(folder),
                **options,
            }
            found = asdict(train(given, self.arguments.model, test, most_steps))
            write_json(folder / "outcome.json", found)
        self.bar.update()
        return Outcome(**found)

    def validation(self, cut: int) -> int:
        """The moment at which validation before a cut begins."""
        return int(cut - self.arguments.days * SECONDS_A_DAY)

    def rows(self, first: int, second: int) -> list[dict[str, Any]]:
        """Score, share of the gain, and steps of each model."""
        old = self.outcome("before", first, test=False)
        begin: dict[str, Any] = {"init_from": str(self.arguments.results / f"{self.number}-before" / old.file)}
        anew = self.outcome("anew", second)
        most = anew.steps // PART
        new = {"train_from": self.validation(first)}
        found = {
            "not updated": self.outcome("not updated", second, epochs=0, **begin),
            "anew": anew,
            "updated on all events": self.outcome("updated on all events", second, most_steps=most, **begin),
            "updated on new events": self.outcome("updated on new events", second, most_steps=most, split=new, **begin),
        }
        return [
            {"model": name, "seed": self.number, "score": each.score, "steps": each.steps}
            for name, each in found.items()
        ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Score and share of the gain of each model, seed by seed and over all, in Markdown.

    The share of all seeds is that of the mean scores.
    """
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    score = {(row["model"], row["seed"]): row["score"] for row in rows}
    score |= {(model, "mean"): fmean(score[model, seed] for seed in seeds) for model in models}

    def cell(model: str, column: Any) -> str:
        kept, anew, own = (score[each, column] for each in ("not updated", "anew", model))
        gained = share(kept, anew, own)
        return f"{own:.4f}" + (
            "" if model == "not updated" else f" ({'no gain' if gained is None else f'{gained:.0%}'})"
        )

    steps = {model: fmean(row["steps"] for row in rows if row["model"] == model) for model in models}
    cells = [[model, *(cell(model, each) for each in [*seeds, "mean"]), f"{steps[model]:,.0f}"] for model in models]
    return markdown(["", *(f"seed {seed}" for seed in seeds), "mean", "steps"], cells)


def share(kept: float, anew: float, updated: float) -> float | None:
    """Share of the gain of training anew; None where there is none."""
    return (updated - kept) / (anew - kept) if anew > kept else None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("--model", default="ADRRec", help="ADRRec by default")
    add("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    add("--share", type=float, default=0.5, help="share of the time of all events that lies before the first moment")
    add("--weeks", type=float, default=8, help="weeks from the first moment to the second")
    add("--days", type=float, default=3, help="days of validation before each moment")
    add("--results", type=Path, default=Path("results", "update"), help="folder for models and figures")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table; 2 if the folder holds something else."""
    arguments = parse(argv)
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.integration.register import command_line

    cuts = moments(arguments.share, arguments.weeks)
    stated = {"model": arguments.model, "cuts": [iso(moment) for moment in cuts], "days": arguments.days}
    plan = arguments.results / "update.json"
    before = read_json(plan) or {"plan": stated}
    if before["plan"] != stated:
        print(f"error: --results: {arguments.results} holds {before['plan']}; choose another folder", file=sys.stderr)
        return 2
    write_json(plan, {"plan": stated, "hardware": hardware(), "versions": versions()})
    with tqdm(total=5 * len(arguments.seeds), unit="model") as bar, command_line({}, strict=False):
        rows = [row for seed in arguments.seeds for row in Seed(seed, arguments, bar).rows(*cuts)]
    title = f"ml-100k, {arguments.model}, cut at {iso(cuts[0])} and {iso(cuts[1])}; test NDCG@10 (share of the gain)"
    print(f"{title}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Take ADRRec and AWRSR apart: train them without each part, and measure trained models under changes at test time.

python benchmarks/ablate.py --groups kernels,noise --datasets ml-100k --seeds 3
python benchmarks/ablate.py --groups robustness,heads --baselines SASRec,TiSASRec --seeds 3 --jobs 2
python benchmarks/ablate.py --groups length --lengths 10,50,200 --dry-run
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import compare
from engine.store import write_json
from study import ablations, checks, command_line, study_file
from study.ablations import GROUPS, TITLES, Ablation, Choices
from study.plan import Plan, RunSpec

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError

OWN: dict[str, str] = {
    "groups": f"parts that are varied, separated by commas, out of {', '.join(GROUPS)}; all but rows if unset",
    "removal": "with mixture: heads, what becomes of a removed kernel's head: constant (it sees items alone, the "
    "default) or drop",
    "lengths": f"of group length, separated by commas; {', '.join(map(str, ablations.LENGTHS))} if unset",
    "backbones": f"of group refinement, out of {', '.join(ablations.BACKBONES)}; all if unset",
    "baselines": "models beside ADRRec in groups length and robustness; SASRec if unset",
    "shares": "parts of the history that are changed, separated by commas; 0.1 to 0.5 if unset",
}
FLAGS = {**compare.FLAGS, **OWN}
FIXED = {"models": "--groups", "keep_models": "groups robustness and heads"}
DESCRIPTION = f"{__doc__}\nGroups:\n" + "\n".join(f"  {name:<12} {meaning}" for name, meaning in GROUPS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run ablations from the command line; exit codes as those of ``compare.py``."""

    def work(flags: dict[str, Any], overrides: dict[str, Any], command: str) -> int:
        ablation, plan = planned(flags, overrides, command)
        return run(ablation, plan, flags)

    return command_line.run_program("ablate.py", DESCRIPTION, FLAGS, argv, work)


def planned(flags: Mapping[str, Any], overrides: Mapping[str, Any], command: str = "") -> tuple[Ablation, Plan]:
    """The ablation and its study.

    Options of the study that the ablation varies become those of the full models; the others hold for every run.

    Raises
    ------
    UserError
        For anything unknown or out of range.
    """
    config = flags.get("config")
    filed = options.read_config_file(config) if config is not None else {}
    for key, instead in FIXED.items():
        if key in overrides or key in filed:
            raise OptionError(f"{key}: an ablation sets it by itself ({instead})")
    given = dict(overrides)
    # Options of the command line go above all entries' own, and would undo what they vary.
    forced = dict(given.pop("options", {}))
    own: dict[str, Any] = {
        name: checks.listed(flags[name], name, "kernels") if name != "removal" else flags[name]
        for name in ("groups", "removal", "lengths", "backbones", "baselines")
        if name in flags
    }
    base = {
        "MAX_ITEM_LIST_LENGTH": 50,
        **options.load_properties("model", "ADRRec"),
        **(filed.get("options") or {}),
        **forced,
    }
    ablation = ablations.ablation(Choices(**{"groups": ablations.USUAL, **own}, base=base))
    varied = {name for entry in ablation.entries for name in entry.options}
    starting = {name: forced.pop(name) for name in set(forced) & varied}
    known = {model: set(options.load_properties("model", model)) for model in ("ADRRec", "AWRSR")}
    entries = []
    for entry in ablation.entries:
        taken = {name: value for name, value in starting.items() if name in known.get(entry.model, {name})}
        entries.append({**vars(entry), "options": {**taken, **entry.options}})
    given |= {"models": entries, "name": overrides.get("name", filed.get("name", "ablation"))}
    given["keep_models"] = bool(ablation.measured)
    if forced:
        given["options"] = forced
    return ablation, study_file.load(config, given, command)


def run(ablation: Ablation, plan: Plan, flags: Mapping[str, Any]) -> int:
    """Train what is missing, measure what is missing, write the report."""
    from study import grid, measurements, robustness

    shares = checks.listed(flags.get("shares", list(robustness.SHARES)), "shares", "0.1, 0.2")
    shares = sorted(checks.number(share, "shares", high=1) for share in shares)
    deadline = command_line.deadline_of(flags)
    grid.check_folder(plan)
    if flags.get("dry_run"):
        print(compare.described(plan, flags))
        return 0
    outcome = compare.run_missing(plan, flags, deadline)
    settings = {
        "title": f"Ablations: {plan.name}",
        "metric": plan.valid_metric.lower(),
        "references": {entry.label: entry.reference for entry in ablation.entries if entry.reference},
        "groups": {TITLES[name]: labels for name, labels in ablation.groups.items() if name in TITLES},
        "seeds": list(plan.seeds),
        "notes": list(ablation.notes),
    }
    write_json(plan.results / "report.json", settings)
    measured = measurements.measure_missing(to_measure(ablation, plan), plan.results, plan.command, shares, deadline)
    return compare.reported(plan, outcome) or (0 if measured else command_line.EXIT_UNFINISHED)


def to_measure(ablation: Ablation, plan: Plan) -> list[tuple[RunSpec, frozenset[str]]]:
    """The trained models that are to be measured, with the kinds of measurement."""
    from study.runs import status

    return [
        (spec, ablation.measured[spec.label])
        for spec in plan.specs()
        if spec.label in ablation.measured and not spec.shuffle_ties and status(plan.results, spec) == "done"
    ]


if __name__ == "__main__":
    sys.exit(main())

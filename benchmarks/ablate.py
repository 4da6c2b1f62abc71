"""Take ADRRec and AWRSR apart: train them without each part, and measure trained models under changes at test time.

Examples
--------
::

    python benchmarks/ablate.py --groups kernels,noise --datasets ml-100k --seeds 3
    python benchmarks/ablate.py --groups robustness,heads --baselines SASRec,TiSASRec --seeds 3 --jobs 2
    python benchmarks/ablate.py --groups length --lengths 10,50,200 --dry-run
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import compare
from study import ablations
from study import plan as plans
from study.ablations import GROUPS, REMOVALS, Ablation, Choices
from study.plan import Plan
from tqdm import tqdm

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.files import AtomicFile

FLAGS: dict[str, str] = {
    **compare.FLAGS,
    "groups": f"what is varied, separated by commas, out of {', '.join(GROUPS)}; all but parts if unset",
    "removal": "what becomes of a removed kernel's head: constant (it sees items alone, the default) or drop",
    "lengths": f"of group length, separated by commas; {', '.join(map(str, ablations.LENGTHS))} if unset",
    "backbones": f"of group refinement, out of {', '.join(ablations.BACKBONES)}; all if unset",
    "baselines": "models beside ADRRec in groups length and robustness; SASRec if unset",
    "shares": "parts of the history that are changed, separated by commas; 0.1 to 0.5 if unset",
}

OWN = ("groups", "removal", "lengths", "backbones", "baselines", "shares")
FIXED = {"models": "--groups", "keep_models": "groups robustness and heads"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ablations from the command line; exit codes as those of ``compare.py``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        own, rest = _own(arguments)
        flags, overrides = compare.parse(rest, compare.FLAGS, compare.SWITCHES)
        if flags.get("help") or not arguments:
            groups = "\n".join(f"  {name:<18} {meaning}" for name, meaning in GROUPS.items())
            print(compare.usage("ablate.py", str(__doc__), FLAGS) + f"\n\nGroups:\n{groups}")
            return 0
        ablation, plan = planned(own, flags.get("config"), overrides, compare.command_of("ablate.py", arguments))
        shares = _shares(own)
        return run(ablation, plan, flags, shares)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return compare.EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        return compare.EXIT_INTERRUPTED


def _own(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Tell this program's own flags from those that it shares with ``compare.py``."""
    own: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in OWN:
            rest.append(argument)
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise OptionError(f"{name}: no value is given")
            text = waiting.pop(0)
        own[name] = text
    return own, rest


def _list(own: Mapping[str, str], name: str, unset: Iterable[Any]) -> list[Any]:
    if name not in own:
        return list(unset)
    text = own[name]
    value = options.parse_value(text if text.startswith("[") else f"[{text}]", name)
    return list(value) if isinstance(value, list | tuple) else [value]


def _shares(own: Mapping[str, str]) -> tuple[float, ...]:
    from study.robustness import SHARES

    shares = _list(own, "shares", SHARES)
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise OptionError(f"shares: {share!r} is not a number above 0 and of at most 1; write 0.1 for 10 %")
    return tuple(sorted(map(float, shares)))


def planned(
    own: Mapping[str, str], config: str | None, overrides: Mapping[str, Any], command: str = ""
) -> tuple[Ablation, Plan]:
    """The ablation and its study.

    Options of the study that the ablation varies become those of the full models; the others hold for every run.

    Raises
    ------
    UserError
        For anything unknown or out of range.
    """
    filed = options.read_config_file(config) if config is not None else {}
    for key, instead in FIXED.items():
        if key in overrides or key in filed:
            raise OptionError(f"{key}: an ablation sets it by itself ({instead})")
    common = {**(filed.get("options") or {}), **overrides.get("options", {})}
    base = {"MAX_ITEM_LIST_LENGTH": 50, **options.load_properties("model", "ADRRec"), **common}
    ablation = ablations.ablation(
        Choices(
            groups=_list(own, "groups", ablations.USUAL),
            base=base,
            removal=own.get("removal", REMOVALS[0]),
            lengths=_list(own, "lengths", ablations.LENGTHS),
            backbones=_list(own, "backbones", ablations.BACKBONES),
            baselines=_list(own, "baselines", ["SASRec"]),
        )
    )
    given = dict(overrides)
    # What the command line gives goes above all entries' own options, and would undo what they vary.
    forced = dict(given.pop("options", {}))
    starting = {name: forced.pop(name) for name in set(forced) & ablation.varied}
    known = {model: set(options.load_properties("model", model)) for model in ("ADRRec", "AWRSR")}
    entries = []
    for entry in ablation.entries:
        taken = {name: value for name, value in starting.items() if name in known.get(entry.model, {name})}
        entries.append(plans.Entry(entry.label, entry.model, {**taken, **entry.options}))
    given |= {"models": entries, "name": overrides.get("name", filed.get("name", "ablation"))}
    given["keep_models"] = any(each.measured for each in ablation.variants)
    if forced:
        given["options"] = forced
    return ablation, plans.load(config, given, command)


def run(ablation: Ablation, plan: Plan, flags: Mapping[str, Any], shares: Sequence[float]) -> int:
    """Train what is missing, measure what is missing, write the report."""
    from study import grid

    deadline = compare.deadline_of(flags)
    grid.check_folder(plan)
    if flags.get("dry_run"):
        print(described(ablation, plan))
        return 0
    outcome = compare.run_missing(plan, flags, deadline)
    write_settings(ablation, plan)
    measured = measure_missing(ablation, plan, shares, deadline)
    code = compare.reported(plan, outcome)
    return code or (0 if measured else compare.EXIT_UNFINISHED)


def write_settings(ablation: Ablation, plan: Plan) -> None:
    """Tell the report what belongs together and what is compared with what."""
    settings = {
        "title": f"Ablations: {plan.name}",
        "metric": plan.valid_metric.lower(),
        "references": ablation.references,
        "groups": {
            ablations.TITLES[name]: labels for name, labels in ablation.groups.items() if name in ablations.TITLES
        },
        "seeds": list(plan.seeds),
        "notes": list(ablation.notes),
    }
    with AtomicFile(plan.results / "report.json") as file:
        file.write((json.dumps(settings, indent=1) + "\n").encode())


def measure_missing(ablation: Ablation, plan: Plan, shares: Sequence[float], deadline: float | None = None) -> bool:
    """Measure the trained models that should be measured and were not; whether there was time for all."""
    from study import grid
    from study.measurements import measure, measured_kinds

    wanted = {each.label: each.measured for each in ablation.variants if each.measured}
    specs = [
        spec
        for spec in plan.specs()
        if spec.label in wanted
        and not spec.shuffle_ties
        and grid.status(plan.results, spec) == "done"
        and not wanted[spec.label] <= measured_kinds(plan.results, spec.id)
    ]
    for spec in tqdm(specs, desc="measured", unit="model", disable=not specs):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        measure(spec, plan.results, plan.command, sorted(wanted[spec.label]), shares)
    return True


def described(ablation: Ablation, plan: Plan) -> str:
    """The entries, what each is compared with, and how many runs that makes."""
    width = max(len(each.label) for each in ablation.variants)
    lines = [f"study      {plan.name}", f"results    {plan.results}", f"data sets  {', '.join(plan.datasets)}"]
    lines += [f"note       {note}" for note in ablation.notes]
    for group, labels in ablation.groups.items():
        lines += ["", f"{group}: {GROUPS[group]}"]
        for variant in (each for each in ablation.variants if each.label in labels):
            entry = next(each for each in plan.models if each.label == variant.label)
            beside = f"  against {variant.reference}" if variant.reference else ""
            measured = f"  measured: {', '.join(sorted(variant.measured))}" if variant.measured else ""
            lines.append(f"  {variant.label:<{width}}  {variant.model} {dict(entry.options)}{beside}{measured}")
    specs = plan.specs()
    lines += [
        "",
        f"{len(plan.models)} entries x {len(plan.datasets)} data sets x {len(plan.protocols)} protocols x "
        f"{len(plan.seeds)} seeds: {len(specs)} runs",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Compare models: every model on every data set with every seed, through the same data, split and metrics.

Examples
--------
::

    python benchmarks/compare.py --models ADRRec,AWRSR,SASRec,BERT4Rec,TiSASRec,MEANTIME \\
        --datasets ml-100k,amazon-beauty --seeds 5 --data_path /path/to/data
    python benchmarks/compare.py --config benchmarks/configs/paper.yaml --seeds 3 --jobs 4
    python benchmarks/compare.py --config benchmarks/configs/quick.yaml --dry-run
"""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study import plan as plans
from study.plan import KEYS, Plan

from recbole_adrrec import options
from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.options import rules

if TYPE_CHECKING:
    from study.grid import Outcome

EXIT_FAILED, EXIT_USER_ERROR, EXIT_UNFINISHED, EXIT_INTERRUPTED = 1, 2, 3, 130

FLAGS: dict[str, str] = {
    "config": "study file (YAML); what follows goes above it",
    "jobs": "how many runs at a time on this machine",
    "ray": "run on a Ray cluster: its address, auto for the one that is up, none for one on this machine",
    "gpus": "GPUs that each run takes of a Ray cluster, a part of one too",
    "retry_failed": "run again what is recorded as failed",
    "minutes": "stop after so many minutes: runs at work are stopped, and repeated when the command is given again",
    "only": "entries to run now, by words out of their labels, separated by ; (the others are left for later)",
    "dry_run": "print the plan and stop",
    "help": "this text",
}
"""What the command line has beyond the keys of a study file."""

SWITCHES = ("retry_failed", "dry_run", "help")
LISTS = ("models", "datasets", "metrics", "protocols")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study from the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if None.

    Returns
    -------
    int
        0 all runs are done; 1 some failed and are recorded so; 2 something the user gave is wrong; 3 ``--minutes`` were
        over before all runs were; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        flags, overrides = parse(arguments, FLAGS, SWITCHES)
        if flags.get("help") or not arguments:
            print(usage("compare.py", str(__doc__), FLAGS))
            return 0
        plan = plans.load(flags.get("config"), overrides, command_of("compare.py", arguments))
        return run(plan, flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        return EXIT_INTERRUPTED


def run(plan: Plan, flags: Mapping[str, Any]) -> int:
    """Run a study, or tell what it would run; then write its report."""
    from study import grid

    deadline = deadline_of(flags)
    grid.check_folder(plan)
    if flags.get("dry_run"):
        print(described(plan))
        return 0
    return reported(plan, run_missing(plan, flags, deadline))


def deadline_of(flags: Mapping[str, Any]) -> float | None:
    """The moment (``time.monotonic``) at which ``--minutes`` from now are over; None without."""
    if "minutes" not in flags:
        return None
    fault = rules.Number(low=0, above=True).fault(flags["minutes"])
    if fault:
        raise OptionError(f"minutes: {fault}")
    return time.monotonic() + 60 * float(flags["minutes"])


def run_missing(plan: Plan, flags: Mapping[str, Any], deadline: float | None) -> Outcome:
    """Check all models of a study, then run what it lacks."""
    from study import grid

    if "ray" in flags:
        grid.import_ray()
    grid.check(plan)
    return grid.run_all(
        plan,
        jobs=whole(flags.get("jobs", 1), "jobs"),
        ray=flags.get("ray"),
        retry_failed=bool(flags.get("retry_failed")),
        gpus=gpu_share(flags.get("gpus", 0)),
        deadline=deadline,
        only=only_of(flags, plan),
    )


def only_of(flags: Mapping[str, Any], plan: Plan) -> frozenset[str] | None:
    """Labels of the entries that ``--only`` names; None where it is not given.

    Raises
    ------
    OptionError
        A word is in no label.
    """
    if "only" not in flags:
        return None
    labels = [entry.label for entry in plan.models]
    found = set()
    for word in (word.strip() for word in str(flags["only"]).split(";")):
        named = [label for label in labels if label == word] or [label for label in labels if word in label]
        if not named:
            raise OptionError(f"only: {word!r} is in no label of the study; its entries are {'; '.join(labels)}")
        found.update(named)
    return frozenset(found)


def reported(plan: Plan, outcome: Outcome) -> int:
    """Write the report of a study, or its table of validation where nothing is tested; give the exit code."""
    from study import ties, validation

    ties.summarise(plan.results)
    print(f"{outcome.done} runs done ({outcome.skipped} were there before), {len(outcome.failed)} failed")
    for name in outcome.failed:
        print(f"  failed: {name} (runs/{name}.json has the error, logs/{name}.log the log)")
    if outcome.done:
        print(f"validation: {validation.write(plan.results)}")
    if outcome.done and plan.test:
        for form, path in importlib.import_module("study.report").write(plan.results).items():
            print(f"{form}: {path}")
    if outcome.left:
        print(f"{outcome.left} runs are left (--minutes, --only); the same command goes on")
        return EXIT_UNFINISHED
    return EXIT_FAILED if outcome.failed else 0


def described(plan: Plan) -> str:
    """The plan in words and its runs, each with what became of it so far."""
    from study import grid

    specs = plan.specs()
    found = {spec.id: grid.status(plan.results, spec) for spec in specs}
    todo = sum(each is None for each in found.values())
    lines = [
        f"study      {plan.name} ({plan.hash[:12]})",
        f"results    {plan.results}",
        f"data sets  {', '.join(plan.datasets)}",
        f"models     {', '.join(_entry(entry) for entry in plan.models)}",
        f"seeds      {', '.join(map(str, plan.seeds))}",
        f"protocols  {', '.join(protocol.name for protocol in plan.protocols)}",
        f"metrics    {', '.join(f'{metric}@{k}' for metric in plan.metrics for k in plan.topk)}; "
        f"epochs are chosen by validation {plan.valid_metric}",
        f"options    {dict(plan.options)}",
    ]
    lines += [f"           {dataset}: {dict(given)}" for dataset, given in plan.dataset_options.items()]
    if plan.tuned:
        lines += [f"tuned      {name}: {dict(given)}" for name, given in plan.tuned.items()]
    lines += ["", f"{len(specs)} runs, {todo} of them to do:"]
    lines += [f"  {found[spec.id] or 'to do':<7}{spec.id}" for spec in specs]
    return "\n".join(lines)


def _entry(entry: plans.Entry) -> str:
    what = entry.label if entry.label == entry.model else f"{entry.label} ({entry.model})"
    return f"{what} {dict(entry.options)}" if entry.options else what


# The command line, for tune.py too


def parse(
    arguments: Sequence[str], flags: Mapping[str, str], switches: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell a command line's own flags, keys of a study and options of the runs apart.

    Parameters
    ----------
    arguments : sequence of str
        ``--key value`` or ``--key=value``; ``-`` and ``_`` mean the same in names.
    flags : mapping
        The program's own flags.
    switches : sequence of str
        Those of them without a value.

    Returns
    -------
    flags : dict
        The program's own.
    overrides : dict
        Keys of a study; options of RecBole's and ours stand under ``options``.

    Raises
    ------
    OptionError
        For a name that is none of them, with the nearest that is.
    """
    own: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        name = "help" if argument == "-h" else name.replace("-", "_")
        if not argument.startswith("--") and argument != "-h":
            raise OptionError(f"command line: {argument!r} belongs to no option; write --key=value or --key value")
        if name in switches:
            own[name] = True
        elif name in flags or name in KEYS:
            if not equals:
                if waiting and not waiting[0].startswith("--"):
                    text = waiting.pop(0)
                elif name == "ray":
                    text = ""
                elif name in ("keep_models", "test"):
                    text = "true"
                else:
                    raise OptionError(f"{name}: no value is given")
            held = own if name in flags else overrides
            value = _flag_value(name, text) if name in flags else _key_value(name, text)
            if held.get(name, value) != value:
                raise OptionError(f"{name}: given twice on the command line, as {held[name]!r} and {value!r}")
            held[name] = value
        else:
            rest.append(argument)
            if not equals and waiting and not waiting[0].startswith("--"):
                rest.append(waiting.pop(0))
    given = options.parse_command_line(rest)
    known = options.known_options()
    for name in given:
        if name not in known:
            near = rules.suggestion(name, [*flags, *KEYS], 0.6) or rules.suggestion(name, known)
            raise OptionError(f"command line: unknown option {name}{near}")
    if given:
        overrides["options"] = {**overrides.get("options", {}), **given}
    return own, overrides


def _flag_value(name: str, text: str) -> Any:
    if name == "ray":
        return text or True
    if name in ("config", "space"):
        return text
    return options.parse_value(text, name)


def _key_value(name: str, text: str) -> Any:
    if name in ("name", "results", "data_path", "tuned", "valid_metric"):
        return text
    if name in LISTS and not text.lstrip().startswith(("[", "{")):
        return [each.strip() for each in text.split(",") if each.strip()]
    if name in ("seeds", "topk") and "," in text and not text.startswith("["):
        text = f"[{text}]"
    return options.parse_value(text, name)


def whole(value: Any, name: str) -> int:
    """A count given by a flag."""
    fault = rules.COUNT.fault(value)
    if fault:
        raise OptionError(f"{name}: {fault}")
    return int(value)


def gpu_share(value: Any) -> float:
    """A share of a GPU given by a flag."""
    fault = rules.Number(low=0).fault(value)
    if fault:
        raise OptionError(f"gpus: {fault}")
    return float(value)


def command_of(program: str, arguments: Sequence[str]) -> str:
    """The command as a shell would take it again."""
    return shlex.join(["python", f"benchmarks/{program}", *arguments])


def usage(program: str, text: str, flags: Mapping[str, str]) -> str:
    """How to call a program."""
    listing = [f"  --{name.replace('_', '-'):<16} {meaning}" for name, meaning in flags.items()]
    keys = [f"  --{name:<16} {meaning}" for name, meaning in KEYS.items()]
    return "\n".join(
        [
            f"usage: python benchmarks/{program} [--config FILE] [--key value ...]",
            "",
            text.strip().replace("::\n", "").replace("Examples\n--------\n", "").replace("\n\n\n", "\n\n"),
            "",
            *listing,
            "",
            "Keys of a study file; the command line goes above the file:",
            *keys,
            "",
            "Any option of RecBole or of these models, such as --epochs 20, holds for every run.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

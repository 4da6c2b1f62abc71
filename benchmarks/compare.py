"""Compare models: every model on every data set with every seed, through the same data, split and metrics.

    python benchmarks/compare.py --models ADRRec,AWRSR,SASRec,BERT4Rec,TiSASRec,MEANTIME \\
        --datasets ml-100k,amazon-beauty --seeds 5 --data_path /path/to/data
    python benchmarks/compare.py --config benchmarks/configs/paper.yaml --seeds 3 --jobs 4
    python benchmarks/compare.py --config benchmarks/configs/quick.yaml --dry-run

Exit codes: 0 all runs are done; 1 some failed and are recorded so; 2 something given is wrong; 3 --minutes were over
before all runs were; 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.store import write_json
from study import checks, command_line, study_file
from study.command_line import EXIT_FAILED, EXIT_UNFINISHED
from study.plan import Plan

if TYPE_CHECKING:
    from study.grid import Outcome

FLAGS: dict[str, str] = {
    **command_line.FLAGS,
    "ray": "run on a Ray cluster: its address, auto for the one that is up, none for one on this machine",
    "gpus": "GPUs that each run takes of a Ray cluster, a part of one too",
    "retry_failed": "run again what is recorded as failed",
    **command_line.ONLY,
    "dry_run": "print the plan and stop",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study from the command line; the module's text has the exit codes."""

    def work(flags: dict[str, Any], overrides: dict[str, Any], command: str) -> int:
        plan = study_file.load(flags.get("config"), overrides, command)
        return run(plan, flags)

    return command_line.run_program("compare.py", str(__doc__), FLAGS, argv, work)


def run(plan: Plan, flags: Mapping[str, Any]) -> int:
    """Run a study, or print what it would run; then write its report."""
    from study import grid

    deadline = command_line.deadline_of(flags)
    grid.check_folder(plan)
    if flags.get("dry_run"):
        print(described(plan, flags))
        return 0
    outcome = run_missing(plan, flags, deadline)
    references = {entry.label: entry.reference for entry in plan.models if entry.reference}
    settings = plan.results / "report.json"
    if references and not settings.exists():
        write_json(settings, {"references": references, "seeds": list(plan.seeds)})
    return reported(plan, outcome)


def run_missing(plan: Plan, flags: Mapping[str, Any], deadline: float | None) -> Outcome:
    """Check all models of a study, then run what it lacks."""
    from study import grid

    jobs = checks.whole(flags.get("jobs", 1), "jobs")
    gpus = checks.number(flags["gpus"], "gpus") if flags.get("gpus") else 0.0
    only = command_line.only_of(flags, plan)
    if "ray" in flags:
        grid.import_ray()
    grid.check(plan)
    return grid.run_all(plan, jobs, flags.get("ray"), bool(flags.get("retry_failed")), gpus, deadline, only)


def reported(plan: Plan, outcome: Outcome) -> int:
    """Write the report of a study, or its table of validation where nothing is tested; return the exit code."""
    from study import tied_timestamps, validation

    tied_timestamps.summarise(plan.results)
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


def described(plan: Plan, flags: Mapping[str, Any]) -> str:
    """The plan in words and its runs: what each has come to, those ``to do`` now, and those left for ``later``."""
    from study.runs import status

    specs, only = plan.specs(), command_line.only_of(flags, plan)
    states = {}
    for spec in specs:
        state = status(plan.results, spec)
        if state == "failed" and flags.get("retry_failed"):
            state = None
        chosen = only is None or (spec.dataset, spec.label) in only
        states[spec.id] = state or ("to do" if chosen else "later")
    count = Counter(states.values())
    lines = [
        f"study      {plan.name} ({plan.hash[:12]})",
        f"results    {plan.results}",
        f"data sets  {', '.join(plan.datasets)}",
        f"seeds      {', '.join(map(str, plan.seeds))}",
        f"protocols  {', '.join(protocol.name for protocol in plan.protocols)}",
        f"metrics    {', '.join(f'{metric}@{k}' for metric in plan.metrics for k in plan.topk)}; "
        f"epochs are chosen by validation {plan.valid_metric}",
        f"options    {dict(plan.options)}",
    ]
    lines += [f"           {dataset}: {dict(given)}" for dataset, given in plan.dataset_options.items()]
    lines += [f"tuned      {name}: {dict(given)}" for name, given in plan.tuned.items()]
    for entry in plan.models:
        against = f"  against {entry.reference}" if entry.reference else ""
        lines.append(f"entry      {entry.label}: {entry.model} {dict(entry.options)}{against}")
    later = f", {count['later']} left for later (--only, --only_data)" if count["later"] else ""
    lines += ["", f"{len(specs)} runs, {count['to do']} of them to do{later}:"]
    lines += [f"  {state:<7}{name}" for name, state in states.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

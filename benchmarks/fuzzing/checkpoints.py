"""Give crafted checkpoints to the readers, in this process, and see that each is read or refused in one line."""

from __future__ import annotations

import os
import random
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import recbole_adrrec
from fuzzing.checkpoint_inputs import Cases
from fuzzing.checkpoint_readers import Readers, TookTooLongError, Watch, peak_memory_mb, time_limit, train, write_events
from fuzzing.checkpoint_values import MARK
from recbole_adrrec.errors import DataError, UserError
from recbole_adrrec.integration import resume

TIME_LIMIT_S, MEMORY_LIMIT_MB = 20, 256
"""Of reading one file."""

ADDRESS_SPACE_GB = 6
"""More than the process has at the start; keeps the machine from harm where the limit of memory is broken."""


STAGE_OF = {
    **{"_read_archive": "file", "_check_pickle": "file", "_check_plain": "values", "load_checkpoint": "fingerprint"},
    **dict.fromkeys(("named", "restore_config", "compare_options", "prepare", "_refuse_differences"), "options"),
    **dict.fromkeys(("check_same_data", "_check_data", "checkpoint_data"), "names, events"),
    **dict.fromkeys(("restore", "load_weights", "_clock", "_check_fit", "recommend", "init_from"), "model, weights"),
    **dict.fromkeys(("resume", "trainer"), "state of training"),
}
"""Stage that a file got to, by the function that refuses it, else by its module."""

STAGES = [*dict.fromkeys(STAGE_OF.values()), "read"]


def stage_of(error: BaseException) -> str:
    """The stage at which a file was refused."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame.f_code for frame in frames if "recbole_adrrec" in frame.f_code.co_filename]
    if not ours:
        return "file"
    names = ours[-1].co_name, Path(ours[-1].co_filename).stem
    return next((STAGE_OF[name] for name in names if name in STAGE_OF), ".".join(names))


@dataclass
class Found:
    """Inputs by kind and stage, by reader, and what was wrong with some."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    readers: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    slowest_s: float = 0.0


class Fuzz:
    """Gives inputs to readers and checks what comes of them.

    Parameters
    ----------
    folder : Path
        For the data, the checkpoints and the inputs; becomes the working directory.
    seed : int
    readers : dict, optional
        Name to function and share; those of the package if None.
    """

    def __init__(self, folder: Path, seed: int, readers: Any = None) -> None:
        os.chdir(folder)
        recbole_adrrec.register()
        write_events(folder)
        # An optimizer without a state of its own makes the smallest file; --resume has one with such a state to read.
        small = train("ADRRec", folder, trend_rank=2, learner="sgd", learning_rate=0.1)
        whole, others = train("ADRRec", folder), [train("HSTU", folder)]
        others.append(train("SASRec", folder, train_neg_sample_args=None))
        last = resume.last_file(whole.path)
        self.cases = Cases([small.path, whole.path, last, *(run.path for run in others)], seed)
        self.readers = Readers(small, whole).all() if readers is None else readers
        # The best model stands beside each file, as --resume asks for it.
        self.path = str(small.path.with_name("input.pth"))
        self.found = Found()
        self.watch = Watch()

    def run(self, inputs: int, start: int = 0) -> Found:
        """Read ``inputs`` files."""
        for reader, _ in self.readers.values():  # imports what is imported late
            self._attempt(reader, self.cases.bytes[0])
        self.found.failures.clear()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        shares = [share for _, share in self.readers.values()]
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE_GB * 2**30, before[1]))
        try:
            for number in tqdm(range(start, start + inputs), unit=" files", disable=not sys.stderr.isatty()):
                name = random.Random(number).choices(list(self.readers), shares)[0]
                kind, content, told = self.cases.draw(number, (1, 2) if name == "resume" else (0,))
                begin = time.perf_counter()
                stage, problem = self._attempt(self.readers[name][0], content)
                self.found.slowest_s = max(self.found.slowest_s, time.perf_counter() - begin)
                self.found.counts[kind, stage] += 1
                self.found.readers[name, stage] += 1
                if kind == "unchanged" and stage != "read" and name != "upgrade-checkpoint":
                    problem = problem or f"a valid file was refused at {stage}"
                if problem:
                    self.found.failures.setdefault(f"{name}: {problem}", []).append(f"input {number}, {kind}: {told}")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return self.found

    def _attempt(self, reader: Callable[[str], None], content: bytes) -> tuple[str, str]:
        """The stage that a file reaches with a reader, and what was wrong, if anything."""
        Path(self.path).write_bytes(content)
        before, stage, problem = peak_memory_mb(), "read", ""
        self.watch.seen.clear()
        self.watch.on = True
        try:
            with time_limit(TIME_LIMIT_S), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(self.path)
        except UserError as error:
            stage = stage_of(error)
            text = str(error)
            asked = re.search(r"allocate (\d+) bytes", text)
            if "\n" in text or "\r" in text:
                problem = f"more than a line from {stage}"
            elif self.path not in text and not isinstance(error, DataError):  # of data files that aren't there
                problem = f"a message that doesn't name the file, from {stage}: {text[:300]}"
            elif asked and int(asked[1]) < 10**12:
                problem = f"asked for {int(asked[1]):,} bytes, at {stage}"
        except TookTooLongError:
            stage, problem = "failed", f"more than {TIME_LIMIT_S} s"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.watch.on = False
            frames = traceback.extract_tb(error.__traceback__)
            *_, where = [frames[-1], *(frame for frame in frames if "recbole_adrrec/" in frame.filename)]
            stage = "failed"
            problem = f"{type(error).__name__} in {Path(where.filename).stem}.{where.name}:{where.lineno}"
            problem += f" ({Path(frames[-1].filename).stem}:{frames[-1].lineno})" if frames[-1] is not where else ""
        finally:
            self.watch.on = False
        if self.watch.seen:
            problem = f"did {self.watch.seen[0]}"
        if os.path.exists(MARK):
            os.unlink(MARK)
            problem = "a file of the input's appeared"
        grown = peak_memory_mb() - before
        if grown > MEMORY_LIMIT_MB:
            problem = problem or f"took more than {MEMORY_LIMIT_MB} MB"
        return stage, problem

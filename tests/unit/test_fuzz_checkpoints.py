"""Generated checkpoints are read or refused in a line and run nothing; what the fuzz has found stays mended."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import checkpoint_inputs as inputs
from fuzzing import checkpoint_values as values
from fuzzing.checkpoint_readers import time_limit
from fuzzing.checkpoints import Fuzz

from recbole_adrrec.errors import CheckpointError, DataError, OptionError
from recbole_adrrec.integration.checkpoint import save_checkpoint
from recbole_adrrec.options import check_data


@pytest.fixture(scope="module", name="fuzz")
def made_fuzz(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A fuzz with its small checkpoints, in a working directory of its own."""
    before = os.getcwd()
    yield Fuzz(tmp_path_factory.mktemp("fuzz"), seed=1)
    os.chdir(before)


def read(fuzz: Any, reader: str, content: bytes) -> str:
    """The line in which a reader refuses a file's bytes."""
    Path(fuzz.path).write_bytes(content)
    with time_limit(20), pytest.raises((CheckpointError, OptionError)) as refused:
        fuzz.readers[reader][0](fuzz.path)
    said = str(refused.value)
    assert fuzz.path in said
    assert "\n" not in said
    return said


def test_generated_checkpoints_are_read_or_refused_in_a_line(fuzz: Any) -> None:
    found = fuzz.run(120)
    assert found.failures == {}
    assert found.counts.total() == 120
    assert {"file", "fingerprint", "options", "read"} <= {stage for _, stage in found.counts}


def test_the_watch_finds_what_an_unsafe_reader_does(fuzz: Any) -> None:
    def unsafe(path: str) -> None:
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)

    made = inputs.saved({"a": values.Call(os.system, f"touch {values.MARK}")})
    stage, problem = fuzz._attempt(unsafe, made)
    assert (stage, problem) == ("read", "a file of the input's appeared")
    stage, problem = fuzz._attempt(unsafe, inputs.saved(values.Call(eval, f"1 + len({values.MARK!r})")))
    assert problem.startswith("did compile")
    assert "KeyError" in fuzz._attempt(lambda path: {}[path], b"")[1]
    assert "did open of" in fuzz._attempt(lambda path: Path(values.MARK + "2").touch(), b"")[1]


VALUES = {
    "a value in itself": (values.within_itself(), "stand in one another without end"),
    "deep nesting": (values.nested(300), "stand in one another without end"),
    "a list that stands in lists twice": (values.repeated(40), "stand in one another without end"),
    "a view of any size": (torch.zeros(1).expand(10**6, 10**6), "holds a Tensor that checkpoints don't"),
    "a sparse tensor": (torch.eye(3).to_sparse(), "holds a Tensor|_rebuild_sparse_tensor"),
    "a meta tensor": (torch.zeros(3, device="meta"), "_rebuild_meta_tensor"),
    "bytes": (b"x", "_codecs.encode"),
    "a set": ({1}, "set"),
    "a text that stands in it often": (["x" * 10**5] * 1000, "larger than the file"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_checkpoints_never_hold_are_refused(name: str, fuzz: Any) -> None:
    value, message = VALUES[name]
    said = read(fuzz, "load", inputs.saved({**fuzz.cases.states[0], "new": value}))
    assert re.search(message, said), said


def test_files_that_take_more_memory_than_they_have_bytes_are_refused(fuzz: Any) -> None:
    assert "packed, as no checkpoint is" in read(fuzz, "load", fuzz.cases._bomb)
    members = fuzz.cases._archive(0)
    name = inputs.pickle_of(members)
    members[name] = b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    assert "holds __builtin__.bytearray" in read(fuzz, "load", inputs.zipped(members))
    torch.save(fuzz.cases.states[0], "old.pth", _use_new_zipfile_serialization=False)
    assert "not a checkpoint" in read(fuzz, "load", Path("old.pth").read_bytes())
    with zipfile.ZipFile("twice.pth", "w") as archive:
        for each in (name, name.upper()):
            archive.writestr(each, b"N.")
    assert "packed" in read(fuzz, "load", Path("twice.pth").read_bytes())


CHANGES: dict[str, tuple[str, int, Any, Any, str]] = {
    # Reader, file, place of a value, the value, and what is said.
    "any number of layers": ("load", 0, ("config", "options", "n_layers"), 10**6, "n_layers: 1000000 layers"),
    "any number of RecBole's layers": (
        "load",
        4,
        ("config", "options", "n_layers"),
        10**9,
        "n_layers: 1000000000 layers",
    ),
    "a value of several lines": ("resume", 1, ("config", "given", "epochs"), "a\nb", "epochs"),
    "any width": ("load", 0, ("config", "options", "inner_size"), 10**7, "more parameters than the file"),
    "a wrong type": ("load", 0, ("config", "options", "topk"), "x", "topk: 'x'"),
    "a model's name": ("load", 0, ("config", "options", "model"), "../../x", "not what this package writes"),
    "a folder for a data set": ("load", 0, ("config", "dataset"), "../x", "not what this package writes"),
    "a weight's name": ("load", 0, ("state_dict", "a\nb"), torch.ones(1), "not what this package writes"),
    "numbers for attributes": ("load", 0, ("other_parameter",), torch.ones(2), "other_parameter"),
    "a device without end": ("load", 0, ("config", "options", "device"), 10**18, "options can't be read"),
    "attributes of the model": ("load", 0, ("other_parameter",), {"forward": 3}, "other_parameter"),
    "complex lengths": (
        "load",
        0,
        ("data", "items", "lengths"),
        torch.ones(10, dtype=torch.complex64),
        "names of items",
    ),
    "any number of users": ("load", 0, ("data", "n_users"), 10**15, "number of users"),
    "a day beyond": ("load", 0, ("data", "days"), [0, 10**18], "days of training"),
    "a time beyond": ("load", 0, ("data", "events", "origin"), 10**400, "times of its events"),
    "training is a text": ("load", 2, ("training",), "text", "carries no names"),
    "a field without a name": ("load", 0, ("config", "options", "ITEM_LIST_LENGTH_FIELD"), {}, "can't score"),
    "a number beyond floats": ("resume", 1, ("config", "options", "gbce_t"), 10**400, "gbce_t: 1000"),
    "a batch size": ("load_data_and_model", 0, ("config", "options", "train_batch_size"), "x", "train_batch_size"),
    "data that can't be split": ("load_data_and_model", 4, ("config", "options", "eval_args"), "x", "can't be made"),
    "no fingerprints of data": ("load_data_and_model", 0, ("data", "fingerprint"), 3, "its data can't be read"),
    "a file of a long name": ("resume", 1, ("training", "best_file"), "x" * 5000, "names no file"),
    "a score beyond floats": ("resume", 1, ("best_valid_score",), 10**400, "counts of epochs"),
    "no fingerprint of events": ("load_data_and_model", 0, ("data", "fingerprint"), {"names": "x"}, "other data"),
    "an epoch below 0": ("resume", 1, ("epoch",), -(10**9), "counts of epochs"),
    "an optimizer of others": ("resume", 1, ("optimizer", "state", 0, "exp_avg"), torch.ones(2), "its optimizer"),
    "half an optimizer": ("resume", 1, ("optimizer", "state", 0), {"step": torch.ones(())}, "its optimizer"),
    "a rate that is none": ("resume", 1, ("optimizer", "param_groups", 0, "lr"), "x", "its optimizer"),
    "random numbers": ("resume", 1, ("training", "random", 0, "torch"), torch.ones(2), "its state of training"),
    "no loss": ("resume", 1, ("training", "train_loss"), {0: "x"}, "its state of training"),
    "an unknown option": ("resume", 1, ("config", "given", "learning_rat"), 1, "unknown option learning_rat"),
    "an option without a file": ("resume", 1, ("config", "given", "loss_decimal_place"), -4, "loss_decimal_place: -4"),
    "names of parts": ("resume", 1, ("config", "given", "benchmark_filename"), 3, "benchmark_filename: 3"),
    "two answers to one question": ("resume", 1, ("training", "has_best"), torch.ones(2), "its state of training"),
    "numbers for users": ("load", 0, ("data", "users"), torch.ones(2, 2), "its names of users can't be read"),
    "fields that are numbers": ("load", 0, ("data", "fields"), torch.ones(2, 2), "part of its data is missing"),
    "an option of several lines": ("init_from", 0, ("config", "options", "input_scale"), "a\nb", "input_scale"),
    "a clock of three": ("init_from", 0, ("clock",), torch.ones(3), "unit of time|weights don't fit"),
}


def test_what_the_run_of_a_file_began_with_is_no_matter_of_its_model(fuzz: Any) -> None:
    state = inputs.cloned(fuzz.cases.states[0])
    state["config"]["options"].update(resume="1", init_from="2")
    save_checkpoint(state, fuzz.path)
    fuzz.readers["load_data_and_model"][0](fuzz.path)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_values_are_refused_by_the_name_of_the_file(name: str, fuzz: Any) -> None:
    reader, base, (*places, last), value, message = CHANGES[name]
    state = inputs.cloned(fuzz.cases.states[base])
    if last == "clock":
        places, last = ["state_dict"], next(each for each in state["state_dict"] if each.endswith(".clock"))
    holder = state
    for place in places:
        holder = holder[place]
    holder[last] = value
    save_checkpoint(state, "crafted.pth")
    said = read(fuzz, reader, Path("crafted.pth").read_bytes())
    assert re.search(message, said), said


def test_a_data_folder_of_any_name_is_missing_and_no_fault() -> None:
    for folder in ("x" * 5000, "a\0b"):
        with pytest.raises(DataError, match="there is no file"):
            check_data("tiny", folder)

"""Trained models as ONNX graphs, which answer without torch and RecBole.

Letters: ``B`` rows of a batch, ``L`` events of the longest, ``V`` items (padding included), ``D`` width of a vector.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import recbole_adrrec
from recbole_adrrec.errors import OptionError, require
from recbole_adrrec.files import AtomicFile
from recbole_adrrec.layers.intervals import TimeIntervals
from recbole_adrrec.layers.relative_kernels import SmoothKernel
from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.tools.recommend import Recommender

FORMS = ("scores", "vectors")
"""Outputs of a graph: scores of items, or states of users, whose products with vectors of items are the scores."""


class ScoringGraph(nn.Module):
    """A model, in evaluation mode and its rows padded, as a function of tensors alone; arguments as for ``export``."""

    def __init__(
        self, model: SequenceRecommender, form: str = "scores", top: int | None = None, seen: bool = False
    ) -> None:
        super().__init__()
        self.model, self.form, self.top, self.seen = model, form, top, seen
        self.takes_unit = isinstance(model.kernels, TimeIntervals)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, all Int64: ``[B, L]`` items and times, the others ``[B]``."""
        more = ["query_time"] if self.model.use_query_time else []
        return ["items", "times", "length", *more, *(["smallest_gap"] if self.takes_unit else [])]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        if self.form == "vectors":
            return ["states"]
        return ["scores"] if self.top is None else ["top_items", "top_scores"]

    def forward(self, items: Tensor, times: Tensor, length: Tensor, *more: Tensor) -> Any:
        """Scores, Float[B, V], or as ``outputs`` says."""
        given, met = dict(zip(self.inputs[3:], more, strict=True)), items
        last = times.gather(1, (length - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        items, moments, length = self.model.shown(items, times, length, None, given.get("query_time", last))
        if self.takes_unit:
            moments = replace(moments, unit=given["smallest_gap"])
        hidden, time = self.model.state_of(items, moments, length)
        head, table = self.model.head, self.model.item_embedding.table
        if self.form == "vectors":
            states, _, bias = head.as_product(hidden, table, query_time=time)
            return states if bias is None else torch.cat([states, torch.ones_like(states[:, :1])], 1)
        scores = head(hidden, table, query_time=time)
        if self.top is None:
            return scores
        if not self.seen:
            scores = scores.scatter(1, met, torch.finfo(scores.dtype).min)
        found = scores[:, 1:].topk(self.top)
        return found.indices + 1, found.values


def item_vectors(recommender: Recommender) -> np.ndarray:
    """Vectors of all items, Float32[V, D], whose products with a graph's states are the scores, or order items alike.

    Row 0 is padding. With STOSA a row's products differ from its scores by a constant.
    """
    model = recommender.model
    with torch.no_grad():
        hidden = model.item_embedding.weight.new_zeros(1, *_state_shape(model))
        _, items, bias = model.head.as_product(
            hidden, model.item_embedding.table, query_time=torch.zeros(1, dtype=torch.int64)
        )
        found = items if bias is None else torch.cat([items, bias.unsqueeze(1)], 1)
    return np.ascontiguousarray(found.detach().numpy(), dtype=np.float32)


def _state_shape(model: SequenceRecommender) -> tuple[int, ...]:
    size = model.options.hidden_size
    return (2, size) if model.options.backbone == "stosa" else (size,)


def export(
    recommender: Recommender,
    output: str | os.PathLike[str],
    form: str = "scores",
    top: int | None = None,
    seen: bool = False,
) -> Path:
    """Write a trained model as an ONNX graph; its metadata say what stands in it.

    Inputs are Int64: ``items`` and ``times`` (seconds since 1970, UTC), ``[B, L]``, oldest first, padded by zeros
    behind, ``L`` at most ``max_length``; ``length``, ``[B]``; ``query_time``, ``[B]``, of models that know it;
    ``smallest_gap``, ``[B]``, of TiSASRec: the smallest gap between the user's training events in seconds, 1 if
    unknown. Both sizes are free. Times stay whole up to their differences. Items are numbers: places in the list
    ``items`` of the metadata. Kernels that ``grid_points`` interpolates are exact here.

    Parameters
    ----------
    recommender : Recommender
        See :func:`recbole_adrrec.load`.
    output : path-like
        The file; with ``form`` ``vectors``, the vectors of items stand beside it as ``<name>.npy``.
    form : str
        One of ``FORMS``.
    top : int, optional
        Give the best ``top`` items and their scores, best first, rather than the scores of all.
    seen : bool
        Whether items of a row's history may be among the best.

    Raises
    ------
    OptionError
        The model has no such graph, a package is missing, or ``top`` is out of range.
    """
    model, path = recommender.model, Path(output)
    _check(recommender, form, top, seen)
    graph = ScoringGraph(model, form, top, seen)
    length = model.max_seq_length - (model.objective == "cloze")
    with _padded(model), torch.no_grad():
        program = _program(graph, length)
    data = recommender.data
    facts = {
        "model": str(recommender.config["model"]),
        "version": recbole_adrrec.__version__,
        "form": form,
        "inputs": graph.inputs,
        "max_length": length,
        "items": data.items,
    }
    proto = program.model_proto
    for name, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    with AtomicFile(path) as file:
        file.write(proto.SerializeToString())
    if form == "vectors":
        with AtomicFile(path.with_suffix(".npy")) as file:
            np.save(file, item_vectors(recommender))
    return path


def _check(recommender: Recommender, form: str, top: int | None, seen: bool) -> None:
    model, name = recommender.model, str(recommender.config["model"])
    if not isinstance(model, SequenceRecommender):
        raise OptionError(f"model: {name} has no graph; export takes ADRRec, AWRSR, HSTU, MEANTIME, STOSA and TiSASRec")
    if form not in FORMS:
        raise OptionError(f"form: {form!r} is none of {', '.join(FORMS)}")
    if form == "vectors" and top is not None:
        raise OptionError(f"top: {top} means nothing with form vectors, which has no scores to order; leave it out")
    if seen and top is None:
        raise OptionError(
            "seen: True means nothing without top: all items have their scores; leave it out, or give top"
        )
    most = len(recommender.data.items) - 1
    if top is not None and not 1 <= top <= most:
        raise OptionError(f"top: {top} is not a whole number from 1 to {most}, the number of items")
    require(("onnx", "onnxscript"), "export", "export")


@contextmanager
def _padded(model: SequenceRecommender) -> Iterator[None]:
    """While this lasts, rows stay padded and in one piece, as a graph of free sizes needs."""
    before = model.compiled, model.event_layout
    smooth = [(kernel, kernel.grid_points) for kernel in model.modules() if isinstance(kernel, SmoothKernel)]
    model.compiled, model.event_layout = True, "padded"
    for kernel, _ in smooth:
        kernel.grid_points = None  # the table between whose points it interpolates grows with the longest gap
    try:
        yield
    finally:
        model.compiled, model.event_layout = before
        for kernel, points in smooth:
            kernel.grid_points = points


def _program(graph: ScoringGraph, length: int) -> Any:
    """The graph as torch's ONNX program; its example has two rows of different length."""
    width = min(length, 5)
    example: list[Tensor] = [
        torch.tensor([[1] * width, [1] * (width - 1) + [0]]),
        torch.arange(1, width + 1).expand(2, -1) * 86400,
        torch.tensor([width, max(1, width - 1)]),
    ]
    example += [torch.full((2,), 86400 * (width + 1)) for _ in graph.inputs[3:]]
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)  # torch 2.7 takes no size without an end
    rows: dict[int, Any] = {0: batch}
    places = {0: batch, 1: torch.export.Dim("length", min=1, max=length)} if length > 1 else rows
    more = tuple(rows for _ in graph.inputs[3:])
    shapes = (places, places, rows, *([more] if more else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program: Any = torch.onnx.export(
            graph.eval(),
            tuple(example),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=graph.inputs,
            output_names=graph.outputs,
            verbose=False,
        )
    return program

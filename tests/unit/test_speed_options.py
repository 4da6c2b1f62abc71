"""Options that make models cheaper and leave what they compute as it is, to the rounding that each allows."""

import warnings

import helpers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_adrrec.layers import transformer
from recbole_adrrec.layers.pointwise import PointwiseLayer
from recbole_adrrec.models.adrrec import ADRRec
from recbole_adrrec.models.awrsr import AWRSR
from recbole_adrrec.models.hstu import HSTU
from recbole_adrrec.models.meantime import MEANTIME
from recbole_adrrec.models.stosa import STOSA
from recbole_adrrec.models.tisasrec import TiSASRec

EVERY_KERNEL = {
    "absolute_kernels": ["position", "day", "constant", "hour"],
    "relative_kernels": ["sinusoid", "exponential", "log1p", "distance", "gap_bias", "distance_bias"],
}
MODELS = [
    (ADRRec, {**EVERY_KERNEL, "lni_weight": 0.05}),
    (ADRRec, {**EVERY_KERNEL, "objective": "cloze"}),
    (ADRRec, {"mixture": "heads", "norm_order": "pre", "drop_residual": True}),
    (ADRRec, {**EVERY_KERNEL, "grid_points": 4}),
    (AWRSR, {"refinement": "stochastic"}),
    (AWRSR, {"backbone": "mix", "refinement": "value"}),
    (HSTU, {"use_query_time": True}),
    (MEANTIME, {"relative_kernels": ["sinusoid", "log1p"]}),
    (STOSA, {"initializer_range": 0.1}),
    (TiSASRec, {}),
    (TiSASRec, {"published_padding_attention": True}),
]
DROPOUT = {"hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3}


def trained(model_class, dtype=torch.float64, autocast=False, lengths=(7, 2, 4), **options):
    """Loss and gradients of one training step, drawn alike."""
    model = helpers.build(model_class, dtype=dtype, **options).train()
    batch = helpers.rows(list(lengths), targets=model.objective)
    torch.manual_seed(1)
    with torch.autocast("cpu", enabled=autocast):
        loss = model.calculate_loss(batch)
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize(("model_class", "options"), MODELS)
def test_recomputation_changes_nothing(model_class, options):
    """Of rows of similar length, dropout included: they are one group either way."""
    loss, gradients = trained(model_class, **DROPOUT, **options, lengths=(7, 6, 7))
    again, others = trained(model_class, **DROPOUT, **options, lengths=(7, 6, 7), recompute=True)
    assert torch.equal(again, loss)
    assert_gradients(others, gradients, 1e-12)


@pytest.mark.parametrize(("model_class", "options"), MODELS)
def test_what_is_computed_again_is_dropped_again(model_class, options, monkeypatch):
    """Of rows of any length each group draws for itself, for the backward pass as it did before."""
    loss, gradients = trained(model_class, **DROPOUT, **options, recompute=True)

    def once(layer, *given, use_reentrant):
        return layer(*given)

    monkeypatch.setattr(transformer, "checkpoint", once)
    kept, others = trained(model_class, **DROPOUT, **options, recompute=True)
    assert torch.equal(kept, loss)
    assert_gradients(others, gradients, 1e-12)


def assert_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=1e-12, msg=name)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else [made]:
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return made


@pytest.mark.parametrize(("model_class", "options"), MODELS)
def test_recomputation_by_blocks_of_rows_changes_nothing(model_class, options, monkeypatch):
    if options.get("refinement") == "stochastic":
        options = {**options, "refinement": "additive"}  # its noise is drawn block by block
    loss, gradients = trained(model_class, **options)
    counted = []
    layer_class = PointwiseLayer if model_class is HSTU else transformer.TransformerLayer
    plain = layer_class.forward

    def count(self, hidden, layout, context):
        (group,) = layout.groups
        counted.append(len(group.mask))
        return plain(self, hidden, layout, context)

    monkeypatch.setattr(layer_class, "forward", count)
    monkeypatch.setitem(transformer.BLOCK_PAIRS, "cpu", 1)
    again, others = trained(model_class, **options, recompute=True)
    # All three rows stay together where padding takes part.
    assert set(counted) == ({3} if options.get("published_padding_attention") else {1})
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    assert_gradients(others, gradients, 1e-9)


def test_blocks_bound_what_is_made(monkeypatch):
    monkeypatch.setitem(transformer.BLOCK_PAIRS, "cpu", 60**2)
    model = helpers.build(ADRRec, **{**EVERY_KERNEL, "MAX_ITEM_LIST_LENGTH": 60, "recompute": True}).train()
    with Largest() as whole:
        model.calculate_loss(helpers.rows([60] * 8, width=60, targets="causal")).backward()
    assert whole.elements <= 16 * 60**2  # a kernel's features of one row's pairs; eight rows' are eight times as many


def kept_bytes(**options):
    """Tensors that one training step keeps for its backward pass."""
    model = helpers.build(ADRRec, **{**EVERY_KERNEL, "n_layers": 4, "MAX_ITEM_LIST_LENGTH": 60, **options}).train()
    kept = {}

    def pack(part):
        kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return part

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda part: part):
        model.calculate_loss(helpers.rows([60, 60], width=60, targets="causal"))
    return sum(kept.values())


def test_recomputation_keeps_less():
    assert kept_bytes(recompute=True) < kept_bytes() / 3


def test_a_grid_keeps_no_features():
    """Beside its weights of L x L, an interpolated kernel keeps nothing of that size for each feature."""
    assert kept_bytes(grid_points=16) < 1.2 * kept_bytes()


@pytest.mark.parametrize(("model_class", "options"), MODELS)
def test_bf16_autocast_agrees(model_class, options):
    """Bfloat16 has 8 significant bits: a loss within 2 %, gradients within 10 % of their size."""
    options = {"initializer_range": 0.05, **options}
    loss, gradients = trained(model_class, torch.float32, **options)
    low, others = trained(model_class, torch.float32, autocast=True, **options)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, loss, rtol=0.02, atol=0)
    assert low != loss
    size = sum(gradient.square().sum() for gradient in gradients.values()).sqrt()
    apart = sum((others[name].float() - gradient).square().sum() for name, gradient in gradients.items()).sqrt()
    assert apart < 0.1 * size


@pytest.mark.slow  # a compiler works for a minute
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_model_agrees(recompute):
    options = {"lni_weight": 0.5, "recompute": recompute, **EVERY_KERNEL}
    # Noise is drawn in the order of the layout, and a compiled model pads its rows.
    loss, gradients = trained(ADRRec, torch.float32, event_layout="padded", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled, others = trained(ADRRec, torch.float32, compile=True, **options)
    torch.testing.assert_close(compiled, loss, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-2, atol=1e-4)

"""Layer-wise noise: its size, its randomness, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn

from recbole_adrrec.layers.noise import NOISES, LayerwiseNoise

VALID = torch.tensor([[True] * 4, [True, True, False, False]])
HIDDEN = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))


class Stack:
    """Two linear layers with dropout, run as an encoder is."""

    def __init__(self, dropout=0.0):
        torch.manual_seed(0)
        self.layers = [nn.Linear(64, 64) for _ in range(2)]
        self.dropout = nn.Dropout(dropout)
        self.calls = 0
        self.inputs = []

    def __call__(self, perturb):
        self.calls += 1
        hidden, states = HIDDEN, []
        for number, layer in enumerate(self.layers, 1):
            if perturb is not None:
                before = hidden
                hidden = perturb(number, hidden)
                self.inputs.append((before.detach(), hidden.detach()))
            hidden = self.dropout(layer(hidden))
            states.append(hidden)
        return states


def noise(**changes):
    arguments = {
        "n_layers": 2,
        "sigma": 0.1,
        "noise": "gaussian",
        "layers": None,
        "layer_weights": None,
        "stop_gradient": False,
        "seed": 7,
    }
    return LayerwiseNoise(**{**arguments, **changes})


def penalty(stack=None, **changes):
    return noise(**changes)(stack or Stack(), VALID)[1]


@pytest.mark.parametrize("kind", NOISES)
def test_noise_of_every_kind_has_the_asked_size(kind):
    stack = Stack()
    noise(noise=kind, sigma=0.25)(stack, VALID)
    for before, after in stack.inputs:
        relative = (after - before)[VALID].pow(2).mean(-1).sqrt() / before[VALID].pow(2).mean(-1).sqrt()
        torch.testing.assert_close(relative.mean(), torch.tensor(0.25), rtol=0.1, atol=0)


def test_in_manifold_noise_points_to_another_valid_place():
    stack = Stack()
    noise(noise="in_manifold")(stack, VALID)
    before, after = stack.inputs[0]
    events, moved = before[VALID], (after - before)[VALID]
    towards = events.unsqueeze(0) - events.unsqueeze(1)  # [from, to, d]
    cosine = torch.cosine_similarity(moved.unsqueeze(1), towards, dim=-1)
    best, target = cosine.max(1)
    torch.testing.assert_close(best, torch.ones(len(events)))
    assert (target != torch.arange(len(events))).all()
    assert torch.equal(before[~VALID], after[~VALID])


@pytest.mark.parametrize("valid", [torch.zeros(2, 4).bool(), torch.eye(2, 4).bool() & torch.tensor([[True], [False]])])
@pytest.mark.parametrize("kind", NOISES)
def test_without_another_place_nothing_breaks(kind, valid):
    value = noise(noise=kind)(Stack(), valid)[1]
    assert value.isfinite()


def test_the_noise_is_the_only_difference_between_the_passes():
    """With other dropout masks the passes would differ by far more than this."""
    stack = Stack(dropout=0.5)
    assert 0 < penalty(stack, sigma=1e-3) < 1e-4
    assert stack.calls == 2


def test_torchs_random_state_is_left_as_one_pass_leaves_it():
    torch.manual_seed(3)
    states, _ = noise()(Stack(0.5), VALID)
    after_noise = torch.rand(3)
    torch.manual_seed(3)
    plain = Stack(0.5)(None)
    assert torch.equal(torch.rand(3), after_noise)
    for state, other in zip(states, plain, strict=True):
        assert torch.equal(state, other)


def test_noise_follows_the_seed_and_the_step_and_survives_copies():
    first = noise()
    steps = [first(Stack(), VALID)[1].detach() for _ in range(3)]
    assert len({float(step) for step in steps}) == 3
    again = noise()
    assert torch.equal(again(Stack(), VALID)[1], steps[0])
    assert not torch.equal(penalty(seed=8), steps[0])
    duplicate = copy.deepcopy(again)
    restored = noise()
    restored.load_state_dict(again.state_dict())
    for other in (again, duplicate, restored):
        assert torch.equal(other(Stack(), VALID)[1], steps[1])


def test_layers_and_their_weights():
    both = penalty(layers=[1, 2])
    assert torch.equal(penalty(), both)
    first = penalty(layers=[1])
    assert first < both
    torch.testing.assert_close(penalty(layers=[1], layer_weights=[3.0]), 3 * first)
    torch.testing.assert_close(penalty(layer_weights=[0.0, 0.0]), torch.tensor(0.0))


def test_the_value_by_its_definition():
    """R = sum of mean ||h~ - h||^2 / mean ||h||^2 over valid places."""
    stack = Stack()
    clean, value = noise()(stack, VALID)
    noisy = stack.layers[0](stack.inputs[0][1]), stack.layers[1](stack.inputs[1][1])
    expected = sum(
        (other - state)[VALID].pow(2).sum(-1).mean() / state[VALID].pow(2).sum(-1).mean()
        for state, other in zip(clean, noisy, strict=True)
    )
    torch.testing.assert_close(value, expected)


def test_scaling_the_states_changes_nothing():
    """Else shrinking the states would minimise the penalty."""

    class Scaled(Stack):
        def __call__(self, perturb):
            return [state * 100 for state in super().__call__(perturb)]

    torch.testing.assert_close(penalty(Scaled()), penalty(Stack()))


def test_clean_states_carry_gradient_unless_stopped():
    def gradients(stop):
        kept = []

        class Kept(Stack):
            def __call__(self, perturb):
                states = super().__call__(perturb)
                if perturb is None:
                    for state in states:
                        state.retain_grad()
                    kept.extend(states)
                return states

        penalty(Kept(), stop_gradient=stop).backward()
        return [state.grad for state in kept]

    assert all(gradient.abs().sum() > 0 for gradient in gradients(False))
    assert all(gradient is None for gradient in gradients(True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "lni_sigma: 0"),
        ({"noise": "normal"}, "lni_noise: normal"),
        ({"layers": []}, "lni_layers"),
        ({"layers": [0]}, "lni_layers"),
        ({"layers": [3]}, "lni_layers.*1 to 2"),
        ({"layers": [1, 1]}, "lni_layers"),
        ({"layer_weights": [1.0]}, "lni_layer_weights.*2 weights"),
        ({"layer_weights": [1.0, -1.0]}, "lni_layer_weights"),
    ],
)
def test_refused_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        noise(**changes)

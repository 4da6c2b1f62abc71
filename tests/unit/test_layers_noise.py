"""Layer-wise noise: its size and randomness, the penalty, and all that it leaves alone."""

import copy

import helpers
import pytest
import torch
from torch import nn

from recbole_adrrec.layers.noise import NOISES, LayerwiseNoise, divergence, gradient_ratio

VALID = torch.tensor([[True] * 4, [True, True, False, False]])
HIDDEN = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))


class Stack:
    """Two linear layers with dropout, run as an encoder is."""

    def __init__(self, dropout=0.0, hidden=HIDDEN):
        torch.manual_seed(0)
        self.hidden = hidden
        self.layers = [nn.Linear(64, 64) for _ in range(2)]
        self.dropout = nn.Dropout(dropout)
        self.calls = 0
        self.inputs = []

    def __call__(self, perturb):
        self.calls += 1
        hidden, states = self.hidden, []
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
    return penalty_of(noise(**changes), stack)


def penalty_of(made, stack=None, valid=VALID):
    return made.penalty(made(stack or Stack(), valid), valid)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_of_every_kind_has_its_size(kind):
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
    assert penalty_of(noise(noise=kind), Stack(), valid).isfinite()
    assert penalty_of(noise(noise=kind), Stack(hidden=HIDDEN[valid]), None).isfinite()


def test_the_noise_is_the_only_difference_between_the_passes():
    """With other dropout masks the passes would differ by far more than this."""
    stack = Stack(dropout=0.5)
    passes = noise(sigma=1e-3)(stack, VALID)
    for clean, noisy in zip(passes.clean, passes.noisy, strict=True):
        assert 0 < (noisy - clean).pow(2).sum() < 1e-4 * clean.pow(2).sum()
    assert stack.calls == 2


@pytest.mark.parametrize("kind", NOISES)
def test_events_get_the_same_noise_with_and_without_padding(kind):
    padded, packed = noise(noise=kind)(Stack(), VALID), noise(noise=kind)(Stack(hidden=HIDDEN[VALID]), None)
    for one, other in zip([*padded.clean, *padded.noisy], [*packed.clean, *packed.noisy], strict=True):
        torch.testing.assert_close(one[VALID], other)
    assert padded.energy.keys() == packed.energy.keys() == {1, 2}
    made = noise(noise=kind)
    torch.testing.assert_close(made.penalty(padded, VALID), made.penalty(packed, None))


def test_one_pass_with_noise_is_one_pass():
    stack = Stack()
    states, energy = noise().inject(stack, VALID)
    assert stack.calls == 1
    for state, other in zip(states, noise()(Stack(), VALID).noisy, strict=True):
        assert torch.equal(state, other)
    for (before, after), size in zip(stack.inputs, energy.values(), strict=True):
        torch.testing.assert_close(size, (after - before)[VALID].pow(2).sum())
        assert not (after - before)[~VALID].any()


def test_torchs_random_state_is_left_as_one_pass_leaves_it():
    torch.manual_seed(3)
    states = noise()(Stack(0.5), VALID).clean
    after_noise = torch.rand(3)
    torch.manual_seed(3)
    plain = Stack(0.5)(None)
    assert torch.equal(torch.rand(3), after_noise)
    for state, other in zip(states, plain, strict=True):
        assert torch.equal(state, other)


def test_noise_follows_the_seed_and_the_step_and_survives_copies():
    first = noise()
    steps = [penalty_of(first).detach() for _ in range(3)]
    assert len({float(step) for step in steps}) == 3
    again = noise()
    assert torch.equal(penalty_of(again), steps[0])
    assert not torch.equal(penalty(seed=8), steps[0])
    duplicate = copy.deepcopy(again)
    restored = noise()
    restored.load_state_dict(again.state_dict())
    for other in (again, duplicate, restored):
        assert torch.equal(penalty_of(other), steps[1])


def test_each_process_draws_noise_of_its_own(monkeypatch):
    first = penalty()
    monkeypatch.setattr("recbole_adrrec.layers.noise.rank", lambda: 1)
    assert not torch.equal(penalty(), first)


def test_layers_and_their_weights():
    both = penalty(layers=[1, 2])
    assert torch.equal(penalty(), both)
    first = penalty(layers=[1])
    assert first < both
    torch.testing.assert_close(penalty(layers=[1], layer_weights=[3.0]), 3 * first)
    torch.testing.assert_close(penalty(layer_weights=[0.0, 0.0]), torch.tensor(0.0))


def test_the_value_by_its_definition():
    """R = sum of mean ||h~ - h||^2 / mean ||e||^2 over valid places, e the noise that went in."""
    stack = Stack()
    made = noise()
    passes = made(stack, VALID)
    expected = 0
    for layer, state, (before, after) in zip(stack.layers, passes.clean, stack.inputs, strict=True):
        moved, added = (layer(after) - state)[VALID], (after - before)[VALID]
        expected += moved.pow(2).sum(-1).mean() / added.pow(2).sum(-1).mean()
    torch.testing.assert_close(made.penalty(passes, VALID), expected)


def test_it_says_by_how_much_layers_amplify_noise():
    class Triple(Stack):
        def __call__(self, perturb):
            hidden = HIDDEN if perturb is None else perturb(1, HIDDEN)
            return [hidden * 3, hidden * 3]

    for sigma in (0.01, 0.5):
        torch.testing.assert_close(penalty(Triple(), layers=[1], sigma=sigma), torch.tensor(9.0))


def test_the_unit_of_the_states_changes_nothing():
    class Scaled(Stack):
        def __call__(self, perturb):
            self.hidden = HIDDEN * 100
            for layer in self.layers:
                layer.bias.data.zero_()
            return super().__call__(perturb)

    class Plain(Scaled):
        def __call__(self, perturb):
            for layer in self.layers:
                layer.bias.data.zero_()
            return Stack.__call__(self, perturb)

    torch.testing.assert_close(penalty(Scaled()), penalty(Plain()))


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


def logits(seed, count=9, items=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, items, dtype=torch.float64, generator=generator, requires_grad=True)


@pytest.mark.parametrize("rows", [1, 4, 9, 100])
@pytest.mark.parametrize("stop", [False, True])
def test_the_divergence_by_its_definition(rows, stop):
    clean, noisy = logits(1), logits(2)
    value = divergence(lambda part: clean[part], lambda part: noisy[part], len(clean), rows, stop)
    one, other = (clean.detach() if stop else clean).log_softmax(1), noisy.log_softmax(1)
    expected = ((one.exp() * (one - other)).sum(1) + (other.exp() * (other - one)).sum(1)).mean() / 2
    helpers.assert_same(value, expected, [noisy] if stop else [clean, noisy], rtol=1e-8)
    value.backward()
    assert (clean.grad is None) == stop


def test_the_divergence_sees_a_few_rows_at_a_time():
    clean, noisy, seen = logits(1), logits(2), []

    def watched(part):
        seen.append(len(clean[part]))
        return clean[part]

    divergence(watched, lambda part: noisy[part], len(clean), 4).backward()
    assert seen[:3] == [4, 4, 1]
    assert max(seen) == 4


def test_the_divergence_of_nothing_is_zero_and_connected():
    nothing = logits(1, count=0)
    value = divergence(lambda part: nothing[part], lambda part: nothing[part], 0, 4)
    value.backward()
    assert value == 0
    assert nothing.grad is not None


def test_gradients_are_compared_by_their_norms():
    first, second, unread = (torch.nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(3))
    penalty = (first * torch.tensor([0.6, 0.8])).sum()
    loss = 4 * first[0] + 3 * second[0]
    assert gradient_ratio(penalty, loss, [first, second, unread]) == pytest.approx(1 / 5)
    penalty.backward()

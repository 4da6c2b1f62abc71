"""The statistics of a study: against scipy's own functions, hand-worked numbers and simulated studies."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from study.statistics import (
    Comparison,
    Sample,
    Verdict,
    bootstrap_interval,
    compare,
    correct,
    holm,
    paired_t,
    rank_biserial,
    signed_rank,
    spread,
    standardised_difference,
)

RNG = np.random.default_rng(7)
NDCG = np.concatenate([[0.0], 1 / np.log2(np.arange(2, 12))])


def ndcg(rng, *shape):
    """Values as users have them: mostly zero, else one of ten."""
    return NDCG[np.maximum(rng.integers(-10, 11, shape), 0)]


def sample(values, users=None, seeds=None):
    """Values, [seeds, users], as a sample."""
    values = np.atleast_2d(values)
    users = [f"u{n}" for n in range(values.shape[1])] if users is None else users
    seeds = range(len(values)) if seeds is None else seeds
    by_user = pd.DataFrame(values.T, users, list(seeds))
    return Sample(by_user.mean(), by_user)


def within_binomial(count, n, p):
    """True for a count that is one that a rate of ``p`` gives in all but one in ten thousand simulations."""
    low, high = stats.binom.interval(0.9999, n, p)
    return low <= count <= high


def test_tests_equal_scipys():
    a, b = ndcg(RNG, 200), ndcg(RNG, 200)
    assert signed_rank(a - b) == stats.wilcoxon(a, b).pvalue
    x, y = RNG.normal(size=5), RNG.normal(size=5)
    assert paired_t(x - y) == pytest.approx(stats.ttest_rel(x, y).pvalue, rel=1e-12)
    found = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=500, random_state=np.random.default_rng(3)
    )
    ends = bootstrap_interval(a - b, resamples=500, seed=3)
    assert ends == pytest.approx(tuple(found.confidence_interval), rel=1e-12)
    np.testing.assert_array_equal(spread([1, 2, 4]).sd, np.std([1, 2, 4], ddof=1))


def test_comparison_equals_scipys_on_means_over_seeds():
    a, b = ndcg(RNG, 3, 150), ndcg(RNG, 3, 150)
    found = compare(sample(a), sample(b))
    assert found.p_users == pytest.approx(stats.wilcoxon(a.mean(0), b.mean(0)).pvalue, rel=1e-9)
    assert found.p_seeds == pytest.approx(stats.ttest_rel(a.mean(1), b.mean(1)).pvalue, rel=1e-9)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.low < found.difference < found.high
    assert (found.n_users, found.n_seeds, found.remarks) == (150, 3, ())


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; no value falls below the one before it.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.02]), [0.02])
    assert holm([]).shape == (0,)
    for wrong in ([0.1, np.nan], [-0.1], [1.1]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm(wrong)


def test_effect_sizes_by_hand():
    assert standardised_difference([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    # Sizes 1 2 3 (the zero left out): positive ranks 1 + 3, negative 2, of 6.
    assert rank_biserial([1.0, -2.0, 3.0, 0.0]) == pytest.approx(2 / 6)
    assert rank_biserial([1.0, 2.0]) == 1.0
    assert rank_biserial([-1.0, 1.0]) == 0.0


def test_without_a_difference_tests_reject_at_the_nominal_rate():
    studies, users, seeds = 1000, 120, 5
    rng = np.random.default_rng(11)
    differences = ndcg(rng, studies, users) - ndcg(rng, studies, users)
    assert within_binomial(sum(signed_rank(each) < 0.05 for each in differences), studies, 0.05)
    over_seeds = rng.normal(size=(studies, seeds))
    assert within_binomial(sum(paired_t(each) < 0.05 for each in over_seeds), studies, 0.05)


def test_interval_holds_zero_at_the_nominal_rate():
    studies = 400
    rng = np.random.default_rng(12)
    differences = ndcg(rng, studies, 200) - ndcg(rng, studies, 200)
    ends = [bootstrap_interval(each, resamples=400) for each in differences]
    assert within_binomial(sum(low > 0 or high < 0 for low, high in ends), studies, 0.05)


def test_holm_keeps_any_false_rejection_at_the_nominal_rate():
    studies, models = 400, 6
    rng = np.random.default_rng(13)
    baseline = ndcg(rng, studies, 1, 100)
    differences = ndcg(rng, studies, models, 100) - baseline
    p = np.array([[signed_rank(each) for each in study] for study in differences])
    corrected = sum((holm(each) < 0.05).any() for each in p)
    plain = (p < 0.05).any(-1).sum()
    assert corrected <= stats.binom.ppf(0.9999, studies, 0.05)
    assert plain > stats.binom.ppf(0.9999, studies, 0.05)


def test_no_simulated_study_without_a_difference_says_better_too_often():
    rng = np.random.default_rng(14)
    said = 0
    for _ in range(120):
        baseline = sample(ndcg(rng, 2, 60))
        compared = correct([compare(sample(ndcg(rng, 2, 60)), baseline, resamples=200) for _ in range(4)])
        said += any(Verdict.of(each) in (Verdict.BETTER, Verdict.WORSE) for each in compared)
    assert said <= stats.binom.ppf(0.9999, 120, 0.05)


def test_a_real_difference_is_found():
    rng = np.random.default_rng(15)
    b = rng.random((3, 300)) * 0.5
    up, down = correct([compare(sample(b + 0.05 + rng.normal(0, 0.05, b.shape)), sample(b)),
                        compare(sample(b - 0.05 + rng.normal(0, 0.05, b.shape)), sample(b))])  # fmt: skip
    assert Verdict.of(up) is Verdict.BETTER
    assert Verdict.of(down) is Verdict.WORSE
    assert up.d_z > 0.5 > -0.5 > down.d_z
    assert up.rank_biserial > 0 > down.rank_biserial


def test_ranks_against_the_mean_show_nothing():
    # Most users gain a little, few lose much: ranks say up, the mean says down.
    rng = np.random.default_rng(16)
    difference = np.concatenate([rng.uniform(0.01, 0.02, 300), rng.uniform(-1, -0.9, 30)])
    (found,) = correct([compare(sample(difference), sample(np.zeros(330)))])
    assert found.p_users_holm < 0.001
    assert found.high < 0 < found.rank_biserial
    assert Verdict.of(found) is Verdict.NOT_SHOWN


def test_correction_alone_can_take_the_word_away():
    rng = np.random.default_rng(17)
    drawn = rng.normal(0, 1, 130)
    shifted = drawn - drawn.mean() + 2.3 * drawn.std() / 130**0.5
    found = compare(sample(shifted), sample(np.zeros(130)))
    assert 0.005 < found.p_users < 0.05
    assert Verdict.of(correct([found])[0]) is Verdict.BETTER
    others = [compare(sample(rng.normal(0, 1, 130)), sample(np.zeros(130))) for _ in range(20)]
    assert Verdict.of(correct([found, *others])[0]) is Verdict.NOT_SHOWN


def test_degenerate_inputs_have_an_answer():
    same = compare(sample(np.ones((2, 9))), sample(np.ones((2, 9))))
    assert (same.p_users, same.p_seeds, same.d_z, same.rank_biserial) == (1.0, 1.0, 0.0, 0.0)
    assert (same.low, same.difference, same.high) == (0.0, 0.0, 0.0)
    assert "no user's value differs" in same.remarks

    once = compare(sample(ndcg(RNG, 30)), sample(ndcg(RNG, 30)))
    assert once.p_seeds is None
    assert "one seed: no test over seeds" in once.remarks

    shifted = compare(sample([[1.0, 1.0], [2.0, 2.0]]), sample([[0.5, 0.5], [1.5, 1.5]]))
    assert shifted.p_seeds is None
    assert shifted.d_z is None
    assert "the same difference in every seed: no test over seeds" in shifted.remarks

    apart = compare(sample(np.ones(3), ["a", "b", "c"]), sample(np.ones(3), ["d", "e", "f"]))
    assert (apart.n_users, apart.n_only_one, apart.difference, apart.p_users) == (0, 6, None, None)
    assert "no user in common: not tested over users" in apart.remarks

    alone = compare(sample([1.0], ["a"]), sample([0.0], ["a"]))
    assert (alone.n_users, alone.low) == (1, None)

    never = compare(sample(np.ones(3), seeds=[1]), sample(np.ones(3), seeds=[2]))
    assert never.remarks == ("no seed in common: not compared",)

    for each in correct([same, once, shifted, apart, alone, never]):
        numbers = [value for value in vars(each).values() if isinstance(value, float)]
        assert np.isfinite(numbers).all()
        assert Verdict.of(each) in (Verdict.NOT_SHOWN, Verdict.NOT_TESTED)


def test_missing_users_are_left_out_and_counted():
    values = ndcg(RNG, 40)
    names = np.array([f"u{n}" for n in range(40)])
    order = RNG.permutation(40)[:30]
    other = values[order] + 0.1
    found = compare(sample(other, names[order]), sample(values, names))
    assert (found.n_users, found.n_only_one) == (30, 10)
    assert found.difference == pytest.approx(0.1)
    assert "10 users with a value of one model alone left out" in found.remarks


def test_missing_seeds_are_left_out_and_counted():
    a, b = ndcg(RNG, 3, 50), ndcg(RNG, 2, 50)
    found = compare(sample(a, seeds=[1, 2, 3]), sample(b, seeds=[3, 1]))
    assert found.n_seeds == 2
    assert found.difference == pytest.approx((a[[0, 2]] - b[[1, 0]]).mean())
    assert "1 seeds without a partner left out" in found.remarks


def test_not_a_number_is_refused():
    for call in (signed_rank, paired_t, bootstrap_interval, spread, rank_biserial, standardised_difference):
        with pytest.raises(ValueError, match="finite"):
            call([0.1, np.nan])
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_untested_comparisons_do_not_count_in_the_correction():
    tested, untested = Comparison(p_users=0.02), Comparison()
    first, second, third = correct([tested, untested, tested])
    assert first.p_users_holm == third.p_users_holm == pytest.approx(0.04)
    assert second.p_users_holm is None
    assert first.p_seeds_holm is None

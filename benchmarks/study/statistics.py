"""Difference of two models: paired tests over users and over seeds, intervals, effect sizes, Holm's correction.

A comparison takes one metric of one model and of a reference on the same users. Three questions are kept apart:

- **users**: would the difference hold for other users? Wilcoxon's signed-rank test on each user's value, averaged over
  the seeds; a paired bootstrap of users gives the interval of the mean difference.
- **seeds**: would it hold for other random states? A paired t test on the metric of each seed.
- **size**: Cohen's d_z and the matched-pairs rank-biserial correlation, over users.

p values are corrected by Holm over all comparisons of a study, separately for users and for seeds. Only
:meth:`Verdict.of` says which model is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 2000
"""Resamples of the bootstrap: the ends of a 95 % interval then rest on 50 of them each."""

DRAWN_AT_A_TIME = 4_000_000


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (with ``n - 1``; None for a single seed) over ``n`` seeds."""

    mean: float
    sd: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of some values.

    Raises
    ------
    ValueError
        If there is no value, or one is not finite.
    """
    array = _finite(values)
    if not len(array):
        raise ValueError("no values to take the mean of")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def _finite(values: Any) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("values must be finite numbers")
    return array


def signed_rank(differences: Any) -> Floats:
    """Two-sided p value, Float[...], of Wilcoxon's signed-rank test of paired differences, Float[..., n users].

    As ``scipy.stats.wilcoxon`` with its defaults: zero differences are left out. 1 where all are zero.
    """
    array = _finite(differences)
    some = (array != 0).any(-1)
    p = np.ones(array.shape[:-1])
    if some.any():
        p[some] = stats.wilcoxon(array[some], axis=-1).pvalue
    return p


def paired_t(differences: Any) -> Floats:
    """Two-sided p value, Float[...], of the paired t test of differences, Float[..., n seeds].

    As ``scipy.stats.ttest_rel``; 1 where all differences are zero, NaN where the test says nothing: for one seed,
    and for several that differ by exactly the same amount, not zero.
    """
    array = _finite(differences)
    p = np.full(array.shape[:-1], np.nan)
    p[(array == 0).all(-1)] = 1.0
    varied = (array != array[..., :1]).any(-1)
    if array.shape[-1] > 1 and varied.any():
        p[varied] = stats.ttest_1samp(array[varied], 0.0, axis=-1).pvalue
    return p


def bootstrap_interval(
    values: Any, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """Percentile bootstrap interval of the mean.

    Parameters
    ----------
    values : Float[..., n]
        One value for each of at least two users; of a pair, the differences, so that users are drawn with both of
        their values.
    confidence, resamples, seed
        Of ``scipy.stats.bootstrap``.

    Returns
    -------
    (Float[...], Float[...])
        Lower and upper end; both the value itself where all are equal.
    """
    array = _finite(values)
    n = array.shape[-1]
    if n < 2:
        raise ValueError("a bootstrap needs at least two users")
    found = stats.bootstrap(
        (array,),
        np.mean,
        axis=-1,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, DRAWN_AT_A_TIME // array.size),
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def standardised_difference(differences: Any) -> float | None:
    """Cohen's d_z: mean of the differences over their standard deviation (``n - 1``).

    0 where all differences are zero; None where it is not defined (one user, or equal differences that are not zero).
    """
    array = _finite(differences)
    if not array.any():
        return 0.0
    if len(array) < 2 or (array == array[0]).all():
        return None
    return float(array.mean() / array.std(ddof=1))


def rank_biserial(differences: Any) -> float:
    """Matched-pairs rank-biserial correlation, ``(W+ - W-) / (W+ + W-)``, from -1 to 1 (Kerby, 2014).

    ``W+`` and ``W-`` are the sums of the ranks of positive and negative differences by size; zero differences are left
    out, as in the test. 0 where all are zero.
    """
    array = _finite(differences)
    array = array[array != 0]
    if not len(array):
        return 0.0
    ranks = stats.rankdata(np.abs(array))
    return float((ranks * np.sign(array)).sum() / ranks.sum())


def holm(p_values: Any) -> Floats:
    """Adjust p values, Float[..., m], for being several (Holm, 1979).

    ``max over the p values up to p_(k) of (m - k + 1) p_(k)``, at most 1, in the order of the comparisons. Rejecting
    where this is below ``alpha`` keeps the chance of any false rejection below ``alpha``, however the comparisons
    depend on each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p values must be between 0 and 1")
    m = p.shape[-1]
    order = np.argsort(p, -1, kind="stable")
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * (m - np.arange(m)), -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), -1)
    return adjusted


@dataclass(frozen=True)
class Sample:
    """One metric of one model: of each seed's run, and for each seed the users, Str[n], and their values, Float[n]."""

    by_seed: Mapping[int, float]
    by_user: Mapping[int, tuple[NDArray[Any], Floats]]


def users_over_seeds(sample: Sample) -> tuple[NDArray[Any], Floats]:
    """Each user's mean over the seeds: users that every seed has, sorted, and their values."""
    seeds = sorted(sample.by_user)
    users = np.unique(sample.by_user[seeds[0]][0])
    for seed in seeds[1:]:
        users = np.intersect1d(users, sample.by_user[seed][0])
    return users, np.mean([_values_of(users, *sample.by_user[seed]) for seed in seeds], axis=0)


def _values_of(wanted: NDArray[Any], users: NDArray[Any], values: Floats) -> Floats:
    order = np.argsort(users)
    return _finite(values)[order[np.searchsorted(users, wanted, sorter=order)]]


@dataclass(frozen=True)
class Comparison:
    """Difference of a model from its reference in one metric; None wherever something can't be said.

    Attributes
    ----------
    n_users, n_only_one, n_differ : int
        Users that both have, that one alone has (left out), and whose values differ.
    difference : float, optional
        Mean over users of model minus reference; ``low`` and ``high`` are the ends of its bootstrap interval.
    p_users, p_users_holm : float, optional
        Wilcoxon's p over users, plain and corrected.
    d_z, rank_biserial : float, optional
        Effect sizes over users.
    n_seeds : int
        Seeds that both have.
    p_seeds, p_seeds_holm : float, optional
        The t test's p over seeds, plain and corrected.
    remarks : tuple of str
        Anything left out, and why.
    """

    n_users: int
    n_only_one: int
    n_differ: int
    difference: float | None
    low: float | None
    high: float | None
    p_users: float | None
    d_z: float | None
    rank_biserial: float | None
    n_seeds: int
    p_seeds: float | None
    remarks: tuple[str, ...] = ()
    p_users_holm: float | None = None
    p_seeds_holm: float | None = None


def compare(
    model: Sample, reference: Sample, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Test a model against its reference, on the users and seeds that both have; nothing is corrected yet."""
    seeds = sorted(set(model.by_seed) & set(reference.by_seed))
    remarks = []
    left_out = len(set(model.by_seed) ^ set(reference.by_seed))
    if left_out:
        remarks.append(f"{left_out} seeds without a partner left out")
    if not seeds:
        nothing = Comparison(0, 0, 0, None, None, None, None, None, None, 0, None, ("no seed in common: not compared",))
        return nothing
    users_of_model, of_model = users_over_seeds(_at(model, seeds))
    users_of_reference, of_reference = users_over_seeds(_at(reference, seeds))
    users = np.intersect1d(users_of_model, users_of_reference)
    only_one = len(np.union1d(users_of_model, users_of_reference)) - len(users)
    if only_one:
        remarks.append(f"{only_one} users with a value of one model alone left out")
    by_seed = np.array([model.by_seed[each] - reference.by_seed[each] for each in seeds])
    p_seeds = float(paired_t(by_seed))
    if len(seeds) == 1:
        remarks.append("one seed: no test over seeds")
    elif np.isnan(p_seeds):
        remarks.append("the same difference in every seed: no test over seeds")
    shared: dict[str, Any] = {
        "n_users": len(users),
        "n_only_one": only_one,
        "n_seeds": len(seeds),
        "p_seeds": None if np.isnan(p_seeds) or len(seeds) == 1 else p_seeds,
    }
    if not len(users):
        remarks.append("no user in common: not tested over users")
        empty: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "p_users", "d_z", "rank_biserial"))
        return Comparison(**shared, **empty, n_differ=0, remarks=tuple(remarks))
    difference = _values_of(users, users_of_model, of_model) - _values_of(users, users_of_reference, of_reference)
    # A mean over seeds that are all equal may differ from them in the last bit; that is no difference.
    difference[np.abs(difference) < 1e-12] = 0.0
    if not difference.any():
        remarks.append("no user's value differs")
    low = high = None
    if len(users) > 1:
        low, high = (float(end) for end in bootstrap_interval(difference, confidence, resamples, seed))
    else:
        remarks.append("one user: no interval")
    return Comparison(
        **shared,
        n_differ=int((difference != 0).sum()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_users=float(signed_rank(difference)),
        d_z=standardised_difference(difference),
        rank_biserial=rank_biserial(difference),
        remarks=tuple(remarks),
    )


def _at(sample: Sample, seeds: Sequence[int]) -> Sample:
    return Sample({seed: sample.by_seed[seed] for seed in seeds}, {seed: sample.by_user[seed] for seed in seeds})


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Add Holm's p values over all comparisons of a study: over those with a p value, users and seeds apart."""
    corrected = list(comparisons)
    for plain, adjusted in (("p_users", "p_users_holm"), ("p_seeds", "p_seeds_holm")):
        places = [place for place, each in enumerate(comparisons) if getattr(each, plain) is not None]
        values = holm([getattr(comparisons[place], plain) for place in places])
        for place, value in zip(places, values, strict=True):
            change: dict[str, Any] = {adjusted: float(value)}
            corrected[place] = replace(corrected[place], **change)
    return corrected


class Verdict(Enum):
    """Words that a report may use of a model beside its reference."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "no difference shown"
    NOT_TESTED = "not tested"

    @classmethod
    def of(cls, comparison: Comparison, alpha: float = 0.05) -> Verdict:
        """Judge by the test over users, corrected, and by the interval and the ranks pointing the same way.

        The signed-rank test may find that ranks differ while the means don't, or the other way round; then no
        difference is shown. The test over seeds is reported beside it and never decides: it was chosen beforehand
        which test counts, not the luckier one.
        """
        c = comparison
        if c.p_users_holm is None or c.low is None or c.high is None or c.rank_biserial is None:
            return cls.NOT_TESTED
        if c.p_users_holm < alpha and c.low > 0 and c.rank_biserial > 0:
            return cls.BETTER
        if c.p_users_holm < alpha and c.high < 0 and c.rank_biserial < 0:
            return cls.WORSE
        return cls.NOT_SHOWN

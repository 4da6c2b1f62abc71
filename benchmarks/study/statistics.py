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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
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
    """Mean and standard deviation of some values; ``ValueError`` if there is none, or one is not finite."""
    array = _finite(values)
    if not len(array):
        raise ValueError("no values to take the mean of")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def _finite(values: Any) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("values must be finite numbers")
    return array


def signed_rank(differences: Any) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test of the paired differences of users, Float[n].

    As ``scipy.stats.wilcoxon`` with its defaults: zero differences are left out. 1 where all are zero.
    """
    array = _finite(differences)
    return float(stats.wilcoxon(array).pvalue) if array.any() else 1.0


def paired_t(differences: Any) -> float:
    """Two-sided p value of the paired t test of the differences of seeds, Float[n].

    As ``scipy.stats.ttest_rel``; 1 where all differences are zero, NaN where the test says nothing: for one seed,
    and for several that differ by exactly the same amount, not zero.
    """
    array = _finite(differences)
    if not array.any():
        return 1.0
    return float("nan") if (array == array[0]).all() else float(stats.ttest_1samp(array, 0.0).pvalue)


def bootstrap_interval(
    values: Any, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values, Float[n]: its lower and upper end.

    One value for each of at least two users; of a pair, the differences, so that users are drawn with both of their
    values. Where all are equal, both ends are the value itself.
    """
    array = _finite(values)
    if len(array) < 2:
        raise ValueError("a bootstrap needs at least two users")
    found = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, DRAWN_AT_A_TIME // array.size),
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


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
    """Adjust p values, Float[m], for being several (Holm, 1979).

    ``max over the p values up to p_(k) of (m - k + 1) p_(k)``, at most 1, in the order of the comparisons. Rejecting
    where this is below ``alpha`` keeps the chance of any false rejection below ``alpha``, however the comparisons
    depend on each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p values must be between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    return adjusted


@dataclass(frozen=True)
class Sample:
    """One metric of one model: of each seed's run, and of each user, Float[users, seeds], NaN where a run has none."""

    by_seed: pd.Series
    by_user: pd.DataFrame

    def over_seeds(self, seeds: Sequence[int] | None = None) -> pd.Series:
        """Mean over the seeds, all unless given, of each user that they all have."""
        return (self.by_user if seeds is None else self.by_user[list(seeds)]).dropna().mean(axis=1)


@dataclass(frozen=True)
class Comparison:
    """Difference of a model from its reference in one metric; None wherever something can't be said.

    ``n_users`` both have, ``n_only_one`` one alone has (left out), of ``n_differ`` the values differ; both have
    ``n_seeds``. ``difference`` is the mean over users of model minus reference, ``low`` and ``high`` the ends of its
    bootstrap interval. p is Wilcoxon's over users and the t test's over seeds, plain and corrected; ``d_z`` and
    ``rank_biserial`` are effect sizes over users. ``remarks`` say what was left out, and why.
    """

    n_users: int = 0
    n_only_one: int = 0
    n_differ: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_users: float | None = None
    p_users_holm: float | None = None
    d_z: float | None = None
    rank_biserial: float | None = None
    n_seeds: int = 0
    p_seeds: float | None = None
    p_seeds_holm: float | None = None
    remarks: tuple[str, ...] = ()


def compare(
    model: Sample, reference: Sample, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Test a model against its reference, on the users and seeds that both have; nothing is corrected yet."""
    by_seed = (model.by_seed - reference.by_seed).dropna()
    seeds = list(by_seed.index)
    if not seeds:
        return Comparison(remarks=("no seed in common: not compared",))
    remarks = []
    if left_out := len(set(model.by_seed.index) ^ set(reference.by_seed.index)):
        remarks.append(f"{left_out} seeds without a partner left out")
    every = model.over_seeds(seeds) - reference.over_seeds(seeds)
    difference = every.dropna().to_numpy()
    n_users = len(difference)
    only_one = len(every) - n_users
    if only_one:
        remarks.append(f"{only_one} users with a value of one model alone left out")
    p_seeds = paired_t(by_seed)
    if len(seeds) == 1:
        remarks.append("one seed: no test over seeds")
    elif np.isnan(p_seeds):
        remarks.append("the same difference in every seed: no test over seeds")
    found = Comparison(
        n_users=n_users,
        n_only_one=only_one,
        n_seeds=len(seeds),
        p_seeds=None if np.isnan(p_seeds) or len(seeds) == 1 else p_seeds,
    )
    if not n_users:
        remarks.append("no user in common: not tested over users")
        return replace(found, remarks=tuple(remarks))
    # A mean over seeds that are all equal may differ from them in the last bit; that is no difference.
    difference = np.where(np.abs(difference) < 1e-12, 0.0, difference)
    if not difference.any():
        remarks.append("no user's value differs")
    low = high = None
    if n_users > 1:
        low, high = bootstrap_interval(difference, confidence, resamples, seed)
    else:
        remarks.append("one user: no interval")
    return replace(
        found,
        n_differ=int((difference != 0).sum()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_users=signed_rank(difference),
        d_z=standardised_difference(difference),
        rank_biserial=rank_biserial(difference),
        remarks=tuple(remarks),
    )


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

"""Expected values: pairs and thresholds counted out, Gaussian densities of scipy model by model, and Neyman and Pearson's optimum in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from assay.errors import Misconfigured
from assay.evaluation.membership import Roc, auc_interval, gaussian_auc, gaussian_tpr, likelihood_ratio
from assay.noise import numpy_generator

SCORES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30).filter(lambda rows: len({member for _, member in rows}) == 2)


@given(SCORES)
def test_auc_counts_pairs(rows):
    scores, members = (np.array(column) for column in zip(*rows, strict=True))
    won = [1.0 if high > low else 0.5 if high == low else 0.0 for high in scores[members] for low in scores[~members]]
    assert Roc(scores, members).auc() == pytest.approx(np.mean(won))
    assert Roc(-scores, members).auc() == pytest.approx(1 - np.mean(won))


@given(SCORES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_tpr_is_the_best_of_all_thresholds(rows, rate):
    scores, members = (np.array(column) for column in zip(*rows, strict=True))
    allowed = [(scores[members] >= cut).mean() for cut in range(8) if (scores[~members] >= cut).mean() <= rate]
    assert Roc(scores, members).tpr(rate) == pytest.approx(max(allowed))


@given(SCORES, st.data())
def test_a_weight_is_a_number_of_copies(rows, data):
    scores, members = (np.array(column) for column in zip(*rows, strict=True))
    counts = np.array([data.draw(st.integers(0, 3)) for _ in rows])
    counts[[members.argmax(), (~members).argmax()]] += 1
    roc, copies = Roc(scores, members), Roc(scores.repeat(counts), members.repeat(counts))
    assert roc.auc(counts) == pytest.approx(copies.auc())
    assert roc.tpr(0.3, counts) == pytest.approx(copies.tpr(0.3))


def test_what_cannot_be_compared():
    for scores, members in (([1.0, 2.0], [True, True]), ([1.0], [True, False]), ([1.0, np.nan], [True, False]), ([], [])):
        with pytest.raises(Misconfigured):
            Roc(np.array(scores), np.array(members, bool))


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_the_optimum_of_two_gaussians(distance):
    # 200,000 draws a side: the deviation of an AUC is at most 1 / sqrt(12 x 200,000) x sqrt 2 = 0.001, of a rate near p sqrt(p (1 - p) / 200,000)
    # plus that of the threshold. Five deviations are allowed.
    rng = numpy_generator(1, "gaussians")
    scores = np.concatenate([rng.normal(distance, 1, 200_000), rng.normal(0, 1, 200_000)])
    roc = Roc(scores, np.arange(400_000) < 200_000)
    assert roc.auc() == pytest.approx(gaussian_auc(distance), abs=0.005)
    for rate in (0.001, 0.01, 0.1):
        slope = norm.pdf(distance + norm.ppf(rate)) / norm.pdf(norm.ppf(rate))
        deviation = np.sqrt((0.25 + slope**2 * rate) / 200_000)
        assert roc.tpr(rate) == pytest.approx(gaussian_tpr(distance, rate), abs=5 * deviation)


def drawn(models: int, works: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_generator(seed, "drawn")
    included = np.zeros((models, works), bool)
    for work in range(works):
        included[rng.permutation(models)[: models // 2], work] = True
    mixed = rng.normal(size=(k, k))
    return rng.normal(size=(models, works, k)) @ mixed + 100 * rng.normal(size=(works, k)) - included[:, :, None], included


@pytest.mark.parametrize("variance", ["global", "work"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_ratio_is_that_of_densities_fitted_to_the_other_groups(variance, k):
    losses, included = drawn(24, 4, k, 7)
    groups = np.arange(24) // 2
    found = likelihood_ratio(losses if k > 1 else losses[:, :, 0], included, groups, variance=variance)
    for model in range(24):
        rest = groups != groups[model]
        for work in range(4):
            logs = []
            for member in (included, ~included):
                fits = [losses[rest & member[:, other], other] for other in range(4)]
                if variance == "global":
                    residuals = np.concatenate([fit - fit.mean(0) for fit in fits])
                    covariance = residuals.T @ residuals / sum(len(fit) - 1 for fit in fits)
                else:
                    covariance = np.cov(fits[work].T).reshape(k, k)
                logs.append(multivariate_normal(fits[work].mean(0), covariance).logpdf(losses[model, work]))
            assert found[model, work] == pytest.approx(logs[0] - logs[1], rel=1e-8, abs=1e-8)


def test_it_reaches_the_optimum_where_the_plain_loss_fails():
    # Works differ a hundred times more in difficulty than membership moves their loss by: 1.5 deviations. With 100 models in 50 pairs the means are
    # known to sqrt(1 / 49) of a deviation, which costs the attack a little and can give it nothing.
    rng, distance = numpy_generator(3, "optimum"), 1.5
    included = np.zeros((100, 2000), bool)
    included[::2] = rng.random((50, 2000)) < 0.5
    included[1::2] = ~included[::2]
    losses = 100 * rng.normal(size=2000) - distance * included + rng.normal(size=included.shape)
    ratio = Roc(likelihood_ratio(losses, included, np.arange(100) // 2), included)
    assert gaussian_auc(distance) - 0.01 < ratio.auc() < gaussian_auc(distance) + 0.003
    assert ratio.tpr(0.01) == pytest.approx(gaussian_tpr(distance, 0.01), abs=0.02)
    assert Roc(-losses, included).auc() == pytest.approx(0.5, abs=0.02)


def test_without_a_difference_it_is_chance_even_between_complements():
    rng = numpy_generator(4, "chance")
    included = np.zeros((40, 3000), bool)
    included[::2] = rng.random((20, 3000)) < 0.5
    included[1::2] = ~included[::2]
    scores = likelihood_ratio(rng.normal(size=included.shape), included, np.arange(40) // 2)
    assert Roc(scores, included).auc() == pytest.approx(0.5, abs=5 / np.sqrt(12 * 60_000))


def test_a_model_is_not_its_own_shadow():
    losses, included = drawn(16, 3, 1, 9)
    groups = np.arange(16) // 2
    before = likelihood_ratio(losses, included, groups)
    losses[0] += 50  # its partner's score does not know
    assert likelihood_ratio(losses, included, groups)[1] == pytest.approx(before[1], abs=1e-6)


def test_too_few_models():
    losses, included = drawn(4, 3, 1, 5)
    with pytest.raises(Misconfigured, match="Train more"):
        likelihood_ratio(losses, included, np.arange(4) // 2)
    with pytest.raises(Misconfigured, match="do not fit"):
        likelihood_ratio(losses, included[:, :2])


def hanley(area, members, others):
    # Hanley and McNeil 1982, Eq. 2, with Q1 = A / (2 - A) and Q2 = 2 A^2 / (1 + A); at equal counts Newcombe's variance is theirs.
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    return (area * (1 - area) + (members - 1) * (first - area**2) + (others - 1) * (second - area**2)) / (members * others)


@pytest.mark.parametrize(("area", "count"), [(0.5, 16), (0.8, 40), (1.0, 16), (0.0, 9), (0.97, 200)])
def test_the_ends_of_an_area_s_interval_lie_z_deviations_away(area, count):
    low, high = auc_interval(area, count, count)
    for end in (low, high):
        if end not in (0.0, 1.0):
            assert (end - area) ** 2 == pytest.approx(norm.ppf(0.975) ** 2 * hanley(end, count, count), rel=1e-6)
    assert 0 <= low <= area <= high <= 1
    assert low < high
    assert auc_interval(1 - area, count, count) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("distance", "members", "others"), [(0.0, 16, 16), (1.0, 16, 64), (2.5, 16, 16)])
def test_an_area_s_interval_covers(distance, members, others):
    # Gaussian scores, whose area is known; 95 % wanted, 800 draws have a deviation of 0.8 %, and the variance is that of exponential scores.
    rng = numpy_generator(5, "areas", members, others)
    which, held = np.arange(members + others) < members, 0
    for _ in range(800):
        area = Roc(rng.normal(size=members + others) + distance * which, which).auc()
        low, high = auc_interval(area, members, others)
        held += low <= gaussian_auc(distance) <= high
    assert 0.92 <= held / 800 <= 0.99


def test_an_area_of_nothing_has_no_interval():
    with pytest.raises(Misconfigured, match="at least one"):
        auc_interval(0.5, 0, 3)

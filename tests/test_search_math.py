"""The parts that searchers are made of, against scipy and dense float64 algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from hypergrad.searchers import Trials
from hypergrad.searchers.base import observe
from hypergrad.searchers.models import (
    acquisitions,
    gaussian_process as gp,
    memory,
    sobol_points,
    truncnorm,
)
from hypergrad.searchers.models.targets import normal_scores, power, standardize
from hypergrad.space import (
    Choice,
    Integer,
    LogReal,
    Real,
    Sequence,
    coordinates,
    from_units,
    snap,
    to_units,
)

KEY = jax.random.key(1)


# ---- truncated normals

FEASIBLE = [
    (m, r * min(m, 1 - m, 0.28))
    for m in (0.01, 0.05, 0.3, 0.5, 0.8, 0.97)
    for r in (0.01, 0.3, 0.9)
]


@pytest.fixture(scope="module")
def fitted():
    mean, std = np.array(FEASIBLE).T
    keep = (mean != 0.3) | (std < 0.2)  # wider than any truncated normal with that mean
    mean, std = mean[keep], std[keep]
    loc, scale = jax.jit(truncnorm.fit)(jnp.asarray(mean), jnp.asarray(std))
    dist = stats.truncnorm(-loc / scale, (1 - loc) / scale, np.float64(loc), np.float64(scale))
    return mean, std, loc, scale, dist


def test_a_fit_has_the_moments_it_was_given(fitted):
    mean, std, loc, scale, dist = fitted
    assert np.all(np.abs(dist.mean() - mean) < 1e-3 * std)
    assert np.all(np.abs(dist.std() - std) < 1e-3 * std)
    ours = jax.jit(truncnorm.moments)(loc, scale)
    assert np.all(np.abs(ours[0] - mean) < 1e-3 * std) and np.all(np.abs(ours[1] / std - 1) < 1e-3)


def test_quantile_cdf_and_density_are_scipys(fitted):
    _, std, loc, scale, dist = fitted
    u = jnp.linspace(0.002, 0.998, 41)[:, None]
    x = jax.jit(truncnorm.quantile)(u, loc, scale)
    assert np.all(np.abs(x - dist.ppf(u)) < 2e-3 * std)
    np.testing.assert_allclose(
        jax.jit(truncnorm.cdf)(x, loc, scale), jnp.broadcast_to(u, x.shape), atol=2e-3
    )
    logs = jax.jit(truncnorm.log_density)(x, loc, scale)
    np.testing.assert_allclose(logs, dist.logpdf(np.float64(x)), atol=2e-3)


@pytest.mark.parametrize("power", [3, 5])
def test_moments_that_no_truncated_normal_has_keep_their_mean(power):
    """Elites that thin out more slowly than an exponential, of which there is none."""
    x = np.random.default_rng(0).random(40) ** power
    loc, scale = (float(v) for v in truncnorm.fit(jnp.asarray(x.mean()), jnp.asarray(x.std())))
    dist = stats.truncnorm(-loc / scale, (1 - loc) / scale, loc, scale)
    assert dist.mean() == pytest.approx(x.mean(), rel=1e-3) and dist.std() < x.std()


def test_uniform_is_the_widest():
    loc, scale = truncnorm.fit(jnp.asarray(0.5), jnp.asarray(0.45))
    assert scale == pytest.approx(truncnorm.WIDEST, rel=1e-4)
    u = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(truncnorm.quantile(u, loc, scale), u, atol=2e-3)


# ---- coordinates, Sobol points, what is remembered

SPACE = {
    "lr": LogReal(1e-3, 1.0, shape=(2,)),
    "n": Integer(3, 40),
    "kind": Choice(("a", "b", "c")),
    "down": Sequence(Real(0, 1), 5, knots=3, decreasing=True),
}


@pytest.mark.slow
def test_snapped_units_are_those_of_the_hparams():
    coords = coordinates(SPACE)
    units = jax.random.uniform(KEY, (64, coords.num))
    again = to_units(SPACE, from_units(SPACE, units))
    np.testing.assert_allclose(again, snap(coords, units), atol=2e-5)


def test_sobol_points_are_scipys():
    vectors = jnp.asarray(sobol_points.directions(9))
    ours = sobol_points.points(vectors, jnp.zeros(9, jnp.uint32), 0, 64)
    theirs = stats.qmc.Sobol(9, scramble=False).random(64)
    assert np.abs(ours - theirs).max() <= 2**-23
    with pytest.raises(ValueError, match="at most 21201"):
        sobol_points.directions(30000)


def test_scrambled_points_are_uniform_and_even():
    points = jax.jit(jax.vmap(lambda k: sobol_points.uniforms(k, 16, 3)))(
        jax.random.split(KEY, 500)
    )
    assert points.min() > 0 and points.max() < 1
    counts = np.histogram(np.asarray(points[:, 0]).ravel(), 16, (0, 1))[0]  # first points alone
    assert stats.chisquare(counts).pvalue > 1e-4
    cells = np.sort(np.floor(np.asarray(points) * 16), axis=1)
    assert np.all(cells == np.arange(16)[None, :, None])


def test_the_better_half_and_the_newest_are_remembered():
    table = memory.empty(4, 1)
    add = jax.jit(memory.remember)
    for value, score in (
        (0.1, 1.0),
        (0.2, 9.0),
        (0.3, 8.0),
        (0.4, jnp.inf),
        (0.5, 7.0),
        (0.6, 6.0),
    ):
        table = add(table, jnp.full((1, 1), value), jnp.full(1, score))
    assert table.count == 4 and jnp.all(table.filled)
    # 1.0 is of the better half, and so is 6.0; 7.0 and the failure are the newest others
    np.testing.assert_allclose(table.units[:, 0], [0.1, 0.4, 0.5, 0.6])
    np.testing.assert_allclose(table.scores, [1.0, jnp.inf, 7.0, 6.0])
    few = add(memory.empty(4, 1), jnp.array([[0.7], [0.8]]), jnp.array([2.0, 1.0]))
    np.testing.assert_array_equal(few.filled, [True, True, False, False])
    np.testing.assert_allclose(few.scores[:2], [2.0, 1.0])


def test_scores_rank_by_steps_first():
    values = jnp.array([0.3, 0.1, jnp.nan, 0.2, -jnp.inf, 0.05])
    steps = jnp.array([9, 9, 9, 3, 9, 1], jnp.int32)
    told = Trials({"x": jnp.linspace(0, 1, 6)}, values, steps, jnp.arange(6), {})
    scores = observe({"x": Real(0, 1)}, told)[1]
    assert list(np.argsort(scores, kind="stable")[:4]) == [1, 0, 3, 5]
    assert jnp.isinf(scores[2]) and jnp.isinf(scores[4])
    np.testing.assert_allclose(scores[:2], [0.3, 0.1])


# ---- the Gaussian process

ORDERED = np.array([True, True, False])
NUM, ROWS = 11, 16
COUNTED = coordinates([Real(0, 1), Real(0, 1), Integer(0, 2)])


@pytest.fixture(scope="module")
def data():
    units = snap(COUNTED, jax.random.uniform(KEY, (ROWS, 3)))
    targets = jnp.sin(5 * units[:, 0]) + units[:, 1] + units[:, 2]
    mask = jnp.arange(ROWS) < NUM
    targets = jnp.where(mask, targets - jnp.mean(targets[:NUM]), 0)
    kernel = gp.Kernel(
        jnp.log(jnp.array([0.4, 0.9, 1.5])),
        jnp.asarray(0.3),
        jnp.asarray(-4.0),
        jnp.array([[0.2, -0.1, 0.0], [0.1, 0.3, 0.0]]),
    )
    return kernel, units, targets, mask


def dense(kernel, left, right):
    """The kernel, written out in float64."""
    scale, warp = np.exp(np.float64(kernel.scale)), np.exp(np.float64(kernel.warp))

    def warped(x):
        return 1 - (1 - np.clip(np.float64(x), 1e-6, 1 - 1e-6) ** warp[0]) ** warp[1]

    apart = (warped(left)[:, None] - warped(right)[None]) / scale
    r = np.sqrt(np.sum(apart[:, :, :2] ** 2, -1))
    differ = np.abs(np.float64(left)[:, None, 2] - np.float64(right)[None, :, 2]) > 1e-4
    matern = (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)
    return np.exp(float(kernel.amplitude)) * matern * np.exp(-1.0 * differ / scale[2])


def posterior64(kernel, units, targets, at):
    noise = np.exp(float(kernel.noise)) + gp.noise_floor()
    inverse = np.linalg.inv(dense(kernel, units, units) + noise * np.eye(len(units)))
    k = dense(kernel, at, units)
    mean = k @ inverse @ np.float64(targets)
    return mean, np.sqrt(np.exp(float(kernel.amplitude)) - np.einsum("mi,ij,mj->m", k, inverse, k))


def test_the_posterior_is_the_dense_one(data):
    kernel, units, targets, _ = data
    at = snap(COUNTED, jax.random.uniform(jax.random.key(5), (20, 3)))
    post = jax.jit(lambda *a: gp.condition(a[0], gp.matern(ORDERED), *a[1:]))(*data)
    mean, std = jax.jit(lambda p, x: gp.predict(p, gp.matern(ORDERED), x))(post, at)
    expected = posterior64(kernel, units[:NUM], targets[:NUM], at)
    np.testing.assert_allclose(mean, expected[0], atol=2e-4)
    np.testing.assert_allclose(std, expected[1], atol=2e-3)
    # believing in a trial at its mean is conditioning on it
    more = jax.jit(lambda p, x: gp.believe(p, gp.matern(ORDERED), x, jnp.int32(NUM)))(post, at[0])
    mean, std = jax.jit(lambda p, x: gp.predict(p, gp.matern(ORDERED), x))(more, at)
    grown = np.concatenate([units[:NUM], at[:1]]), np.append(targets[:NUM], expected[0][0])
    expected = posterior64(kernel, *grown, at)
    np.testing.assert_allclose(mean, expected[0], atol=5e-4)
    np.testing.assert_allclose(std, expected[1], atol=2e-3)


@pytest.mark.slow
def test_noise_grows_until_there_is_a_factor(data):
    """Twins under a loud process: in 32 bits K + noise I has no factor at first."""
    kernel, units, targets, mask = data
    kernel = kernel._replace(amplitude=kernel.amplitude + 8, noise=kernel.noise * 0 - 30)
    twins = jnp.tile(units[:4], (len(units) // 4 + 1, 1))[: len(units)]
    covariance = gp.matern(ORDERED)
    if jnp.result_type(float) == jnp.float32:
        gram = gp._gram(kernel, covariance, twins, mask)
        assert not jnp.all(jnp.isfinite(jnp.linalg.cholesky(gram)))
    post = jax.jit(lambda *a: gp.condition(a[0], covariance, *a[1:]))(kernel, twins, targets, mask)
    assert jnp.all(jnp.isfinite(post.root)) and jnp.all(jnp.isfinite(post.white))
    assert kernel.noise <= post.kernel.noise < kernel.amplitude
    mean, _ = gp.predict(post, covariance, twins[:1])
    assert float(mean[0]) == pytest.approx(float(jnp.mean(targets[:NUM][::4])), abs=0.05)


def test_the_gradient_of_the_marginal_likelihood(data):
    """Against finite differences of the dense float64 formula."""
    kernel, units, targets, _ = data
    loss, grads = jax.jit(lambda *a: gp.loss_and_grads(a[0], gp.matern(ORDERED), *a[1:]))(*data)
    centre = gp.prior_kernel(3)
    spread = gp._SPREAD

    def exact(kernel):
        noise = np.exp(float(kernel.noise)) + gp.noise_floor()
        k = dense(kernel, units[:NUM], units[:NUM]) + noise * np.eye(NUM)
        y = np.float64(targets[:NUM])
        prior = sum(
            np.sum(((np.float64(a) - np.float64(b)) / s) ** 2) / 2
            for a, b, s in zip(kernel, centre, spread, strict=True)
        )
        return y @ np.linalg.solve(k, y) / 2 + np.linalg.slogdet(k)[1] / 2 + prior

    assert float(loss) == pytest.approx(exact(kernel), rel=1e-3)
    wide = jax.tree.map(lambda x: np.array(x, np.float64), kernel)
    for name in gp.Kernel._fields:
        for index in np.ndindex(getattr(wide, name).shape):
            ends = []
            for sign in (1, -1):
                moved = getattr(wide, name).copy()
                moved[index] += sign * 1e-5
                ends.append(exact(wide._replace(**{name: moved})))
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(getattr(grads, name)[index]) == pytest.approx(slope, rel=5e-3, abs=5e-3)


@pytest.mark.slow
def test_a_fit_finds_the_scales_and_the_noise():
    units = jax.random.uniform(KEY, (64, 2))
    targets = jnp.sin(6 * units[:, 0])  # the second coordinate does not matter
    mask = jnp.ones(64, bool)
    ordered = np.array([True, True])
    fit = jax.jit(lambda k, y: gp.fit_covariance(k, gp.matern(ordered), units, y, mask))
    kernel = fit(gp.prior_kernel(2), targets / jnp.std(targets))
    assert kernel.scale[1] > kernel.scale[0] + 1 and jnp.exp(kernel.noise) < 0.01
    noisy = targets + 0.5 * jax.random.normal(jax.random.key(2), (64,))
    kernel = fit(gp.prior_kernel(2), noisy / jnp.std(noisy))
    assert 0.1 < jnp.exp(kernel.noise) < 0.6


# ---- acquisitions and outputs


@pytest.mark.parametrize("mean", [-1.0, 0.5, 3.0])
def test_acquisitions_are_their_integrals(mean):
    std, best = 0.7, 0.2
    density = stats.norm(mean, std).pdf
    gain = integrate.quad(lambda f: (best - f) * density(f), mean - 12 * std, best)[0]
    args = map(jnp.asarray, (mean, std, best))
    mean_, std_, best_ = args
    assert float(acquisitions.expected_improvement(mean_, std_, best_)) == pytest.approx(
        gain, rel=1e-4
    )
    log = float(acquisitions.log_expected_improvement(mean_, std_, best_))
    assert log == pytest.approx(np.log(gain), rel=1e-4, abs=1e-4)
    chance = float(acquisitions.probability_of_improvement(mean_, std_, best_))
    assert chance == pytest.approx(stats.norm.logcdf((best - mean) / std), rel=1e-4)
    bound = acquisitions.confidence_bound(1.5)(mean_, std_, best_)
    assert float(bound) == pytest.approx(1.5 * std - mean, rel=1e-5)


@pytest.mark.slow
def test_log_improvement_has_a_slope_far_away():
    z = jnp.array([-0.5, -1.0, -1.001, -3.0, -7.99, -8.01, -20.0, -60.0])
    wide = np.float64(z)
    mills = np.sqrt(np.pi / 2) * special.erfcx(-wide / np.sqrt(2))
    exact = stats.norm.logpdf(wide) + np.log1p(wide * mills)
    log = jax.jit(acquisitions.log_expected_improvement)
    np.testing.assert_allclose(log(-z, jnp.ones(8), jnp.zeros(8)), exact, rtol=2e-4)
    slope = jax.vmap(jax.grad(acquisitions.log_expected_improvement), (0, None, None))(-z, 1.0, 0.0)
    assert jnp.all(jnp.isfinite(slope)) and jnp.all(slope < 0)
    with pytest.raises(ValueError, match="kappa is -1"):
        acquisitions.confidence_bound(-1)


@pytest.mark.parametrize("transform", [standardize, normal_scores, power])
def test_outputs_are_standard_and_keep_the_order(transform):
    x = np.random.default_rng(0).lognormal(0, 2, 20)
    scores = jnp.asarray(np.concatenate([x, [np.inf, np.inf, 5.0]]))
    filled = jnp.arange(23) < 21
    y = np.asarray(jax.jit(transform)(scores, filled))
    assert y[:21].mean() == pytest.approx(0, abs=1e-4) and y[:21].std() == pytest.approx(
        1, abs=1e-3
    )
    assert np.all(y[21:] == 0) and y[20] == y[:20].max()
    assert np.all(np.argsort(y[:20]) == np.argsort(x))
    assert np.all(np.asarray(transform(jnp.full(4, 0.1), jnp.ones(4, bool))) == 0)
    assert np.all(np.isfinite(transform(jnp.full(4, jnp.inf), jnp.ones(4, bool))))
    if transform is power:
        assert abs(stats.skew(y[:20])) < 0.4 * abs(stats.skew(x))

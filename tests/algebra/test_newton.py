"""The trust-region step against brute force, and the loop on functions whose minima are known."""

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmixed.algebra.newton import Evaluation, Point, is_convex, minimize, pseudo_inverse, trust_region_step
from jmixed.errors import Outcome
from jmixed.runtime.precision import double_precision

compiled_step = layouts.quick_jit(trust_region_step)


def step_of(values, slope, radius):
    """Step, predicted decrease and whether it ends on the boundary."""
    values, slope = np.asarray(values, float), np.asarray(slope, float)
    with double_precision():
        return jax.device_get(compiled_step(values, slope, np.asarray(radius, float)))


def best_on_disc(values, slope, radius):
    """The largest decrease of a quadratic model in two dimensions, on a fine polar grid."""
    angles = np.linspace(0, 2 * np.pi, 721)
    lengths = radius * np.linspace(0, 1, 401)[:, None]
    steps = np.stack([lengths * np.cos(angles), lengths * np.sin(angles)])
    decrease = -np.einsum("k,kij->ij", slope, steps) - np.einsum("k,kij->ij", values, steps**2) / 2
    return decrease.max()


@pytest.mark.parametrize("radius", [0.01, 0.7, 30.0])
@pytest.mark.parametrize(
    ("values", "slope"),
    [
        ([1.0, 3.0], [0.5, -0.2]),
        ([-1.0, 3.0], [0.5, -0.2]),
        ([-2.0, -1.0], [0.3, 0.4]),
        # The hard case: no slope along the direction of most negative curvature.
        ([-1.0, 3.0], [0.0, 0.2]),
        ([-1.0, 3.0], [0.0, 5.0]),
        ([-1.0, -1.0], [0.0, 0.2]),
        # At a zero column of lambda the gradient vanishes; only the curvature leads away.
        ([-1.0, 3.0], [0.0, 0.0]),
        ([1.0, 3.0], [0.0, 0.0]),
        ([0.0, 2.0], [0.0, 1.0]),
        ([0.0, 2.0], [1.0, 0.0]),
        ([0.0, 0.0], [0.3, 0.4]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([-1e-3, 1e6], [1e-9, 1e3]),
    ],
)
def test_step_is_the_best_within_the_radius(values, slope, radius):
    step, predicted, boundary = step_of(values, slope, radius)
    length = np.linalg.norm(step)
    assert length <= radius * (1 + 1e-6)
    np.testing.assert_allclose(predicted, -(slope @ step + values @ step**2 / 2), rtol=1e-9, atol=1e-14)
    best = best_on_disc(np.array(values), np.array(slope), radius)
    assert predicted >= best - 1e-6 * abs(best)
    assert boundary == (length > 0.98 * radius)


@given(
    m=st.sampled_from([1, 2, 6]),
    seed=st.integers(0, 10_000),
    log_radius=st.floats(-4, 4),
    spread=st.floats(0, 6),
)
def test_step_meets_the_conditions_of_a_global_minimum(m, seed, log_radius, spread):
    r = np.random.default_rng(seed)
    values = np.sort(r.normal(size=m) * 10 ** (spread * r.random(m)))
    slope = r.normal(size=m) * 10 ** r.uniform(-3, 3)
    radius = 10**log_radius
    step, _, boundary = step_of(values, slope, radius)
    scale = np.abs(values).max()
    shift = -(slope + values * step) @ step / (step @ step)
    # (H + shift) step = -gradient with H + shift positive semidefinite and shift > 0 only on the boundary.
    np.testing.assert_allclose((values + shift) * step, -slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max())
    assert values[0] + shift >= -1e-7 * scale
    assert shift >= -1e-7 * scale
    assert np.linalg.norm(step) <= radius * (1 + 1e-6)
    assert boundary or abs(shift) <= 1e-7 * scale


# ---- the loop ------------------------------------------------------------------------------------------------------


def search(function, starts, limit=200, exact_hessian=None, **options):
    """Where the loop ends; `exact_hessian` tells what the Hessian is where `exact` is false."""

    def evaluate(point, exact):
        hessian = jax.hessian(function)(point.x)
        if exact_hessian is not None:
            hessian = jnp.where(exact, hessian, exact_hessian)
        return Evaluation(point, function(point.x), jax.grad(function)(point.x), hessian, {"x": point.x})

    with double_precision():
        starts = jnp.asarray(starts)

        @layouts.quick_jit
        def run(starts, limit):
            return minimize(evaluate, Point((), starts), limit, extras={"x": 0 * starts[0]}, **options)

        return jax.device_get(run(starts, limit))


def valley(x):
    """Rosenbrock's function, with its minimum of zero at one."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def two_wells(x):
    """A minimum near -1, a higher one near +1, and a saddle between them."""
    return jnp.sum((x**2 - 1) ** 2) + 0.1 * x[0] + 1


def test_a_curved_valley_is_followed_to_its_end():
    found = search(valley, [[-1.2, 1.0]])
    np.testing.assert_allclose(found.at.point.x, 1, atol=1e-9)
    np.testing.assert_array_equal(found.at.extras["x"], found.at.point.x)
    assert Outcome(int(found.outcome)) is Outcome.CONVERGED
    assert found.iterations == found.evaluations < 40
    assert is_convex(found.eigenvalues)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(found.at.hessian), rtol=1e-9)


def test_a_saddle_without_slope_is_left():
    found = search(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, [[0.0, 0.0]])
    np.testing.assert_allclose(np.abs(found.at.point.x), [1, 0], atol=1e-9)
    assert Outcome(int(found.outcome)) is Outcome.CONVERGED


def test_the_lowest_of_several_minima_is_taken_and_starts_that_are_not_called_for_are_left_out():
    wells = [[0.9], [-0.9], [0.8]]
    ends = [search(two_wells, wells[:1]), search(two_wells, wells), search(two_wells, wells, count=1)]
    assert [np.sign(end.at.point.x[0]) for end in ends] == [1, -1, 1]
    assert ends[1].evaluations > ends[1].iterations
    assert ends[2].evaluations == ends[0].evaluations
    assert ends[0].at.value == ends[2].at.value


def test_of_minima_that_rounding_tells_apart_the_first_is_taken():
    found = search(lambda x: jnp.sum((x**2 - 1) ** 2) + 1, [[0.9], [-0.9]])
    assert found.at.point.x[0] > 0


def test_a_limit_ends_all_searches_and_says_so():
    cut = search(valley, [[-1.2, 1.0]], limit=3)
    assert Outcome(int(cut.outcome)) is Outcome.MAX_ITERATIONS
    assert cut.iterations == 3
    several = search(valley, [[-1.2, 1.0], [2.0, 2.0]], limit=3, count=2)
    assert Outcome(int(several.outcome)) is Outcome.MAX_ITERATIONS
    assert several.evaluations == 6


@pytest.mark.parametrize("held", [0, 1])
def test_coordinates_that_are_held_stay(held):
    start = np.array([-1.2, 1.0])
    found = search(valley, start[None], free=np.arange(2) != held)
    assert found.at.point.x[held] == start[held]
    # At x0 the other is best at its square; at x1 of one, at x0 of plus or minus one or so.
    best = start[0] ** 2 if held == 0 else -0.99
    assert abs(found.at.point.x[1 - held] - best) < 0.01
    assert found.at.gradient[held] == 0
    assert found.at.hessian[held, held] == 1
    assert Outcome(int(found.outcome)) is Outcome.CONVERGED


def test_a_cheap_hessian_far_away_is_no_certificate():
    found = search(valley, [[-1.2, 1.0]], exact_hessian=np.diag([400.0, 400.0]), near=1.0)
    np.testing.assert_allclose(found.at.point.x, 1, atol=1e-9)
    np.testing.assert_allclose(found.at.hessian, [[802, -400], [-400, 200]], rtol=1e-6)
    # Without an exact one there is none.
    never = search(valley, [[-1.2, 1.0]], exact_hessian=np.diag([400.0, 400.0]), near=0.0)
    assert Outcome(int(never.outcome)) is not Outcome.CONVERGED


def test_what_cannot_be_evaluated_is_stepped_back_from():
    """A logarithm that the full step would leave."""
    found = search(lambda x: jnp.sum(x - jnp.log(x)), [[4.0]], radius=lambda x: 100 * x[0])
    np.testing.assert_allclose(found.at.point.x, 1, atol=1e-9)
    nowhere = search(lambda x: jnp.sum(jnp.log(x)), [[-1.0]])
    assert Outcome(int(nowhere.outcome)) is Outcome.NOT_FINITE


def test_where_rounding_drowns_the_gain_the_search_ends():
    found = search(lambda x: 1e9 + jnp.sum((x - 1) ** 2), [[1 + 1e-3]])
    assert Outcome(int(found.outcome)) in (Outcome.CONVERGED, Outcome.PRECISION_LIMIT)
    # Along x^4 the certificate waits until no gain is visible.
    quartic = search(lambda x: 1e9 + jnp.sum(x**4), [[1.0]])
    assert Outcome(int(quartic.outcome)) in (Outcome.CONVERGED, Outcome.PRECISION_LIMIT)
    assert abs(quartic.at.point.x[0]) < 0.1


@pytest.mark.parametrize("bend", [1e-3, -1e-3])
def test_a_search_that_is_stuck_has_reached_no_limit_of_precision(bend):
    """At a kink no step leads down, though slope and curvature promise much: the radius shrinks to nothing."""

    def evaluate(point, exact):
        x = point.x
        return Evaluation(point, 1e3 + jnp.sum(jnp.abs(x)), jnp.ones_like(x), bend * jnp.eye(1))

    with double_precision():
        stuck = layouts.quick_jit(lambda starts: minimize(evaluate, Point((), starts), 200))(np.zeros((1, 1)))
    assert Outcome(int(stuck.outcome)) is Outcome.MAX_ITERATIONS
    assert stuck.iterations < 50
    assert abs(float(stuck.at.point.x[0])) < 1e-9


def test_a_curvature_beyond_all_bounds_does_not_hide_a_slope_across_it():
    """As where an approximation breaks down: its Hessian is infinite along one direction, nearly."""

    def evaluate(point, exact):
        x = point.x
        value = 1e3 + jnp.abs(x[0]) + jnp.abs(x[1])
        return Evaluation(point, value, 1e6 + 0 * x, jnp.diag(jnp.array([1e7, 1e24])))

    with double_precision():
        stuck = layouts.quick_jit(lambda starts: minimize(evaluate, Point((), starts), 200))(np.zeros((1, 2)))
    assert Outcome(int(stuck.outcome)) is Outcome.MAX_ITERATIONS


def test_a_saddle_that_rounding_hides_is_no_optimum():
    """Nothing to gain by the slope, and no step down along the curvature."""

    def evaluate(point, exact):
        x = point.x
        return Evaluation(point, 1e3 + jnp.sum(jnp.abs(x)), jnp.zeros_like(x), jnp.diag(jnp.array([-1.0, 1.0])))

    with double_precision():
        stuck = layouts.quick_jit(lambda starts: minimize(evaluate, Point((), starts), 200))(np.zeros((1, 2)))
    assert Outcome(int(stuck.outcome)) is Outcome.MAX_ITERATIONS


def test_a_stuck_search_does_not_hide_one_that_came_to_its_end():
    """The first start is a kink, no lower than where the second ends by less than optima may be apart."""

    def evaluate(point, exact):
        x = point.x[0]
        kink = x < 5
        value = jnp.where(kink, 1e3 + jnp.abs(x), 1e3 + 1e-6 + (x - 10) ** 2)
        slope, bend = jnp.where(kink, 1.0, 2 * (x - 10)), jnp.where(kink, 1e-3, 2.0)
        return Evaluation(point, value, slope[None], bend[None, None])

    with double_precision():
        starts = np.array([[0.0], [9.5]])
        found = layouts.quick_jit(lambda starts: minimize(evaluate, Point((), starts), 200))(starts)
    assert Outcome(int(found.outcome)) is Outcome.CONVERGED
    np.testing.assert_allclose(found.at.point.x, 10, atol=1e-9)


def test_a_cheap_hessian_beside_a_rejected_trial_is_no_certificate():
    """A saddle whose cheap Hessian bends up, and where exact trials are a little higher, by more than rounding."""

    def evaluate(point, exact):
        x = point.x
        value = 1e3 + jnp.where(exact, 1e-8, 0) + jnp.sum(x**2) / 2
        hessian = jnp.where(exact, -1.0, 1.0) * jnp.eye(1)
        return Evaluation(point, value, x + 1e-6, hessian)

    with double_precision():
        run = layouts.quick_jit(lambda starts: minimize(evaluate, Point((), starts), 200, near=1.0))
        found = run(np.zeros((1, 1)))
    assert Outcome(int(found.outcome)) is not Outcome.CONVERGED


def test_a_flat_place_is_no_optimum():
    def is_flat(point, hessian):
        return hessian[1, 1] < 1e-9

    found = search(lambda x: (x[0] - 1) ** 2 + 0 * x[1], [[0.0, 0.0]], is_flat=is_flat)
    assert Outcome(int(found.outcome)) is Outcome.FLAT
    curved = search(lambda x: jnp.sum((x - 1) ** 2), [[0.0, 0.0]], is_flat=is_flat)
    assert Outcome(int(curved.outcome)) is Outcome.CONVERGED


def test_a_frame_that_moves_along_gives_the_same_place():
    """Coordinates counted from the last point, in a basis of their own."""

    def at(point):
        origin, basis = point.frame
        return origin + basis @ point.x

    def evaluate(point, exact):
        z = at(point)
        turn = jnp.array([[jnp.cos(z[0]), -jnp.sin(z[0])], [jnp.sin(z[0]), jnp.cos(z[0])]])
        new = Point((z, turn), jnp.zeros_like(z))
        gradient, hessian = jax.grad(valley)(z), jax.hessian(valley)(z)
        return Evaluation(new, valley(z), gradient @ turn, turn.T @ hessian @ turn)

    with double_precision():
        starts = Point((np.array([[-1.2, 1.0]]), np.eye(2)[None]), jnp.zeros((1, 2)))
        found = jax.device_get(layouts.quick_jit(lambda starts: minimize(evaluate, starts, 100))(starts))
        np.testing.assert_allclose(at(found.at.point), 1, atol=1e-9)


def test_many_searches_at_once():
    def run(start):
        def evaluate(point, exact):
            return Evaluation(point, valley(point.x), jax.grad(valley)(point.x), jax.hessian(valley)(point.x))

        return minimize(evaluate, Point((), start[None]), 100).at.point.x

    with double_precision():
        starts = np.array([[-1.2, 1.0], [3.0, -2.0], [1.0, 1.0]])
        np.testing.assert_allclose(layouts.quick_jit(jax.vmap(run))(starts), 1, atol=1e-9)


def test_single_precision_ends():
    found = search(lambda x: 1000 + valley(x), np.array([[-1.2, 1.0]], "f4"))
    assert Outcome(int(found.outcome)).ok
    np.testing.assert_allclose(found.at.point.x, 1, atol=0.1)


def test_the_pseudo_inverse_leaves_null_directions_alone():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    hessian = basis @ np.diag([0, 2, 50]) @ basis.T
    with double_precision():
        np.testing.assert_allclose(pseudo_inverse(jnp.asarray(hessian)), np.linalg.pinv(hessian), atol=1e-12)
        assert pseudo_inverse(jnp.zeros((0, 0))).shape == (0, 0)

"""The criteria are the dense multivariate normal density, with its derivatives, for every layout."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmixed as jm
from jmixed.layout import stack as stacking
from jmixed.runtime.precision import double_precision

BETA, SIGMA = np.array([0.7, 1.5, 0.15]), 1.3
CRITERIA = ("ML", "REML", "density")


def criteria(beta, theta, sigma, design):
    """The three criteria at once, so that every layout is compiled once."""
    held = jm.moments(design)
    return jnp.stack(
        [
            jm.profiled_deviance(theta, held, reml=False),
            jm.profiled_deviance(theta, held, reml=True),
            jm.log_likelihood(beta, theta, sigma, held),
        ]
    )


def arrays(design):
    return {name: getattr(design, name) for name in ("y", "X", "Z", "weights", "offset")}


@layouts.quick_jit
def values_and_gradients(beta, theta, sigma, design):
    def of(beta, theta, sigma, data):
        return criteria(beta, theta, sigma, design.replace(**data))

    values, pull = jax.vjp(of, beta, theta, sigma, arrays(design))
    return values, jax.vmap(pull)(jnp.eye(3, dtype=values.dtype))


@layouts.quick_jit
def values_and_slopes(beta, theta, sigma, design):
    """As above, but without the gradients in the data, which cost most of the compile time."""
    values, pull = jax.vjp(lambda *parameters: criteria(*parameters, design), beta, theta, sigma)
    return values, jax.vmap(pull)(jnp.eye(3, dtype=values.dtype))


@layouts.quick_jit
def hessians(theta, design):
    held = jm.moments(design)
    return [jax.hessian(partial(jm.profiled_deviance, design=held, reml=reml))(theta) for reml in (False, True)]


def computed(case, theta, beta=BETA, sigma=SIGMA):
    """Values (3,) and gradients with a leading axis of 3: ML, REML, density."""
    with double_precision():
        values, (beta, theta, sigma, data) = jax.device_get(
            values_and_gradients(beta, theta, np.asarray(sigma), case.design)
        )
    return values, {"beta": beta, "theta": theta, "sigma": sigma, **data}


def dense_values(case, theta, beta=BETA, sigma=SIGMA):
    return np.array(
        [
            layouts.deviance(case, theta, reml=False),
            layouts.deviance(case, theta, reml=True),
            layouts.log_density(case, beta, theta, sigma),
        ]
    )


def dense_gradients(case, theta):
    return [
        layouts.deviance_gradient(case, theta, reml=False),
        layouts.deviance_gradient(case, theta, reml=True),
        layouts.density_gradient(case, BETA, theta, SIGMA),
    ]


def assert_close(actual, expected, tolerance=1e-10):
    """Equal relative to the largest entry."""
    scale = np.max(np.abs(expected), initial=1e-300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# Weights and offsets are numbers like others: they change no program.
EVERY_ARGUMENT = (("crossed", False), ("crossed", True), ("sparse", True), ("identity", True), ("nested three", True))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("name", "weighted"), EVERY_ARGUMENT)
def test_values_and_gradients_are_those_of_the_dense_density(name, weighted):
    case = layouts.case(name, seed=3, weighted=weighted)
    theta = layouts.draw_theta(case)
    values, gradients = computed(case, theta)
    np.testing.assert_allclose(values, dense_values(case, theta), rtol=1e-10)
    for k, expected in enumerate(dense_gradients(case, theta)):
        for key in expected.keys() - {"Z"}:
            assert_close(gradients[key][k], expected[key])
        for label, slope in expected["Z"].items():
            assert_close(gradients["Z"][label][k], slope)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", layouts.NAMES)
def test_values_and_gradients_in_the_parameters_are_those_of_the_dense_density(name):
    case = layouts.case(name, seed=2)
    theta = layouts.draw_theta(case)
    with double_precision():
        values, slopes = jax.device_get(values_and_slopes(BETA, theta, np.asarray(SIGMA), case.design))
    np.testing.assert_allclose(values, dense_values(case, theta), rtol=1e-10)
    for k, expected in enumerate(dense_gradients(case, theta)):
        for slope, argument in zip(slopes, ("beta", "theta", "sigma"), strict=True):
            assert_close(slope[k], expected.get(argument, 0 * slope[k]))


@pytest.mark.parametrize("name", ["slope", "crossed"])
def test_hessians_in_theta_are_those_of_the_dense_density(name):
    case = layouts.case(name, seed=4)
    theta, step = layouts.draw_theta(case), 1e-4
    with double_precision():
        exact = jax.device_get(hessians(theta, case.design))
    for reml in (False, True):
        slopes = [
            # Fourth-order differences of the analytic gradient.
            [layouts.deviance_gradient(case, theta + k * step * unit, reml)["theta"] for k in (-2, -1, 1, 2)]
            for unit in np.eye(len(theta))
        ]
        expected = np.einsum("k,ikj->ij", np.array([1, -8, 8, -1]) / (12 * step), np.array(slopes))
        assert_close(exact[reml], expected, 1e-8)


@pytest.mark.parametrize("name", ["slope", "crossed"])
def test_singular_theta(name):
    case = layouts.case(name, seed=5)
    for zeros in (slice(0, 2), slice(2, 3), slice(0, None)):
        theta = layouts.draw_theta(case)
        theta[zeros] = 0
        values, gradients = computed(case, theta)
        np.testing.assert_allclose(values, dense_values(case, theta), rtol=1e-10)
        for k, expected in enumerate(dense_gradients(case, theta)):
            np.testing.assert_allclose(gradients["theta"][k], expected["theta"], rtol=1e-10, atol=1e-9)


def test_the_criteria_take_a_design():
    case = layouts.case("slope")
    theta = layouts.draw_theta(case)
    with double_precision():
        direct = layouts.quick_jit(
            lambda theta, design: [
                jm.profiled_deviance(theta, design, reml=False),
                jm.profiled_deviance(theta, design),
                jm.log_likelihood(BETA, theta, SIGMA, design),
            ]
        )(theta, case.design)
    np.testing.assert_allclose(direct, dense_values(case, theta), rtol=1e-10)


def test_single_precision_is_said_once_and_works():
    case = layouts.case("slope")
    theta = layouts.draw_theta(case).astype(np.float32)
    with pytest.warns(jm.PrecisionWarning, match="JAX_ENABLE_X64") as caught:
        value = layouts.quick_jit(lambda theta: jm.profiled_deviance(theta, case.design))(theta)
    assert len(caught) == 1
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, layouts.deviance(case, theta, reml=True), rtol=1e-4)


# ---- properties ----------------------------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)
some_layout = st.sampled_from(["slope", "nested three", "nested and crossed", "crossed", "sparse"])


@given(name=some_layout, seed=seeds)
def test_any_data_in_one_program(name, seed):
    case = layouts.case(name, seed)
    theta = layouts.draw_theta(case, seed)
    values, gradients = computed(case, theta)
    np.testing.assert_allclose(values, dense_values(case, theta), rtol=1e-10)
    for k, expected in enumerate(dense_gradients(case, theta)):
        assert_close(gradients["theta"][k], expected["theta"])


@given(name=some_layout, seed=seeds)
def test_order_of_rows_does_not_matter(name, seed):
    case = layouts.case(name)
    theta, order = layouts.draw_theta(case), np.random.default_rng(seed).permutation(layouts.ROWS)
    values, gradients = computed(case, theta)
    permuted, slopes = computed(case.take(order), theta)
    np.testing.assert_allclose(permuted, values, rtol=1e-11)
    assert_close(slopes["theta"], gradients["theta"], 1e-11)
    assert_close(slopes["X"], gradients["X"][:, order], 1e-11)


@given(name=some_layout, seed=seeds)
def test_order_of_groups_does_not_matter(name, seed):
    case, r = layouts.case(name), np.random.default_rng(seed)
    theta = layouts.draw_theta(case)
    relabelled = replace(
        case, terms=tuple(replace(t, codes=r.permutation(len(t.levels)).astype(np.int32)[t.codes]) for t in case.terms)
    )
    values, gradients = computed(case, theta)
    permuted, slopes = computed(relabelled, theta)
    np.testing.assert_allclose(permuted, values, rtol=1e-11)
    assert_close(slopes["theta"], gradients["theta"], 1e-11)


@given(name=some_layout, seed=seeds, signs=st.integers(0, 2**7 - 1))
def test_signs_of_columns_do_not_matter(name, seed, signs):
    case = layouts.case(name)
    theta = layouts.draw_theta(case, seed)
    flips, bits = [], iter(1 - 2 * (signs >> np.arange(7) & 1))
    for t in case.terms:
        for j in range(t.Z.shape[1]):
            flips += [next(bits)] * (t.Z.shape[1] - j)
    values, gradients = computed(case, theta)
    flipped, slopes = computed(case, theta * flips)
    np.testing.assert_allclose(flipped, values, rtol=1e-12)
    assert_close(slopes["theta"] * flips, gradients["theta"], 1e-12)


@given(name=some_layout, factor=st.floats(1e-6, 1e6), seed=seeds)
def test_scale_of_the_response(name, factor, seed):
    case = layouts.case(name)
    theta = layouts.draw_theta(case, seed)
    scaled = replace(case, y=factor * case.y, offset=factor * case.offset)
    values, gradients = computed(case, theta)
    changed, slopes = computed(scaled, theta, factor * BETA, factor * SIGMA)
    n, p = case.X.shape
    expected = values + np.log(factor) * np.array([2 * n, 2 * (n - p), -n])
    np.testing.assert_allclose(changed, expected, rtol=1e-11)
    assert_close(slopes["theta"], gradients["theta"], 1e-10)


@given(name=some_layout, scales=st.tuples(*[st.floats(1e-6, 1e6)] * 3), shift=st.floats(-2000, 2000), seed=seeds)
def test_scale_and_origin_of_predictors(name, scales, shift, seed):
    case = layouts.case(name)
    theta = layouts.draw_theta(case, seed)
    change = np.diag(scales)
    change[0, 1] = shift * scales[1]
    moved = replace(case, X=case.X @ change)
    values, gradients = computed(case, theta)
    changed, slopes = computed(moved, theta, np.linalg.solve(change, BETA))
    expected = values + [0, 2 * np.sum(np.log(scales)), 0]
    # X @ change is itself rounded: a shift of 2,000 costs three of its digits.
    np.testing.assert_allclose(changed, expected, rtol=1e-9)
    assert_close(slopes["theta"], gradients["theta"], 1e-9)


@given(name=some_layout, factor=st.floats(1e-6, 1e6), seed=seeds)
def test_scale_of_random_columns(name, factor, seed):
    case = layouts.case(name)
    theta = layouts.draw_theta(case, seed)
    scaled = replace(case, terms=tuple(replace(t, Z=factor * t.Z) for t in case.terms))
    values, gradients = computed(case, theta)
    changed, slopes = computed(scaled, theta / factor)
    np.testing.assert_allclose(changed, values, rtol=1e-11)
    assert_close(slopes["theta"] / factor, gradients["theta"], 1e-10)


@given(seed=seeds)
def test_integer_weights_are_repeated_rows(seed):
    case, r = layouts.case("slope"), np.random.default_rng(seed)
    weights = 1.0 + np.arange(layouts.ROWS) % 3
    for level in case.terms[0].levels:
        # Within groups, whose sizes then stay the same: one program for all examples.
        own = case.terms[0].codes == level
        weights[own] = r.permutation(weights[own])
    theta = layouts.draw_theta(case, seed)
    weighted = replace(case, weights=weights)
    repeated = replace(case, weights=np.ones(layouts.ROWS)).take(
        np.repeat(np.arange(layouts.ROWS), weights.astype(int))
    )
    values, gradients = computed(weighted, theta)
    with double_precision():
        changed, slopes = values_and_slopes(BETA, theta, np.asarray(SIGMA), repeated.design)
    extra = (len(repeated.y) - layouts.ROWS) * np.log(2 * np.pi * SIGMA**2) + np.sum(np.log(weights))
    np.testing.assert_allclose(changed[2], values[2] - extra / 2, rtol=1e-11)
    assert_close(slopes[0][2], gradients["beta"][2], 1e-10)
    assert_close(slopes[1][2], gradients["theta"][2], 1e-10)


def test_padding_changes_nothing(monkeypatch):
    case = layouts.case("nested and crossed")
    theta = layouts.draw_theta(case)
    values, gradients = computed(case, theta)
    bucket = stacking.bucket
    monkeypatch.setattr(stacking, "bucket", lambda size: bucket(size) + 3)
    assert all(more > fewer for more, fewer in zip(case.design.layout.levels, case.design.counts, strict=True))
    with double_precision():
        padded, slopes = values_and_slopes(BETA, theta, np.asarray(SIGMA), case.design)
    np.testing.assert_allclose(padded, values, rtol=1e-12)
    assert_close(slopes[1], gradients["theta"], 1e-12)


# ---- transformations -----------------------------------------------------------------------------------------------


@cache
def crossed():
    case = layouts.case("crossed")
    return case, case.design, layouts.draw_theta(case)


def test_vmap_over_theta():
    case, design, theta = crossed()
    thetas = np.stack([theta, theta / 2, np.zeros_like(theta)])
    with double_precision():
        held = layouts.quick_jit(jm.moments)(design)
        batch = layouts.quick_jit(jax.vmap(lambda t: jm.profiled_deviance(t, held)))(thetas)
    np.testing.assert_allclose(batch, [layouts.deviance(case, t, reml=True) for t in thetas], rtol=1e-10)


def test_vmap_over_responses():
    case, design, theta = crossed()
    responses = np.stack([case.y, case.y[::-1], 3 * case.y])
    with double_precision():
        batch = layouts.quick_jit(jax.vmap(lambda y: jm.profiled_deviance(theta, design.replace(y=y))))(responses)
    expected = [layouts.deviance(replace(case, y=y), theta, reml=True) for y in responses]
    np.testing.assert_allclose(batch, expected, rtol=1e-10)


def test_without_fixed_effects():
    case = layouts.case("slope")
    none = replace(case, X=np.zeros((layouts.ROWS, 0)))
    theta = layouts.draw_theta(case)
    with double_precision():
        values, slopes = values_and_slopes(np.zeros(0), theta, np.asarray(SIGMA), none.design)
    np.testing.assert_allclose(values, dense_values(none, theta, np.zeros(0)), rtol=1e-10)
    assert_close(slopes[1][0], layouts.deviance_gradient(none, theta, reml=False)["theta"])

"""The search for modes: where it starts does not decide where it ends."""

import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from jmixed.likelihood.inner import damped_newton
from jmixed.runtime.precision import double_precision

COUNTS = np.array([0.0, 1, 4, 30, 500])
MODES = np.array([brentq(lambda b, y=y: np.exp(b) + b - y, -5, 10, xtol=1e-15) for y in COUNTS])
"""Of counts y with the predictor b, and one standard normal effect b each: exp(b) + b = y."""


def search_from(place):
    """The search from effects that are their own dual."""
    y = jnp.asarray(COUNTS)

    def objective(b, a):
        value = 2 * (jnp.exp(b) - y * b) + a * b
        return value, jnp.abs(value)

    def direction(b, a, cautious):
        slope = y - jnp.exp(b) - a
        move = slope / (jnp.exp(b) + 1)
        return move, move, jnp.max(jnp.abs(slope * move))

    place = jnp.asarray(place)
    return damped_newton(objective, direction, place, place, lambda of_part: of_part)


def test_modes_are_found_from_places_that_are_worse_than_none_and_from_no_numbers():
    with double_precision():
        for place in (0 * MODES, MODES + 1, -50 + 0 * MODES, np.array([800.0, np.nan, np.inf, -800.0, 6.0])):
            search = search_from(place)
            np.testing.assert_allclose(search.effects, MODES, rtol=1e-13, atol=1e-14)
            np.testing.assert_array_equal(search.dual, search.effects)


def test_a_place_that_is_worse_than_none_costs_one_step():
    with double_precision():
        none, worse = (int(search_from(place).steps) for place in (0 * MODES, np.full(len(MODES), 800.0)))
    assert worse == none


def test_a_mode_that_is_known_costs_one_look():
    with double_precision():
        assert int(search_from(MODES).steps) == 1

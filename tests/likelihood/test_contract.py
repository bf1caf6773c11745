"""What every criterion promises: derivatives of its own value, and a point that stays the same place."""

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest

from jmixed.algebra.newton import Point
from jmixed.fit.penalised import PenalisedDeviance
from jmixed.likelihood.constrained import Border, ConstrainedDeviance, HeldParameter
from jmixed.likelihood.contract import minimum
from jmixed.likelihood.moments import moments
from jmixed.likelihood.profiled import ProfiledDeviance, with_held_entries
from jmixed.runtime.precision import double_precision


def profiled(held):
    return ProfiledDeviance(held, True), None


def with_entries(held):
    """All entries of theta move but the second."""
    m = sum(term.size for term in held.layout.terms)
    return with_held_entries(held, False, jnp.full(m, 0.7), jnp.ones(m).at[1].set(0)), None


def constrained(held):
    """The first standard deviation of the first term is held at a half."""
    p, m = len(held.beta0), sum(term.size for term in held.layout.terms)
    none, one = jnp.zeros(m), jnp.zeros(m).at[0].set(1)
    border = Border(jnp.eye(p), jnp.zeros(p), jnp.zeros(p))
    bases = tuple(jnp.eye(term.q) for term in held.layout.terms)
    first = HeldParameter(bases, 1 - one, none, one, none, none, jnp.zeros(()), border, jnp.append(one == 0, True))
    return ConstrainedDeviance(first, held, jnp.asarray(0.5)), jnp.linspace(0.4, 0.8, m + 1)


def penalised(held):
    m = sum(term.size for term in held.layout.terms)

    def penalty(beta, theta, strength):
        return strength * (jnp.sum(beta**2) + jnp.sum(jnp.log(theta**2 + 1)))

    return PenalisedDeviance(held, penalty, [jnp.asarray(3.0)], True, jnp.ones(m)), jnp.full(m, 0.4)


CRITERIA = {"profiled": profiled, "with held entries": with_entries, "constrained": constrained, "penalised": penalised}


def started(name, layout):
    """A criterion with its starts, of which the first is moved so that no symmetry hides anything."""
    held = moments(jax.tree.map(jnp.asarray, layouts.case(layout, seed=1).design.rows()), counted=False)
    criterion, given = CRITERIA[name](held)
    starts = criterion.starts(given)
    frame, x = jax.tree.map(lambda a: a[0], starts.points)
    return criterion, Point(frame, x + jnp.linspace(0.1, 0.3, len(x))), starts


@pytest.mark.sweep(4)
@pytest.mark.parametrize("layout", ["slope", "crossed"])
@pytest.mark.parametrize("name", CRITERIA)
def test_derivatives_are_those_of_the_value_at_the_same_place(name, layout):
    def both():
        criterion, point, _ = started(name, layout)
        return layouts.at_the_same_place(criterion, point)

    with double_precision():
        layouts.assert_at_the_same_place(*jax.device_get(layouts.quick_jit(both)()))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", CRITERIA)
def test_nothing_is_lower_beside_its_minimum(name):
    def search():
        criterion, _, starts = started(name, "slope")
        found = minimum(criterion, starts, 100)
        frame, x = found.at.point
        moves = 0.01 * jnp.asarray(np.random.default_rng(0).normal(size=(8, len(x))))
        moves = moves if criterion.free is None else jnp.where(criterion.free[None], moves, 0)
        return found, jax.vmap(lambda move: criterion.value(Point(frame, x + move)))(moves)

    with double_precision():
        found, around = jax.device_get(layouts.quick_jit(search)())
    assert found.outcome == 0
    assert np.all(around > found.at.value)

"""Many fits at once against one fit after another, and what must not change a thing: classes, batches, masks."""

import warnings
from dataclasses import replace

import jax
import layouts
import numpy as np
import pytest

import jmixed as jm
from jmixed.errors import DataError, Outcome
from jmixed.fit import host, many
from jmixed.likelihood.collapse import classes_of, collapse
from jmixed.likelihood.derivatives import derivatives
from jmixed.likelihood.gaussian import deviance_of_theta
from jmixed.likelihood.moments import moments
from jmixed.runtime.precision import double_precision


def balanced(slope=False, groups=40, rows=4, seed=0):
    """Groups with two kinds of rows: in each kind Z'Z is the same."""
    r = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), rows)
    time = np.tile(np.arange(rows, dtype=float), groups) * np.repeat(1 + np.arange(groups) % 2, rows)
    one, n = np.ones(groups * rows), groups * rows
    columns = (one, time) if slope else (one,)
    X = np.column_stack([one, time, r.normal(size=n)])
    y = X @ [1, 0.5, 2] + r.normal(size=groups)[codes] + r.normal(size=n)
    terms = (layouts.term("g", codes, *columns, intercept=0),)
    return layouts.Case(y, X, one, np.zeros(n), terms)


def responses(case, m, seed=1):
    """Random effects of every size, none included."""
    r = np.random.default_rng(seed)
    term = case.terms[0]
    effects = r.normal(size=(m, len(term.levels), term.Z.shape[1])) * np.linspace(0, 2, m)[:, None, None]
    noise = r.normal(size=(m, len(case.y))) / np.sqrt(case.weights)
    fixed = r.normal(size=(m, case.X.shape[1])) @ case.X.T
    return fixed + case.offset + np.einsum("nq,mnq->mn", term.Z, effects[:, term.codes]) + noise


def shuffled(case, seed=2):
    return case.take(np.random.default_rng(seed).permutation(len(case.y)))


def assert_same_fits(found, case, Y, reml=True, masks=None):
    for k, y in enumerate(Y):
        own = case if masks is None else case.take(np.flatnonzero(masks[k]))
        y = y if masks is None else y[masks[k]]
        alone = host.fit(replace(own, y=y).design, reml=reml)
        assert Outcome(int(found.outcome[k])) == alone.outcome
        np.testing.assert_allclose(found.objective[k], alone.objective, rtol=1e-10)
        np.testing.assert_allclose(found.theta[k], alone.theta, atol=1e-6)
        np.testing.assert_allclose(found.beta[k], alone.beta, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.sigma[k], alone.sigma, rtol=1e-8)
        np.testing.assert_allclose(found.vcov_beta[k], alone.vcov_beta, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("slope", [False, True])
def test_collapsing_changes_neither_value_nor_derivatives(slope):
    case = shuffled(balanced(slope))
    rows = jax.tree.map(np.asarray, case.design.rows())
    classes = classes_of(rows)
    assert sorted(classes.size[classes.size > 0]) == ([20, 20] if slope else [40])
    theta = layouts.draw_theta(case)

    @layouts.quick_jit
    def both(rows, theta):
        held = moments(rows)
        few = collapse(held, classes)
        assert few.layout.blocks[0] < held.layout.blocks[0]
        root = held.layout.terms[0].factor(theta)
        psi = held.layout.terms[0].psi(root @ root.T)
        return [(deviance_of_theta(theta, h, False), derivatives(psi, (root,), h, True)) for h in (held, few)]

    with double_precision():
        full, few = jax.device_get(both(rows, theta))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9), few, full)


def test_no_classes_where_groups_differ_or_are_few():
    assert classes_of(jax.tree.map(np.asarray, layouts.case("slope").design.rows())) is None
    assert classes_of(jax.tree.map(np.asarray, layouts.case("nested").design.rows())) is None
    case = balanced()
    assert classes_of(jax.tree.map(np.asarray, replace(case, weights=np.arange(1.0, 161.0)).design.rows())) is None


@pytest.mark.parametrize("reml", [True, False])
def test_a_batch_equals_one_fit_after_another(reml, monkeypatch):
    monkeypatch.setattr(many, "FIRST_ROUND", 7)
    case = shuffled(balanced(slope=True))
    Y = responses(case, 6)
    ticks = []
    found = many.fit_responses(case.design, Y, reml, progress=ticks.append)
    assert sum(ticks) == 6
    assert found.converged.all()
    assert_same_fits(found, case, Y, reml)


def test_every_response_has_its_own_missing_values():
    case = balanced()
    Y = responses(case, 3)
    masks = np.random.default_rng(3).uniform(size=Y.shape) > 0.05
    masks[1] = True
    found = many.fit_responses(case.design, np.where(masks, Y, np.nan))
    np.testing.assert_array_equal(found.nobs, masks.sum(1))
    assert_same_fits(found, case, Y, masks=masks)
    with double_precision():
        pure = jax.device_get(jm.estimate_many(case.design, np.where(masks, Y, np.nan)))
    np.testing.assert_allclose(pure.objective, found.objective, rtol=1e-10)
    np.testing.assert_allclose(pure.theta, found.theta, atol=1e-6)


def test_groups_of_different_size_and_weights_in_batches_of_one():
    case = layouts.case("slope")
    Y = responses(case, 3)
    assert_same_fits(many.fit_responses(case.design, Y, memory=1), case, Y)


@pytest.mark.thorough
def test_a_nest():
    case = layouts.case("nested")
    Y = responses(case, 2)
    found = many.fit_responses(case.design, Y)
    for k, y in enumerate(Y):
        alone = host.fit(replace(case, y=y).design)
        np.testing.assert_allclose(found.objective[k], alone.objective, rtol=1e-8)


def test_estimate_many_equals_estimate_and_knows_every_group():
    case = balanced()
    Y = responses(case, 3)
    with double_precision():
        found = jax.device_get(jm.estimate_many(case.design, Y))
        traced = jax.device_get(jax.jit(jm.estimate_many)(case.design, Y))
    for k, y in enumerate(Y):
        alone = host.fit(replace(case, y=y).design)
        np.testing.assert_allclose(found.objective[k], alone.objective, rtol=1e-10)
        np.testing.assert_allclose(found.b["g"][k], alone.b["g"], atol=1e-6)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6), traced, found)


def test_hopeless_responses_end_as_outcomes_and_spoil_nobody():
    case = balanced()
    Y = responses(case, 4)
    Y[0] = 3.0
    Y[1, case.X[:, 2] > np.median(case.X[:, 2])] = np.nan
    Y[2, 2:] = np.nan
    found = many.fit_responses(case.design, Y)
    assert Outcome(int(found.outcome[0])) == Outcome.PERFECT_FIT
    assert found.converged.tolist() == [False, True, False, True]
    assert not np.isfinite(found.objective[2])


def test_fixed_effects_that_missing_values_make_collinear():
    case = balanced()
    flag = (np.arange(len(case.y)) < 8).astype(float)
    case = replace(case, X=np.column_stack([case.X, flag]))
    Y = responses(case, 2)
    Y[1, :8] = np.nan
    found = many.fit_responses(case.design, Y)
    assert found.converged.tolist() == [True, False]
    assert Outcome(int(found.outcome[1])) in (Outcome.RANK_DEFICIENT, Outcome.NOT_FINITE)


def test_many_designs_of_one_shape():
    case, r = balanced(), np.random.default_rng(5)
    Y = responses(case, 3)
    X = np.stack([case.X + np.column_stack([np.zeros((160, 2)), r.normal(size=160)]) for _ in range(3)])
    weights = r.uniform(0.5, 2, size=Y.shape)
    with double_precision():
        found = jax.device_get(jm.estimate_many(case.design, Y, X=X, weights=weights))
    for k in range(3):
        alone = host.fit(replace(case, y=Y[k], X=X[k], weights=weights[k]).design)
        np.testing.assert_allclose(found.objective[k], alone.objective, rtol=1e-10)
        np.testing.assert_allclose(found.beta[k], alone.beta, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Y": np.zeros((2, 159))}, r"Y has shape \(2, 159\), but \(m, 160\) is needed"),
        ({"Y": np.zeros(160)}, r"Y has shape \(160,\)"),
        ({"Y": np.zeros((0, 160))}, "one at least"),
        ({"Y": np.zeros((2, 160)), "weights": np.ones((3, 160))}, "the same number of fits"),
        ({"Y": np.zeros((2, 160)), "Z": {"h": np.ones((2, 160, 1))}}, "no random-effects term 'h'"),
    ],
)
def test_shapes_that_do_not_match(arguments, message):
    with pytest.raises(DataError, match=message):
        jm.estimate_many(balanced().design, **arguments)


def test_values_that_are_no_response():
    case = balanced()
    with pytest.raises(DataError, match="response 1 of Y is inf"):
        many.fit_responses(case.design, np.stack([case.y, np.where(case.y > 1, np.inf, case.y)]))


def test_a_nan_that_cannot_be_seen_is_an_outcome():
    case = balanced()
    Y = np.stack([case.y, case.y])
    Y[1, 3] = np.nan
    with double_precision(), warnings.catch_warnings():
        found = jax.device_get(jax.jit(jm.estimate_many)(case.design, Y))
    assert [Outcome(int(outcome)).name for outcome in found.outcome] == ["CONVERGED", "NOT_FINITE"]

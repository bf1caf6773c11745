"""Designs in JAX's trees: names and true numbers of rows and levels are no part of a program, and never mixed up."""

import copy
import pickle

import jax
import layouts
import numpy as np
import pytest

import jmixed as jm
from jmixed.layout.design import Names
from jmixed.runtime.precision import double_precision


def one_factor(groups, seed=0, name="x | g"):
    """Groups of seven rows: 10 or 11 of them are of one size for programs."""
    r = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), 7)
    n = len(codes)
    x, one = r.normal(size=n), np.ones(n)
    effects = r.normal(size=(groups, 2))
    y = 1 + x + effects[codes, 0] + effects[codes, 1] * x + 0.5 * r.normal(size=n)
    term = layouts.term(name, codes, one, x, intercept=0)
    return layouts.Case(y, np.column_stack([one, x]), one, np.zeros(n), (term,))


@pytest.fixture
def designs():
    """The same but for a label, for the number of groups, and for that of rows alone."""
    first, longer = one_factor(10), one_factor(11, seed=1)
    fewer = one_factor(11, seed=1).take(np.arange(76))
    return [first.design, one_factor(10, name="time | person").design, longer.design, fewer.design]


def test_one_program_serves_designs_of_one_size(designs):
    traced = []

    @jax.jit
    def fit(design):
        traced.append(design)
        return jm.estimate(design)

    with double_precision():
        assert len({jax.tree.structure(design) for design in designs}) == 1
        found = [fit(design) for design in designs]
        alone = [jm.estimate(design) for design in designs]
    assert len(traced) == 1
    for design, one, other in zip(designs, found, alone, strict=True):
        (label,), (levels,) = design.labels, design.counts
        assert list(one.b) == [label]
        assert one.b[label].shape == (levels, 2)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9), one, other)


def test_what_reads_names_or_rows_is_traced_for_each(designs):
    traced = []

    def total(design):
        (label,) = design.labels
        return design.y.sum() + design.Z[label].sum() + design.X.sum()

    @jax.jit
    def inner(design):
        return total(design)

    @jax.jit
    def outer(design):
        traced.append(design)
        return 2 * inner(design)

    copies = [copy.copy(design) for design in designs] + [pickle.loads(pickle.dumps(design)) for design in designs]
    with double_precision():
        inner(copies[3])
        found = [float(outer(design)) for design in copies]
    # The copies state the same names, and share what was traced for them.
    assert len(traced) == 4
    np.testing.assert_allclose(found, [2 * total(design) for design in copies], rtol=1e-12)


def test_a_design_that_went_through_a_tree_is_the_same(designs):
    (label,) = designs[0].labels
    passed = jax.tree.map(lambda leaf: leaf, designs[0])
    for name in ("y", "X", "weights", "offset"):
        np.testing.assert_array_equal(getattr(passed, name), getattr(designs[0], name))
    np.testing.assert_array_equal(passed.Z[label], designs[0].Z[label])
    assert (passed.nobs, passed.counts, passed.labels) == (70, (10,), (label,))
    again = pickle.loads(pickle.dumps(passed))
    np.testing.assert_array_equal(again.replace(y=2 * passed.y).y, 2 * designs[0].y)
    with pytest.raises(AttributeError, match="no attribute 'shape'"):
        _ = passed.shape


def test_names_find_their_way_out_of_a_shared_program(designs):
    @jax.jit
    def through(design):
        return jax.tree.map(lambda leaf: leaf, design)

    with double_precision():
        outs = [through(design) for design in designs]
        doubled = jax.tree.map(lambda leaf: leaf + leaf, outs[1])
    assert [out.labels for out in outs] == [design.labels for design in designs]
    assert [out.y.shape for out in outs] == [design.y.shape for design in designs]
    with pytest.raises(jm.DataError, match="the names of these terms are lost"):
        _ = doubled.labels


@pytest.mark.thorough
def test_a_batch_of_designs_is_what_vmap_makes_of_it(designs):
    with double_precision():
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), designs[0], designs[2])
        many = jax.jit(jax.vmap(jm.estimate))(stacked)
        alone = [jm.estimate(designs[0]), jm.estimate(designs[2])]
        with pytest.raises(jm.DataError, match=r"map over them, as in jax\.vmap\(jm\.estimate\)"):
            jm.estimate(stacked)
        mixed = jax.tree.map(lambda *leaves: np.stack(leaves), *designs[:2])
        with pytest.raises(jm.DataError, match="a batch of models of different terms"):
            _ = jax.vmap(jm.estimate)(mixed).b
    for k, one in enumerate(alone):
        np.testing.assert_allclose(many.objective[k], one.objective, rtol=1e-10)
        levels = len(one.b["x | g"])
        np.testing.assert_allclose(many.b["x | g"][k, :levels], one.b["x | g"], atol=1e-7)
        np.testing.assert_array_equal(many.b["x | g"][k, levels:], 0)


def test_names_that_have_been_read_pass_on_that_they_were():
    read, same, other = Names(["a", "b"], (2, 3), 9), Names(["a", "b"], (2, 3), 9), Names(["b", "a"], (2, 3), 9)
    assert read == same == other
    jax.jit(lambda key: read.known_by(key).rows + key)(read.key)
    assert read != other
    assert same == other
    assert read == same
    assert same != other
    assert read.key == same.key != other.key

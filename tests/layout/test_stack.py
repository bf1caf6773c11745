"""The order of elimination, the merging of terms, and the placing of rows, levels and pairs."""

import tracemalloc
from dataclasses import replace

import layouts
import numpy as np
import pytest

import jmixed as jm
from jmixed.errors import DataError
from jmixed.layout.stack import BEYOND, stack
from jmixed.runtime.memory import bucket


@pytest.mark.parametrize(
    ("name", "stages", "factors"),
    [
        ("slope", (((0, 1),),), ((0,),)),
        ("independent", (((0, 1),),), ((0, 1),)),
        ("identity", (((0, 1),),), ((0, 1),)),
        ("nested", (((1, 1),), ((0, 1),)), ((0,), (1,))),
        ("nested three", (((2, 1),), ((1, 1),), ((0, 1),)), ((0,), (1,), (2,))),
        # Of the two factors inside the top-level groups one is a stage of its own; a block of the core is a group.
        ("nested and crossed", (((1, 1),), ((2, 3), (0, 1))), ((0,), (1,), (2,))),
        ("crossed", (((0, 1),), ((1, 5), (2, 3))), ((0,), (1,), (2,))),
        ("no random effects", (), ()),
    ],
)
def test_order_of_elimination(name, stages, factors):
    design = layouts.case(name).design
    assert design.layout.stages == stages
    assert design.layout.factors == factors
    assert design.layout.levels == tuple(bucket(count) for count in design.counts)


def test_a_nest_is_found_whatever_its_order():
    case = layouts.case("nested three")
    layout = stack(replace(case, terms=case.terms[::-1])).layout
    assert layout.stages == (((0, 1),), ((1, 1),), ((2, 1),))
    assert all(layout.is_chain(stage) for stage in range(3))


def test_a_core_falls_into_its_components():
    design = layouts.case("nested and crossed").design
    top, _, inner = layouts.case("nested and crossed").terms
    assert design.layout.blocks[-1] == bucket(len(top.levels))
    block, slot = design.index.block[2], design.index.slot[2]
    holder = {level: top.codes[inner.codes == level][0] for level in inner.levels}
    block_of_top = design.index.block[0]
    assert all(block[level] == block_of_top[holder[level]] for level in inner.levels)
    assert len(set(zip(block[inner.levels], slot[inner.levels], strict=True))) == len(inner.levels)


@pytest.mark.parametrize("name", ["slope", "nested three", "nested and crossed", "crossed"])
def test_every_row_stands_once_in_its_group(name):
    case = layouts.case(name)
    design = case.design
    for grouping, members, position in zip(
        design.index.groupings, design.layout.factors, design.index.position, strict=True
    ):
        codes = position[case.terms[members[0]].codes]
        check_grouping(grouping, codes)
    for coupling in design.index.couplings:
        f, g = (design.index.position[k][case.terms[design.layout.factors[k][0]].codes] for k in coupling.factors)
        pairs = {(a, b): k for k, (a, b) in enumerate(zip(coupling.first, coupling.second, strict=True)) if a != BEYOND}
        assert set(pairs) == set(zip(f, g, strict=True))
        check_grouping(coupling.grouping, np.array([pairs[a, b] for a, b in zip(f, g, strict=True)]))


def check_grouping(grouping, codes):
    segments = np.arange(grouping.size) if grouping.segments is None else grouping.segments
    assert np.all(np.diff(segments) >= 0)
    assert grouping.rows.shape[1] == len(segments)
    real = grouping.rows != BEYOND
    rows = grouping.rows[real]
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(codes)))
    np.testing.assert_array_equal(codes[rows], np.broadcast_to(segments, real.shape)[real])


def test_one_large_group_does_not_pad_the_others():
    codes = np.concatenate([np.zeros(1000, int), np.repeat(np.arange(1, 101), 2)])
    r = np.random.default_rng(0)
    n = len(codes)
    case = layouts.Case(
        r.normal(size=n), np.ones((n, 1)), np.ones(n), np.zeros(n), (layouts.term("g", codes, np.ones(n)),)
    )
    grouping = stack(case).index.groupings[0]
    check_grouping(grouping, codes)
    assert grouping.rows.size < 2.5 * n


def test_levels_of_a_stage_stand_in_the_order_of_their_holders():
    case = layouts.case("nested three", seed=1)
    r = np.random.default_rng(1)
    case = replace(
        case, terms=tuple(replace(t, codes=r.permutation(len(t.levels)).astype(np.int32)[t.codes]) for t in case.terms)
    )
    for parents in stack(case).index.parents:
        for parent in parents:
            assert np.all(np.diff(parent) >= 0)


def test_the_callers_arrays_are_left_alone():
    case = layouts.case("crossed")
    before = [a.copy() for a in (case.y, case.X, *(t.codes for t in case.terms))]
    stack(case)
    for a, b in zip(before, (case.y, case.X, *(t.codes for t in case.terms)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_buckets():
    sizes = np.arange(1, 3000)
    padded = np.array([bucket(int(size)) for size in sizes])
    assert np.all(padded >= sizes)
    assert np.all(padded[64:] <= 1.25 * sizes[64:])
    assert np.all(padded <= 2 * sizes)
    assert np.all(np.diff(padded) >= 0)
    assert [bucket(int(size)) for size in padded] == list(padded)
    assert len(np.unique(padded)) < 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(3)}, r"y has shape \(3,\)"),
        ({"X": np.zeros((layouts.ROWS, 1))}, "needs .60, 3."),
        ({"Z": {"x | g": np.zeros(4)}}, r"Z\['x \| g'\] has shape"),
        ({"Z": {"nobody": np.zeros(4)}}, "no random-effects term .'nobody'."),
    ],
)
def test_a_replacement_must_fit(change, message):
    with pytest.raises(DataError, match=message):
        layouts.case("slope").design.replace(**change)


def test_a_replacement_leaves_the_design_alone():
    design = layouts.case("slope").design
    other = design.replace(y=2 * design.y, Z={"x | g": 3 * design.Z["x | g"]})
    np.testing.assert_array_equal(other.y, 2 * design.y)
    np.testing.assert_array_equal(other.Z["x | g"], 3 * design.Z["x | g"])
    assert other.X is design.X
    assert not np.array_equal(other.y, design.y)


def test_a_core_beyond_memory_is_refused_before_it_is_made():
    r = np.random.default_rng(0)
    rows = 400_000
    data = {"y": r.normal(size=rows), "a": r.integers(0, 300_000, rows), "b": r.integers(0, 300_000, rows)}
    tracemalloc.start()
    try:
        with pytest.raises(jm.ModelError, match=r"would need about \d{4,} GB.* dense block of \d{6} columns.*Drop the"):
            _ = jm.mixedlm("y ~ 1 + (1 | a) + (1 | b)", data).design
        assert tracemalloc.get_traced_memory()[1] < 5e8
    finally:
        tracemalloc.stop()

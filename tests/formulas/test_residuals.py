"""Residual structures in words: what the words become, and what they refuse."""

import re

import numpy as np
import pandas as pd
import pytest

from jmixed.errors import DataError, FormulaError, ModelError
from jmixed.formulas.residuals import parse_residual
from jmixed.formulas.statement import from_formula
from jmixed.formulas.structures import RESIDUALS

VISITS = ["m2", "m3", "m8"]


@pytest.fixture
def table():
    """Eight subjects in two clinics, three visits each, in no order of rows."""
    rng = np.random.default_rng(3)
    n = 24
    frame = pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "x": rng.normal(size=n),
            "clinic": np.repeat(["a", "b"], 12),
            "subject": np.repeat([f"s{k}" for k in range(8)], 3),
            "bed": np.tile(np.repeat(["1", "2", "3", "4"], 3), 2),
            "visit": np.tile(VISITS, 8),
            "week": np.tile([2.0, 6.0, 12.0], 8),
            "day": np.tile([0.5, 1.25, 7.0], 8) + 10,
            "sex": np.repeat(["f", "m", "m", "f"], 6),
        }
    )
    return frame.iloc[rng.permutation(n)].reset_index(drop=True)


def term_of(table, residual=None, dispersion=None, formula="y ~ x", **words):
    return from_formula(formula, table, residual=residual, dispersion=dispersion, **words).residual


def refused(error, message, table, residual=None, dispersion=None, formula="y ~ x"):
    with pytest.raises(error, match=re.escape(message)):
        term_of(table, residual, dispersion, formula)


# ---- what words become ----


@pytest.mark.parametrize("names", [("m2", "m4", "m12"), ("2", "4", "12"), ("baseline", "after", "end")])
def test_the_alphabet_is_no_order_of_visits(table, names):
    """Week 12 would stand beside Week 2, and the correlations of an ar1 be those of other visits, in silence."""
    table["visit"] = table["visit"].replace(dict(zip(VISITS, names, strict=True)))
    alphabet, time = ", ".join(sorted(names)), pd.CategoricalDtype(names, ordered=True)
    for residual, formula in (
        ("ar1(visit | subject)", "y ~ x"),
        ("toeph(visit | subject)", "y ~ x"),
        (None, "y ~ x + hetar1(0 + visit | clinic)"),
    ):
        for data in (table, table.astype({"visit": "category"})):
            with pytest.warns(UserWarning, match=f"visit are taken in the order of the alphabet: {alphabet}. "):
                from_formula(formula, data, residual=residual)
        in_order = from_formula(formula, table.astype({"visit": time}), residual=residual)
        if residual:
            assert in_order.residual.place_names == names
    # Where no one is anyone's neighbour, and of days that are numbers, there is nothing to say.
    term_of(table, "us(visit | subject)")
    term_of(table, "ar1(week | subject)")


def test_a_visit_without_rows_makes_neighbours(table):
    table["visit"] = pd.Categorical(table["visit"], ["m2", "m3", "m5", "m8"], ordered=True)
    with pytest.warns(UserWarning, match="no row has 'm5'; the levels before and after are taken as neighbours"):
        term_of(table, "ar1(visit | subject)")


@pytest.mark.parametrize("word", RESIDUALS)
def test_every_word_has_its_structure(table, word):
    position = "day" if word == "car1" else "visit"
    term = term_of(table, f" {word} ( {position} | subject ) ")
    assert (term.word, term.text) == (word, f"{word} ( {position} | subject )")
    assert term.structure == RESIDUALS[word].structure
    # Words on -h, and us, have a variance for each position but the first, which is sigma's.
    by_position = 2 if word in ("us", "ar1h", "csh", "toeph") else 0
    assert (term.by_position, term.names) == (by_position, ("visit[m3]", "visit[m8]")[:by_position])
    assert term.columns.shape == (24, by_position)
    assert (term.count, term.positions) == (8, 3)


def test_rows_belong_to_their_series_and_columns_to_their_visit(table):
    term = term_of(table, "us(visit | subject)")
    labels = np.asarray(term.factor.levels)[term.codes]
    np.testing.assert_array_equal(labels, table["subject"])
    np.testing.assert_array_equal(np.array(VISITS)[term.places.astype(int)], table["visit"])
    np.testing.assert_array_equal(term.columns, table["visit"].to_numpy()[:, None] == ["m3", "m8"])
    assert term.place_names == tuple(VISITS)
    np.testing.assert_allclose(term.units, term.columns.std(axis=0))


def test_whole_positions_have_their_greatest_common_divisor_for_a_unit(table):
    """Weeks 2, 6 and 12 are 0, 2 and 5 steps of two weeks."""
    term = term_of(table, "ar1(week | subject)")
    np.testing.assert_array_equal(term.places, table["week"].map({2.0: 0, 6.0: 2, 12.0: 5}))
    assert (term.unit, term.origin, term.stepped) == (2.0, 2.0, True)
    whole = term_of(table.assign(week=table["week"].astype(int)), "ar1(week | subject)")
    np.testing.assert_array_equal(whole.places, term.places)


def test_numbers_of_numbered_visits_are_labels(table):
    """Weeks 2, 6 and 12 are visits 0, 1 and 2, whatever is between them."""
    for word in ("us", "toep"):
        term = term_of(table, f"{word}(week | subject)")
        np.testing.assert_array_equal(term.places, table["week"].map({2.0: 0, 6.0: 1, 12.0: 2}))
        assert not term.stepped


def test_text_is_counted_in_sorted_order_and_categories_in_their_own(table):
    term = term_of(table, "ar1(visit | subject)")
    np.testing.assert_array_equal(term.places, table["visit"].map({"m2": 0, "m3": 1, "m8": 2}))
    ordered = table.assign(visit=pd.Categorical(table["visit"], ["m8", "m2", "m3"]))
    for word in ("ar1", "us"):
        term = term_of(ordered, f"{word}(visit | subject)")
        np.testing.assert_array_equal(term.places, table["visit"].map({"m8": 0, "m2": 1, "m3": 2}).astype(float))
        assert term.place_names == ("m8", "m2", "m3")
    weeks = table.assign(week=pd.Categorical(table["week"], [12.0, 2.0, 6.0]))
    np.testing.assert_array_equal(
        term_of(weeks, "ar1(week | subject)").places, table["week"].map({12.0: 0, 2.0: 1, 6.0: 2})
    )


def test_times_are_in_units_of_the_middle_gap(table):
    """Gaps within a subject are 0.75 and 5.75."""
    term = term_of(table, "car1(day | subject)")
    assert term.unit == pytest.approx((0.75 + 5.75) / 2)
    np.testing.assert_allclose(term.places * term.unit + term.origin, table["day"])
    assert (term.origin, term.counted) == (10.5, None)


def test_one_stands_for_the_order_of_the_rows(table):
    term = term_of(table, "us(1 | subject)")
    np.testing.assert_array_equal(term.places, table.groupby("subject").cumcount())
    assert (term.position, term.place_names) == ("1", ("1", "2", "3"))
    assert term.names == ("row[2]", "row[3]")
    assert term_of(table, "ar1(| subject)").position == "1"


def test_nested_groups_are_their_combinations(table):
    term = term_of(table, "ar1(visit | clinic/bed)")
    assert (term.factor.name, term.count) == ("clinic:bed", 8)
    same = term_of(table, "ar1(visit | subject)")
    pairs = set(zip(term.codes.tolist(), same.codes.tolist(), strict=True))
    assert len(pairs) == 8
    assert term_of(table, "ar1(visit | clinic:bed)").count == 8


def test_rows_with_a_missing_value_in_what_the_structure_needs_are_left_out(table):
    gaps = table.astype({"visit": object})
    gaps.loc[3, "visit"] = None
    gaps.loc[5, "sex"] = None
    gaps.loc[7, "subject"] = None
    gaps.loc[9, "y"] = np.nan
    model = from_formula("y ~ x", gaps, residual="us(visit | subject)", dispersion="~ sex", missing="drop")
    np.testing.assert_array_equal(model.rows, np.setdiff1d(np.arange(24), [3, 5, 7, 9]))
    assert len(model.residual.places) == len(model.residual.columns) == 20
    with pytest.raises(DataError, match="missing"):
        from_formula("y ~ x", gaps, residual="us(visit | subject)")


def test_backquoted_columns_are_found(table):
    renamed = table.rename(columns={"visit": "the visit", "subject": "who is it"})
    assert term_of(renamed, "us(`the visit` | `who is it`)").place_names == tuple(VISITS)


def test_columns_of_a_dispersion_are_those_of_its_formula_without_a_constant(table):
    term = term_of(table, dispersion="~ sex + x")
    np.testing.assert_array_equal(term.columns, np.column_stack([table["sex"] == "m", table["x"]]))
    assert (term.names, term.word, term.factor) == (("sex[T.m]", "x"), "independent", None)
    np.testing.assert_allclose(term.units, term.columns.std(axis=0))
    np.testing.assert_array_equal(term_of(table, dispersion="~ 0 + x").columns[:, 0], table["x"])


def test_columns_by_position_stand_before_those_of_the_dispersion(table):
    term = term_of(table, "csh(visit | subject)", "~ sex")
    assert term.names == ("visit[m3]", "visit[m8]", "sex[T.m]")
    assert term.by_position == 2


def test_a_model_without_either_has_no_residual_term(table):
    assert from_formula("y ~ x + (1 | subject)", table).residual is None


def test_parts():
    part = parse_residual("ar1(visit | clinic/subject)")
    assert (part.word, part.position, part.factors) == ("ar1", "visit", ("clinic", "subject"))


# ---- what is refused ----


@pytest.mark.parametrize("text", ["ar1(visit, subject)", "ar1", "visit | subject", ""])
def test_what_cannot_be_read_is_refused(table, text):
    message = f"residual={text!r} cannot be read: residual= is written word(position | group), as in"
    refused(FormulaError, message, table, text)


def test_what_is_no_text_is_refused():
    with pytest.raises(FormulaError, match=re.escape("residual is 3; residual= is written word(position | group)")):
        parse_residual(3)


def test_an_unknown_word_is_refused(table):
    message = "the word 'arma' is unknown; the words are ar1, car1, cs, toep, us, ar1h, csh, toeph"
    refused(FormulaError, message, table, "arma(visit | subject)")


@pytest.mark.parametrize(
    ("word", "here"), [("corAR1", "ar1"), ("AR1", "ar1"), ("corSymm", "us"), ("ou", "car1"), ("corCompSymm", "cs")]
)
def test_words_of_other_packages_are_told_in_ours(table, word, here):
    refused(FormulaError, f"write {here}(position | group)", table, f"{word}(visit | subject)")


@pytest.mark.parametrize("position", ["factor(visit)", "np.log(visit)", "visit | subject) + cs(visit"])
def test_a_position_that_is_no_column_is_refused(table, position):
    """It was a KeyError."""
    text = f"ar1({position} | subject)"
    refused(FormulaError, f"residual={text!r}: the position {position!r} is no column", table, text)


@pytest.mark.parametrize("position", ["0 + visit", "visit + 0", "visit - 1"])
def test_a_position_as_random_effects_have_it(position):
    assert parse_residual(f"ar1({position} | subject)").position == "visit"


def test_a_group_that_is_none_is_refused(table):
    message = "residual='ar1(visit | )': the group '' cannot be read; residual= is written"
    refused(FormulaError, message, table, "ar1(visit | )")


@pytest.mark.parametrize(("text", "name"), [("us(visits | subject)", "visits"), ("us(visit | patient)", "patient")])
def test_an_unknown_column_is_refused(table, text, name):
    with pytest.raises(DataError, match=f"(?s)residual='{re.escape(text)}'.*{name}|{name}.*{re.escape(text)}"):
        term_of(table, text)


def test_a_position_that_occurs_twice_is_refused(table):
    twice = pd.concat([table, table[table.subject == "s2"].iloc[:1]], ignore_index=True)
    first = int(np.flatnonzero(table.subject == "s2")[0])
    message = (
        f"residual='us(visit | subject)': visit is {table['visit'][first]} twice in subject 's2', in rows {first} and "
        "24; a position occurs once in a group"
    )
    refused(DataError, message, twice, "us(visit | subject)")


def test_positions_that_are_not_whole_are_refused_for_ar1(table):
    message = (
        "residual='ar1(day | subject)': the position 'day' is 1[01]\\.[25]+ in some row, and ar1 needs whole "
        "positions; in continuous time write car1\\(day \\| subject\\)"
    )
    with pytest.raises(DataError, match=message.replace("(day | subject)':", "\\(day \\| subject\\)':")):
        term_of(table, "ar1(day | subject)")


@pytest.mark.parametrize(("position", "what"), [("visit", "the column 'visit', which holds no"), ("1", "the order of")])
def test_times_that_are_no_numbers_are_refused_for_car1(table, position, what):
    refused(DataError, f"car1 needs times, and was given {what}", table, f"car1({position} | subject)")


def test_visits_that_no_series_has_both_of_are_refused(table):
    halves = table[~((table.visit == "m8") & (table.clinic == "a")) & ~((table.visit == "m3") & (table.clinic == "b"))]
    message = (
        "residual='us(visit | subject)': 0 of 8 groups have rows at both m3 and m8, too few for a correlation of "
        "their own; merge positions, or use toep(...) or ar1(...)"
    )
    refused(ModelError, message, halves.reset_index(drop=True), "us(visit | subject)")


def test_visits_that_one_series_has_both_of_are_refused(table):
    short = table[(table.visit != "m8") | (table.subject == "s0")].reset_index(drop=True)
    refused(ModelError, "1 of 8 groups has rows at both m2 and m8", short, "us(visit | subject)")
    message = "1 of 8 groups has rows at positions that are 2 apart, too few for a correlation of their own; merge"
    refused(ModelError, message, short, "toep(visit | subject)")


def test_one_visit_is_refused(table):
    groups = table.drop_duplicates("subject").assign(visit="m2").reset_index(drop=True)
    refused(ModelError, "every subject has one row", groups, "us(visit | subject)")


def test_one_row_a_group_is_refused(table):
    message = (
        "every subject:visit has one row, and nothing within it could be correlated; name the column that tells whose "
        "rows belong together"
    )
    refused(ModelError, message, table, "ar1(visit | subject:visit)")


def test_series_across_the_levels_of_random_effects_are_refused(table):
    message = (
        f"residual='ar1(visit | subject)': the rows of subject {table['subject'].min()!r} belong to several levels of "
        "'visit', a grouping factor of the random effects"
    )
    table = table.sort_values("subject", ignore_index=True)
    refused(ModelError, message, table, "ar1(visit | subject)", formula="y ~ x + (1 | visit)")
    refused(ModelError, "such as ar1(visit | visit:subject)", table, "ar1(visit | subject)", formula="y ~ (1 | visit)")


@pytest.mark.parametrize("word", ["us", "cs", "csh"])
def test_a_random_intercept_of_the_same_groups_is_refused(table, word):
    message = f"the random-effects term '1 | subject' says nothing that {word} within the same groups does not hold"
    refused(ModelError, message, table, f"{word}(visit | subject)", formula="y ~ x + (1 | subject)")


def test_a_random_intercept_beside_other_correlations_or_of_other_groups_is_not(table):
    assert term_of(table, "ar1(visit | subject)", formula="y ~ x + (1 | subject)").word == "ar1"
    assert term_of(table, "us(visit | subject)", formula="y ~ x + (1 | clinic)").word == "us"


@pytest.mark.parametrize(
    ("text", "offender"),
    [("~ 0 + sex", "sex[m]"), ("~ sex + x + I(x - 1)", "I(x - 1)"), ("~ x + I(3 * x + 1)", "I(3 * x + 1)")],
)
def test_columns_of_a_dispersion_that_cannot_be_told_apart_are_refused(table, text, offender):
    message = f"dispersion={text!r}: the standard deviations cannot be told apart, since the column '{offender}'"
    refused(ModelError, message, table, dispersion=text)


@pytest.mark.parametrize("origin", [-30, 2000, 2_460_000])
def test_a_dispersion_far_from_its_origin_is_counted_from_its_mean(table, origin):
    far = table.assign(x=table["x"] - table["x"].mean() + origin)
    term = term_of(far, dispersion="~ x")
    np.testing.assert_allclose(term.origins, origin)
    np.testing.assert_array_equal(term.columns[:, 0], far["x"])
    assert not np.any(term_of(far.assign(x=far["x"] - origin), dispersion="~ x").origins)
    rare = table.assign(rare=np.where(np.arange(len(table)) == 0, "a", "b"))
    assert not np.any(term_of(rare, dispersion="~ rare").origins)


def test_a_dispersion_that_the_positions_hold_already_is_refused(table):
    message = "residual='us(visit | subject)' and dispersion='~ visit': the standard deviations cannot be told apart"
    refused(ModelError, message, table, "us(visit | subject)", "~ visit")


@pytest.mark.parametrize(("text", "name"), [("~ 1", "Intercept"), ("~ one", "one"), ("~ x + one", "one")])
def test_a_dispersion_that_is_the_same_in_all_rows_is_refused(table, text, name):
    message = f"dispersion={text!r}: the column {name!r} is the same in all rows, and that is sigma"
    refused(ModelError, message, table.assign(one=1.0), dispersion=text)


def test_too_many_positions_for_a_variance_each_are_refused(table):
    message = "24 positions in 24 rows: a variance for each cannot be told; use ar1(...) of fewer positions"
    refused(ModelError, message, table.assign(day=np.arange(24.0)), "ar1h(day | clinic)")


def test_infinite_values_in_a_dispersion_are_refused(table):
    table.loc[4, "x"] = -np.inf
    with pytest.raises(DataError, match="(?s)infinite.*4"):
        term_of(table, dispersion="~ x", formula="y ~ 1")

"""The grammar: formulas are taken apart, and every spelling of the same model gives the same parts."""

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmixed.errors import FormulaError
from jmixed.formulas.formula import bare_name, normalise, parse, replace_keywords


def parts(text):
    found = parse(text)
    return " ".join(found.fixed.split()), [(r.effects, r.factors, r.independent) for r in found.random], found.offsets


@pytest.mark.parametrize(
    ("bar", "expected"),
    [
        ("(1 | g)", [("1", ("g",), False)]),
        ("(x | g)", [("x", ("g",), False)]),
        ("(0 + x | g)", [("0 + x", ("g",), False)]),
        ("(x-1|g)", [("x - 1", ("g",), False)]),
        ("(x || g)", [("x", ("g",), True)]),
        ("(1 | a/b)", [("1", ("a",), False), ("1", ("a", "b"), False)]),
        ("(1 | a:b)", [("1", ("a", "b"), False)]),
        ("(x | a/b/c)", [("x", ("a",), False), ("x", ("a", "b"), False), ("x", ("a", "b", "c"), False)]),
        ("(1 | (a:b)/c)", [("1", ("a", "b"), False), ("1", ("a", "b", "c"), False)]),
        ("(1 | a/(b:c))", [("1", ("a",), False), ("1", ("a", "b", "c"), False)]),
        ("(1 | a:(b/c))", [("1", ("a", "b"), False), ("1", ("a", "b", "c"), False)]),
        ("(1 + a*b | g)", [("1 + a*b", ("g",), False)]),
        ("(C(f) | g)", [("C(f)", ("g",), False)]),
        ("(poly(x,2) | g)", [("poly(x, 2)", ("g",), False)]),
        ("((1 | g))", [("1", ("g",), False)]),
        ("(1 | class)", [("1", ("class",), False)]),
        (
            "(`body mass` | `my group`/b)",
            [("`body mass`", ("my group",), False), ("`body mass`", ("my group", "b"), False)],
        ),
        ('(1 | Q("my group"))', [("1", ("my group",), False)]),
        ("(1 | C(g))", [("1", ("g",), False)]),
        ("(I(a | b) | g)", [("I(a | b)", ("g",), False)]),
    ],
)
def test_bars(bar, expected):
    assert parts(f"y ~ z + {bar}") == ("y ~ z", expected, ())


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("y ~ (1 | g)", "y ~ 1"),
        ("y ~ (1 | g) + x", "y ~ x"),
        ("y ~ (1 | g) - 1", "y ~ - 1"),
        ("y ~ 0 + (1 | g) + x", "y ~ 0 + x"),
        ("np.log(y) ~ x*z + (1 | g) + I(a | b)", "np.log(y) ~ x*z + I(a | b)"),
        ("y ~ (x + z)**2 + (1 | g)", "y ~ (x + z)**2"),
        ("yield ~ 1 + (1 | class)", "yield ~ 1"),
        ("y ~ offset(e) + (1 | g)", "y ~ 1"),
    ],
)
def test_what_is_left_is_the_fixed_part(text, fixed):
    found = parse(text)
    assert " ".join(found.fixed.split()) == fixed
    assert len(found.fixed) == len(text)


@pytest.mark.parametrize(
    ("left", "read"),
    [
        ("after - before", "I(after - before)"),
        ("(a-b)/b", "I((a-b)/b)"),
        ("100 * y", "I(100 * y)"),
        ("-y", "I(-y)"),
        ("y^2", "I(y**2)"),
        ("`a b` / n", "I(`a b` / n)"),
        ("Sepal.Length / 2", "I(`Sepal.Length` / 2)"),
        ("np.log(y) - 1", "I(np.log(y) - 1)"),
        ("np.log(a - b)", "np.log(a - b)"),
        ("(y)", "(y)"),
        ("a:b", "a:b"),
    ],
)
def test_the_left_side_is_arithmetic(left, read):
    assert parse(f"{left} ~ x - 1 + (1 | g)").fixed.split("~")[0].strip() == read


def test_offsets_are_expressions():
    assert parse("y ~ x + offset(np.log(e)) + (1 | g) + offset(2 * `a b`)").offsets == ("np.log(e)", "2 * `a b`")


def test_labels_are_uniform():
    labels = [r.label for r in parse("y ~ (1|g)+( x+C( f )|a/`b c`) + (0+x||g)").random]
    assert labels == ["1 | g", "x + C(f) | a", "x + C(f) | a:b c", "0 + x || g"]


@pytest.mark.parametrize(
    ("text", "spot", "says"),
    [
        ("y ~ x | g", 6, "parentheses"),
        ("y ~ x*(1 | g)", 9, "alone in parentheses"),
        ("y ~ z + (x + (1 | g))", 16, "alone in parentheses"),
        ("y ~ x - (1 | g)", 6, "not removed"),
        ("y ~ x - offset(z)", 6, "not removed"),
        ("y ~ (1 | a + b)", 11, "separate terms"),
        ("y ~ (1 | a*b)", 10, "separate terms"),
        ("y ~ (1 | 2)", 9, "grouping factor"),
        ("y ~ (1 | a/)", 12, "grouping factor"),
        ("y ~ ( | g)", 6, "left of the bar"),
        ("y ~ (1 | )", 7, "right of the bar"),
        ("y ~ (1 | a | b)", 11, "one bar"),
        ("y ~ (offset(z) | g)", 5, "cannot stand inside"),
        ("y ~ (x", 4, "not closed"),
        ("a:b - c ~ x + (1 | g)", 1, "no colon"),
        ("a % b - c ~ x", 2, "Expected: %"),
        ("y ~ x)", 5, "no opening"),
        ("y ~ log(x + (1 | g)", 4, "Expected: )"),
        ("y ~ x ~ z", 6, "exactly one ~"),
        ("~ x + (1 | g)", 0, "exactly one ~"),
        ("(1 | g) ~ x", 3, "response"),
    ],
)
def test_what_is_wrong_is_marked(text, spot, says):
    with pytest.raises(FormulaError) as caught:
        parse(text)
    message = caught.value.args[0]
    assert says in message
    assert message.endswith(f"\n\n    {text}\n    {' ' * spot}^")


@pytest.mark.parametrize("text", ["", "y", "y + x"])
def test_a_formula_has_two_sides(text):
    with pytest.raises(FormulaError, match="exactly one ~"):
        parse(text)


@pytest.mark.parametrize("given_", [None, 3, ["y ~ x"]])
def test_a_formula_is_text(given_):
    with pytest.raises(FormulaError, match="must be text"):
        parse(given_)


@pytest.mark.parametrize(
    ("text", "name"),
    [("g", "g"), ("`a b`", "a b"), ('Q("a b")', "a b"), ("Q('a b')", "a b"), ("C(`a b`)", "a b"), ("np.floor(x)",) * 2],
)
def test_bare_name(text, name):
    assert bare_name(text) == name


def test_normalise():
    assert normalise("0+C( f )+x:z -  1") == "0 + C(f) + x:z - 1"


@pytest.mark.parametrize(
    ("text", "spelled", "aliases"),
    [
        ("y ~ C(class) + class", "y ~ C(clas_) + class", {"clas_": "class"}),
        ("y ~ C(`class`)", "y ~ C( clas_ )", {"clas_": "class"}),
        ("y ~ np.log(yield) + f(lambda)", "y ~ np.log(yiel_) + f(lambd_)", {"yiel_": "yield", "lambd_": "lambda"}),
        ("y ~ I(x if x > 0 else 0)", "y ~ I(x if x > 0 else 0)", {}),
        ("y ~ C(`body mass`)", "y ~ C(`body mass`)", {}),
    ],
)
def test_keywords_inside_calls_get_stand_ins(text, spelled, aliases):
    assert replace_keywords(text, set()) == (spelled, aliases)


def test_a_stand_in_avoids_names_that_are_taken():
    assert replace_keywords("y ~ C(class)", {"clas_"})[1] == {"clas0": "class"}


NAMES = st.from_regex(r"[a-z]{2,5}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
EFFECTS = st.sampled_from(["1", "x", "0 + x", "1 + x + z", "C(f)", "x*z", "np.log(x)"])
BLANKS = st.sampled_from(["", " ", "  ", "\n"])


@given(st.data())
def test_blanks_and_the_place_of_a_bar_mean_nothing(data):
    effects, group = data.draw(EFFECTS), data.draw(NAMES)
    blank = [data.draw(BLANKS) for _ in range(6)]
    bar = f"({blank[0]}{effects}{blank[1]}|{blank[2]}{group}{blank[3]})"
    terms = data.draw(st.permutations(["a", "b:c", "I(d**2)", bar]))
    found = parse(f"y{blank[4]}~{blank[5]}" + " + ".join(terms))
    plain = parse(f"y ~ a + ({effects} | {group})")
    assert found.random == plain.random
    assert "".join(found.fixed.split()) == "y~" + "+".join("".join(t.split()) for t in terms if t is not bar)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), EFFECTS, st.booleans())
def test_a_nest_is_the_sum_of_its_levels(names, effects, independent):
    line = "||" if independent else "|"
    nested = parse(f"y ~ ({effects} {line} {'/'.join(names)})").random
    levels = [":".join(names[: k + 1]) for k in range(len(names))]
    assert nested == parse("y ~ " + " + ".join(f"({effects} {line} {level})" for level in levels)).random
    assert [part.factors for part in nested] == [tuple(names[: k + 1]) for k in range(len(names))]


@given(st.lists(st.tuples(EFFECTS, NAMES), min_size=1, max_size=4))
def test_terms_keep_their_order(bars):
    found = parse("y ~ " + " + ".join(f"({effects} | {group})" for effects, group in bars)).random
    assert [(part.effects, part.factors[0]) for part in found] == [(normalise(e), g) for e, g in bars]


def test_in_is_an_interaction_as_in_r():
    assert parse("y ~ z + x %in% `my a` + (x%in%b | g)") == parse("y ~ z + x:`my a` + (x:b | g)")

"""How expressions are spelled: uniform blanks, and otherwise as the caller wrote them, as patsy has it."""

import ast

import pytest
from patsy.tokens import normalize_token_spacing

from jmixed.formulas.marks import spelled, without_backticks

EXPRESSIONS = [
    *('Q("my x")', "Q( 'my x' )", 'C(h,Treatment( reference="K"))', "I(x**2/1e3)", "np.log(x+1)", "I(-x)"),
    *("f(a,-1,b=-x)", 'C(h,levels=["a","b"])', "I((x-1)**2)", "f(*a,**b)", "x>0", "f(lambda u:u+1)", "x[1 :2]"),
    *('{"a":1}', "I((x > 0)&(z<1))", "I(x if x>0 else 0)", "I(x//2)", "I(x - (-1))", "np.where(x>=0,1,0)"),
    *('f("it\'s", \'a "b"\')', "a.b.c( 1 )", "f('`a`')", "center( x )", "I(1_000*x)", "f(x)[0]"),
]


@pytest.mark.parametrize("code", EXPRESSIONS)
def test_blanks_are_patsys(code):
    own = spelled(code)
    assert own == normalize_token_spacing(code) == spelled(own)
    assert ast.dump(ast.parse(own, mode="eval")) == ast.dump(ast.parse(code, mode="eval"))


@pytest.mark.parametrize(
    ("code", "own"),
    [
        ("np.log(`body  mass`+1)", "np.log(`body  mass` + 1)"),
        ("f(\n  x,\n  z)", "f(x, z)"),
        ("f( x ,)", "f(x,)"),
        ("I(a and b or -c)", "I(a and b or -c)"),
        ("f(x)[0]-1", "f(x)[0] - 1"),
        ("I(~x)", "I(~x)"),
        ("I(x +)", "I(x +)"),
        ("f('a", "f('a"),
        ("f'{x}'", "f'{x}'"),
    ],
)
def test_what_patsy_cannot_read_or_spaces_oddly(code, own):
    assert spelled(code) == own


def test_backticks_inside_text_stay():
    assert without_backticks("f('`a`', `b c`)") == ("f('`a`', _quoted_0_)", {"_quoted_0_": "b c"})

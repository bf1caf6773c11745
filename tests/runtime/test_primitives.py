"""What NumPy does for a step of a program is what JAX does: every primitive beside its own evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from steps import agree, both

from jmixed.runtime.primitives import UnknownStepError

R = np.random.default_rng(0)
X, Y = R.normal(size=(2, 3, 4))
POSITIVE = np.exp(X)
UNIT = np.clip(np.tanh(X), -0.99, 0.99)
ODD = np.array([0.0, -0.0, 1.5, -1.5, 2.5, -0.5, np.inf, -np.inf, np.nan])
WHOLE, OTHER = R.integers(-9, 9, (2, 3, 4))
WHOLE[0, 0], OTHER[OTHER == 0] = -7, 3

ELEMENTWISE = {
    **{name: (getattr(jnp, name), X) for name in ("exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: (getattr(jnp, name), POSITIVE) for name in ("log", "log2", "log1p", "sqrt", "cbrt", "square")},
    **{name: (getattr(jnp, name), UNIT) for name in ("arcsin", "arccos", "arctan", "arctanh", "arcsinh")},
    **{name: (getattr(jnp, name), ODD) for name in ("floor", "ceil", "sign", "abs", "isfinite", "round", "negative")},
    "round away from zero": (lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), ODD),
    "rsqrt": (lax.rsqrt, POSITIVE),
    "arccosh": (jnp.arccosh, 1 + POSITIVE),
    "logistic": (jax.nn.sigmoid, 9 * X),
    "softplus": (jax.nn.softplus, 50 * X),
    "lgamma": (jax.scipy.special.gammaln, POSITIVE),
    "digamma": (jax.scipy.special.digamma, POSITIVE),
    "polygamma": (lambda x: jax.scipy.special.polygamma(1, x), POSITIVE),
    "erf": (jax.scipy.special.erf, X),
    "erfc": (jax.scipy.special.erfc, X),
    "erf_inv": (jax.scipy.special.erfinv, UNIT),
    "integer_pow": (lambda x: x**3 + x**-2 + x**0 + x**7, POSITIVE),
    "not": (jnp.logical_not, X > 0),
    "not of whole numbers": (jnp.invert, WHOLE),
    "to whole numbers": (lambda x: (9 * x).astype(jnp.int32), X),
    "to floats": (lambda x: x.astype(jnp.float32), WHOLE),
    "to booleans": (lambda x: x.astype(bool), WHOLE),
    "one_minus_square": (jax.grad(lambda x: jnp.sum(jnp.tanh(x))), X),
    "clamp": (lambda x: lax.clamp(-0.5, x, 0.5), X),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_single_numbers(name):
    function, x = ELEMENTWISE[name]
    agree(function, x, rtol=1e-9 if name in ("lgamma", "digamma", "polygamma", "erf_inv") else 1e-12)


PAIRS = ["add", "subtract", "multiply", "divide", "maximum", "minimum"]
PAIRS += ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]


@pytest.mark.parametrize("name", [*PAIRS, "power", "arctan2", "nextafter", "fmod"])
@pytest.mark.parametrize("values", ["numbers", "odd"])
def test_functions_of_two_numbers(name, values):
    x, y = (X, Y) if values == "numbers" else np.meshgrid(ODD, ODD)
    agree(getattr(jnp, name), np.abs(x) if name == "power" else x, y)


@pytest.mark.parametrize("name", [*PAIRS[:3], *PAIRS[4:], "floor_divide", "remainder", "bitwise_and", "bitwise_xor"])
def test_functions_of_two_whole_numbers(name):
    agree(getattr(jnp, name), WHOLE, OTHER)
    agree(lambda x, y: (lax.div(x, y), lax.rem(x, y)), WHOLE, OTHER)


@pytest.mark.parametrize("name", ["igamma", "igammac", "betainc"])
def test_incomplete_functions(name):
    if name == "betainc":
        agree(jax.scipy.special.betainc, POSITIVE, np.exp(Y), (UNIT + 1) / 2, rtol=1e-9)
    else:
        agree(getattr(lax, name), POSITIVE, np.exp(Y), rtol=1e-9)


def test_choices():
    agree(lambda x, y: jnp.where(x > 0, x, y), X, Y)
    agree(lambda x, y: jnp.where(x[0, 0] > 0, x, y), X, Y)
    agree(lambda k, x, y: lax.select_n(k, x, y, x + y), (np.abs(WHOLE) % 3).astype(np.int32), X, Y)


SHAPES = {
    "broadcast": lambda x: (jnp.broadcast_to(x, (2, 3, 4)), x[:, None] + x[None, :1], jnp.full((2, 2), x[0, 0])),
    "reshape": lambda x: (x.reshape(4, 3), x.ravel(), x[None], x.T.reshape(-1), jnp.squeeze(x[:1])),
    "transpose": lambda x: (x.T, jnp.moveaxis(x[None], 0, 2)),
    "turn": lambda x: (x[::-1], x[:, ::-1], jnp.flip(x)),
    "slice": lambda x: (x[1:], x[:, 1:3], x[::2, ::3], x[2, 3]),
    "join": lambda x: (jnp.concatenate([x, x[:1]]), jnp.concatenate([x, x], axis=1), jnp.stack([x, x], axis=1)),
    "part": lambda x: (jnp.split(x, [1, 3], axis=1), tuple(x)),
    "count": lambda x: (
        jnp.arange(4.0, dtype=x.dtype),
        jnp.linspace(0, 1, 5),
        lax.broadcasted_iota(jnp.int32, (2, 3), 1),
    ),
    "pad": lambda x: (
        lax.pad(x, 7.0, ((1, 2, 0), (0, 0, 2))),
        lax.pad(x, 7.0, ((-1, 2, 1), (3, -2, 0))),
        lax.pad(x, 0.0, ((-2, -1, 0), (0, 0, 0))),
    ),
    "eye": lambda x: jnp.eye(3, 4) * x,
    "triangle": lambda x: (jnp.tril(x), jnp.triu(x, 1)),
    "diagonal": lambda x: (jnp.diagonal(x), jnp.diag(x[0])),
    "place": lambda x: jnp.nonzero(x > 0, size=3, fill_value=-1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    agree(SHAPES[name], X)


REDUCTIONS = ["sum", "prod", "max", "min", "any", "all", "argmax", "argmin", "cumsum", "cumprod", "mean", "var"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions(name, axis):
    x = X > 0 if name in ("any", "all") else X
    agree(lambda x: getattr(jnp, name)(x, axis=axis), x)
    if name in ("sum", "prod", "max", "min", "argmax", "argmin", "cumsum"):
        agree(lambda x: getattr(jnp, name)(x, axis=axis), WHOLE.astype(np.int32))
    if name in ("max", "min", "argmax", "argmin", "sum"):
        holed = np.where(X > 1, np.nan, X)
        agree(lambda x: getattr(jnp, name)(x, axis=axis), holed)


def test_reductions_of_nothing():
    agree(lambda x: (jnp.sum(x, axis=0), jnp.max(x, axis=0, initial=-jnp.inf), jnp.any(x > 0)), np.zeros((0, 3)))
    agree(lambda x: jnp.max(x, axis=1), np.zeros((0, 3)))


def test_running_sums_from_the_end():
    agree(lambda x: (lax.cumsum(x, axis=1, reverse=True), lax.cummax(x, axis=0), lax.cummin(x, axis=0)), X)


PRODUCTS = {
    "matrices": ("ij,jk->ik", (3, 4), (4, 5)),
    "vectors": ("i,i->", (4,), (4,)),
    "outer": ("i,j->ij", (3,), (4,)),
    "many small": ("bij,bjk->bik", (50, 2, 3), (50, 3, 2)),
    "many last": ("ijb,jkb->ikb", (2, 3, 50), (3, 2, 50)),
    "many large": ("bij,bkj->bik", (6, 9, 8), (6, 7, 8)),
    "two batches": ("abij,abjk->abik", (2, 3, 4, 5), (2, 3, 5, 2)),
    "two sums": ("ijk,ijl->kl", (2, 3, 4), (2, 3, 5)),
    "no inner": ("bij,bjk->bik", (4, 2, 0), (4, 0, 3)),
    "nothing": ("ij,jk->ik", (0, 4), (4, 5)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_products(name, dtype):
    subscripts, *shapes = PRODUCTS[name]
    r = np.random.default_rng(1)
    args = [r.normal(size=shape).astype(dtype) for shape in shapes]
    agree(lambda x, y: jnp.einsum(subscripts, x, y), *args, rtol=1e-12 if dtype == np.float64 else 1e-5)


def test_products_of_several_types_are_compiled():
    with pytest.raises(UnknownStepError, match="several types"), jax.enable_x64(True):
        both(lambda x: lax.dot(x, x, preferred_element_type=jnp.float64), X[:, :3].astype(np.float32))


def test_comparisons_that_put_what_is_no_number_last():
    places = np.array([0.0, 1.0, 2.0, np.inf, np.nan])
    agree(lambda x, v: (jnp.searchsorted(x, v), jnp.searchsorted(x, v, side="right")), places, np.append(ODD, 1.0))


def test_a_step_that_nobody_knows_names_itself():
    with pytest.raises(UnknownStepError, match="fft"):
        both(lambda x: jnp.abs(jnp.fft.fft(x)), X)

"""What NumPy does for each step of a JAX program.

`STEPS` holds, by the name of a primitive, what turns one equation of a program into a call: a function, and the
arguments that stand fixed when the program is translated. All functions are of modules, so that a translated program
can be kept in a file. A primitive that is not here, or is asked for something that is not, raises `UnknownStepError`:
its program is compiled.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Call = tuple[Callable, tuple]


class UnknownStepError(Exception):
    """NumPy has no answer here to this step of a program."""


STEPS: dict[str, Callable[[Any], Call]] = {}


def step(*names: str) -> Callable[[Callable[[Any], Call]], Callable[[Any], Call]]:
    """Register what translates the equations of primitives."""

    def register(translate: Callable[[Any], Call]) -> Callable[[Any], Call]:
        STEPS.update(dict.fromkeys(names, translate))
        return translate

    return register


def same(x, *_):
    """What hands its argument on."""
    return x


def _plain(function: Callable) -> Callable[[Any], Call]:
    return lambda _: (function, ())


def whole_quotient(x, y):
    """The quotient of whole numbers without its fraction, as in C."""
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)


def reciprocal_root(x):
    """1 / sqrt(x)."""
    return 1 / np.sqrt(x)


def clamped(low, x, high):
    """x between two bounds."""
    return np.minimum(np.maximum(x, low), high)


def chosen(which, *cases):
    """Elements of the first case where `which` is 0 or false, of the second where it is 1 or true, and so on."""
    return cases[int(which)] if np.ndim(which) == 0 else np.choose(which, cases)


def one_of(which, first, second):
    """The second array where the number `which` is true, and else the first."""
    return second if which else first


def mixed(which, first, second):
    """Elements of the second array where `which` is true, and of the first elsewhere."""
    return np.where(which, second, first)


def layers_where(which, first, second):
    """Layers of one array where `which` is true, which has its leading axes, and of the other elsewhere."""
    return np.where(np.reshape(which, np.shape(which) + (1,) * (np.ndim(first) - np.ndim(which))), first, second)


def converted(x, dtype):
    """The numbers in another type."""
    return np.asarray(x).astype(dtype, copy=False)


def whole_power(x, exponent):
    """A whole power, by squares."""
    base, power, left = (1 / x if exponent < 0 else x), None, abs(exponent)
    while left:
        if left & 1:
            power = base if power is None else power * base
        base, left = base * base if left > 1 else base, left >> 1
    return np.ones_like(x) if power is None else power


def special(*args):
    """A function of SciPy's, whose name comes last; its module is imported for the few programs that need it."""
    *values, name = args
    from scipy import special as functions

    if name == "polygamma":
        return functions.polygamma(values[0].astype(int), values[1]).astype(values[1].dtype)
    return getattr(functions, name)(*values)


def one_minus_square(x):
    """1 - x^2 near one as elsewhere."""
    return (1 + x) * (1 - x)


def _before(x, y):
    """Whether x comes before y where what is no number comes last."""
    return (x < y) | (np.isnan(y) & ~np.isnan(x))


def _not_after(x, y):
    return (x <= y) | np.isnan(y)


def _alike(x, y):
    return (x == y) | (np.isnan(x) & np.isnan(y))


PLAIN: dict[str, Callable] = {
    **{name: getattr(np, name) for name in ("exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "cbrt", "square")},
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "floor", "ceil", "sign")},
    "nextafter": np.nextafter,
    "one_minus_square": one_minus_square,
    "lt_to": _before,
    "le_to": _not_after,
    "eq_to": _alike,
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "rem": np.fmod,
    "neg": np.negative,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "rsqrt": reciprocal_root,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "clamp": clamped,
    "stop_gradient": same,
    "copy": same,
    "name": same,
    "optimization_barrier": same,
}
STEPS.update({name: _plain(function) for name, function in PLAIN.items()})

SPECIAL = {
    "logistic": "expit",
    "lgamma": "gammaln",
    "digamma": "psi",
    "polygamma": "polygamma",
    "erf": "erf",
    "erfc": "erfc",
    "erf_inv": "erfinv",
    "igamma": "gammainc",
    "igammac": "gammaincc",
    "regularized_incomplete_beta": "betainc",
}


@step(*SPECIAL)
def _(equation):
    return special, (SPECIAL[equation.primitive.name],)


@step("convert_element_type")
def _(equation):
    return converted, (np.dtype(equation.params["new_dtype"]),)


@step("div")
def _(equation):
    return (whole_quotient if np.dtype(equation.outvars[0].aval.dtype).kind in "iu" else np.divide), ()


@step("select_n")
def _(equation):
    which = equation.invars[0].aval
    if np.dtype(which.dtype) != np.bool_ or len(equation.invars) != 3:
        return chosen, ()
    return (mixed if which.shape else one_of), ()


def rounded(x):
    """Whole numbers, halves away from zero."""
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


@step("round")
def _(equation):
    return (np.rint if int(equation.params["rounding_method"]) else rounded), ()


@step("integer_pow")
def _(equation):
    exponent = equation.params["y"]
    return (np.square, ()) if exponent == 2 else (whole_power, (exponent,))


def number(value):
    """A number that is known beforehand."""
    return np.int32(value)


@step("platform_index")
def _(equation):
    # A branch without platforms is for all that have none of their own.
    ours = [k for k, names in enumerate(equation.params["platforms"]) if names is None or "cpu" in names]
    return number, (ours[0],)


# Shapes


def broadcast(x, middle, shape):
    """x with axes of one put between its own, and all axes as long as asked for."""
    return np.broadcast_to(np.reshape(x, middle), shape)


def spread(x, middle, shape, dtype):
    """The same written out, in a fifth of the time for few numbers. No `middle` where the axes of x are the last."""
    out = np.empty(shape, dtype)
    out[...] = x if middle is None else np.reshape(x, middle)
    return out


FEW = 1 << 12
"""Numbers up to which what is repeated is written out."""


def transposed(x, order):
    """x with its axes in another order."""
    return np.asarray(x).transpose(order)


def part(x, places):
    """The part at fixed slices."""
    return np.asarray(x)[places]


def joined(*args):
    """Arrays one after the other along the axis that comes last."""
    *arrays, axis = args
    return np.concatenate(arrays, axis=axis)


def stacked(*args):
    """Arrays side by side along a new axis, which comes last."""
    *arrays, axis = args
    return np.stack(arrays, axis=axis)


def unstacked(x, axis):
    """The layers of an array along an axis."""
    return tuple(np.moveaxis(x, axis, 0))


def divided(x, cuts, axis):
    """An array cut along an axis."""
    return tuple(np.split(x, cuts, axis=axis))


def counted(shape, axis, dtype):
    """0, 1, 2, ... along an axis."""
    return np.broadcast_to(along(np.arange(shape[axis], dtype=dtype), axis, len(shape)), shape)


def along(numbers, axis, axes):
    """Numbers along one of several axes, the others of which are of one."""
    return numbers.reshape([-1 if k == axis else 1 for k in range(axes)])


def padded(x, value, shape, places, kept):
    """x at given places of an array that is `value` elsewhere."""
    out = np.full(shape, value, dtype=np.asarray(x).dtype)
    out[places] = x[kept]
    return out


@step("broadcast_in_dim")
def _(equation):
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    if len(equation.invars) != 1:
        raise UnknownStepError("broadcast_in_dim of a shape that is not known")
    own = equation.invars[0].aval.shape
    middle = [1] * len(shape)
    for axis, size in zip(axes, own, strict=True):
        middle[axis] = size
    size = math.prod(shape)
    if math.prod(own) == size:
        return np.reshape, (tuple(shape),)
    if size > FEW:
        return broadcast, (tuple(middle), tuple(shape))
    last = tuple(axes) == tuple(range(len(shape) - len(own), len(shape)))
    return spread, (None if last else tuple(middle), tuple(shape), np.dtype(equation.outvars[0].aval.dtype))


@step("reshape")
def _(equation):
    if equation.params.get("dimensions") is not None:
        raise UnknownStepError("reshape with an order of its own")
    return np.reshape, (tuple(equation.params["new_sizes"]),)


@step("squeeze")
def _(equation):
    return np.reshape, (tuple(equation.outvars[0].aval.shape),)


@step("transpose")
def _(equation):
    return transposed, (tuple(equation.params["permutation"]),)


@step("rev")
def _(equation):
    turned = equation.params["dimensions"]
    axes = range(equation.invars[0].aval.ndim)
    return part, (tuple(slice(None, None, -1 if axis in turned else 1) for axis in axes),)


@step("slice")
def _(equation):
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    return part, (tuple(map(slice, starts, ends, strides)),)


@step("concatenate")
def _(equation):
    return joined, (equation.params["dimension"],)


@step("stack")
def _(equation):
    return stacked, (equation.params["axis"],)


@step("unstack")
def _(equation):
    return unstacked, (equation.params["axis"],)


@step("split")
def _(equation):
    cuts = tuple(np.cumsum(equation.params["sizes"])[:-1].tolist())
    return divided, (cuts, equation.params["axis"])


@step("iota")
def _(equation):
    params = equation.params
    if equation.invars:
        raise UnknownStepError("iota of a shape that is not known")
    return counted, (tuple(params["shape"]), params["dimension"], np.dtype(params["dtype"]))


@step("pad")
def _(equation):
    shape = tuple(equation.outvars[0].aval.shape)
    places, kept = [], []
    sizes = equation.invars[0].aval.shape
    for (low, _, between), size, whole in zip(equation.params["padding_config"], sizes, shape, strict=True):
        at = low + np.arange(size) * (between + 1)
        inside = np.flatnonzero((at >= 0) & (at < whole))
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        kept.append(slice(first, last))
        places.append(slice(int(at[first]), int(at[last - 1]) + 1, between + 1) if last > first else slice(0, 0))
    return padded, (shape, tuple(places), tuple(kept))


def nothing(*args):
    """An array without elements, of a shape and type, which come last."""
    return np.empty(*args[-2:])


# Reductions


def reduced(x, ufunc, axes, dtype):
    """A reduction over axes, in the type of the numbers."""
    return ufunc.reduce(x, axis=axes, dtype=dtype)


def without_any(x, shape, value):
    """The reduction of nothing."""
    return np.full(shape, value, dtype=np.asarray(x).dtype)


def extreme_place(x, function, axis, dtype):
    """Where the largest or smallest number stands; a number that is none comes before all."""
    return function(x, axis=axis).astype(dtype)


def running(x, ufunc, axis, backwards):
    """Sums, products or extremes of all numbers so far along an axis."""
    turned = np.flip(x, axis) if backwards else np.asarray(x)
    out = ufunc.accumulate(turned, axis=axis, dtype=turned.dtype)
    return np.flip(out, axis) if backwards else out


REDUCTIONS = {
    "reduce_sum": np.add,
    "reduce_prod": np.multiply,
    "reduce_max": np.maximum,
    "reduce_min": np.minimum,
    "reduce_and": np.logical_and,
    "reduce_or": np.logical_or,
}


@step(*REDUCTIONS)
def _(equation):
    of, out, name = equation.invars[0].aval, equation.outvars[0].aval, equation.primitive.name
    axes = tuple(equation.params["axes"])
    if name in ("reduce_max", "reduce_min") and 0 in of.shape and 0 not in out.shape:
        if np.dtype(of.dtype).kind != "f":
            raise UnknownStepError(f"{name} of no whole numbers")
        return without_any, (tuple(out.shape), -np.inf if name == "reduce_max" else np.inf)
    if name in ("reduce_and", "reduce_or") and of.dtype != bool:
        raise UnknownStepError(f"{name} of numbers")
    return reduced, (REDUCTIONS[name], axes, np.dtype(out.dtype))


@step("argmax", "argmin")
def _(equation):
    (axis,) = equation.params["axes"]
    function = np.argmax if equation.primitive.name == "argmax" else np.argmin
    return extreme_place, (function, axis, np.dtype(equation.params["index_dtype"]))


RUNNING = {"cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum}


@step(*RUNNING)
def _(equation):
    return running, (RUNNING[equation.primitive.name], equation.params["axis"], equation.params["reverse"])


# Products


def product(x, y, left, right, shape):
    """A product over shared axes: with the axes of the batch first, then one matrix product."""
    (x_order, x_shape), (y_order, y_shape) = left, right
    x = np.asarray(x).transpose(x_order).reshape(x_shape)
    y = np.asarray(y).transpose(y_order).reshape(y_shape)
    batch, rows, inner = x_shape
    columns = y_shape[2]
    if batch == 1:
        return np.dot(x[0], y[0]).reshape(shape)
    if rows * columns * inner <= FEW_PRODUCTS:
        # A library takes longer to be called for each than these few products take for all together.
        out = x[:, :, 0, None] * y[:, 0, None, :] if inner else np.zeros((batch, rows, columns), x.dtype)
        for k in range(1, inner):
            out = out + x[:, :, k, None] * y[:, k, None, :]
        return out.reshape(shape)
    return np.matmul(np.ascontiguousarray(x), np.ascontiguousarray(y)).reshape(shape)


FEW_PRODUCTS = 64
"""Products of two numbers in one matrix product of a stack up to which all are taken together."""


@step("dot_general")
def _(equation):
    (x_inner, y_inner), (x_batch, y_batch) = equation.params["dimension_numbers"]
    x, y, out = equation.invars[0].aval, equation.invars[1].aval, equation.outvars[0].aval
    if not x.dtype == y.dtype == out.dtype:
        raise UnknownStepError("dot_general of several types")
    x_free = [k for k in range(x.ndim) if k not in (*x_inner, *x_batch)]
    y_free = [k for k in range(y.ndim) if k not in (*y_inner, *y_batch)]
    batch, inner = (math.prod(x.shape[k] for k in axes) for axes in (x_batch, x_inner))
    left = (*x_batch, *x_free, *x_inner), (batch, math.prod(x.shape[k] for k in x_free), inner)
    right = (*y_batch, *y_inner, *y_free), (batch, inner, math.prod(y.shape[k] for k in y_free))
    return product, (left, right, tuple(out.shape))

"""What public functions take: every call is looked at where it comes in, by one table of the arguments' names."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, is_dataclass
from numbers import Real
from operator import index
from types import FrameType, FunctionType
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jmixed.errors import ArgumentError, OutOfMemoryError
from jmixed.runtime.precision import FLOAT

T = TypeVar("T", bound=Callable)


@dataclass(frozen=True)
class Kind:
    """What an argument may be: in words, and as a test of a value and of the object whose method is called."""

    words: str
    holds: Callable[[Any, Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.words}, or {other.words}", lambda value, owner: _either(self, other, value, owner))


def _either(first, second, value, owner):
    return first.holds(value, owner) or second.holds(value, owner)


def is_traced(*trees) -> bool:
    """Whether JAX is tracing an array among these, so that its values cannot be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _is_flag(value, _) -> bool:
    if value is True or value is False:
        return True
    if isinstance(value, np.bool_ | np.ndarray | jax.Array):
        return value.dtype == np.bool_ and value.ndim == 0
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def _array(value) -> np.ndarray | None:
    """Numbers as an array; None for what holds none. The values of what JAX is tracing do not matter."""
    if isinstance(value, Tracer):
        return np.zeros(value.shape, FLOAT)
    if isinstance(value, str | bytes | Mapping | set) or callable(value):
        return None
    try:
        array = np.asarray(value)
        if array.dtype == object:
            # NumPy makes nothing a number that is not one.
            return None if any(entry is None for entry in array.flat) else array.astype(FLOAT)
        return array if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError, OverflowError):
        return None


def _real(value) -> float | None:
    """A number; None for what is none, or a truth value."""
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool | np.bool_) or not (isinstance(value, Real) or getattr(value, "shape", None) == ()):
        return None
    array = _array(value)
    return None if array is None or array.dtype == bool else float(array)


def number(words: str, low: float = -np.inf, high: float = np.inf) -> Kind:
    """A finite number strictly between two others."""

    def holds(value, _):
        return isinstance(value, Tracer) or ((real := _real(value)) is not None and low < real < high)

    return Kind(words, holds)


def whole(low: int, high: int = 2**63 - 1) -> Kind:
    """A whole number from one to another."""

    def holds(value, _):
        try:
            return not isinstance(value, bool | np.bool_) and low <= index(value) <= high
        except TypeError:
            return False

    return Kind(f"a whole number from {low} on" if high > 2**62 else f"a whole number from {low} to {high}", holds)


def numbers(words: str, *dimensions: int, shape: Callable[[Any], tuple] | None = None) -> Kind:
    """An array of numbers of so many dimensions; of a shape, if the object whose method is called knows it."""

    def holds(value, owner):
        # What a device holds, or JAX is tracing, need not come here to tell its shape.
        there = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, np.number)
        array = value if there else _array(value)
        if array is None or (dimensions and array.ndim not in dimensions):
            return False
        return shape is None or array.shape == shape(owner)

    return Kind(words, holds)


def positions(count: Callable[[Any], int]) -> Kind:
    """A position, or several, among as many places as the object has; or a truth value for each place."""

    def holds(value, owner):
        array, places = _array(value), count(owner)
        if array is None or array.ndim > 1:
            return False
        if array.dtype == bool:
            return array.shape == (places,)
        return array.dtype.kind in "iu" and bool(np.all((-places <= array) & (array < places)))

    return Kind("a position among the parameters, or a list of positions", holds)


def _are_texts(value, _=None) -> bool:
    plain = isinstance(value, Sequence | Set) and not isinstance(value, str | bytes)
    return plain and all(isinstance(entry, str) for entry in value)


def _is_even(value, _) -> bool:
    """Whether the parts of a list have one length, so that it can become an array; other objects all pass."""
    if not isinstance(value, list | tuple):
        return not isinstance(value, type)
    return len({len(part) if hasattr(part, "__len__") and not isinstance(part, str) else -1 for part in value}) <= 1


def _is_penalty(*methods):
    return lambda value, _: (
        not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)
    )


def _is_hypothesis(value, _) -> bool:
    if isinstance(value, str | Mapping):
        return all(isinstance(entry, str) for entry in value)
    if _are_texts(value):
        return len(value) > 0
    parts = value if isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "__len__") else (value,)
    arrays = [_array(part) for part in parts]
    return arrays[0] is not None and arrays[0].ndim in (1, 2) and all(array is not None for array in arrays)


def _are_tests(value, _) -> bool:
    pairs = isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    return pairs and all(isinstance(name, str) and _is_hypothesis(spec, _) for name, spec in value)


def _is_random(value, _) -> bool:
    numpys = isinstance(value, np.random.SeedSequence | np.random.BitGenerator)
    return numpys or callable(getattr(value, "normal", None)) or whole(0).holds(value, _)


def has(words: str, *names: str) -> Kind:
    """An object, not a class, with attributes of these names."""
    return Kind(words, lambda value, _: not isinstance(value, type) and all(hasattr(type(value), n) for n in names))


def _for_jax(value, _) -> bool:
    """Whether JAX can take numbers as they are."""
    if isinstance(value, jax.Array):
        return bool(jnp.issubdtype(value.dtype, np.number))
    array = (
        None if isinstance(value, str | bytes | Mapping | set) or callable(value) or not _is_even(value, _) else value
    )
    try:
        array = np.asarray(array)
    except (TypeError, ValueError):
        return isinstance(value, list | tuple) and all(_for_jax(part, _) for part in value)
    return array.dtype.kind in "uif" and (array.dtype.kind == "f" or not array.size or int(np.max(abs(array))) < 2**31)


def _are_positions(value, _) -> bool:
    array = value if isinstance(value, jax.Array) else _array(value)
    return array is not None and array.ndim == 1 and bool(jnp.issubdtype(array.dtype, np.integer))


for_jax = Kind("an array of numbers", _for_jax)
drawn = has("replicates, as result.bootstrap() gives", "bse", "confint") | Kind(
    "a table of them",
    lambda value, _: len(getattr(value, "columns", ())) > 0 and _for_jax(getattr(value, "to_numpy", list)(), _),
)
traced = has("a profile, as result.profile() gives", "confint") | Kind(
    "a table of one", lambda value, _: {"parameter", "value", "zeta"} <= set(getattr(value, "columns", ()))
)
flag = Kind("True or False", _is_flag)
probability = number("a number that lies between 0 and 1", 0, 1)
positive = number("a positive number", 0)
amount = number("a number, zero or more", -5e-324)
text = Kind("text", lambda value, _: isinstance(value, str))
texts = Kind("a list of texts", _are_texts)
label = Kind("a name", lambda value, _: isinstance(value, str | int | float | tuple | np.generic))
even = Kind("an array, or a list whose parts have one length", _is_even)
file_name = Kind("a path", lambda value, _: isinstance(value, str | os.PathLike))
binary_file = Kind("a binary file", lambda value, _: callable(getattr(value, "read", getattr(value, "write", None))))
hypothesis = Kind("text such as 'a = b', a list or mapping of such texts, or a matrix of numbers", _is_hypothesis)


def _parameter_count(result) -> int:
    return len(result.params)


def _square(result) -> tuple[int, ...]:
    return (_parameter_count(result),) * 2


covariance = numbers("a matrix of numbers with a row and a column for each parameter", shape=_square)
matrix = numbers("a matrix of numbers", 2)
table = numbers("an array of numbers", 1, 2)

ARGUMENTS: dict[str, Kind] = {
    **dict.fromkeys(("reml", "use_sqrt", "has_fe", "profile_fe", "calc_fe", "do_cg", "full_output", "progress"), flag),
    **dict.fromkeys(
        ("skip_single", "scalar", "use_t", "use_f", "cond_var", "full", "conf_int", "exponentiate", "refit"), flag
    ),
    **dict.fromkeys(("remove_data", "transform", "use_sparse", "partial", "exponentiate"), flag),
    **dict.fromkeys(("level", "conf_level"), probability),
    "alpha": number("a number that lies between 0 and 1: limits of 95% have alpha=0.05", 0, 1),
    **dict.fromkeys(("gtol", "width"), positive),
    **dict.fromkeys(("ceps", "ptol", "tol", "dist_low", "dist_high"), amount),
    **dict.fromkeys(("maxit", "num_low", "num_high"), whole(0, 2**31 - 1)),
    **dict.fromkeys(("memory", "simulations"), whole(1)),
    **dict.fromkeys(("k_fe", "k_re", "k_vc", "niter_sa"), whole(0, 2**31)),
    **dict.fromkeys(("title", "yname", "parameter", "vtype", "ddf", "interval", "new_levels", "missing"), text),
    **dict.fromkeys(("kind", "name", "what", "check", "against", "style", "approximation"), text),
    **dict.fromkeys(("group", "x", "by", "variable"), label),
    **dict.fromkeys(("specs", "emmeans.by", "contrasts.by", "slopes.by"), text | texts),
    **dict.fromkeys(("emmeans.weights", "contrasts.weights", "slopes.weights", "adjust"), text),
    "bias_adjust": flag | positive,
    "at": Kind("a mapping of predictors to values", lambda value, _: isinstance(value, Mapping)),
    "contrasts.method": text
    | Kind("a mapping of names to weights, or a list", lambda value, _: isinstance(value, Mapping | list | tuple)),
    **dict.fromkeys(
        ("endog", "exog", "exog_re", "groups", "weights", "offset", "trials", "y", "Y", "X", "subset", "array"), even
    ),
    **dict.fromkeys(("xname", "xname_fe", "xname_re", "drop_cols", "names"), texts),
    **dict.fromkeys(("colnames", "mats"), Kind("a list", lambda value, _: isinstance(value, list | tuple))),
    **dict.fromkeys(("which",), text | texts),
    "effects": text | Kind("a list of texts", lambda value, _: _are_texts(value) and len(value) > 0),
    "combine_terms": texts,
    "extra_constraints": Kind("a list of pairs (name, hypotheses)", _are_tests),
    "random_effects": Kind("True or False", lambda value, _: isinstance(value, bool | np.bool_)) | text | texts,
    "df_constraints": whole(1, 2**31),
    "n": Kind("a number that memory can hold", lambda value, _: not isinstance(value, int) or value < 2**40),
    "maxiter": whole(0, 2**31 - 1),
    "fit.crossed": text,
    "fit.probes": whole(2, 2**20),
    "fit.seed": whole(0),
    "type": Kind("1, 2 or 3", lambda value, _: isinstance(value, int | str)),
    "predict.trials": text | even,
    "Z": Kind("a dict of arrays by term", lambda value, _: isinstance(value, Mapping)),
    "steps": whole(0, 10_000),
    **dict.fromkeys(("cols", "column"), positions(_parameter_count)),
    **dict.fromkeys(("cov_p",), covariance),
    "r_matrix": hypothesis,
    **dict.fromkeys(
        ("power.effects", "grid"), Kind("a mapping of names to values", lambda value, _: isinstance(value, Mapping))
    ),
    "power.test": text,
    "labels": Kind(
        "a mapping of names to names",
        lambda value, _: isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values()),
    ),
    "n_simulations": whole(1, 10_000_000),
    "results": Kind("a list of results", lambda value, _: isinstance(value, list | tuple) or hasattr(value, "fitted")),
    "invcov": matrix,
    **dict.fromkeys(("theta0", "theta", "beta", "rho", "marginal_loss.residual"), for_jax),
    **dict.fromkeys(("residual", "dispersion", "condition"), text),
    "sigma": Kind("a number", lambda value, _: _for_jax(value, _) and np.ndim(value) == 0),
    **dict.fromkeys(("result", "r_full", "r_reduced"), has("a result, as model.fit() gives", "fe_params", "augment")),
    **dict.fromkeys(("bootstrap.replicates", "bootstrap_data.replicates"), drawn),
    **dict.fromkeys(("profile.profile", "profile_data.profile"), traced),
    "ax": has("axes of matplotlib", "plot", "set_xlabel", "get_figure"),
    "levels": Kind(
        "a list of levels, of one at least",
        lambda value, _: (isinstance(value, Sequence) or np.ndim(value) == 1) and len(value) > 0,
    ),
    **dict.fromkeys(("design.X", "design.Z", "design.groups"), Kind("arrays", lambda *_: True)),
    "design.y": Kind("an array of numbers", lambda value, owner: value is not None and _is_even(value, owner)),
    "to_arviz.draws": whole(1, 10_000_000),
    "take_groups.design": has("a design, as model.design", "require_rows"),
    "marginal_loss.design": has("a design, as model.design", "require_rows"),
    "take_groups.groups": Kind("a list of positions of groups", _are_positions),
    "marginal_loss.groups": whole(1),
    "fe_pen": Kind("an object with methods func(params) and deriv(params)", _is_penalty("func", "deriv")),
    "cov_pen": Kind("an object with methods func(mat, mat_inv) and deriv(mat, mat_inv)", _is_penalty("func", "deriv")),
    "rng": Kind("a whole number, or a random generator of NumPy", _is_random),
    "fname": file_name | binary_file,
    "path": file_name,
    "cov_params.r_matrix": table,
    "cov_params.other": table,
    "cov_params.scale": amount,
    "get_distribution.scale": amount,
    "fit_regularized.alpha": numbers("a number, or one for each fixed effect", 0, 1),
    "get_scale.fe_params": numbers("a number for each fixed effect", shape=lambda model: (model.k_fe,)),
    "MixedLM.endog": Kind("an array of numbers", lambda value, owner: value is not None and _is_even(value, owner)),
    **dict.fromkeys(("pedigree.animal", "pedigree.sire", "pedigree.dam"), text),
    "update.formula": text | texts,
    "caterpillar.column": label,
    "caterpillar_data.column": label,
    "qq.column": label,
    "qq_data.column": label,
    "vcov_variance.scale": text,
    "confint.method": text,
    "influence.method": text,
    "fit.method": text | texts | Kind("None", lambda value, _: value is None),
}
"""What arguments may be, by name; where one function means something else by it, by the function's name and its own."""


def checked(thing: T) -> T:
    """Let a public function, or the public methods of a class, look at their arguments before they do anything.

    Unknown, missing and superfluous arguments are refused, and those of another kind than `ARGUMENTS` says; memory that
    runs out meanwhile ends in an error of jmixed as well. Signatures and docstrings stay.
    """
    if not isinstance(thing, type):
        return _face(thing)
    # Results, which are frozen and so keep a hash, are made by the package itself: their fields are not arguments.
    made_here = is_dataclass(thing) and thing.__hash__ is not None
    for home in reversed(thing.__mro__):
        if home is thing or home.__module__.startswith("jmixed"):
            for name, member in list(vars(home).items()):
                if not name.startswith("_") or (name == "__init__" and not made_here):
                    _replace(thing, name, member)
    return cast(T, thing)


def _replace(kind, name, member):
    """Give a class the checked version of a method of its own or of one that it is built on."""
    if vars(kind).get(name, member) is not member:
        return
    wrap = type(member) if isinstance(member, classmethod | staticmethod) else None
    function = member.__func__ if wrap else member
    if not isinstance(function, FunctionType) or function.__code__ is CODE:
        return
    face = _face(function)
    setattr(kind, name, wrap(face) if wrap else face)


def _face(function) -> Any:
    parameters = inspect.signature(function).parameters
    several = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    any_word = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    ordered = [name for name, parameter in named.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    needed = [name for name in named if named[name].default is inspect.Parameter.empty]
    is_method = bool(ordered) and ordered[0] in ("self", "cls")
    called = function.__name__ if function.__name__ != "__init__" else function.__qualname__.split(".")[0]
    # What an argument is by default it may always be: mostly None.
    kinds = {
        name: (kind, parameter.default)
        for name, parameter in named.items()
        if (kind := ARGUMENTS.get(f"{called}.{name}", ARGUMENTS.get(name))) is not None
    }
    # Words that are handed on mean what they mean elsewhere.
    further = {name: (kind, None) for name, kind in ARGUMENTS.items()} if any_word else {}

    @functools.wraps(function)
    def call(*args, **kwargs):
        if len(args) > len(ordered) and not several:
            limit = len(ordered) - is_method
            raise ArgumentError(
                f"{called} takes {limit or 'no'} arguments by position, not {len(args) - is_method}: name them"
            )
        for name in kwargs:
            if name not in named:
                if not any_word:
                    raise ArgumentError(_unknown(called, name, [key for key in named if key not in ("self", "cls")]))
            elif name in ordered[: len(args)]:
                raise ArgumentError(f"{called} was given {name} twice, by position and by name")
        for name in needed:
            if name not in kwargs and name not in ordered[: len(args)]:
                raise ArgumentError(f"{called} needs the argument {name}")
        owner = args[0] if is_method and args else None
        for name, value in (*zip(ordered, args, strict=False), *kwargs.items()):
            kind, default = (kinds if name in named else further).get(name, (None, None))
            if kind is not None and value is not default and not kind.holds(value, owner):
                raise ArgumentError(f"{called}: {name} is {shown(value)}; it must be {kind.words}")
        try:
            return function(*args, **kwargs)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if (refusal := out_of_memory(error, called)) is None:
                raise
            raise refusal from error

    return call


def out_of_memory(error: MemoryError | RuntimeError, called: str) -> OutOfMemoryError | None:
    """The error that says that memory ran out, where one of Python's or of XLA's says so; else None."""
    if isinstance(error, OutOfMemoryError) or not (isinstance(error, MemoryError) or "RESOURCE_EXH" in str(error)):
        return None
    return OutOfMemoryError(
        f"{called}: memory did not suffice ({' '.join(str(error).split())[:200]}). Free some, ask for less at a time, "
        "or use a machine or a device with more"
    )


CODE = _face(lambda: None).__code__
"""The code that every checked function runs first."""


def caller_of(frame: FrameType | None) -> FrameType | None:
    """The frame, or the next one outwards that is not a checked function's looking at its arguments."""
    while frame is not None and frame.f_code is CODE:
        frame = frame.f_back
    return frame


FOREIGN = {
    **dict.fromkeys(("ziformula", "zi"), "zero_inflation"),
    **dict.fromkeys(("dispformula", "disp"), "dispersion"),
    **dict.fromkeys(("nAGQ", "nagq"), "quadrature"),
    **dict.fromkeys(("na_action", "na.action"), "missing"),
    **dict.fromkeys(("lmer_df", "mode"), "ddf"),
    **dict.fromkeys(("type", "transform"), "kind"),
    **dict.fromkeys(("conf_level", "confidence"), "level"),
    **dict.fromkeys(("nsim", "n_sim", "n_boot", "B"), "n"),
    **dict.fromkeys(("seed", "random_state"), "key"),
    **dict.fromkeys(("re_form", "re"), "random_effects"),
    **dict.fromkeys(("newdata", "exog"), "data"),
    "allow_new_levels": "new_levels",
    "se_fit": "interval",
    "ref": "reference",
    "correlation": "residual",
}
"""Arguments of other packages, and those that mean the same here."""
ELSEWHERE = {
    "exposure": ("offset", "what counts are relative to is an offset, as in + offset(np.log(size))"),
    "alpha": ("level", "a coverage is stated, level=0.95"),
    **dict.fromkeys(("REML", "reml"), ("quadrature", "these fits are by maximum likelihood")),
}
"""Arguments of other packages that are stated otherwise, where there is an argument of the name that stands first."""


def _unknown(label, name, known) -> str:
    if FOREIGN.get(name) in known:
        return f"{label} has no argument {name!r}; here it is {FOREIGN[name]}="
    if name in ELSEWHERE and ELSEWHERE[name][0] in known:
        return f"{label} has no argument {name!r}; {ELSEWHERE[name][1]}"
    close = difflib.get_close_matches(name, known, 1)
    there = f"; do you mean {close[0]}?" if close else f"; it has {', '.join(known)}" if known else ", nor any other"
    return f"{label} has no argument {name!r}{there}"


def shown(value) -> str:
    """A value in a message: short, on one line, and by its shape where it is an array or a table."""
    if getattr(value, "shape", ()):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    try:
        line = " ".join(repr(value).split())
    except (TypeError, ValueError, RuntimeError):
        return f"a {type(value).__name__}"
    return line if len(line) <= 60 else f"{line[:57]}..."

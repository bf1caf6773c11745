"""Programs worked through step by step by NumPy, before anything is compiled.

Compiling a fit takes seconds, of which tracing it is a tenth; NumPy works through what has been traced in hundredths.
The steps are those of the traced program itself: there is one likelihood, and two ways to evaluate it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jmixed.runtime import blas, decompositions, internals, primitives, windows
from jmixed.runtime.primitives import STEPS, UnknownStepError, layers_where, same


class Step(NamedTuple):
    """One call: of what, with the values at which places and which fixed arguments, put where; what is let go then.

    `several` says that the call returns a sequence, be it of one.
    """

    function: Callable
    read: tuple[int, ...]
    fixed: tuple
    written: tuple[int, ...]
    several: bool
    free: tuple[int, ...]


class Steps(NamedTuple):
    """A program as NumPy's calls: values by place, constants among them, and what goes in and out where.

    `effort` is about how many seconds they take, `count` how many there are, those of inner programs among them.
    """

    values: list[Any]
    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    types: tuple[tuple[np.dtype, tuple[int, ...]], ...]
    given: tuple[np.dtype, ...]
    effort: float
    count: int


class TooLongError(Exception):
    """A program has taken NumPy longer than it was given."""


def run(program: Steps, arguments: Sequence[Any], seconds: float = np.inf) -> list[np.ndarray]:
    """The results for arguments, as arrays of their own. Loops are left with `TooLongError` after so many seconds."""
    arguments = [np.asarray(a, dtype) for a, dtype in zip(arguments, program.given, strict=True)]
    with np.errstate(all="ignore"), blas.one_thread(np), _until(time.thread_time() + seconds):
        results = _work_through(program, arguments)
    out = [np.array(result, dtype) for result, (dtype, _) in zip(results, program.types, strict=True)]
    if any(result.shape != shape for result, (_, shape) in zip(out, program.types, strict=True)):
        raise UnknownStepError("a step of another meaning than it had")
    return out


_clock = threading.local()


@contextlib.contextmanager
def _until(end: float) -> Iterator[None]:
    before = getattr(_clock, "end", np.inf), getattr(_clock, "early", np.inf)
    _clock.end, _clock.early = end, -np.inf
    try:
        yield
    finally:
        _clock.end, _clock.early = before


def _look_at_clock() -> None:
    # What depends on nothing is worked out while a program is translated, by no clock. A thread's own time, which takes
    # a hundred times as long to ask for as the time of day, runs no faster than that.
    if time.perf_counter() < getattr(_clock, "early", np.inf):
        return
    left = _clock.end - time.thread_time()
    if left < 0:
        raise TooLongError
    _clock.early = time.perf_counter() + left


def _work_through(program: Steps, arguments: Sequence[Any]) -> list[Any]:
    values = program.values.copy()
    for place, argument in zip(program.inputs, arguments, strict=True):
        values[place] = argument
    for function, read, fixed, written, several, free in program.steps:
        result = function(*[values[place] for place in read], *fixed)
        if several:
            for place, value in zip(written, result, strict=True):
                values[place] = value
        else:
            values[written[0]] = result
        for place in free:
            values[place] = None
    return [values[place] for place in program.outputs]


def translated(traced: Any) -> Steps:
    """The steps of a traced program. Raises `UnknownStepError` where NumPy has no answer to one."""
    closed = internals.steps_of(traced)
    if closed is None:
        raise UnknownStepError("JAX does not tell the steps of a program")
    try:
        return _Translation().whole(closed.jaxpr, closed.consts, {})
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Another version of JAX describes its steps in other words.
        raise UnknownStepError(repr(error)) from error


# Loops and branches, which hold programs of their own


def repeated(*args):
    """A body, as often as a test is true; `args` end with both, and how many arguments only they read.

    Of many loops side by side each ends by its own test.
    """
    *values, test, body, of_test, of_body = args
    asked, given, state = values[:of_test], values[of_test : of_test + of_body], values[of_test + of_body :]
    while np.any(goes_on := _work_through(test, [*asked, *state])[0]):
        _look_at_clock()
        turned = _work_through(body, [*given, *state])
        state = (
            turned if np.all(goes_on) else [layers_where(goes_on, *pair) for pair in zip(turned, state, strict=True)]
        )
    return state


def folded(*args):
    """A body for every layer of arrays in turn, which hands its state on; the results of all stand side by side."""
    *values, body, length, backwards, consts, carried, shapes = args
    given, state, layers = values[:consts], values[consts : consts + carried], values[consts + carried :]
    out = [np.empty(shape, dtype) for shape, dtype in shapes]
    for k in reversed(range(length)) if backwards else range(length):
        _look_at_clock()
        results = _work_through(body, [*given, *state, *(layer[k] for layer in layers)])
        state = results[:carried]
        for whole, result in zip(out, results[carried:], strict=True):
            whole[k] = result
    return [*state, *out]


def ahead(*args):
    """What the turns of a loop have in common."""
    *values, program = args
    return _work_through(program, values)


def branched(which, *args):
    """One of several programs."""
    *values, branches = args
    return _work_through(branches[min(max(int(which), 0), len(branches) - 1)], values)


KNOWN = primitives, windows, decompositions
"""Where steps are translated."""

INLINED = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}
"""Calls whose steps are those of the caller, and where their program stands. Rules of derivatives have been used."""

CALL, BYTES, PRODUCTS = 2e-6, 1 / 1.5e9, 1 / 2e9
"""Seconds that a call takes, a byte that is written, and a product of two numbers."""
TURNS = 5
"""How often a loop is taken to turn whose end is not known: that of a fit does so some ten times, an inner one less."""
SMALL = 1 << 14
"""Numbers up to which a step that depends on nothing is taken when the program is translated."""


class _Translation:
    """A program while it is translated: values by place, and the steps so far."""

    def __init__(self):
        self.values: list[Any] = []
        self.constant: list[bool] = []
        self.steps: list[Step] = []
        self.effort, self.inner = 0.0, 0

    def whole(self, jaxpr: Any, consts: Sequence[Any], known: dict[int, Any]) -> Steps:
        """A program, of whose arguments those that are `known`, by position, are constants."""
        places: dict[Any, int] = {}
        inputs = []
        for position, variable in enumerate(jaxpr.invars):
            inputs.append(self._new(None))
            places[variable] = self._constant(known[position]) if position in known else inputs[-1]
        outputs = self._inline(jaxpr, consts, places)
        return Steps(
            self.values,
            tuple(inputs),
            _with_freed(self.steps, outputs, self.values),
            tuple(outputs),
            tuple((_type(variable), tuple(variable.aval.shape)) for variable in jaxpr.outvars),
            tuple(_type(variable) for variable in jaxpr.invars),
            self.effort,
            self.inner + len(self.steps),
        )

    def _new(self, value: Any, constant: bool = False) -> int:
        self.values.append(value)
        self.constant.append(constant)
        return len(self.values) - 1

    def _constant(self, value: Any) -> int:
        return self._new(np.asarray(value), constant=True)

    def _inline(self, jaxpr: Any, consts: Sequence[Any], places: dict[Any, int]) -> list[int]:
        """Take the steps of a program whose arguments are at places; where its results are."""
        places.update(
            {variable: self._constant(value) for variable, value in zip(jaxpr.constvars, consts, strict=True)}
        )

        def place(atom):
            if hasattr(atom, "val"):
                return self._constant(np.asarray(atom.val, _type(atom)))
            return places[atom]

        for equation in jaxpr.eqns:
            read = [place(atom) for atom in equation.invars]
            name = equation.primitive.name
            if name in INLINED or name == "custom_linear_solve":
                inner, read = _inlined(equation, name, read)
                body, inner_consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
                written = self._inline(body, inner_consts, dict(zip(body.invars, read, strict=True)))
            else:
                written = self._taken(equation, name, read)
            places.update(zip(equation.outvars, written, strict=True))
        return [place(atom) for atom in jaxpr.outvars]

    def _taken(self, equation: Any, name: str, read: list[int]) -> list[int]:
        """Take one step; where its results are."""
        numbers = sum(_size(variable) for variable in equation.outvars)
        if name in NESTED:
            function, fixed, read = NESTED[name](self, equation, read)
        elif (translate := STEPS.get(name)) is not None:
            function, fixed = translate(equation)
            self.effort += CALL + 8 * numbers * BYTES
            if name == "dot_general":
                self.effort += numbers * fixed[0][1][2] * PRODUCTS
            elif equation.invars:
                self.effort += LABOUR.get(name, 0) * max(map(_size, equation.invars))
        else:
            raise UnknownStepError(f"{name}, which {[m.__name__ for m in KNOWN]} do not have")
        if equation.effects:
            raise UnknownStepError(f"{name} with effects")
        if function is same:
            return read if equation.primitive.multiple_results else read[:1]
        if numbers <= SMALL and all(self.constant[place] for place in read):
            with np.errstate(all="ignore"):
                result = function(*[self.values[place] for place in read], *fixed)
            results = result if equation.primitive.multiple_results else [result]
            return [self._constant(value) for value in results]
        written = [self._new(None) for _ in equation.outvars]
        self.steps.append(Step(function, tuple(read), fixed, tuple(written), equation.primitive.multiple_results, ()))
        return written

    def turns(self, closed: Any, read: Sequence[int], state: int) -> tuple[Steps, list[int]]:
        """The body of a loop, and the places that all turns read; its last arguments, of which `state` says how many,
        change from turn to turn.

        Steps that read nothing of what changes are taken before the loop.
        """
        body = self.nested(closed, [*read, *[None] * state])
        lasting, changing = body.inputs[: len(read)], body.inputs[len(read) :]
        known = {place for place, value in enumerate(body.values) if value is not None} | set(lasting)
        early, late = [], []
        for step in body.steps:
            if known.issuperset(step.read):
                early.append(step)
                known.update(step.written)
            else:
                late.append(step)
        made = {place for step in early for place in step.written}
        shared = sorted(made & {*body.outputs, *(place for step in late for place in step.read)})
        if not shared:
            return body, [*read]
        first = body._replace(inputs=lasting, steps=_with_freed(early, shared, body.values), outputs=tuple(shared))
        found = [self._new(None) for _ in shared]
        self.steps.append(Step(ahead, tuple(read), (first,), tuple(found), True, ()))
        rest = _with_freed(late, body.outputs, body.values)
        return body._replace(inputs=(*lasting, *shared, *changing), steps=rest), [*read, *found]

    def nested(self, closed: Any, read: Sequence[int | None]) -> Steps:
        """A program inside this one, whose arguments are at places, or at none for what changes from turn to turn."""
        known = {k: self.values[place] for k, place in enumerate(read) if place is not None and self.constant[place]}
        steps = _Translation().whole(closed.jaxpr, closed.consts, known)
        self.inner += steps.count
        return steps


def _with_freed(steps: Sequence[Step], outputs: Sequence[int], values: Sequence[Any]) -> tuple[Step, ...]:
    """The steps, each with the places that nothing reads after it; constants, which have values already, stay."""
    read_later = set(outputs)
    freed = []
    for step in reversed(steps):
        free = [place for place in {*step.read, *step.written} - read_later if values[place] is None]
        read_later.update(step.read)
        freed.append(step._replace(free=tuple(free)))
    return tuple(reversed(freed))


def _inlined(equation: Any, name: str, read: list[int]) -> tuple[Any, list[int]]:
    """The program that an equation calls, and where its arguments are."""
    if name != "custom_linear_solve":
        return equation.params[INLINED[name]], read
    # Before the right-hand sides stand what products need, what transposed products need, and so on.
    lengths = equation.params["const_lengths"]
    first = lengths.matvec + lengths.vecmat
    ends = sum(lengths)
    return equation.params["jaxprs"].solve, [*read[first : first + lengths.solve], *read[ends:]]


def _type(atom: Any) -> np.dtype:
    try:
        return np.dtype(atom.aval.dtype)
    except TypeError as error:
        # Keys of random numbers are of a type of JAX's own.
        raise UnknownStepError(str(atom.aval)) from error


def _size(variable: Any) -> int:
    return int(np.prod(variable.aval.shape, dtype=np.int64))


LABOUR = {"exp": 5e-9, "log": 5e-9, "log1p": 1e-8, "lgamma": 3e-8, "digamma": 3e-8, "polygamma": 2e-7, "erf": 1e-8}
LABOUR |= {
    "sort": 5e-8,
    "eigh": 5e-7,
    "cholesky": 1e-7,
    "lu": 1e-6,
    "gather": 5e-9,
    "scatter-add": 1e-8,
    "triangular_solve": 1e-8,
}
"""Seconds that a number takes more than it does to be written, where a step has to work for it."""


def _while(translation: _Translation, equation: Any, read: list[int]):
    params = equation.params
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    asked, given, state = read[:of_test], read[of_test : of_test + of_body], read[of_test + of_body :]
    test = translation.nested(params["cond_jaxpr"], [*asked, *[None] * len(state)])
    body, given = translation.turns(params["body_jaxpr"], given, len(state))
    translation.effort += TURNS * (test.effort + body.effort)
    return repeated, (test, body, of_test, len(given)), [*asked, *given, *state]


def _scan(translation: _Translation, equation: Any, read: list[int]):
    params = equation.params
    if "num_consts" in params:
        consts, carried = params["num_consts"], params["num_carry"]
    else:
        consts, carried = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    body, given = translation.turns(params["jaxpr"], read[:consts], len(read) - consts)
    length = params["length"]
    translation.effort += length * body.effort
    shapes = tuple((tuple(v.aval.shape), _type(v)) for v in equation.outvars[carried:])
    fixed = body, length, bool(params["reverse"]), len(given), carried, shapes
    return folded, fixed, [*given, *read[consts:]]


def _cond(translation: _Translation, equation: Any, read: list[int]):
    branches = tuple(translation.nested(branch, read[1:]) for branch in equation.params["branches"])
    translation.effort += max(branch.effort for branch in branches)
    return branched, (branches,), read


NESTED: dict[str, Callable[[_Translation, Any, list[int]], tuple[Callable, tuple, list[int]]]] = {
    "while": _while,
    "scan": _scan,
    "cond": _cond,
}

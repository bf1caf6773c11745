"""Programs worked through by NumPy: loops, branches, calls with rules of their own; what goes in and out."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from steps import agree, both

from jmixed.runtime import interpreter
from jmixed.runtime.interpreter import TooLongError
from jmixed.runtime.primitives import UnknownStepError

X = np.random.default_rng(0).normal(size=(3, 4))


def halved(x):
    """Halves until all is small."""
    return lax.while_loop(lambda s: jnp.max(jnp.abs(s[0])) > 0.1, lambda s: (s[0] / 2, s[1] + 1), (x, jnp.int32(0)))


def test_loops_end_when_their_test_says_so():
    agree(halved, X)
    agree(halved, 0 * X)
    agree(lambda x: lax.fori_loop(0, 5, lambda k, s: s + x * k.astype(x.dtype), x), X)


def test_each_of_many_loops_ends_by_its_own_test():
    expected, found = both(jax.vmap(halved), X * np.array([[0.01], [1], [300]]))
    np.testing.assert_array_equal(found[1], expected[1])
    assert len(set(found[1].tolist())) == 3
    np.testing.assert_array_equal(found[0], expected[0])


def test_loops_that_hold_what_only_they_read():
    agree(lambda x, y: lax.while_loop(lambda s: jnp.sum(s) < y, lambda s: s * x + 1, jnp.abs(x)), 1 + X**2, 1e3)
    agree(jax.vmap(lambda x: lax.while_loop(lambda s: s < x, lambda s: s + x / 3, 0.0)), np.abs(X[0]))


@pytest.mark.parametrize("reverse", [False, True])
def test_folds(reverse):
    agree(lambda x: lax.scan(lambda s, row: (s + row, (s * row, jnp.sum(row))), x[0], x, reverse=reverse), X)
    agree(lambda x: lax.scan(lambda s, _: (2 * s, s), x, None, length=3, reverse=reverse), X)
    agree(lambda x: lax.scan(lambda s, row: (s + row, None), jnp.zeros(4), x[:0]), X)
    agree(lambda x: jax.vmap(lambda x: lax.map(jnp.sin, x))(x), X)


@pytest.mark.parametrize("which", [-1, 0, 1, 2, 7])
def test_branches(which):
    cases = [lambda x: x + 1, lambda x: x.sum() * x, jnp.sin]
    agree(lambda k, x: lax.switch(k, cases, x), np.int32(which), X)
    agree(lambda k, x: lax.cond(k > 0, cases[0], cases[1], x), np.int32(which), X)
    agree(lambda x: lax.platform_dependent(x, cpu=cases[0], default=cases[1]), X)


@jax.custom_jvp
def cubed(x):
    """A cube with a slope of its own."""
    return x**3


cubed.defjvp(lambda primals, tangents: (cubed(*primals), 7 * tangents[0]))


@jax.custom_vjp
def fourth(x):
    """A fourth power with a slope of its own."""
    return x**4


fourth.defvjp(lambda x: (fourth(x), x), lambda x, g: (5 * g * x,))


def test_rules_of_derivatives_hold():
    agree(lambda x: (cubed(x), jax.jacfwd(cubed)(x), fourth(x), jax.grad(lambda x: fourth(x).sum())(x)), X)
    agree(lambda x: (jax.checkpoint(jnp.sin)(x), jax.grad(lambda x: jax.checkpoint(jnp.sin)(x).sum())(x)), X)
    agree(jax.hessian(lambda x: jnp.sum(jnp.log1p(x**2)) * jnp.sum(jnp.exp(x))), X[0])


def test_solutions_have_their_own_rule():
    A = X[:, :3] + 4 * np.eye(3)
    agree(lambda A, b: (jnp.linalg.solve(A, b), jax.jacfwd(lambda A: jnp.linalg.solve(A, b))(A)), A, X[:, 0])


def test_what_depends_on_nothing_is_worked_out_once():
    traced = jax.jit(lambda x: x + jnp.sum(jnp.arange(4.0) ** 2)).trace(np.float32(1))
    assert [step.function for step in interpreter.translated(traced).steps] == [np.add]
    # Inside of loops, too.
    traced = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, s: s * jnp.sum(jnp.arange(4.0)), x)).trace(np.float32(1))
    (loop,) = interpreter.translated(traced).steps
    assert [step.function for step in loop.fixed[0].steps].count(np.multiply) == 1
    assert len(loop.fixed[0].steps) == 2


def test_what_turns_have_in_common_is_worked_out_before_the_loop():
    A = X @ X.T / 10

    def inner(A, x, turns):
        return lax.fori_loop(0, turns, lambda k, s: (jnp.sin(jnp.exp(A) @ s[0] + k), jnp.cos(A[0])), (x, x))

    def outer(A, x, turns):
        return lax.scan(lambda s, layer: (sum(inner(A, s, turns)), jnp.log1p(A) @ layer), x, A)

    first, loop = interpreter.translated(jax.jit(inner).trace(A, X[:, 0], 3)).steps[-2:]
    assert (first.function, loop.function) == (interpreter.ahead, interpreter.repeated)
    assert [step.function for step in first.fixed[0].steps].count(np.exp) == 1
    assert np.exp not in [step.function for step in loop.fixed[1].steps]
    # From the inner loop and then from the outer one.
    steps = interpreter.translated(jax.jit(outer).trace(A, X[:, 0], 3)).steps
    (before,) = (step for step in steps if step.function is interpreter.ahead)
    assert {np.exp, np.cos, np.log1p} <= _all_functions(before.fixed[0])
    for function in (inner, outer):
        for turns in (0, 1, 3):
            agree(function, A, X[:, 0], turns)


def _all_functions(program):
    inner = [part for step in program.steps for part in step.fixed if isinstance(part, interpreter.Steps)]
    return {step.function for step in program.steps}.union(*map(_all_functions, inner))


def test_a_loop_that_depends_on_nothing_is_worked_out_in_a_thread_that_has_run_none():
    traced = jax.jit(lambda x: x + lax.fori_loop(0, 3, lambda k, s: s + k, 1)).trace(1)
    with ThreadPoolExecutor(1) as pool:
        steps = pool.submit(interpreter.translated, traced).result()
    assert [step.function for step in steps.steps] == [np.add]
    assert interpreter.run(steps, [2])[0] == 6


def test_steps_in_other_words_are_unknown(monkeypatch):
    """As of a version of JAX that is not there yet."""
    traced = jax.jit(lambda x: jnp.sum(x, axis=0)).trace(X)
    for error in (KeyError("axes"), AttributeError("params"), TypeError("axes"), IndexError("axes")):

        def fail(_, error=error):
            raise error

        monkeypatch.setitem(interpreter.STEPS, "reduce_sum", fail)
        with pytest.raises(UnknownStepError, match="axes|params"):
            interpreter.translated(traced)


def test_results_are_arrays_of_their_own():
    """Nobody may write into the caller's data, or into what the program keeps, through a result."""
    steps = interpreter.translated(jax.jit(lambda x: (x, x.T, jnp.broadcast_to(x[0], (2, 4)), jnp.ones(3))).trace(X))
    kept = X.astype(np.float32)
    for _ in range(2):
        results = interpreter.run(steps, [kept])
        np.testing.assert_array_equal(results[3], 1)
        for result in results:
            assert not np.shares_memory(result, kept)
            result[:] = np.nan
    assert np.isfinite(kept).all()


def test_arguments_have_the_types_that_were_traced():
    steps = interpreter.translated(jax.jit(lambda x, k: (x / 3, k + 1)).trace(np.float32(1), 2))
    out = interpreter.run(steps, [1.0, 2])
    assert [x.dtype for x in out] == [np.float32, np.int32]
    assert out[0] == np.float32(1) / np.float32(3)


def test_a_kept_program_is_the_same_program():
    with jax.enable_x64(True):
        steps = interpreter.translated(jax.jit(jax.vmap(halved)).trace(X))
    first, second = interpreter.run(steps, [X]), interpreter.run(pickle.loads(pickle.dumps(steps)), [X])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_overflow_and_what_is_no_number_are_no_warnings():
    agree(lambda x: (jnp.log(-x), 1 / (x - x), jnp.exp(1e4 * x), jnp.sqrt(-jnp.abs(x))), X)


def test_a_program_that_takes_too_long_is_left():
    steps = interpreter.translated(jax.jit(lambda x: lax.while_loop(lambda s: s < 1, lambda s: s * 1.0, x)).trace(0.0))
    with pytest.raises(TooLongError):
        interpreter.run(steps, [0.0], seconds=0.05)
    # The clock of one program is not that of the next.
    agree(halved, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype),
        lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: jax.debug.callback(print, x) or x,
    ],
    ids=["random", "callback", "effect"],
)
def test_what_numpy_cannot_do_is_said(function):
    with pytest.raises(UnknownStepError):
        both(function, X)


def test_effort_grows_with_work():
    def effort(n, turns):
        x = np.zeros((n, n), np.float32)
        function = jax.jit(lambda x: lax.fori_loop(0, turns, lambda _, s: s @ s, x))
        return interpreter.translated(function.trace(x)).effort

    assert effort(10, 5) < effort(200, 5) < effort(200, 50)

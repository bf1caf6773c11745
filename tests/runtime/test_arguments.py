"""What public functions are given: wrong arguments end in errors of jmixed, right ones arrive as they were written."""

import inspect
import sys
import timeit

import jax
import numpy as np
import pytest
import wrong_arguments

import jmixed as jm
from jmixed.errors import OutOfMemoryError
from jmixed.runtime import arguments, compilation
from jmixed.runtime.arguments import ArgumentError, checked


@checked
def example(a, b=1, *, reml=True, level=None):
    """An example."""
    return a, b, reml, level


@checked
class Shape:
    """A class."""

    def __init__(self, k_re):
        self.k_re = k_re

    def sides(self, progress=False):
        """Sides."""
        return self.k_re, progress

    @classmethod
    def made(cls, k_re):
        """Made."""
        return cls(k_re)


@pytest.fixture(scope="module")
def result():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


def test_right_arguments_arrive():
    assert example(1) == (1, 1, True, None)
    assert example(1, 2, reml=np.bool_(False), level=0.5) == (1, 2, False, 0.5)
    assert Shape.made(3).sides(progress=True) == (3, True)
    assert Shape(np.int64(2)).sides() == (2, False)


def test_signature_docstring_and_name_stay():
    assert str(inspect.signature(example)) == "(a, b=1, *, reml=True, level=None)"
    assert (example.__doc__, example.__name__, Shape.sides.__doc__) == ("An example.", "example", "Sides.")
    assert list(inspect.signature(jm.MixedLMResults.conf_int).parameters) == ["self", "alpha", "cols"]
    assert "sigma profiled out" in jm.profiled_deviance.__doc__


@pytest.mark.parametrize(
    ("args", "words", "message"),
    [
        ((), {}, "example needs the argument a"),
        ((1,), {"a": 2}, "example was given a twice"),
        ((1, 2, 3), {}, "takes 2 arguments by position, not 3"),
        ((1,), {"rmel": True}, "has no argument 'rmel'; do you mean reml?"),
        ((1,), {"q": True}, "has no argument 'q'; it has a, b, reml, level"),
        ((1,), {"conf_level": 0.9}, "has no argument 'conf_level'; here it is level="),
        ((1,), {"alpha": 0.1}, "has no argument 'alpha'; a coverage is stated, level=0.95"),
        ((1,), {"nsim": 10}, "has no argument 'nsim'; it has a, b, reml, level"),
        ((1,), {"reml": "yes"}, "example: reml is 'yes'; it must be True or False"),
        ((1,), {"reml": np.ones(2)}, r"reml is a ndarray of shape \(2,\)"),
        ((1,), {"level": 95}, "level is 95; it must be .* between 0 and 1"),
        ((1,), {"level": float("nan")}, "level is nan"),
        ((1,), {"level": True}, "level is True"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value_and_what_is_allowed(args, words, message):
    with pytest.raises(ArgumentError, match=message) as refused:
        example(*args, **words)
    assert isinstance(refused.value, jm.ModelError)
    assert isinstance(refused.value, TypeError)


def test_methods_are_counted_without_the_object():
    with pytest.raises(ArgumentError, match="Shape: k_re is -1; it must be a whole number from 0"):
        Shape(-1)
    with pytest.raises(ArgumentError, match="sides takes 1 arguments by position, not 2"):
        Shape(1).sides(True, False)
    with pytest.raises(ArgumentError, match="made: k_re is 'x'"):
        Shape.made("x")


def test_values_that_jax_traces_pass(result):
    design = result.model.design
    with jax.enable_x64(True):
        slope = jax.grad(lambda sigma: jm.log_likelihood(result.fe_params.to_numpy(), result.theta, sigma, design))
        assert abs(float(slope(result.sigma))) < 0.5
        value = jax.jit(lambda theta, reml: jm.profiled_deviance(theta, design, reml=reml))(result.theta, True)
        assert float(value) == pytest.approx(result.objective)


def test_names_of_the_caller_are_found_through_the_checks():
    factor = 1000

    def model(inner):
        return jm.mixedlm("Reaction ~ I(Days / inner) + (1 | Subject)", jm.datasets.load("sleepstudy"))

    def outer(eval_env):
        return jm.MixedLM.from_formula(
            "Reaction ~ I(Days / factor) + (1 | Subject)", jm.datasets.load("sleepstudy"), eval_env=eval_env
        )

    assert model(2).exog[1, 1] == 0.5
    assert factor == 1000
    assert outer(1).exog[1, 1] == 0.001
    assert arguments.caller_of(sys._getframe()).f_code.co_name == sys._getframe().f_code.co_name


def test_the_checks_cost_little():
    def bare(self, y, reml=True, level=0.95):
        return y

    face = checked(bare)
    y = np.zeros(1000)
    seconds = min(timeit.repeat(lambda: face(None, y, reml=False, level=0.9), number=2000, repeat=5)) / 2000
    # A refit takes over a millisecond.
    assert seconds < 1e-4


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError("Unable to allocate 8 TiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
    ],
    ids=["numpy", "xla"],
)
def test_memory_that_runs_out_has_an_error_of_its_own(result, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("jmixed.compat.held.host.fit", fail)
    with pytest.raises(OutOfMemoryError, match="^fit: memory did not suffice .*docs/limits.md") as refused:
        result.model.fit()
    assert isinstance(refused.value, jm.JmixedError)
    assert isinstance(refused.value, MemoryError)


def test_real_memory_that_runs_out(result):
    with pytest.raises(OutOfMemoryError, match="simulate: memory did not suffice"):
        result.simulate(2**39)


def test_other_failures_of_xla_stay_what_they_are(result, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr("jmixed.compat.held.host.fit", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        result.model.fit()


def test_a_program_that_runs_out_of_memory_outside_of_a_call_says_so_too():
    def fail(x):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with pytest.raises(OutOfMemoryError):
        compilation.program(fail)(np.arange(3.0))


@pytest.mark.parametrize("kind", [jm.MixedLM, jm.MixedGLM, jm.MixedLMResults, jm.MixedGLMResults])
def test_models_and_results_look_at_the_arguments_of_all_their_methods(kind):
    methods = {name: member for name, member in vars(kind).items() if inspect.isfunction(member) and name[0] != "_"}
    assert methods
    assert [name for name, member in methods.items() if member.__code__ is not arguments.CODE] == []


SLOW = ("MixedLMResults.bootstrap", "MixedLMResults.profile", "MixedLMResults.influence", "MixedLMResults.drop1")
SLOW += ("MixedLMResults.profile_re", "interop.to_arviz", "estimate", "estimate_many", "from_batches")


def test_a_sample_of_wrong_arguments_to_every_public_function():
    ends = [trial for trial in wrong_arguments.trials(600, seed=1, skip=SLOW)]
    foreign = ["\t".join(trial) for trial in ends if trial[-1] not in ("works", "refused")]
    assert not foreign, "\n".join(foreign)
    assert sum(trial[-1] == "refused" for trial in ends) > 400

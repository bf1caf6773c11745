"""Wrong arguments for every public function and method: what each ends in, counted.

python tests/wrong_arguments.py            every function, parameter and wrong value
python tests/wrong_arguments.py 2000       so many of them, drawn at random
"""

import collections
import contextlib
import datetime
import decimal
import functools
import inspect
import io
import signal
import sys
import tempfile
import types
import warnings

import jax
import numpy as np
import pandas as pd
from test_docstrings import NAMES, PROPERTIES, function_of

import jmixed as jm
from jmixed.errors import JmixedError

WRONG = {
    "None": None,
    "text": "nonsense",
    "no text": "",
    "bytes": b"bytes",
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "zero": 0,
    "minus one": -1,
    "huge": 10**18,
    "beyond 64 bits": -(10**30),
    "large": 1e300,
    "fraction": 1.5,
    "true": True,
    "complex": 1j,
    "decimal": decimal.Decimal("0.5"),
    "no list": [],
    "list of None": [None],
    "list of text": ["a", "b"],
    "list of numbers": [1, 2, 3],
    "ragged": [[1, 2], [3]],
    "tuple": (),
    "dict": {},
    "dict of text": {"a": "b"},
    "dict of numbers": {"Days": [1.0]},
    "set": {1},
    "range": range(3),
    "iterator": iter([]),
    "object": object(),
    "function": lambda *_: 0,
    "type": int,
    "ellipsis": ...,
    "slice": slice(None),
    "date": datetime.date(2020, 1, 1),
    "not a time": np.datetime64("NaT", "s"),
    "NA": pd.NA,
    "empty array": np.array([]),
    "array of nan": np.array([np.nan, np.nan]),
    "array of integers": np.arange(4),
    "cube": np.zeros((3, 3, 3)),
    "scalar array": np.array(1.0),
    "array of text": np.array(["x", "y"]),
    "array of objects": np.array([object(), None]),
    "JAX array": jax.numpy.zeros(5),
    "empty frame": pd.DataFrame(),
    "frame": pd.DataFrame({"a": ["x"], "b": [1.0]}),
    "series": pd.Series(["x"]),
    "series of numbers": pd.Series([1.0, 2.0]),
}
LONG = 120
"""Seconds after which a call is taken for one that works."""


class _Enough(BaseException):
    """A call that takes long."""


def _stop(*_):
    raise _Enough


@functools.cache
def subjects() -> dict:
    """What methods are called on, by class, and what functions need, by parameter."""
    sleep = jm.datasets.load("sleepstudy")
    sleep = sleep[sleep.Subject < "333"]
    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep)
    result, simple = model.fit(), jm.mixedlm("Reaction ~ Days + (1 | Subject)", sleep).fit()
    with jax.enable_x64(True):
        estimate = jm.estimate(model.design)
        moments = jm.moments(model.design)
    owners = [model, result, estimate, moments, model.design, result.params_object, result.summary(), result.r2()]
    owners += [
        simple.bootstrap(3),
        result.profile("sigma", steps=2),
        result.t_test(np.eye(2)),
        result.wald_test_terms(),
    ]
    owners += [result.f_test(np.eye(2)), jm.test_variance(result, simple), model.get_distribution(result.params, 1.0)]
    owners += [result.emmeans("Days", at={"Days": [0, 1, 2]}), jm.table([result])]
    general = jm.mixedglm("slow ~ Days + (1 | Subject)", sleep.assign(slow=sleep.Reaction > 300))
    owners += [general, general.fit(), result.to_statsmodels(), jm.power(simple, n_simulations=2)]
    stored = io.BytesIO()
    result.save(stored)
    cov_re, vcomp = np.asarray(result.cov_re_unscaled), np.zeros(0)
    needed = {
        **{"formula": "Reaction ~ Days + (Days | Subject)", "data": sleep, "endog": model.endog, "exog": model.exog},
        **{"groups": np.asarray(model.groups), "design": model.design, "theta": result.theta, "sigma": result.sigma},
        **{
            "beta": np.asarray(result.fe_params),
            "residual": np.asarray(result.resid),
            "Y": result.simulate(2),
            "y": model.endog,
        },
        **{"params": result.params, "scale": result.scale, "fe_params": result.fe_params, "cov_re": cov_re},
        **{"vcomp": vcomp, "r_matrix": np.eye(2), "k_fe": 2, "k_re": 2, "k_vc": 0, "use_sqrt": True, "has_fe": True},
        **{"result": result, "results": result, "r_full": result, "array": model.endog, "re_ix": 0, "vtype": "re"},
        **{
            "name": "sleepstudy",
            "names": [],
            "colnames": [],
            "mats": [],
            "replicates": owners[8],
            "profile": owners[9],
        },
        **{
            "fname": stored,
            "batches": [sleep],
            "what": "this",
            "spec": model.spec,
            "r_reduced": simple,
            "fit": result.fitted.fit,
        },
        **{"specs": "Days", "variable": "Days", "new_rows": sleep, "path": io.BytesIO()},
        **{"model": model, "reml": True, "sums": moments, "estimate": estimate, "X": model.exog, "key": 0, "n": 2},
    }
    return {"owners": {type(owner).__name__: owner for owner in owners}, "needed": needed}


BRIEF = {"n": 2, "n_simulations": 2, "steps": 2, "draws": 4, "num_low": 1, "num_high": 1, "progress": False}
"""Arguments that keep calls short."""
OPTIONAL = {"groups", "scale", "reml", "use_sqrt", "y", "Y", "names", "data", "exog", "sigma", "beta", "theta", "array"}
AS_FILE = {"load", "MixedLMResults.load", "MixedLMResults.save", "enable_compilation_cache"}
AS_FILE |= {"MixedGLMResults.load", "MixedGLMResults.save", "Table.to_docx"}
APART = {
    # What compiled code and the library itself call.
    *(
        "Design.rows",
        "Design.require_rows",
        "Moments.over_devices",
        "MixedLM.without_data",
        "MixedGLM.without_data",
        "MixedLMResults",
        "MixedGLMResults",
        "Estimate",
    ),
    # Sets options of the process.
    "enable_compilation_cache",
}


def callables():
    """Every public function and method that takes arguments: its name, what is called, its parameters."""
    owners = subjects()["owners"]
    for name, value in sorted(NAMES.items()):
        function = function_of(value)
        kind = inspect.isclass(value)
        if name in APART or isinstance(value, PROPERTIES) or (kind and issubclass(value, BaseException | jm.Outcome)):
            continue
        if kind and name not in jm.__all__:
            continue
        called = value if kind else function
        first, _, rest = name.partition(".")
        if not kind and rest and inspect.isclass(NAMES.get(first)):
            if isinstance(value, types.FunctionType):
                if first not in owners:
                    continue
                called = getattr(owners[first], rest)
            else:
                called = getattr(NAMES[first], rest)
        yield name, called, inspect.signature(called).parameters


def cases():
    """Every call that is tried: the function's name, the parameter and the kind of wrong value, and the call."""
    needed = subjects()["needed"]
    for name, called, parameters in callables():
        words = {
            key: needed[key]
            for key, one in parameters.items()
            if one.default is inspect.Parameter.empty and one.kind is one.POSITIONAL_OR_KEYWORD
        }
        if name == "table":
            words["results"] = [words["results"]]
        brief = words | {key: value for key, value in BRIEF.items() if key in parameters}
        several = [key for key, one in parameters.items() if one.kind is one.VAR_POSITIONAL]
        most = sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters.values())
        for key, one in parameters.items():
            for label, value in WRONG.items():
                if one.kind is one.VAR_KEYWORD:
                    continue
                if one.kind is one.VAR_POSITIONAL:
                    yield name, key, label, functools.partial(called, needed.get(key), value)
                else:
                    yield name, key, label, functools.partial(called, **brief | {key: value})
        yield name, "(unknown)", "keyword", functools.partial(called, **brief, no_such_argument=1)
        if not several:
            yield name, "(too many)", "positional", functools.partial(called, *range(most + 1))
        if words:
            yield name, "(missing)", "none", called
            yield name, "(twice)", "positional", functools.partial(called, 1, **words)


def outcome(name, call) -> str:
    """How a call ends: "works", "refused", or the foreign exception that it ended in."""
    for file in (
        (value for value in call.keywords.values() if isinstance(value, io.BytesIO))
        if hasattr(call, "keywords")
        else ()
    ):
        file.seek(0)
    before = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LONG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except JmixedError as error:
        return "refused" if str(error) else "refused without a word"
    except _Enough:
        return "works"
    except OSError as error:
        return "refused" if name in AS_FILE else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "works"


def trials(count: int | None = None, seed: int = 0, skip=()):
    """(function, parameter, kind of value, outcome) of all calls, or of some drawn at random."""
    every = [case for case in cases() if case[0] not in skip]
    if count is not None:
        chosen = np.random.default_rng(seed).choice(len(every), min(count, len(every)), replace=False)
        every = [every[k] for k in sorted(chosen)]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, parameter, label, call in every:
            yield name, parameter, label, outcome(name, call)


if __name__ == "__main__":
    found = collections.Counter()
    for name, parameter, label, end in trials(int(sys.argv[1]) if len(sys.argv) > 1 else None):
        foreign = end not in ("works", "refused")
        found["foreign" if foreign else end] += 1
        if foreign:
            print(f"{name}\t{parameter}\t{label}\t{' '.join(end.split())[:150]}", flush=True)
    print(dict(found))

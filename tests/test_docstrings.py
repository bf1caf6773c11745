"""Public names say what their signatures do not: what they are for, meanings, units, shapes, errors, examples."""

import ast
import builtins
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
import typing
from typing import Literal

import numpy as np
import pytest

import jmixed as jm
from jmixed import errors

HIDDEN = {"self", "cls"}
PROPERTIES = (property, functools.cached_property)


def modules():
    yield jm
    for found in pkgutil.walk_packages(jm.__path__, "jmixed."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


CLASSES = {
    name: value
    for module in modules()
    for name, value in vars(module).items()
    if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
}


def members(kind):
    """Public methods and properties of a class that are its own or come from a class of jmixed."""
    homes = [home for home in reversed(kind.__mro__) if home.__module__.startswith("jmixed")]
    for name, value in {name: value for home in homes for name, value in vars(home).items()}.items():
        method = isinstance(value, (types.FunctionType, classmethod, staticmethod, *PROPERTIES))
        if method and not name.startswith("_"):
            yield f"{kind.__name__}.{name}", value


def function_of(value):
    """What is called: the function behind a method, a property or a class."""
    if isinstance(value, classmethod | staticmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.cached_property) else value


def returned_classes(value):
    """The classes of jmixed that an annotation of what is returned names."""
    function = function_of(value)
    if not inspect.isfunction(function):
        return []
    words = re.findall(r"\w+", str(inspect.signature(function).return_annotation))
    known = CLASSES | {name: one for name, one in vars(inspect.getmodule(function)).items() if inspect.isclass(one)}
    return [known[word] for word in words if getattr(known.get(word), "__module__", "").startswith("jmixed")]


def public_names():
    """Everything that users are given: the names of the package, their members, and those of what they return."""
    names, seen = {}, set()
    waiting = [(name, getattr(jm, name)) for name in jm.__all__ if not name.startswith("_")]
    while waiting:
        name, value = waiting.pop(0)
        # What a class inherits is looked at once.
        if function_of(value) in seen:
            continue
        seen.add(function_of(value))
        if isinstance(value, types.ModuleType):
            own = getattr(value, "__all__", None) or [key for key in vars(value) if not key.startswith("_")]
            waiting += [
                (f"{name}.{key}", getattr(value, key))
                for key in own
                if inspect.isroutine(getattr(value, key)) and getattr(value, key).__module__.startswith(value.__name__)
            ]
            continue
        names[name] = value
        if inspect.isclass(value):
            waiting += members(value)
        waiting += [(kind.__name__, kind) for kind in returned_classes(value)]
    return names


NAMES = public_names()


ENTRIES = {"fit", "fit_many", "fit_regularized", "predict", "summary", "test", "anova", "drop1", "profile", "confint"}
ENTRIES |= {"bootstrap", "simulate", "refit", "update", "ranef", "var_corr", "tidy", "augment", "influence"}
"""Methods by which a user comes in: these have an example."""

DIMENSION = r"(?:[nmkpqrLNGT]|nobs|k_\w+|levels|groups|rows|columns|parameters|coefficients|terms|draws|components|\d+)"
SHAPE = re.compile(rf"\bscalar\b|\((?:{DIMENSION}|[ ,+*-]|\.\.\.| x )+\)")
ARRAYS = re.compile(r"^(?!Callable).*?(?:ArrayLike|ndarray|\bArray\b|Series|Hypotheses|Factor)")
SECTION = re.compile(r"^(\w+)\n-+\n", re.MULTILINE)


@functools.cache
def node_of(function):
    """A function as it is written."""
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


def written(value):
    """What a caller gives, by name as it is annotated; None where it is not."""
    function = function_of(value)
    if inspect.isclass(value):
        if dataclasses.is_dataclass(value) or not inspect.isfunction(value.__init__):
            return {}
        function = value.__init__
    if isinstance(value, PROPERTIES):
        return {}
    arguments = node_of(function).args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    named = [one for one in every if one is not None and one.arg not in HIDDEN and not one.arg.startswith("_")]
    return {one.arg: one.annotation and ast.unparse(one.annotation).strip("'") for one in named}


def says_enough(annotation, function):
    """Whether a type says what a value means: true or false, words that are listed, an object of ours."""
    scope = vars(inspect.getmodule(function))
    for part in re.sub(r"\[[^\]]*\]", "", annotation).split("|"):
        kind = part.strip()
        listed = kind == "Literal" or typing.get_origin(scope.get(kind)) is typing.Literal
        if not (listed or kind in ("None", "bool", "Axes") or kind in CLASSES):
            return False
    return True


def sections(doc):
    """The sections of a docstring by their names; what stands before them under ""."""
    parts = SECTION.split(doc)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def entry_of(name, section):
    """The entry of a section that has a name, alone or among others, with what is said of it."""
    entries = re.findall(r"^(\S[^\n]*)\n?((?:[ \n][^\n]*(?:\n|$))*)", section, flags=re.MULTILINE)
    for head, text in entries:
        if name in re.split(r", ", head.split(" : ")[0].replace("*", "")):
            return f"{head}\n{text}" if " : " in head or text.strip() else ""
    return ""


def raised(function):
    """The errors that a function raises, or the one that it only hands on to."""
    body = node_of(function).body[-1]
    names = {
        ast.unparse(node.exc.func)
        for node in ast.walk(node_of(function))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    if len(node_of(function).body) == 2 and isinstance(body, ast.Return) and isinstance(body.value, ast.Call):
        called = ast.unparse(body.value.func).split(".")
        target = vars(inspect.getmodule(function)).get(called[0])
        for name in called[1:]:
            target = getattr(target, name, None)
        if inspect.isfunction(target) and target.__module__.startswith("jmixed."):
            names |= raised(target)
    return {name for name in names if name[:1].isupper()}


def unlike(function, section):
    """Names that stand in one entry, where the reference gives them one type and default, and have not the same."""
    parameters = inspect.signature(function).parameters
    for head in re.findall(r"^\S[^\n]*", section, flags=re.MULTILINE):
        names, typed = head.split(" : ")[0].split(", "), " : " in head
        known = [parameters[name] for name in names if name in parameters]
        if len({(None if typed else str(one.annotation), str(one.default)) for one in known}) > 1:
            yield head


def of_arguments(value, parts):
    """What is not said of arguments: of each a type, its meaning, the shape of an array."""
    function, prose = function_of(value), "\n".join(parts.get(part, "") for part in ("", "Notes"))
    for argument, annotation in written(value).items():
        if annotation is None:
            yield f"{argument} has no annotation"
            continue
        entry = entry_of(argument, parts.get("Parameters", ""))
        entry += prose if f"`{argument}`" in prose else ""
        if not entry and not says_enough(annotation, function):
            yield f"{argument} is not described"
        if ARRAYS.search(annotation) and not SHAPE.search(entry):
            yield f"{argument} has no shape"
    if inspect.isfunction(function):
        yield from (f"{head}: of different types" for head in unlike(function, parts.get("Parameters", "")))


def of_fields(value, parts):
    """What the table of attributes of a result lacks."""
    for field in dataclasses.fields(value):
        entry = entry_of(field.name, parts.get("Attributes", ""))
        if not field.name.startswith("_") and not entry:
            yield f"the field {field.name} is not in the table of attributes"
        if ARRAYS.search(str(field.type)) and entry and not SHAPE.search(entry):
            yield f"the field {field.name} has no shape"


def of_what_returns(value, parts):
    """What is not said of what is returned: its type, the shape of an array, the columns of a table."""
    annotation = node_of(function_of(value)).returns
    kind = ast.unparse(annotation) if annotation else ""
    said = "\n".join(parts.get(part, "") for part in ("", "Returns", "Notes"))
    if not kind:
        yield "what it returns is not annotated"
    if "Any" in kind and "Returns" not in parts and "dict" not in kind:
        yield "what it returns is not said"
    if ARRAYS.search(kind) and not SHAPE.search(said):
        yield "what it returns has no shape"
    if "DataFrame" in kind and not SHAPE.search(said) and not re.search(r"(?i)\b(column|row)s?\b", said):
        yield "what it returns has no shape and no columns"


def faults(name, value):
    """What the docstring of a public name lacks."""
    function = function_of(value)
    doc = inspect.getdoc(function) or ""
    parts, first = sections(doc), doc.split("\n\n")[0]
    if not first.endswith(".") or len(first.split()) < 3:
        yield "no sentence"
    if inspect.isclass(value) and issubclass(value, BaseException | jm.Outcome):
        return
    owner, _, method = name.partition(".")
    if ">>>" not in doc and (name in jm.__all__ or (owner in ("MixedLM", "MixedLMResults") and method in ENTRIES)):
        yield "no example"
    yield from of_arguments(value, parts)
    if dataclasses.is_dataclass(value):
        yield from of_fields(value, parts)
    if not inspect.isclass(value):
        yield from of_what_returns(value, parts)
    for error in raised(function) if inspect.isfunction(function) else ():
        kinds = (getattr(errors, error, None) or getattr(builtins, error)).__mro__
        # An error is named by itself or by what it is a kind of, short of what all errors are.
        if not any(kind.__name__ in doc for kind in kinds if issubclass(kind, Exception) and kind is not Exception):
            yield f"{error} is not named"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_is_documented(name):
    assert not list(faults(name, NAMES[name]))


def undocumented(count: int, weights: np.ndarray, kind: Literal["a", "b"], *, flag: bool, table) -> np.ndarray:
    """Too short."""
    raise ValueError(count)


def documented(count: int, weights: np.ndarray, kind: Literal["a", "b"], *, flag: bool) -> np.ndarray:
    """Weights (k,) over `count`.

    Parameters
    ----------
    weights : array (k,)

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(count)


def test_the_rule_sees_what_is_missing():
    found = list(faults("undocumented", undocumented))
    wanted = ["no sentence", "count is not described", "weights is not described", "weights has no shape"]
    wanted += ["table has no annotation", "what it returns has no shape", "ValueError is not named"]
    assert found == wanted
    assert not list(faults("documented", documented))


def test_all_that_users_are_given_is_looked_at():
    expected = {"mixedlm", "MixedLM.fit", "MixedLMResults.sigma", "Profile.confint", "Bootstrap.bse", "Design.replace"}
    expected |= {"plot.caterpillar_data", "datasets.load", "interop.to_arviz", "Summary.as_latex", "Estimate"}
    assert expected <= NAMES.keys()
    assert len(NAMES) > 150


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith("MixedLMResults.")))
def test_results_tell_type_checkers_what_they_hold(name):
    function = function_of(NAMES[name])
    told = typing.get_overloads(function) or [function]
    kinds = [str(inspect.signature(one).return_annotation) for one in told]
    assert not {"typing.Any", str(inspect.Signature.empty)} & set(kinds)

"""Every public name is documented: a sentence, its arguments, what it returns and raises, and an example."""

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
import typing

import pytest

import jmixed as jm

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


def signature(value):
    parameters = inspect.signature(function_of(value)).parameters if not isinstance(value, PROPERTIES) else {}
    return [name for name in parameters if name not in HIDDEN and not name.startswith("_")]


def raises(function):
    """Whether a function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def faults(name, value):
    """What the docstring of a public name lacks."""
    function = function_of(value)
    doc = inspect.getdoc(function) or ""
    first = doc.split("\n\n")[0]
    if not re.search(r"[.:]$", first):
        yield "no sentence"
    if ">>>" not in doc and (not inspect.isclass(value) or name in jm.__all__):
        yield "no example"
    if inspect.isclass(value) and issubclass(value, BaseException | jm.Outcome):
        return
    # Users make objects of the classes in the package's own list; of others they read the fields.
    made = not inspect.isclass(value) or name in jm.__all__ or dataclasses.is_dataclass(value)
    unnamed = [one for one in signature(value) if made and not re.search(rf"(?<![\w.]){one}(?!\w)", doc)]
    if unnamed:
        yield f"parameters not named: {unnamed}"
    if inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
        nothing = inspect.signature(function).return_annotation in (None, "None")
        if not nothing and "\nReturns\n---" not in doc:
            yield "what it returns is not said"
    if inspect.isfunction(function) and raises(function) and "\nRaises\n---" not in doc:
        yield "what it raises is not said"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_is_documented(name):
    assert not list(faults(name, NAMES[name]))


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

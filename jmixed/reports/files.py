"""Results as files: objects are taken apart into plain values and arrays by kinds, and put together again.

Each kind of object has a word, which stands in files for good: classes can move between modules and change their names.
A dataclass of the package is stored field by field. Its fields belong to the format: a new one needs a default, or else
another `archive.FORMAT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse

from jmixed.covariance.registry import STRUCTURES, structure_of
from jmixed.errors import DataError, Outcome
from jmixed.families.family import Family
from jmixed.families.inflation import ZeroInflated
from jmixed.families.registry import FAMILIES
from jmixed.fit import information
from jmixed.fit.host import Fit, FixedSlopes, MonteCarlo
from jmixed.formulas import components, factors, model_data, relationships, stored, tables
from jmixed.formulas.complete import CompleteTerms
from jmixed.formulas.recipe import Elsewhere, Recipe, nature
from jmixed.inference import curvature, joint_covariance, kenward_roger
from jmixed.reports.effects import GroupSizes
from jmixed.reports.fitted import Fitted, Held
from jmixed.runtime import archive
from jmixed.runtime.timing import Timings

T = TypeVar("T")


@dataclass(frozen=True)
class StoredKind:
    """How objects of a type are stored.

    Attributes
    ----------
    word : str
        What they are called in a file.
    type : type
        Their type; those that derive from it and have no kind of their own are stored as it.
    apart : callable
        From an object to its parts: a dict of them by name, or anything else that can be stored.
    together : callable
        From the parts to an object.
    """

    word: str
    type: type
    apart: Callable[[Any], Any]
    together: Callable[[Any], Any]


class Kinds:
    """The kinds that there are, by word and by type."""

    def __init__(self):
        self.by_word: dict[str, StoredKind] = {}
        self.by_type: dict[type, StoredKind] = {}

    def add(self, word: str, kind: type, apart: Callable | None = None, together: Callable | None = None) -> None:
        """Add a kind; without more words its objects are made of their fields."""
        assert word not in self.by_word, f"there is a kind {word!r}: take another word, which stands in files for good"
        self.by_word[word] = self.by_type[kind] = StoredKind(word, kind, apart or by_field, together or named(kind))

    def of(self, value: Any) -> StoredKind:
        """The kind of a value."""
        for base in type(value).__mro__:
            if base in self.by_type:
                return self.by_type[base]
        if isinstance(value, Mapping):
            return self.by_type[dict]
        raise tables.unstorable(value)


def by_field(value: Any) -> dict[str, Any]:
    """The parts of a dataclass or a named tuple."""
    names = getattr(value, "_fields", None) or [part.name for part in fields(value)]
    return {name: getattr(value, name) for name in names}


def named(function: Callable) -> Callable[[dict[str, Any]], Any]:
    """The function, called with parts by their names."""
    return lambda parts: function(**parts)


def _pairs(mapping: Mapping) -> Any:
    plain = all(type(key) is str for key in mapping)
    return dict(mapping) if plain else [part for pair in mapping.items() for part in pair]


def _mapping(parts: dict | list) -> dict:
    return parts if isinstance(parts, dict) else dict(zip(parts[::2], parts[1::2], strict=True))


def _rows(matrix: Any) -> dict[str, Any]:
    rows = matrix.tocsr()
    return {"arg1": (rows.data, rows.indices, rows.indptr), "shape": tuple(rows.shape)}


OWN_FAMILIES = {kind.__name__: kind for kind in (*FAMILIES.values(), ZeroInflated)}
"""The families of the package by what they are called in files."""


def family_apart(family: Family) -> dict[str, Any]:
    """The class of a family, by name; where it is the caller's own, it is looked for when the file is read."""
    kind, arguments = type(family), [part.name for part in fields(family) if part.init]
    known = OWN_FAMILIES.get(kind.__name__) is kind
    return {
        "class": kind.__name__ if known else Elsewhere(kind.__name__, nature(kind)),
        "fields": {name: getattr(family, name) for name in arguments},
    }


def family_together(parts: dict[str, Any]) -> Family:
    """A family from its parts."""
    kind = parts["class"]
    if isinstance(kind, Elsewhere):
        raise DataError(
            f"the family {kind.name} is a class of its own, which files do not hold: define or import it, under this "
            "name, where jm.load is called"
        )
    return (OWN_FAMILIES[kind] if isinstance(kind, str) else kind)(**parts["fields"])


KINDS = Kinds()
"""What can be stored: a line a kind. Files to the right of this one add their own."""

# Plain values that JSON has not, and values of NumPy.
KINDS.add("tuple", tuple, list, tuple)
KINDS.add("mapping", dict, _pairs, _mapping)
KINDS.add("set", set, list, set)
KINDS.add("scalar", np.generic, np.asarray, lambda array: array[()])
KINDS.add("objects", np.ndarray, tables.objects_apart, named(tables.objects_together))
KINDS.add("sparse", scipy.sparse.sparray, _rows, named(scipy.sparse.csr_array))
for _word, (_type, _apart, _together) in tables.SPELLED.items():
    KINDS.add(_word, _type, _apart, _together)

# Tables and labels.
KINDS.add("column", pd.api.extensions.ExtensionArray, tables.column_apart, named(tables.column_together))
KINDS.add("type", np.dtype, tables.dtype_apart, tables.dtype_together)
KINDS.add("type of a column", pd.api.extensions.ExtensionDtype, tables.dtype_apart, tables.dtype_together)
KINDS.add("index", pd.Index, tables.index_apart, named(tables.index_together))
KINDS.add("series", pd.Series, tables.series_apart, named(tables.series_together))
KINDS.add("frame", pd.DataFrame, tables.frame_apart, named(tables.frame_together))
KINDS.add("part of a frame", tables.Partly, tables.partly_apart, named(tables.frame_together))
KINDS.add("stamp", pd.Timestamp, tables.element_apart, tables.element_together)
KINDS.add("span", pd.Timedelta, tables.element_apart, tables.element_together)
KINDS.add("period", pd.Period, tables.element_apart, tables.element_together)
KINDS.add("interval", pd.Interval, tables.element_apart, tables.element_together)
KINDS.add("no time", type(pd.NaT), lambda _: None, lambda _: pd.NaT)
KINDS.add("missing", type(pd.NA), lambda _: None, lambda _: pd.NA)

# The model.
KINDS.add("model data", model_data.ModelData, stored.data_apart)
KINDS.add("random term", model_data.RandomTerm)
KINDS.add("residual term", model_data.ResidualTerm)
KINDS.add("response term", model_data.ResponseTerm)
KINDS.add("further columns", model_data.FurtherColumns)
KINDS.add("rebuild", model_data.Rebuild)
KINDS.add("relationship", relationships.Relationship)
KINDS.add("sparse relationship", relationships.SparseRelationship)
KINDS.add("known matrix", relationships.KnownMatrix)
KINDS.add("factor", factors.Factor)
KINDS.add("level names", components.LevelNames)
KINDS.add("columns by rank", components.RankColumns)
KINDS.add("columns by group", components.GroupColumns)
KINDS.add("recipe", Recipe, stored.recipe_apart)
KINDS.add("formula", stored.ModelSpec, stored.formula_apart, stored.formula_together)
KINDS.add("elsewhere", Elsewhere)
KINDS.add("word", stored.StoredName, None, stored.word_together)
for _structure in dict.fromkeys(type(structure_of(word, 2)) for word in STRUCTURES):
    KINDS.add(_structure.word_in_files, _structure)

KINDS.add("family", Family, family_apart, family_together)

# The fit, and what was computed of it before the rows were removed.
KINDS.add("fit", Fit)
KINDS.add("monte carlo", MonteCarlo)
KINDS.add("fixed slopes", FixedSlopes)
KINDS.add("outcome", Outcome, lambda outcome: outcome.name, lambda name: Outcome[name])
KINDS.add("timings", Timings, dict, Timings)
KINDS.add("curvature in psi", information.Information)
KINDS.add("uncertainty", information.Uncertainty)
KINDS.add("curvature", curvature.Curvature)
KINDS.add("kenward-roger", kenward_roger.KenwardRoger)
KINDS.add("joint covariance", joint_covariance.JointCovariance)
KINDS.add("complete terms", CompleteTerms)
KINDS.add("group sizes", GroupSizes)
KINDS.add("held", Held)
KINDS.add("fitted", Fitted, Fitted.state, Fitted.of_state)


def pack(value: Any) -> bytes:
    """The bytes of a file that holds a value.

    Raises
    ------
    DataError
        For what has no kind.
    """
    writer = _Writer()
    return archive.pack(writer.write(value), writer.arrays)


def unpack(content: bytes, name: str, names: Mapping[str, Any], together: Callable[[Any], T]) -> T:
    """What `pack` was given.

    Parameters
    ----------
    content : bytes
    name : str
        The file, for messages.
    names : mapping
        Where functions are that formulas use, which a file does not hold.
    together : callable
        What is made of the value.

    Raises
    ------
    DataError
        For the bytes of anything else.
    """
    whole = archive.unpack(content, name)
    with archive.refusing(name):
        return together(_Reader(whole, name, names).read(whole.values))


class _Writer:
    """Makes plain values of objects, and a list of arrays; what occurs twice is written once."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []
        # The objects themselves are kept: another could have the id of one that is gone.
        self.written: dict[int, tuple[Any, dict[str, Any]]] = {}
        self.again = 0

    def write(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and np.isfinite(value)):
            return value
        if isinstance(value, list):
            return [self.write(item) for item in value]
        if kind is tables.Otherwise:
            return self.write_or(*value)
        if id(value) not in self.written:
            self.written[id(value)] = value, self.write_new(value)
            return self.written[id(value)][1]
        node = self.written[id(value)][1]
        if "id" not in node:
            node["id"], self.again = self.again, self.again + 1
        return {"again": node["id"]}

    def write_new(self, value: Any) -> dict[str, Any]:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufcmMSU":
            self.arrays.append(value)
            return {"array": len(self.arrays) - 1}
        kind = KINDS.of(value)
        parts = kind.apart(value)
        if isinstance(parts, dict):
            return {"kind": kind.word, "fields": {name: self.write(part) for name, part in parts.items()}}
        return {"kind": kind.word, "parts": self.write(parts)}

    def write_or(self, value: Any, instead: Any) -> Any:
        arrays, objects = len(self.arrays), len(self.written)
        try:
            return self.write(value)
        except DataError:
            del self.arrays[arrays:]
            for key in list(self.written)[objects:]:
                del self.written[key]
            return self.write(instead)


class _Reader:
    """Makes objects of plain values and arrays."""

    def __init__(self, content: archive.Content, name: str, names: Mapping[str, Any]):
        self.content, self.name, self.names = content, name, names
        self.shared: dict[int, Any] = {}

    def read(self, stored: Any) -> Any:
        if isinstance(stored, list):
            return [self.read(item) for item in stored]
        if not isinstance(stored, dict):
            return stored
        if "again" in stored:
            return self.shared[stored["again"]]
        value = self.content.array(stored["array"]) if "array" in stored else self.read_new(stored)
        if "id" in stored:
            self.shared[stored["id"]] = value
        return value

    def read_new(self, stored: dict[str, Any]) -> Any:
        kind = KINDS.by_word.get(stored["kind"])
        if kind is None:
            raise DataError(
                f"{self.name}: holds an object of the kind {stored['kind']!r}, which this version of jmixed does not "
                f"know: it was written by jmixed {self.content.writer}. Install that version, or save the result again"
            )
        fields = stored.get("fields")
        parts = (
            {key: self.read(part) for key, part in fields.items()} if fields is not None else self.read(stored["parts"])
        )
        value = kind.together(parts)
        return value.looked_up(self.names) if isinstance(value, Elsewhere) else value

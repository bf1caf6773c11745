"""The order of the house: which room may import which, and where precision is named."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import jmixed

HOME = Path(__file__).parents[1]
PACKAGE = HOME / "jmixed"

# A room is a module or a package directly under jmixed. It imports from lower floors, or from its own without a circle.
FLOORS = {
    0: (
        "errors",
        "precision",
        "compilation",
        "executables",
        "device",
        "timing",
        "progress",
        "gaussian",
        "facts",
        "files",
        "forks",
        "arguments",
    ),
    1: ("linalg", "covariance", "layout", "memory", "data"),
    2: ("design", "likelihood"),
    3: ("optimize", "trust_region", "information", "penalised"),
    4: ("estimation", "sharing", "programs", "batches", "minibatch", "pure"),
    5: ("inference",),
    6: (
        *("names", "packing", "params", "effects", "views", "distribution", "held", "regularized"),
        *("evaluation", "fitting", "mass_univariate", "options", "restate"),
        *(
            "hypotheses",
            "contrasts",
            "wald",
            "tables",
            "estimates",
            "fitted",
            "testing",
            "resampling",
            "comparison",
            "intervals",
            "parameters",
            "printed",
        ),
        *("results", "summary", "predict", "diagnostics"),
    ),
    7: ("model", "streamed", "datasets", "plot", "interop", "__main__"),
    8: ("__init__",),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
STRANGERS = {frozenset({"design", "likelihood"})}
ARRAY_SIDE = {
    "linalg",
    "covariance",
    "layout",
    "memory",
    "data",
    "likelihood",
    "optimize",
    "trust_region",
    "information",
}
ARRAY_SIDE |= {"penalised", "estimation", "sharing", "programs", "batches", "minibatch", "pure", "inference"}
TABLES_AND_FORMULAS = {"pandas", "formulaic", "narwhals"}
ONLY_IN_TESTS = {"statsmodels", "hypothesis", "pytest", "polars"}

# The only options of JAX that the package may set, and only when asked to: where compiled programs are kept.
CACHE_OPTIONS = ("jax_compilation_cache_", "jax_persistent_cache_")

MODULES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [path for path in sorted(HOME.glob("*.md")) + [HOME / "pyproject.toml", HOME / ".ci" / "run"] if path.exists()]
TEXTS += [path for folder in ("jmixed", "tests", "examples", "benchmarks") for path in (HOME / folder).rglob("*.py")]


def name_of(path):
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(room):
    assert room in FLOOR, f"{room} has no floor yet: put it into FLOORS"
    return FLOOR[room]


NAMES = {name_of(path) for path in MODULES}


def imports(path):
    """(line, module) of every import in a file, wherever it stands; names that are modules count as modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(HOME).parent.parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                module = f"{base}.{alias.name}"
                yield node.lineno, module if module in NAMES else base


def broken_floors(path):
    here = room_of(name_of(path))
    floor_of(here)
    for line, module in imports(path):
        if module.split(".")[0] != "jmixed":
            continue
        there = room_of(module)
        where = f"{path.relative_to(HOME)}:{line} imports {module}"
        if frozenset({here, there}) in STRANGERS:
            yield f"{where}: {here} and {there} never import each other"
        elif floor_of(there) > floor_of(here):
            yield f"{where}: {here} is on floor {floor_of(here)}, {there} above it on floor {floor_of(there)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downwards(path):
    broken = list(broken_floors(path))
    assert not broken, "\n".join(broken)


def test_no_circle_among_modules():
    # A package's own __init__ re-exports its modules, so an import of the package reaches all of them.
    edges = {name_of(path): {module for _, module in imports(path) if module in NAMES} for path in MODULES}
    done = set()

    def visit(module, trail):
        assert module not in trail, "circle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for below in sorted(edges[module]):
                visit(below, [*trail, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_keep_to_their_side(path):
    banned = dict.fromkeys(ONLY_IN_TESTS, "only the tests use it")
    if room_of(name_of(path)) in ARRAY_SIDE:
        banned |= dict.fromkeys(TABLES_AND_FORMULAS, "the array side knows no tables and no formulas")
    broken = [
        f"{path.relative_to(HOME)}:{line} imports {module}: {banned[module.split('.')[0]]}"
        for line, module in imports(path)
        if module.split(".")[0] in banned
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "precision.py"], ids=name_of)
def test_only_precision_names_the_working_precision(path):
    word = "float64"
    named = [
        f"{path.relative_to(HOME)}:{node.lineno} names {word}: take it from jmixed.runtime.precision"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if word in (getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "value", None))
        or (isinstance(node, ast.alias) and node.name == word)
    ]
    assert not named, "\n".join(named)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_global_option_of_jax_is_set(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    options = [
        (call.lineno, ast.unparse(call.args[0]).strip("'"))
        for call in calls
        if call.func.attr == "update" and ast.unparse(call.func.value).endswith("config") and call.args
    ]
    assigned = [
        f"{path.relative_to(HOME)}:{node.lineno} assigns to {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and "config" in ast.unparse(node.value)
    ]
    broken = [
        f"{path.relative_to(HOME)}:{line} sets {option} for the whole process"
        for line, option in options
        if not option.startswith(CACHE_OPTIONS)
    ]
    assert not broken + assigned, "\n".join(broken + assigned)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(HOME)))
def test_nothing_is_put_off_or_silenced(path):
    marks = ["TO" + "DO", "FIX" + "ME", "# no" + "qa", "# type: " + "ignore", "except " + "Exception:"]
    found = [
        f"{path.relative_to(HOME)}:{number}: {line.strip()}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(re.search(rf"(?<!\w){re.escape(mark)}", line) for mark in marks)
    ]
    assert not found, "\n".join(found)


def test_the_door_is_narrow():
    assert len(jmixed.__all__) <= 40
    assert len(set(jmixed.__all__)) == len(jmixed.__all__)
    missing = [name for name in jmixed.__all__ if not hasattr(jmixed, name)]
    assert not missing, f"in __all__ but not there: {missing}"


@pytest.mark.parametrize("room", [jmixed, jmixed.plot], ids=lambda room: room.__name__)
def test_completion_shows_what_users_are_given(room):
    assert dir(room) == sorted(room.__all__)


def test_type_checkers_read_the_package():
    assert (PACKAGE / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'mixdlm'"):
        _ = jmixed.mixdlm


def test_readme_is_short_and_has_two_commands():
    text = (HOME / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    commands = re.findall(r"^```bash\n(.*?)\n```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(commands) == 2, "the bash blocks of the README are what CI runs: one installs and fits, one tests"
    assert all("\n" not in command for command in commands)


def test_the_lowest_versions_are_those_that_are_tested():
    """The bounds of what users install and what the tests need, against the file that holds the versions tested."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = ("dataframes", "dask", "parquet", "plot", "interop", "test")
    bounds = project["dependencies"] + [text for name in used for text in extras[name]]
    lowest = (HOME / ".ci" / "lowest.txt").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", lowest, flags=re.MULTILINE))
    for text in bounds:
        name, _, bound = re.fullmatch(r"([\w-]+)(\[.*\])?(?:>=([\d.]+))?(?:,<[\d.]+)?", text).groups()
        if name != "jmixed":
            assert tested.get(name, "none").startswith(str(bound)), (
                f"{text} in pyproject.toml, {tested.get(name)} tested"
            )


def test_the_citation_is_of_this_version():
    facts = dict(
        re.findall(r"^([\w-]+): \"?(.*?)\"?$", (HOME / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert facts["version"] == jmixed.__version__
    assert facts["title"].startswith("jmixed")
    assert {"cff-version", "message"} <= facts.keys()
    assert "CITATION.cff" in (HOME / "README.md").read_text(encoding="utf-8")

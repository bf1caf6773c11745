"""The order of the house: which room may import which, who may name whose things, and where precision is named."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import jmixed

HOME = Path(__file__).parents[1]
PACKAGE = HOME / "jmixed"

# A room is a package, or a module, directly under jmixed. It imports from rooms to its left, or from its own without a
# circle. Tables and arrays are two sides that meet in what people call; both may use the rooms that stand before them.
GROUND = ("errors", "runtime")
ARRAYS = ("algebra", "covariance", "residual", "families", "layout", "likelihood", "fit", "inference")
TABLES = ("formulas", "streams")
PEOPLE = ("datasets", "reports", "compat", "results", "model", "plot", "interop", "__init__", "__main__")
ROOMS = {room: place for place, room in enumerate((*GROUND, *ARRAYS, *TABLES, *PEOPLE))}
TABLES_AND_FORMULAS = {"pandas", "formulaic", "narwhals"}
ONLY_IN_TESTS = {"statsmodels", "hypothesis", "pytest", "polars"}

# What other packages do not promise to keep is named in one file for each, with what is done when it is gone.
THEIR_INTERNALS = ("jmixed.runtime.internals", "jmixed.formulas.evaluate")
UNDOCUMENTED = re.compile(
    r"(jax|jaxlib|formulaic|numpy|np|pandas|pd)\b.*\._[a-z]|jaxlib\b|jax\.(interpreters|experimental|extend|lib)\b"
    r"|pandas\.(core|io|compat)\b|formulaic\.(?!errors|transforms)\w|interface_meta"
)
HIDDEN_NAMES = {"TRANSFORMS", "factor_cache", "encoded_cache", "_cache_size", "clear_cache"}

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


def broken_laws(path):
    here = room_of(name_of(path))
    assert here in ROOMS, f"{here} is no room: put the file into the one that says what it is for"
    for line, module in imports(path):
        if module.split(".")[0] != "jmixed":
            continue
        there = room_of(module)
        where = f"{path.relative_to(HOME)}:{line} imports {module}"
        if {here, there} & set(ARRAYS) and {here, there} & set(TABLES):
            yield f"{where}: arrays and tables never import each other"
        elif ROOMS[there] > ROOMS[here]:
            yield f"{where}: {there} stands to the right of {here}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_from_rooms_to_their_left(path):
    broken = list(broken_laws(path))
    assert not broken, "\n".join(broken)


def test_every_room_says_what_it_is_for():
    rooms = {path.name: path / "__init__.py" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    silent = [name for name, init in rooms.items() if not ast.get_docstring(ast.parse(init.read_text("utf-8")))]
    assert not silent
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == {"__init__", "__main__", "datasets", "errors", "interop", "model", "results"}


def private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_imports_a_private_name_of_another(path):
    found = [
        f"{path.relative_to(HOME)}:{node.lineno} imports {alias.name} of {node.module}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jmixed")
        for alias in node.names
        if private(alias.name)
    ]
    assert not found, "\n".join(found)


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
    if room_of(name_of(path)) in ARRAYS:
        banned |= dict.fromkeys(TABLES_AND_FORMULAS, "the array side knows no tables and no formulas")
    broken = [
        f"{path.relative_to(HOME)}:{line} imports {module}: {banned[module.split('.')[0]]}"
        for line, module in imports(path)
        if module.split(".")[0] in banned
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) not in THEIR_INTERNALS], ids=name_of)
def test_what_others_do_not_promise_is_named_in_one_file(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [(line, module) for line, module in imports(path) if UNDOCUMENTED.match(module)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and UNDOCUMENTED.match(ast.unparse(node)):
            named.append((node.lineno, ast.unparse(node)))
        word = getattr(node, "attr", getattr(node, "id", None)) or getattr(node, "name", None)
        if word in HIDDEN_NAMES:
            named.append((node.lineno, word))
    assert not named, f"{path.relative_to(HOME)}: {named} may be gone one day: put it into one of {THEIR_INTERNALS}"


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
    assert len(jmixed.__all__) <= 44
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
    used = ("dataframes", "dask", "docx", "parquet", "plot", "interop", "test")
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

"""Messages name the page that explains them, and the page has what they point to."""

import ast
import inspect
import linecache
import pickle
import re
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import jmixed as jm
from jmixed import errors

HOME = Path(__file__).parents[1]
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]


def pages():
    """Every page that the package points to, by where it does so."""
    yield from ((kind.__name__, kind.page) for kind in CLASSES if kind.page)
    for path in sorted((HOME / "jmixed").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z-]+\.md(#\S+)?", str(node.value)):
                yield f"{path.name}:{node.lineno}", node.value


def anchors(page):
    """The anchors of a page's headings, as Python-Markdown makes them."""
    headings = re.findall(r"^#+ (.*)$", (HOME / "docs" / page).read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize(("where", "page"), sorted(set(pages())))
def test_the_page_exists_and_has_the_section(where, page):
    name, _, anchor = page.partition("#")
    assert (HOME / "docs" / name).exists(), f"{where} points to docs/{name}"
    assert not anchor or anchor in anchors(name), f"{where} points to docs/{page}; there are {sorted(anchors(name))}"


def test_what_is_wrong_with_a_fit_or_a_formula_has_a_page():
    without = {kind.__name__ for kind in CLASSES if not kind.page and not kind.__name__.startswith("_")}
    # These are raised for many things: some have a page and name it where they are raised.
    assert without == {"JmixedError", "DataError", "ModelError", "ArgumentError"}


def test_a_message_ends_with_its_page():
    assert str(jm.ModelError("no such thing")) == "no such thing"
    assert str(jm.ModelError("no such thing", page="limits.md")) == "no such thing (see docs/limits.md)"
    assert str(jm.FormulaError("not closed\n\n  y ~ (\n      ^")).endswith("^\n\n(see docs/formula.md)")
    kept = pickle.loads(pickle.dumps(jm.DataError("no such level", page="new-groups.md")))
    assert str(kept) == "no such level (see docs/new-groups.md)"


def test_warnings_of_a_fit_point_to_the_section_about_it():
    sleep = jm.datasets.load("sleepstudy")
    with pytest.warns(jm.ConvergenceWarning, match=r"^FLAT: .* \(see docs/singular\.md#flat\)$"):
        jm.mixedlm("Reaction ~ Days + (1 | Subject) + (1 | Person)", sleep.assign(Person=sleep.Subject)).fit()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2")).fit()
    assert str(said[0].message).endswith("(see docs/singular.md)")


def test_nothing_stands_where_no_optimum_was_found():
    model = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = model.fit(maxiter=0, start_params=np.array([0.0]))
    assert result.singular
    assert not result.converged
    texts = [str(one.message) for one in said] + [str(result.summary())]
    assert len(texts) == 3
    assert not any("stand," in text or "at the optimum" in text for text in texts)


class TestWarningsPointAtTheCaller:
    """The line that a warning shows is the user's, whichever way it went through the package."""

    @staticmethod
    def lines(call):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
        assert said
        return {(one.filename, linecache.getline(one.filename, one.lineno).strip()) for one in said}

    def test_of_a_model_and_a_fit(self):
        sleep = jm.datasets.load("sleepstudy")
        singular = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2"))
        model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep)

        def many():
            model.fit_many(np.ones((1, 180)))  # a constant response is fitted perfectly

        def redundant():
            jm.mixedlm("Reaction ~ Days + I(2 * Days) + (1 | Subject)", sleep)  # redundant

        def from_formula():
            jm.MixedLM.from_formula("Reaction ~ Days + I(2 * Days) + (1 | Subject)", sleep)  # the same

        def batches():
            jm.from_batches("Reaction ~ Days + I(2 * Days)", [sleep], groups="Subject")  # in batches

        def zero():
            singular.fit()  # singular

        def updated():
            singular.update().fit()  # of another model

        def stopped():
            model.fit(maxiter=1, start_params=np.array([5.0, 3.0, 5.0]))  # stopped

        def idle():
            model.fit(ftol=1e-3)  # an option without effect

        def lasso():
            model.fit_regularized(alpha=0.1, ftol=1e-3)  # the same

        for call in (redundant, from_formula, batches, zero, updated, stopped, idle, lasso, many):
            with jax.enable_x64(False):
                ((file, line),) = self.lines(call)
            assert file == __file__, (call.__name__, file, line)
            assert line.split("  # ")[0] in inspect.getsource(call)

    def test_of_array_functions_in_a_program(self):
        design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design

        def plain():
            return jm.moments(design).G  # by hand

        def traced():
            return jax.jit(lambda y: jm.moments(design.replace(y=y)).G)(design.y)  # through JAX

        with jax.enable_x64(False):
            for call in (plain, traced):
                ((file, line),) = self.lines(call)
                assert file == __file__
                assert line in inspect.getsource(call)

    def test_there_is_one_way_to_warn(self):
        for path in sorted((HOME / "jmixed").rglob("*.py")):
            uses = re.findall(r"warnings\.warn\w*\(", path.read_text("utf-8"))
            assert len(uses) == (path.name == "errors.py"), f"{path}: use jmixed.errors.warn"

"""The pages name what there is: the tables of calls, and the reference."""

import functools
import re
from pathlib import Path

import pytest

import jmixed as jm

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("from-lme4.md", "from-statsmodels.md")


@functools.cache
def roots():
    """What the names in the tables stand for."""
    result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    names = dict.fromkeys(("m", "result", "small", "full", "reduced", "smaller", "r"), result)
    sleep = jm.datasets.load("sleepstudy").assign(slow=lambda table: table["Reaction"] > 300)
    answers = jm.mixedglm("slow ~ Days + (1 | Subject)", sleep).fit()
    names |= {"g": answers, "i": result.influence(method="onestep")}
    return names | {"model": result.model, "jm": jm}


def chains(page):
    """Names of ours with their attributes in the tables of a page, lists such as ``model.k_fe, k_re`` taken apart."""
    for line in (DOCS / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not line.startswith("| ") or len(cells) < 2:
            continue
        # What is the same in both packages is written once.
        ours = cells[0] if cells[1].startswith("the same") else cells[1]
        for code in re.findall(r"`([^`]+)`|<code>(.*?)</code>", ours):
            text = "".join(code)
            yield from re.findall(r"(?<![\w.\"])[a-z]\w*(?:\.\w+)+", text)
            owner = re.match(r"(model|result)\.", text)
            if owner:
                # Without what stands in parentheses.
                plain = re.sub(r"\([^()]*\)", "", text[owner.end() :])
                yield from (f"{owner[1]}.{name}" for name in plain.split(", ") if re.fullmatch(r"[\w.]*\w", name))


@pytest.mark.parametrize("page", PAGES)
def test_tables_name_what_there_is(page):
    found = {chain for chain in chains(page) if chain.split(".")[0] in roots()}
    assert len(found) > 60
    for chain in sorted(found):
        first, *attributes = chain.split(".")
        functools.reduce(getattr, attributes, roots()[first])


def test_every_name_is_in_the_reference():
    text = (DOCS / "reference.md").read_text("utf-8")
    shown = set(re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE))
    for name in jm.__all__:
        value = getattr(jm, name)
        places = {f"jmixed.{name}", getattr(value, "__module__", ""), f"{getattr(value, '__module__', '')}.{name}"}
        places |= {f"jmixed.reports.comparison.{value.__name__}"} if name == "test_variance" else set()
        places |= {"jmixed.plot.pictures"} if name == "plot" else set()
        assert name == "__version__" or places & shown, f"jmixed.{name} is not in docs/reference.md"

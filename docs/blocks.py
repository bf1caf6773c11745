"""Run the Python blocks of Markdown pages and compare what they print with the text block that follows each.

    python docs/blocks.py docs/*.md README.md           # fails where a page says something else than the code
    python docs/blocks.py --write docs/p-values.md      # puts the output and the pictures into the page

The blocks of a page share one namespace. The value of a last expression is printed, as in a notebook, and so are
warnings and the errors of jmixed. Only blocks with a text block after them are compared, numbers to a part in a
thousand. An image right after a block is the figure that the block drew.
"""

import argparse
import ast
import contextlib
import io
import math
import re
import sys
import textwrap
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

import jmixed as jm

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?P<output>\n```text\n(?P<text>.*?)^```\n)?(?:\n!\[[^\]]*\]\((?P<image>\S+?)\))?",
    re.M | re.S,
)


def run(code: str, names: dict) -> str:
    """What the code prints, its last expression, warnings and errors of jmixed included."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *_: print(_told(category, message))
        try:
            exec(compile(tree, "<page>", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "<page>", "eval"), names) if last else None
            if value is not None and not isinstance(value, Axes):
                print(value if isinstance(value, str) else repr(value))
        except jm.JmixedError as error:
            print(_told(type(error), error))
    return "\n".join(line.rstrip() for line in said.getvalue().splitlines()) + "\n" if said.getvalue() else ""


def _told(category: type, message) -> str:
    lines = f"{category.__name__}: {message}".splitlines()
    return "\n".join(textwrap.fill(line, 96) if len(line) > 96 else line for line in lines)


def same(found: str, said: str) -> bool:
    """Whether two outputs have the same words, and numbers within a part in a thousand."""
    pairs = found.split(), said.split()
    return len(pairs[0]) == len(pairs[1]) and all(map(_same_word, *pairs))


def _same_word(found: str, said: str) -> bool:
    if found == said:
        return True
    try:
        return math.isclose(float(found), float(said), rel_tol=1e-3, abs_tol=1e-6)
    except ValueError:
        return False


def check(page: Path, write: bool) -> list[str]:
    """Run one page; returns what was wrong, and with `write` puts it right."""
    names: dict = {"__name__": "page"}
    wrong = []

    def one(match: re.Match) -> str:
        found = run(match["code"], names)
        whole = match[0]
        if match["text"] is not None and not same(found, match["text"]):
            if not write:
                wrong.append(f"{page}:\n{match['code']}--- prints\n{found}--- the page says\n{match['text']}")
            whole = whole.replace(match["output"], f"\n```text\n{found}```\n")
        if match["text"] is None and "Error: " in found:
            wrong.append(f"{page}:\n{match['code']}--- {found}")
        if match["image"] and write:
            plt.gcf().savefig(page.parent / match["image"], dpi=110, bbox_inches="tight")
        elif match["image"] and not plt.get_fignums():
            wrong.append(f"{page}: no figure for {match['image']}")
        plt.close("all")
        return whole

    text = page.read_text()
    new = BLOCK.sub(one, text)
    if write and new != text:
        page.write_text(new)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the output into the pages")
    arguments = parser.parse_args()
    plt.switch_backend("Agg")
    pd.set_option("display.width", 100, "display.max_columns", None)
    jm.enable_compilation_cache()
    wrong = []
    for page in arguments.pages:
        start = time.perf_counter()
        wrong += check(page, arguments.write)
        print(f"{page}: {time.perf_counter() - start:.1f} s", flush=True)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

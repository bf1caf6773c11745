"""Small results as people read them: a title and named numbers, as text and in a notebook as HTML."""

import html
import textwrap


class Facts:
    """An object that prints as a title and a fact a line, and shows as HTML in a notebook."""

    def _facts(self) -> tuple[str, dict[str, object]]:
        raise NotImplementedError

    def __repr__(self) -> str:
        title, facts = self._facts()
        width = max(map(len, facts))
        title = textwrap.fill(title, 80, subsequent_indent="  ")
        return "\n".join([title, *(f"  {name.ljust(width)}  {_text(value)}" for name, value in facts.items())])

    def _repr_html_(self) -> str:
        title, facts = self._facts()
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th><td>{html.escape(_text(value))}</td></tr>'
            for name, value in facts.items()
        )
        return f"<table><caption>{html.escape(title)}</caption>{rows}</table>"


def _text(value) -> str:
    """Four digits of a number that has a fraction, words and counts as they are."""
    return f"{value:.4g}" if hasattr(value, "is_integer") and not hasattr(value, "bit_count") else str(value)

"""What pictures have in common: matplotlib, if it is there, and legends that leave the axes free."""

from typing import Any

NARROW = 4.5
"""Inches of width below which a legend stands above the axes: beside them it would leave no room."""


def pyplot() -> Any:
    """The module; raises `ModuleNotFoundError` that says how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib, an extra: pip install 'jmixed[plot]'") from error
    return plt


def legend(ax: Any, title: str | None = None) -> None:
    """Outside of the axes, where it covers no data: beside them, or above where they are narrow."""
    style = {"frameon": False, "title": title, "alignment": "left", "handlelength": 2.6}
    if not is_narrow(ax):
        ax.legend(**style, fontsize=9, title_fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
        return
    labels = [line for text in ax.get_legend_handles_labels()[1] for line in text.split("\n")]
    # In points; what a letter of this size takes, and what stands beside the letters.
    columns = int(72 * width_of(ax) / (4.4 * max(map(len, labels)) + 40))
    style |= {"ncols": max(1, columns), "columnspacing": 1.0, "borderpad": 0.1}
    ax.legend(**style, fontsize=8, title_fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))


def is_narrow(ax: Any) -> bool:
    """Whether a legend beside the axes would leave them no room."""
    return width_of(ax) < NARROW


def width_of(ax: Any) -> float:
    """Inches."""
    return ax.get_position().width * ax.figure.get_figwidth()

"""The paper that the laboratory's figures are drawn on: size, title, legend, quiet panels, bytes. matplotlib on use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from verl_ext import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE = "#1f1f1f", "#5f5f5f", "#d9d9d9"
_WIDTH, _ROW_HEIGHT, _DPI = 10.5, 3.3, 160  # inches, inches, dots an inch
_LEGEND_COLUMNS = 5
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """A quiet panel: grid, no frame, small labels."""
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=8, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=8.5, color=QUIET)
    axes.set_ylabel(y_label, fontsize=8.5, color=QUIET)
    axes.tick_params(length=0, pad=4, labelsize=8, labelcolor=QUIET)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def plain_ticks(axes: Axes, *names: str) -> None:
    """Numbers as a reader writes them on logarithmic axes, and no small ticks."""
    from matplotlib.ticker import NullLocator

    for axis in (axes.xaxis if name == "x" else axes.yaxis for name in names):
        axis.set_major_formatter(lambda value, _: _power(value))
        axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    """`0.1`, but `10⁻⁴`."""
    exponent = round(math.log10(value)) if value > 0 else 0
    return f"{value:g}" if exponent > -3 else "10" + str(exponent).translate(_RAISED)


def _write_legend(figure: Figure, shades: Mapping[str, str], top: float) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.4, label=label) for label, colour in shades.items()]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.016, top),
        ncols=min(len(shades), _LEGEND_COLUMNS) or 1,
        frameon=False,
        fontsize=9,
        handlelength=1.4,
        columnspacing=1.6,
        borderaxespad=0,
    )


def render(
    draw: Callable[[Figure], None],
    num_rows: int,
    formats: Sequence[str],
    title: str,
    shades: Mapping[str, str],
) -> images.Images:
    """A figure of `num_rows` rows of panels, under its title and a legend (label -> colour)."""

    def compose() -> Figure:
        head = 0.85 + 0.24 * -(-len(shades) // _LEGEND_COLUMNS)
        height = _ROW_HEIGHT * num_rows + head - 0.4
        figure = images.new_figure(_WIDTH, height, _DPI)
        figure.subplots_adjust(
            left=0.065, right=0.985, top=1 - head / height, bottom=0.55 / height, wspace=0.27, hspace=0.42
        )
        draw(figure)
        _write_legend(figure, shades, 1 - 0.42 / height)
        figure.text(0.02, 1 - 0.27 / height, title, fontsize=12.5, color=INK, fontweight="bold", va="center")
        return figure

    return images.render(compose, formats, salt="laboratory")

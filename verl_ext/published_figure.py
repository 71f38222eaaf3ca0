"""The figure beside `published.md`: ours minus published, a panel for each benchmark, a line for each row of a table.

Filled markers are outside what noise explains (blue above, vermilion below), hollow ones within. matplotlib is loaded
on use, and equal numbers give equal bytes on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from verl_ext import images
from verl_ext.forest import COLOURS
from verl_ext.published_comparison import AVERAGE, Beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL, _LABELS, _ROW, _FRAME, _DPI = 1.75, 2.6, 0.27, 1.1, 200  # inches, and dots an inch
_INK, _RULE = "#1f1f1f", "#d9d9d9"


def render(found: Sequence[Beside], formats: Sequence[str] = images.FORMATS) -> images.Images:
    """The figure in each format; nothing where nothing was found."""
    return images.render(lambda: _draw(found), formats, salt="published") if found else {}


def _draw(found: Sequence[Beside]) -> Figure:
    lines = list(dict.fromkeys(_line(item) for item in found))
    benchmarks = list(dict.fromkeys(item.number.benchmark for item in found))
    benchmarks.sort(key=lambda name: name != AVERAGE)  # it stands first
    width, height = _LABELS + _PANEL * len(benchmarks), _FRAME + _ROW * len(lines)
    figure = images.new_figure(width, height, _DPI, layout="constrained")
    reach = 105 * max(max(-item.difference.low, item.difference.high) for item in found)
    for axes, benchmark in zip(
        figure.subplots(1, len(benchmarks), sharey=True, squeeze=False)[0], benchmarks, strict=True
    ):
        _style(axes, benchmark, reach)
        for item in found:
            if item.number.benchmark == benchmark:
                _mark(axes, item, lines.index(_line(item)))
        axes.set_yticks(range(len(lines)), lines, fontsize=8, color=_INK)
        axes.set_ylim(len(lines) - 0.5, -0.5)
    figure.supxlabel("ours minus published, points; lines: intervals with the noise of both", fontsize=8, color=_INK)
    return figure


def _line(item: Beside) -> str:
    return f"{item.label} · {item.number.source}"


def _style(axes: Axes, benchmark: str, reach: float) -> None:
    axes.set_title("Average" if benchmark == AVERAGE else benchmark, fontsize=9, color=_INK)
    axes.set_xlim(-reach, reach)
    axes.axvline(0.0, color=_INK, linewidth=0.8, zorder=0.5)
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, colors=_INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _mark(axes: Axes, item: Beside, y: int) -> None:
    difference = item.difference
    colour = COLOURS[("win" if difference.value > 0 else "lose") if item.is_outside else "undecided"]
    axes.plot([100 * difference.low, 100 * difference.high], [y, y], color=colour, linewidth=1.8)
    face = colour if item.is_outside else "white"
    axes.plot([100 * difference.value], [y], marker="o", markersize=5, color=colour, markerfacecolor=face)

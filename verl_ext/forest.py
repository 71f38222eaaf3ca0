"""The figure: every row's difference to the baseline with its interval (a forest plot). matplotlib is loaded on use.

Above the macro average with its numbers, below one small panel per benchmark on a common scale. Rows stand in table
order under their section's heading. A filled marker is decided (blue better, vermilion worse: colour-blind readers can
tell them apart, and so does the side of zero), a hollow grey one is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from verl_ext import images
from verl_ext.report import Row, Table, interval, percent
from verl_ext.statistics import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"win": "#0072B2", "lose": "#D55E00", "undecided": "#767676"}  # Okabe & Ito's blue and vermilion, and grey
_INK, _QUIET, _RULE, _BAND = "#1f1f1f", "#5f5f5f", "#d9d9d9", "#f5f6f8"
_WIDTH, _DPI = 9.0, 200  # inches; 1800 pixels, to be shown 900 wide
_EDGE, _GUTTER = 0.15, 0.28  # inches: around the figure, between small panels
_ROW, _SMALL_ROW = 0.31, 0.215  # inches a line
_TITLE, _AXIS, _SUBTITLE, _PANEL_TITLE = 1.0, 0.42, 0.6, 0.6  # inches: heights between the panels
_NUMBERS = 2.05  # inches: the interval as text, right of the large panel
_AVERAGE = 0.62  # inches: the average as text, left of it
_MAX_COLUMNS = 5
_MAX_LABEL = 34  # characters


def render(table: Table, formats: Sequence[str] = images.FORMATS) -> images.Images:
    """The figure in each format: equal tables give equal bytes on one machine."""
    return images.render(lambda: _draw(table), formats, salt="forest")


def _draw(table: Table) -> Figure:
    lines = _lines(table)
    names = list(table.benchmarks) if len(table.benchmarks) > 1 else []
    columns = max(min(len(names), _MAX_COLUMNS), 1)
    num_bands = -(-len(names) // columns)
    large, small = _ROW * len(lines), _SMALL_ROW * len(lines)
    height = _TITLE + large + _AXIS + (_SUBTITLE + num_bands * (_PANEL_TITLE + small) if names else 0.0)
    figure = images.new_figure(_WIDTH, height, _DPI)
    labels = max(1.1, min(0.5 + 0.09 * max(len(_short(row.label)) for row in table.rows), 3.2))

    def panel(x: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((x / _WIDTH, 1 - (top + tall) / height, width / _WIDTH, tall / height))

    left = _EDGE + labels + _AVERAGE
    axes = panel(left, _TITLE, _WIDTH - left - _NUMBERS, large)
    macro = {row.name: row.difference for row in table.rows}
    _panel(axes, lines, macro, _limits([macro]), large=True)
    _shade(axes, lines, _EDGE - left, _WIDTH - _EDGE - left)
    _write_labels(axes, lines, left - _EDGE, large=True)
    _write_numbers(axes, table, lines)
    _write_titles(figure, table, height, _TITLE + large)
    left = _EDGE + labels
    width = (_WIDTH - left - _EDGE) / columns
    cells = {name: {row.name: row.benchmark_differences.get(name) for row in table.rows} for name in names}
    for index, name in enumerate(names):
        band, column = divmod(index, columns)
        top = _TITLE + large + _AXIS + _SUBTITLE + band * (_PANEL_TITLE + small)
        axes = panel(left + column * width, top, width - _GUTTER, small)
        _panel(axes, lines, cells[name], _limits(list(cells.values())), large=False)
        axes.set_title(f"{name} ({table.benchmarks[name]})", fontsize=9, color=_INK, pad=6)
        if column == 0:
            _shade(axes, lines, _EDGE - left, _WIDTH - _EDGE - left)
            _write_labels(axes, lines, labels, large=False)
    return figure


def _lines(table: Table) -> list[str | Row]:
    """What stands on each line, from the top: a section's heading (text) or a row."""
    found: list[str | Row] = []
    for group, rows in table.sections():
        found += [group] if group else []
        found += rows
    return found


def _limits(panels: list[Mapping[str, Difference | None]]) -> tuple[float, float]:
    """Common x range in points, zero always inside."""
    ends = [100 * end for panel in panels for item in panel.values() if item for end in (item.low, item.high)]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _panel(
    axes: Axes,
    lines: list[str | Row],
    differences: Mapping[str, Difference | None],
    limits: tuple[float, float],
    *,
    large: bool,
) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, pad=5, labelsize=9 if large else 8, labelcolor=_QUIET)
    axes.locator_params(axis="x", nbins=max(2, int(axes.get_position().width * _WIDTH / (0.6 if large else 0.33))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.axvline(0, color=_INK, linewidth=1.0, zorder=1.5)
    for y, line in enumerate(lines):
        if not isinstance(line, Row):
            continue
        item = differences[line.name]
        if item is None:
            axes.plot([0], [y], marker="D", markersize=6 if large else 4, color=_INK, clip_on=False)
            continue
        colour = COLOURS[item.mark]
        face = "white" if item.mark == "undecided" else colour
        size, thick = (8, 2.4) if large else (5, 1.6)
        axes.plot([100 * item.low, 100 * item.high], [y, y], color=colour, linewidth=thick, solid_capstyle="butt")
        axes.plot([100 * item.value], [y], marker="o", markersize=size, color=colour, markerfacecolor=face)


def _shade(axes: Axes, lines: list[str | Row], start: float, end: float) -> None:
    """A grey band behind every section's heading; `start` and `end` in inches from the panel's left end."""
    from matplotlib.patches import Rectangle

    width = axes.get_position().width * _WIDTH
    for y, line in enumerate(lines):
        if isinstance(line, str):
            band = Rectangle(
                (start / width, y - 0.42),
                (end - start) / width,
                0.84,
                transform=axes.get_yaxis_transform(),
                clip_on=False,
                zorder=0.1,
                linewidth=0,
                color=_BAND,
            )
            axes.add_patch(band)


def _beside(axes: Axes, y: float, text: str, *, side: int, inches: float, size: float, **style: Any) -> None:
    """Text beside the panel at line y, `inches` from its left (side 0) or right (1) end."""
    axes.annotate(
        text,
        xy=(side, y),
        xycoords=("axes fraction", "data"),
        xytext=(72 * inches, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=size,
        annotation_clip=False,
        **style,
    )


def _write_labels(axes: Axes, lines: list[str | Row], inches: float, *, large: bool) -> None:
    """Headings and, a little indented, the rows' labels, `inches` left of the panel."""
    size, indent = (10.5, 0.14) if large else (8, 0.1)
    for y, line in enumerate(lines):
        if isinstance(line, str):
            _beside(axes, y, _short(line), side=0, inches=0.06 - inches, size=size - 1, color=_QUIET, fontweight="bold")
        else:
            shift = indent if line.group else 0.06
            _beside(axes, y, _short(line.label), side=0, inches=shift - inches, size=size, color=_INK)


def _write_numbers(axes: Axes, table: Table, lines: list[str | Row]) -> None:
    """Averages left and differences right of the large panel, with their headings."""
    _beside(
        axes,
        -0.95,
        "Average" if len(table.benchmarks) > 1 else "Accuracy",
        side=0,
        inches=-0.12,
        size=9,
        color=_QUIET,
        ha="right",
    )
    heading = f"Difference [{100 * table.confidence:g} %]"
    _beside(axes, -0.95, heading, side=1, inches=0.15, size=9, color=_QUIET)
    for y, line in enumerate(lines):
        if isinstance(line, Row):
            item = line.difference
            text = interval(item, signed=True) if item else "baseline"
            colour = COLOURS[item.mark] if item else _INK
            _beside(axes, y, percent(line.macro.value), side=0, inches=-0.12, size=10, color=_INK, ha="right")
            _beside(axes, y, text, side=1, inches=0.15, size=10, color=colour)


def _write_titles(figure: Figure, table: Table, height: float, end: float) -> None:
    """Title and legend, and the heading of the small panels, which follow where the large one ends."""
    names = list(table.benchmarks)
    subject = f"the average of {len(names)} benchmarks" if len(names) > 1 else names[0]
    title = f"Difference to {table.baseline_label} on {subject}"
    legend = f"Percentage points of mean@{table.k}. Filled: better or worse after Holm's correction; hollow: undecided."
    below = "Each benchmark (number of problems)" if len(names) > 1 else ""
    for text, top, size, colour, weight in (
        (title, 0.26, 12.5, _INK, "bold"),
        (legend, 0.53, 9, _QUIET, "normal"),
        (below, end + _AXIS + 0.12, 10, _INK, "bold"),
    ):
        where = ((_EDGE + 0.06) / _WIDTH, 1 - top / height)
        figure.text(*where, text, fontsize=size, color=colour, fontweight=weight, va="center")


def _short(label: str) -> str:
    return label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"

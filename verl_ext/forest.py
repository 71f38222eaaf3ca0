"""The figure: every row's difference to the baseline with its interval (a forest plot). matplotlib is loaded on use.

Above the macro average with its numbers, below one small panel per benchmark on a common scale. Rows stand in table
order under their section's heading. A filled marker is decided (blue better, orange worse; the two stay apart for
colour-blind readers), a hollow grey one is not.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from verl_ext.report import Row, Table, interval
from verl_ext.statistics import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"win": "#0072B2", "lose": "#D55E00", "undecided": "#767676"}  # Okabe & Ito's blue and vermilion, and grey
_INK, _QUIET, _RULE = "#222222", "#666666", "#dddddd"
_WIDTH, _DPI = 9.0, 200  # inches; 1800 pixels, to be shown 900 wide
_ROW, _SMALL_ROW = 0.34, 0.24  # inches a line
_TOP, _GAP, _BOTTOM = 0.75, 0.95, 0.55  # inches: title, between the panels, axis labels
_MAX_COLUMNS = 5
_MAX_LABEL = 34  # characters


def render(table: Table, formats: tuple[str, ...] = ("png", "svg")) -> dict[str, bytes]:
    """The figure in each format: equal tables give equal bytes on one machine."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "svg.hashsalt": "forest",
            "svg.fonttype": "path",
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.parse_math": False,  # a `$` in a label is a `$`
        }
    ):
        figure = _draw(table)
        images = {}
        for name in formats:
            stream = io.BytesIO()
            # Neither a date nor a version in the file, so that the same table gives the same bytes.
            metadata: dict[str, Any] = {"Date": None} if name == "svg" else {"Software": None}
            figure.savefig(stream, format=name, dpi=_DPI, facecolor="white", metadata=metadata)
            images[name] = stream.getvalue()
    return images


def _draw(table: Table) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = _lines(table)
    names = list(table.benchmarks) if len(table.benchmarks) > 1 else []
    columns = min(len(names), _MAX_COLUMNS)
    bands = -(-len(names) // columns) if columns else 0
    large, small = _ROW * len(lines), _SMALL_ROW * len(lines)
    height = _TOP + large + _BOTTOM + bands * (small + _GAP)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    left = min(0.35 + 0.085 * max(len(_short(row.label)) for row in table.rows), 3.2)

    def panel(x: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((x / _WIDTH, (height - top - tall) / height, width / _WIDTH, tall / height))

    macro = {row.name: row.difference for row in table.rows}
    axes = panel(left, _TOP, _WIDTH - left - 2.05, large)
    _panel(axes, table, lines, macro, limits=_limits([macro]), large=True)
    _headings(figure, axes, table, height)
    per_benchmark = {name: {row.name: row.benchmark_differences.get(name) for row in table.rows} for name in names}
    limits = _limits(list(per_benchmark.values()))
    width = (_WIDTH - left - 0.15) / max(columns, 1)
    for index, name in enumerate(names):
        band, column = divmod(index, columns)
        top = _TOP + large + _GAP + 0.1 + band * (small + _GAP)
        axes = panel(left + column * width, top, width - 0.14, small)
        _panel(axes, table, lines, per_benchmark[name], limits=limits, large=False, labelled=column == 0)
        axes.set_title(f"{name} ({table.benchmarks[name]})", fontsize=9, color=_INK, pad=5)
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
    table: Table,
    lines: list[str | Row],
    differences: Mapping[str, Difference | None],
    *,
    limits: tuple[float, float],
    large: bool,
    labelled: bool = True,
) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelsize=9 if large else 8, colors=_QUIET)
    axes.locator_params(axis="x", nbins=8 if large else 4)
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.axvline(0, color=_INK, linewidth=1.0)
    for y, line in enumerate(lines):
        if labelled:
            _label(axes, y, line, large)
        item = differences[line.name] if isinstance(line, Row) else None
        if item is not None:
            _interval(axes, y, item, large)
        if large and isinstance(line, Row):
            text = interval(item, signed=True) if item else "baseline"
            _beside(axes, y, text, COLOURS[item.mark] if item and item.mark != "undecided" else _QUIET)


def _interval(axes: Axes, y: int, item: Difference, large: bool) -> None:
    colour = COLOURS[item.mark]
    face = "white" if item.mark == "undecided" else colour
    axes.plot([100 * item.low, 100 * item.high], [y, y], color=colour, linewidth=2.2 if large else 1.5)
    size = 7.5 if large else 4.8
    axes.plot([100 * item.value], [y], marker="o", markersize=size, color=colour, markerfacecolor=face, clip_on=False)


def _label(axes: Axes, y: int, line: str | Row, large: bool) -> None:
    heading = isinstance(line, str)
    axes.annotate(
        _short(line if isinstance(line, str) else line.label),
        xy=(0, y),
        xycoords=("axes fraction", "data"),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=(10 if large else 8) - heading,
        fontweight="bold" if heading else "normal",
        color=_QUIET if heading else _INK,
        annotation_clip=False,
    )


def _beside(axes: Axes, y: int, text: str, colour: str) -> None:
    axes.annotate(
        text,
        xy=(1, y),
        xycoords=("axes fraction", "data"),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        fontsize=9.5,
        color=colour,
        annotation_clip=False,
    )


def _headings(figure: Figure, axes: Axes, table: Table, height: float) -> None:
    title = (
        f"Average of {len(table.benchmarks)} benchmarks" if len(table.benchmarks) > 1 else next(iter(table.benchmarks))
    )
    figure.text(
        0.015,
        1 - 0.24 / height,
        f"{title}: difference to {table.baseline_label} in mean@{table.k}, points",
        fontsize=11.5,
        fontweight="bold",
        color=_INK,
        va="center",
    )
    figure.text(
        0.015,
        1 - 0.5 / height,
        f"{100 * table.confidence:g} % intervals, paired by problem. Filled: decided after Holm's correction; "
        "hollow: undecided.",
        fontsize=9,
        color=_QUIET,
        va="center",
    )


def _short(label: str) -> str:
    return label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"

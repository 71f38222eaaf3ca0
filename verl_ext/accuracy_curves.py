"""Accuracy against something ordered (optimizer steps, learning rates, batch sizes): figure and CSV.

Lines in the style of the laboratory, with a band for the interval of each line. matplotlib is loaded on use.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verl_ext import images
from verl_ext.artifacts import write_bytes_atomically
from verl_ext.intervals import Estimate
from verl_ext.laboratory.canvas import QUIET, style
from verl_ext.laboratory.lines import Line, colours, draw_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _DPI = 4.6, 3.5, 200  # inches a panel
Points = list[tuple[float, Estimate]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel: label -> points in order of x."""

    title: str
    x_label: str
    log_x: bool = False
    lines: dict[str, Points] = field(default_factory=dict)


def write(panels: Sequence[Panel], path: Path, *, k: int, benchmarks: Sequence[str]) -> None:
    """`path` with .png, .svg and .csv; benchmarks are those that the accuracy is the mean of."""
    for suffix, image in images.render(lambda: _draw(panels, k, benchmarks), salt=path.name).items():
        write_bytes_atomically(path.with_suffix(f".{suffix}"), image)
    write_bytes_atomically(path.with_suffix(".csv"), _to_csv(panels).encode())


def _draw(panels: Sequence[Panel], k: int, benchmarks: Sequence[str]) -> Figure:
    figure = images.new_figure(_WIDTH * len(panels), _HEIGHT, _DPI, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    shades = colours(labels)
    ends = [100 * end for p in panels for points in p.lines.values() for _, e in points for end in (e.low, e.high)]
    for axes, panel in zip(all_axes, panels, strict=True):
        style(axes, panel.title, panel.x_label, f"accuracy (mean@{k}), %" if axes is all_axes[0] else "")
        if panel.log_x:
            axes.set_xscale("log")
            ticks = sorted({x for points in panel.lines.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_ylim(max(0.0, min(ends) - 2), min(100.0, max(ends) + 2))
        x = [value for points in panel.lines.values() for value, _ in points]
        margin = 1.06 if panel.log_x else 0.02 * (max(x) - min(x) or 1.0)
        axes.set_xlim(*((min(x) / margin, max(x) * margin) if panel.log_x else (min(x) - margin, max(x) + margin)))
        for label, points in panel.lines.items():
            band = [(value, 100 * item.low, 100 * item.high) for value, item in points]
            axes.fill_between(*zip(*band, strict=True), color=shades[label], alpha=0.10, linewidth=0)
    figure.supxlabel(f"Mean of {', '.join(benchmarks)}; bands: 95 % intervals over problems", fontsize=8, color=QUIET)
    figure.draw_without_rendering()  # labels are placed by where the lines end up
    for axes, panel in zip(all_axes, panels, strict=True):
        lines = [
            Line(label, shades[label], np.array([x for x, _ in points]), np.array([100 * e.value for _, e in points]))
            for label, points in panel.lines.items()
        ]
        draw_lines(axes, lines, marker="o", markersize=3)
        axes.legend(
            handles=[_handle(line) for line in lines], fontsize=7.5, frameon=False, loc="lower right", labelcolor=QUIET
        )
    return figure


def _handle(line: Line) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=line.colour, label=line.label, linewidth=1.8)


def _to_csv(panels: Sequence[Panel]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["panel", "method", "x", "accuracy", "low", "high"])
    for panel in panels:
        for label, points in panel.lines.items():
            for x, item in points:
                writer.writerow([panel.title, label, f"{x:g}", *(f"{100 * v:.3f}" for v in _ends(item))])
    return stream.getvalue()


def _ends(item: Estimate) -> tuple[float, float, float]:
    return item.value, item.low, item.high

"""The figure of the data path at scale: time and memory against the number of samples. matplotlib is loaded on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verl_ext import images
from verl_ext.artifacts import write_bytes_atomically
from verl_ext.flow_simulation import Flow
from verl_ext.laboratory.canvas import QUIET, plain_ticks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _DPI = 9.2, 3.6, 200  # inches
_COLOURS = {"sampling": "#0072B2", "curation": "#D55E00"}


def write(flows: Sequence[Flow], path: Path) -> None:
    """A PNG with two panels on logarithmic axes; grey dashes grow in proportion to the samples."""
    image = images.render(lambda: _draw(flows), ["png"], salt="flow")["png"]
    write_bytes_atomically(path, image)


def _draw(flows: Sequence[Flow]) -> Figure:
    figure = images.new_figure(_WIDTH, _HEIGHT, _DPI, layout="constrained")
    x = np.array([flow.num_samples for flow in flows])
    seconds = {name: np.array([getattr(flow, f"{name}_seconds") for flow in flows]) for name in _COLOURS}
    memory = {name: np.array([getattr(flow, f"{name}_bytes") for flow in flows]) / 2**20 for name in _COLOURS}
    panels = zip(figure.subplots(1, 2), ("Seconds", "Memory above idle, MiB"), (seconds, memory), strict=True)
    for axes, title, lines in panels:
        style(axes, title, "samples", "")
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_ticks(axes, "x", "y")
        reference = lines["sampling"][-1] * x / x[-1]
        axes.plot(x, reference, color=QUIET, linewidth=1.0, linestyle="--", label="in proportion")
        for name, y in lines.items():
            axes.plot(x, np.maximum(y, 1e-3), color=_COLOURS[name], marker="o", markersize=4, label=name)
        axes.legend(fontsize=8, frameon=False, labelcolor=QUIET)
    return figure

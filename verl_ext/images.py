"""Figures as bytes: equal figures are equal files on one machine. matplotlib is loaded on use."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = dict[str, bytes]  # format -> content
FORMATS = ("png", "svg")


def new_figure(width: float, height: float, dpi: int, **options: Any) -> Figure:
    """An empty figure of `width` x `height` inches, with a canvas on which text can be measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, **options)
    FigureCanvasAgg(figure)
    return figure


def render(draw: Callable[[], Figure], formats: Sequence[str] = FORMATS, *, salt: str) -> Images:
    """What `draw` returns in each format; `salt` names the ids inside an SVG.

    Neither a date nor a version is in the files. `draw` runs under the settings of the project's figures, in which a
    `$` of a label is a `$`.
    """
    import matplotlib

    settings: Any = {
        "svg.hashsalt": salt,
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    images = {}
    with matplotlib.rc_context(settings):
        figure = draw()
        for name in formats:
            stream = io.BytesIO()
            metadata: dict[str, Any] = {"Date": None} if name == "svg" else {"Software": None}
            figure.savefig(stream, format=name, dpi=figure.dpi, facecolor="white", metadata=metadata)
            images[name] = stream.getvalue()
    return images

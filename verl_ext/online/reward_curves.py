"""The figure of online runs: reward against sampled tokens or rounds, one line a method, a band over its seeds.

matplotlib is loaded on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verl_ext import images
from verl_ext.errors import UserError
from verl_ext.online.journal import LOG, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito: told apart by anyone
_INK, _QUIET = "#1f1f1f", "#5f5f5f"
_WIDTH, _HEIGHT, _DPI = 7.0, 4.0, 200  # inches
_SPARE = 0.03  # of the axis: room around the lines

Records = Sequence[Mapping[str, Any]]


def load(groups: Mapping[str, Sequence[Path]]) -> dict[str, list[Records]]:
    """The logs of run directories by method; UserError for a directory without one."""
    loaded: dict[str, list[Records]] = {}
    for name, directories in groups.items():
        for directory in directories:
            records = read_log(directory / LOG)
            if not records:
                raise UserError(f"'{directory}' has no {LOG} with a round in it. Name the output_dir of an online run.")
            loaded.setdefault(name, []).append(records)
    return loaded


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """The mean over the last `window` values, fewer at the start."""
    array = np.asarray(values, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(array)])
    ends = np.arange(1, len(array) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def gain(records: Records, window: int) -> tuple[float, float]:
    """Mean reward of the first and of the last `window` rounds."""
    rewards = [record["reward"] for record in records]
    return float(np.mean(rewards[:window])), float(np.mean(rewards[-window:]))


def table(groups: Mapping[str, Sequence[Records]], window: int = 5) -> str:
    """A line a run in Markdown: reward at the start and at the end, tokens, minutes."""
    lines = [
        f"| method | run | reward, first {window} rounds | reward, last {window} | rounds | sampled tokens | minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in groups.items():
        for number, records in enumerate(runs):
            first, last = gain(records, window)
            tokens, minutes = records[-1]["num_sampled_tokens"], sum(record["seconds"] for record in records) / 60
            lines.append(
                f"| {name} | {number} | {first:.3f} | {last:.3f} | {len(records)} | {tokens:,} | {minutes:.1f} |"
            )
    return "\n".join(lines) + "\n"


def render(groups: Mapping[str, Sequence[Records]], title: str, window: int = 5, form: str = "png") -> bytes:
    """The figure; equal logs give equal bytes on one machine."""

    def draw() -> Figure:
        figure = images.new_figure(_WIDTH, _HEIGHT, _DPI, layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, runs) in zip(COLOURS, groups.items(), strict=False):
            _draw(axes, name, runs, colour, window)
        _dress(axes, title, window)
        return figure

    return images.render(draw, [form], salt="curves")[form]


def _draw(axes: Axes, name: str, runs: Sequence[Records], colour: str, window: int) -> None:
    length = min(len(records) for records in runs)
    rounds = np.arange(1, length + 1)
    curves = np.stack([smooth([record["reward"] for record in records[:length]], window) for records in runs])
    axes.fill_between(rounds, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    for curve in curves:
        axes.plot(rounds, curve, color=colour, linewidth=0.7, alpha=0.5)
    axes.plot(rounds, curves.mean(axis=0), color=colour, linewidth=2.0, label=_label(name, len(runs)))


def _label(name: str, num_seeds: int) -> str:
    return name if num_seeds == 1 else f"{name}, mean and range of {num_seeds} seeds"


def _dress(axes: Axes, title: str, window: int) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.set_xlabel("round of sampling and training", color=_QUIET)
    axes.set_ylabel(f"mean reward, last {window} rounds", color=_QUIET)
    axes.margins(x=_SPARE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_QUIET)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right")

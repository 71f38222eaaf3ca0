"""The laboratory's figures: methods along one token's probability, a data set's profile, distributions of checkpoints.

Each function returns the figure in the formats asked for; equal inputs give equal bytes on one machine. matplotlib is
loaded on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from verl_ext.images import FORMATS, Images
from verl_ext.laboratory.canvas import QUIET, plain_ticks, render, style
from verl_ext.laboratory.curves import (
    NUM_TOKENS,
    REFERENCE_PROBABILITY,
    Curve,
    Subject,
    against_log_ratio,
    against_probability,
)
from verl_ext.laboratory.lines import Line, colours, draw_lines
from verl_ext.laboratory.profiles import DataProfile, MethodProfile, Scored
from verl_ext.laboratory.scores import LogProbs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = -8  # log10 of the probability that the first bin of the logarithmic view reaches down to, at most
_LINEAR_BINS = np.linspace(0.0, 1.0, 41)
_LOG_BIN = 0.25  # decades
_MOST_KEPT = 3.0  # shares of SFT's gradient above this are cut off
_BARS = "#8fb7d3"


def draw_curves(subjects: Sequence[Subject], num_tokens: int = NUM_TOKENS, formats: Sequence[str] = FORMATS) -> Images:
    """Weight, push and loss: against the probability before the first step and, where methods compare policies, later.

    The second row follows a token whose probability moves away from the 5 % that the reference gives it.
    """
    rows = [(against_probability, _probability_panels)]
    if any(subject.compares for subject in subjects):
        rows.append((against_log_ratio, _ratio_panels))

    def draw(figure: Figure) -> None:
        for number, (along, panels) in enumerate(rows):
            curves = {subject.label: along(subject, num_tokens) for subject in subjects}
            axes = [figure.add_subplot(len(rows), 3, 3 * number + column) for column in (1, 2, 3)]
            panels(axes, curves)

    shades = colours([subject.label for subject in subjects])
    return render(draw, len(rows), formats, "What each method does to one token", shades)


def _probability_panels(axes: Sequence[Axes], curves: Mapping[str, Curve]) -> None:
    x_label = "token probability p before the first step"
    style(axes[0], "Weight", f"{x_label} (log)", "weight w (log)")
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].set(xlim=(1e-6, 1), ylim=(3e-7, 20))
    axes[0].set_xticks([1e-6, 1e-4, 1e-2, 1])
    axes[0].set_yticks([1e-6, 1e-4, 1e-2, 1])
    plain_ticks(axes[0], "x", "y")
    style(axes[1], "Push on the token's logit", x_label, "w (1 − p)")
    axes[1].set(xlim=(0, 1), ylim=(-0.06, 1.12))
    style(axes[2], "Loss", x_label, "token loss, nats")
    losses = [curve.loss[curve.probability > 0.05] for curve in curves.values()]
    axes[2].set(xlim=(0, 1), ylim=(min(-0.2, 1.15 * min(map(np.min, losses))), 3.2))
    for panel, name in zip(axes, ("weight", "push", "loss"), strict=True):
        draw_lines(panel, _lines(curves, name))


def _ratio_panels(axes: Sequence[Axes], curves: Mapping[str, Curve]) -> None:
    x_label = f"log p − log p of the reference ({REFERENCE_PROBABILITY:.0%})".replace("%", " %")
    style(axes[0], "Weight, later in training", x_label, "weight w (log, and 0)")
    axes[0].set_yscale("symlog", linthresh=0.03, linscale=0.35)
    axes[0].set(xlim=(-3, 3), ylim=(-0.006, 300))
    axes[0].set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes[0].minorticks_off()
    style(axes[1], "Push on the token's logit", x_label, "w (1 − p)")
    axes[1].set(xlim=(-3, 3), ylim=_room(curves, "push", 6.0))
    style(axes[2], "Loss", x_label, "token loss, nats")
    axes[2].set(xlim=(-3, 3), ylim=_room(curves, "loss", 8.0))
    for panel, name in zip(axes, ("weight", "push", "loss"), strict=True):
        panel.axvline(0, color=QUIET, linewidth=0.8, linestyle=":", zorder=1)
        draw_lines(panel, _lines(curves, name))


def _room(curves: Mapping[str, Curve], name: str, most: float) -> tuple[float, float]:
    """Limits that show every line, but for what lies above `most` or below its negative."""
    values = np.concatenate([getattr(curve, name) for curve in curves.values()])
    low, high = max(-most, min(0.0, values.min())), min(most, max(0.0, values.max()))
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _lines(curves: Mapping[str, Curve], name: str) -> list[Line]:
    shades = colours(list(curves))
    return [Line(label, shades[label], curve.x, getattr(curve, name)) for label, curve in curves.items()]


def draw_profile(
    scored: Scored,
    data: DataProfile,
    profiles: Sequence[MethodProfile],
    labels: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
) -> Images:
    """The tokens' probabilities, linear and logarithmic, and the share of SFT's gradient each method keeps of them.

    labels: all methods in the order of their colours, profiled or not, so that colours agree between figures.
    """
    log_p = scored.flat
    names = [profile.subject.label for profile in profiles]
    shades = {label: shade for label, shade in colours(labels or names).items() if label in names}

    def draw(figure: Figure) -> None:
        axes = [figure.add_subplot(1, 3, column) for column in (1, 2, 3)]
        style(axes[0], "Token probabilities", "probability", "share of tokens (log)")
        style(axes[1], "The same, logarithmic", "log₁₀ of the probability", "share of tokens (log)")
        for panel, values, bins in zip(axes, _views(log_p), _bins(log_p), strict=False):
            heights = np.histogram(values, bins)[0] / max(len(values), 1)
            panel.bar(bins[:-1], heights, width=np.diff(bins), align="edge", color=_BARS, edgecolor="white", lw=0.4)
            _log_heights(panel, bins, [heights], len(values))
        _deciles(axes[2], profiles, shades)

    title = f"{data.num_tokens:,} tokens of {data.num_rows:,} responses under the policy"
    return render(draw, 1, formats, title, shades)


def _deciles(axes: Axes, profiles: Sequence[MethodProfile], shades: Mapping[str, str]) -> None:
    style(axes, "Kept of SFT's gradient", "tenths of the tokens, the least likely first", "share kept")
    kept = {profile.subject.label: np.array(profile.kept_by_decile) for profile in profiles}
    values = np.concatenate([*kept.values(), [1.0]])
    most = min(_MOST_KEPT, float(values[np.isfinite(values)].max()))
    axes.set(xlim=(0.5, 10.5), ylim=(-0.08 * most, 1.15 * most))
    axes.set_xticks(range(1, 11))
    draw_lines(
        axes, [Line(label, shades[label], np.arange(1.0, 11.0), y) for label, y in kept.items()], marker="o", ms=3
    )


def draw_distributions(log_probs: Mapping[str, LogProbs | np.ndarray], formats: Sequence[str] = FORMATS) -> Images:
    """Token probabilities of the same data under several policies, as steps: linear left, logarithmic right.

    log_probs: label -> per-token log-probabilities in nats, as one array or one array a response (what `score`
    returns). The first is drawn black: the policy before training.
    """
    flat = {
        label: np.concatenate([*(values if isinstance(values, list) else [values]), np.zeros(0)]).astype(np.float64)
        for label, values in log_probs.items()
    }
    shades = colours(list(flat))

    def draw(figure: Figure) -> None:
        axes = [figure.add_subplot(1, 2, column) for column in (1, 2)]
        style(axes[0], "Linear", "token probability", "share of tokens (log)")
        style(axes[1], "Logarithmic", "log₁₀ of the token probability", "share of tokens (log)")
        for index, bins in enumerate(_bins(np.concatenate([*flat.values(), np.zeros(0)]))):
            views = {label: _views(values)[index] for label, values in flat.items()}
            heights = {label: np.histogram(shown, bins)[0] / max(len(shown), 1) for label, shown in views.items()}
            _log_heights(axes[index], bins, list(heights.values()), max([1, *map(len, views.values())]))
            draw_lines(axes[index], [_steps(label, shades[label], bins, share) for label, share in heights.items()])

    return render(draw, 1, formats, "Probabilities of the training tokens under each policy", shades)


def _views(log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and their decimal logarithms; rarer tokens than LOWEST stand in the first bin."""
    return np.exp(log_p), np.clip(log_p / np.log(10), LOWEST, 0.0)


def _bins(log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges for both views; the logarithmic one reaches down to the rarest token, by whole decades."""
    low = int(np.clip(np.floor(log_p.min(initial=0.0) / np.log(10)), LOWEST, -3))
    return _LINEAR_BINS, np.linspace(low, 0.0, round(-low / _LOG_BIN) + 1)


def _steps(label: str, colour: str, bins: np.ndarray, heights: np.ndarray) -> Line:
    """A step histogram as a line; empty bins are gaps."""
    shown = np.where(heights > 0, heights, np.nan)
    return Line(label, colour, np.repeat(bins, 2)[1:-1], np.repeat(shown, 2))


def _log_heights(axes: Axes, bins: np.ndarray, heights: Sequence[np.ndarray], num_tokens: int) -> None:
    """A logarithmic axis from below a single token's share to above the largest."""
    axes.set_yscale("log")
    axes.set(
        xlim=(bins[0], bins[-1]), ylim=(0.5 / max(num_tokens, 1), 3 * max(map(np.nanmax, heights), default=1) or 1)
    )
    plain_ticks(axes, "y")

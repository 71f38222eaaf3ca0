"""Worked solutions of the built-in problems in two styles and their mixture, with or without mistakes."""

from __future__ import annotations

import random
from collections.abc import Callable

from verl_ext.embedded.problems import Problem, Step, evaluate
from verl_ext.errors import UserError, nearest

DEMONSTRATION_SHARE = 0.15  # of the `mixed` style
_SLIPS = (-10, -2, -1, 1, 2, 10)


def solve(problem: Problem, style: str, rng: random.Random, noise: float = 0.0) -> str:
    """A worked solution that ends in `\\boxed{}`; with probability `noise` one of its steps is wrong.

    A wrong step is carried on, so the boxed answer is wrong as well. Raises UserError for an unknown style.
    """
    if style not in STYLES:
        raise UserError(f"Solution style '{style}' is unknown{nearest(style, STYLES)}. Known: {', '.join(STYLES)}.")
    wrong = rng.random() < noise
    while True:
        text, answer = STYLES[style](problem, rng, wrong)
        if (answer != problem.answer) == wrong:
            return text


def _work(path: tuple[Step, ...], rng: random.Random, wrong: bool) -> tuple[list[str], int]:
    """Equations of a path, and its last result; one of them slips if `wrong`."""
    slip = rng.randrange(len(path)) if wrong else -1
    results: list[int] = []
    equations = []
    for index, step in enumerate(path):
        left, right = (str(results[int(o[1:])]) if o.startswith("#") else o for o in (step.left, step.right))
        value = evaluate(Step(step.operator, left, right), [])
        if value is None:  # after a slip: whatever a careless solver would write
            value = abs(int(left) - int(right)) if step.operator == "-" else int(left) // int(right)
        if index == slip:
            value = max(value + rng.choice(_SLIPS), 0)
        results.append(value)
        equations.append(_equation(step.operator, left, right, value))
    return equations, results[-1]


def _equation(operator: str, left: str, right: str, value: int) -> str:
    if operator == "?":
        return f"{right}\\cdot{value}={left}"
    symbol = "\\cdot" if operator == "*" else operator
    return f"{left}{symbol}{right}={value}"


def _terse(problem: Problem, rng: random.Random, wrong: bool) -> tuple[str, int]:
    """One line of equations, then the box; the first path twice as often as each of the others."""
    path = rng.choice((problem.paths[0], *problem.paths))
    equations, answer = _work(path, rng, wrong)
    return f"${','.join(equations)}$\n\\boxed{{{answer}}}", answer


def _demonstration(problem: Problem, rng: random.Random, wrong: bool) -> tuple[str, int]:
    """Sentences around each equation, on the last path."""
    equations, answer = _work(problem.paths[-1], rng, wrong)
    opening = rng.choice(("First", "We see that", "To begin,"))
    middle = rng.choice((". Then", ", and so", ". Next"))
    closing = rng.choice(("The answer is", "Hence we get", "So the result is"))
    work = f"{middle} ".join(f"${equation}$" for equation in equations)
    return f"{opening} {work}. {closing} $\\boxed{{{answer}}}$.", answer


def _mixed(problem: Problem, rng: random.Random, wrong: bool) -> tuple[str, int]:
    """What a base policy learns from: it knows how demonstrations are worded, but rarely writes so by itself."""
    style = _demonstration if rng.random() < DEMONSTRATION_SHARE else _terse
    return style(problem, rng, wrong)


STYLES: dict[str, Callable[[Problem, random.Random, bool], tuple[str, int]]] = {
    "terse": _terse,
    "demonstration": _demonstration,
    "mixed": _mixed,
}

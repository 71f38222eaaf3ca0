"""The built-in problem generator: short arithmetic and algebra in words, with worked LaTeX solutions.

It stands in for the public data sets where there is no network and no GPU, and keeps what a comparison of objectives
needs: several correct ways to solve one problem, worked solutions that are often wrong (what the base policy learns
from), and demonstrations that are always right but worded and ordered otherwise.

Pure Python, seeded, deterministic: the same arguments give the same problems on any machine. Splits are disjoint by
construction: the hash of a problem's kind and numbers names the only split that it may appear in, so no benchmark
problem shares even its numbers with a training problem, whatever the counts and seeds are.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from verl_ext.embedded.wording import FAMILIAR, HELD_OUT, Wording
from verl_ext.errors import UserError, nearest

VERSION = 1  # raise it whenever the same arguments give other problems or solutions
HELD_OUT_NUMBERS = (7, 11, 14)
NUMBERS = (3, 4, 5, 6, 8, 9, 10, 12, 13, 15)
SMALL = tuple(range(2, 8))
MAX_DRAWS_PER_PROBLEM = 2000  # a split that yields no new problem in so many draws is exhausted


@dataclass(frozen=True)
class Step:
    """One operation. An operand is a number, or `#i`: the result of step i.

    Operators: "+", "-", "*", "/", and "?" for a division that is written as the product it inverts (3*5=15 for 15/3).
    """

    operator: str
    left: str
    right: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem in words, its answer, and the ways to solve it (the last result is the answer)."""

    kind: str
    text: str
    answer: int
    paths: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a split draws from."""

    buckets: range  # of 100 hash buckets of (kind, numbers)
    numbers: tuple[int, ...] = NUMBERS
    three_step_share: float = 0.1
    wording: Wording = FAMILIAR


SPLITS: dict[str, Split] = {
    "pretraining": Split(buckets=range(0, 60)),
    "train": Split(buckets=range(60, 80)),
    "validation": Split(buckets=range(80, 85)),
    "in_distribution": Split(buckets=range(85, 90)),
    "harder": Split(buckets=range(90, 95), three_step_share=1.0),
    "other_range": Split(buckets=range(100), numbers=HELD_OUT_NUMBERS, three_step_share=0.0),
    "reworded": Split(buckets=range(95, 100), three_step_share=0.0, wording=HELD_OUT),
}


@dataclass(frozen=True)
class _Draft:
    """A problem before it is put into words; `signs` belong to numbers that are written with a verb or an operator."""

    numbers: tuple[int, ...]
    signs: dict[int, str]  # index of the number -> "+" or "-"
    paths: tuple[tuple[Step, ...], ...]


def _step(operator: str, left: int | str, right: int | str) -> Step:
    return Step(operator, str(left), str(right))


def _signs(rng: random.Random, *indices: int) -> dict[int, str]:
    return {index: rng.choice("+-") for index in indices}


def _change(rng: random.Random, numbers: tuple[int, ...], three: bool) -> _Draft:
    """a, then b and c (and d) come or go. Paths: in order; in another order; the changes first."""
    a, b, c, d = rng.choice(numbers), rng.choice(SMALL), rng.choice(SMALL), rng.choice(SMALL)
    signs = _signs(rng, 1, 2, 3) if three else _signs(rng, 1, 2)
    s, t = signs[1], signs[2]
    in_order = [_step(s, a, b), _step(t, "#0", c)]
    swapped = [_step(t, a, c), _step(s, "#0", b)]
    if s == t:
        net = [_step("+", b, c), _step(s, a, "#0")]
    elif b >= c:
        net = [_step("-", b, c), _step(s, a, "#0")]
    else:
        net = [_step("-", c, b), _step(t, a, "#0")]
    tail = [_step(signs[3], "#1", d)] if three else []
    kept = (a, b, c, d) if three else (a, b, c)
    return _Draft(kept, signs, tuple(tuple(path + tail) for path in (in_order, swapped, net)))


def _bags(rng: random.Random, numbers: tuple[int, ...], three: bool) -> _Draft:
    """a bags of b, then c (and d) come or go. Paths: a*b or b*a first; one bag apart."""
    a, b, c, d = rng.choice(SMALL), rng.choice(SMALL), rng.choice(numbers), rng.choice(SMALL)
    signs = _signs(rng, 2, 3) if three else _signs(rng, 2)
    tail = [_step(signs[2], "#0", c)] + ([_step(signs[3], "#1", d)] if three else [])
    paths = tuple((_step("*", left, right), *tail) for left, right in ((a, b), (b, a)))
    return _Draft((a, b, c, d) if three else (a, b, c), signs, paths)


def _sets(rng: random.Random, numbers: tuple[int, ...], three: bool) -> _Draft:
    """a bags, each with b red and c blue (then d come or go). Paths: sum first; each colour first."""
    a, b, c, d = rng.choice((2, 3, 4)), rng.choice(numbers), rng.choice(SMALL), rng.choice(SMALL)
    signs = _signs(rng, 3) if three else {}
    paths = [
        [_step("+", b, c), _step("*", a, "#0")],
        [_step("*", a, b), _step("*", a, c), _step("+", "#0", "#1")],
    ]
    if three:
        paths = [path + [_step(signs[3], f"#{len(path) - 1}", d)] for path in paths]
    return _Draft((a, b, c, d) if three else (a, b, c), signs, tuple(map(tuple, paths)))


def _number(rng: random.Random, numbers: tuple[int, ...], three: bool) -> _Draft:
    """a*x + b (+ c) = d, x wanted. Paths: undo and divide; undo and find the factor."""
    a, x, b, c = rng.choice(SMALL), rng.choice(SMALL), rng.choice(numbers), rng.choice(SMALL)
    signs = _signs(rng, 1, 2) if three else _signs(rng, 1)
    total = a * x + (b if signs[1] == "+" else -b)
    undo = [_step("-" if signs[1] == "+" else "+", total, b)]
    if three:
        total += c if signs[2] == "+" else -c
        first = _step("-" if signs[2] == "+" else "+", total, c)
        undo = [first, _step(undo[0].operator, "#0", b)]
    last = f"#{len(undo) - 1}"
    paths = tuple((*undo, _step(operator, last, a)) for operator in "/?")
    return _Draft((a, b, c, total) if three else (a, b, total), signs, paths)


def _pair(rng: random.Random, numbers: tuple[int, ...], three: bool) -> _Draft:
    """x + y = a, x - y = b, x wanted (then c come or go). Paths: x first; y first."""
    less, b, c = rng.choice(NUMBERS), rng.choice(numbers), rng.choice(SMALL)
    a = 2 * less + b
    signs = _signs(rng, 2) if three else {}
    paths = [
        [_step("+", a, b), _step("/", "#0", 2)],
        [_step("-", a, b), _step("/", "#0", 2), _step("+", "#1", b)],
    ]
    if three:
        paths = [path + [_step(signs[2], f"#{len(path) - 1}", c)] for path in paths]
    return _Draft((a, b, c) if three else (a, b), signs, tuple(map(tuple, paths)))


_KINDS: dict[str, Callable[[random.Random, tuple[int, ...], bool], _Draft]] = {
    "change": _change,
    "bags": _bags,
    "sets": _sets,
    "number": _number,
    "pair": _pair,
}


def evaluate(step: Step, results: list[int]) -> int | None:
    """Result of a step after the earlier ones; None if it is negative or not whole."""
    left, right = (results[int(o[1:])] if o.startswith("#") else int(o) for o in (step.left, step.right))
    if step.operator in "/?":
        return left // right if right and left % right == 0 else None
    value = {"+": left + right, "-": left - right, "*": left * right}[step.operator]
    return value if value >= 0 else None


def run_path(path: tuple[Step, ...]) -> list[int] | None:
    """Results of all steps, or None if one of them is negative or not whole."""
    results: list[int] = []
    for step in path:
        value = evaluate(step, results)
        if value is None:
            return None
        results.append(value)
    return results


def generate(split: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` different problems of a split, in a fixed order: a longer list begins with the shorter one.

    Raises UserError for an unknown split and for a count that the split cannot give.
    """
    if split not in SPLITS:
        raise UserError(
            f"Built-in problem split '{split}' is unknown{nearest(split, SPLITS)}. Known: {', '.join(SPLITS)}."
        )
    rng = random.Random(f"{split}-{seed}")
    problems: dict[str, Problem] = {}
    for _ in range(count * MAX_DRAWS_PER_PROBLEM):
        if len(problems) == count:
            break
        problem = _draw(rng, SPLITS[split])
        if problem is not None:
            problems.setdefault(problem.text, problem)
    else:
        raise UserError(f"Built-in split '{split}' has no {count} different problems. Ask for fewer.")
    return list(problems.values())


def _draw(rng: random.Random, split: Split) -> Problem | None:
    kind = rng.choice(tuple(_KINDS))
    three = rng.random() < split.three_step_share
    draft = _KINDS[kind](rng, split.numbers, three)
    key = f"{kind} {draft.numbers} {sorted(draft.signs.items())}"
    if hashlib.sha256(key.encode()).digest()[0] * 100 // 256 not in split.buckets:
        return None
    results = run_path(draft.paths[0])
    if results is None or min(draft.numbers) < 1:
        return None
    paths = tuple(path for path in draft.paths if run_path(path) is not None)
    text = _put_into_words(rng, split.wording, f"{kind}{3 if three else 2}", draft)
    return Problem(kind=kind, text=text, answer=results[-1], paths=paths)


def _put_into_words(rng: random.Random, wording: Wording, frame: str, draft: _Draft) -> str:
    first, second = rng.sample(wording.names, 2)
    slots: dict[str, object] = {"n": first, "m": second, "o": rng.choice(wording.objects)}
    for index, number in enumerate(draft.numbers):
        letter = "abcd"[index]
        slots[letter] = number
        if index in draft.signs:
            gain = draft.signs[index] == "+"
            if frame.startswith("number"):
                verb = "plus" if gain else "minus"
            else:
                verb = rng.choice(wording.gains if gain else wording.losses)
            slots[letter.upper()] = f"{verb} {number}"
    return rng.choice(wording.frames[frame]).format(**slots)

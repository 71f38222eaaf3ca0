"""Words of the built-in problems: names, objects, verbs and sentence frames; a second set is held out for `reworded`.

A frame is a format string over the numbers of its kind (`a`, `b`, ...), `{n}` and `{m}` (two names), `{o}` (objects)
and, where a number comes with a sign, `{b_gain}`-like slots that are filled with verb and number ("finds 4").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wording:
    """One vocabulary: `gains` and `losses` are verbs, `frames` the sentence frames by kind and number of steps."""

    names: tuple[str, ...]
    objects: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    frames: dict[str, tuple[str, ...]]


FAMILIAR = Wording(
    names=("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Hana"),
    objects=("nuts", "pens", "coins", "cards", "eggs", "keys"),
    gains=("finds", "buys", "gets"),
    losses=("loses", "sells", "gives"),
    frames={
        "change2": (
            "{n} has {a} {o}, {B}, {C}. How many {o} now?",
            "With {a} {o}, {n} {B}, then {C}. How many {o} now?",
        ),
        "change3": ("{n} has {a} {o}, {B}, {C}, {D}. How many {o} now?",),
        "bags2": (
            "{n} has {a} bags of {b} {o}, {C}. How many {o} now?",
            "In {a} bags {n} has {b} {o} each, then {C}. How many {o} now?",
        ),
        "bags3": ("{n} has {a} bags of {b} {o}, {C}, {D}. How many {o} now?",),
        "sets2": (
            "{n} has {a} bags of {b} red and {c} blue {o}. How many {o}?",
            "In {a} bags {n} has {b} red and {c} blue {o} each. How many {o}?",
        ),
        "sets3": ("{n} has {a} bags of {b} red and {c} blue {o}, {D}. How many {o} now?",),
        "number2": (
            "{a} times a number {B} is {c}. What is the number?",
            "{n} takes {a} times a number {B} and gets {c}. What is the number?",
        ),
        "number3": ("{a} times a number {B} {C} is {d}. What is the number?",),
        "pair2": (
            "{n} and {m} have {a} {o}. {n} has {b} more. How many {o} has {n}?",
            "Of {a} {o}, {n} has {b} more than {m}. How many {o} has {n}?",
        ),
        "pair3": ("{n} and {m} have {a} {o}. {n} has {b} more, then {C}. How many {o} has {n} now?",),
    },
)

HELD_OUT = Wording(
    names=("Ivy", "Joel", "Kim", "Leo", "Mia", "Ned"),
    objects=("beads", "shells", "stamps", "plums"),
    gains=FAMILIAR.gains,
    losses=FAMILIAR.losses,
    frames={
        "change2": ("{n} has {a} {o}, then {B}, {C}. How many {o} now?",),
        "bags2": ("With {a} bags of {b} {o}, {n} {C}. How many {o} now?",),
        "sets2": ("{n} has {a} bags, {b} red and {c} blue {o} each. How many {o}?",),
        "number2": ("{n} takes {a} times a number {B}, gets {c}. What is the number?",),
        "pair2": ("{n} and {m} have {a} {o}, {n} has {b} more. How many {o} has {n}?",),
    },
)

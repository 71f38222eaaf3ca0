"""Words of the built-in problems: names, objects, verbs and sentence frames, with a second set held out for `reworded`.

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
    gains=("gets", "finds", "buys"),
    losses=("sells", "gives", "loses"),
    frames={
        "change2": (
            "How many {o} has {n} now? {n} has {a} {o}, then {B} and {C}.",
            "First {n} has {a} {o}. Then {n} {B} and {C}. How many are there?",
        ),
        "bags2": (
            "How many {o} has {n} now? {n} has {a} bags of {b} each, then {C}.",
            "There are {a} bags of {b} {o}. Then {n} {C}. How many are there?",
        ),
        "sets2": (
            "How many {o} has {n}? In {a} bags are {b} red and {c} blue {o} each.",
            "There are {a} bags, each of {b} red {o} and {c} blue {o}. How many are there?",
        ),
        "number2": (
            "What is the number of {n}? Taken {a} times {B} it is {c}.",
            "{n} has a number. The number times {a} {B} is {c}. What is it?",
        ),
        "pair2": (
            "How many {o} has {n}? {n} has {b} more than {m}, and there are {a}.",
            "There are {a} {o}. {m} has {b} less than {n}. How many has {n}?",
        ),
    },
)

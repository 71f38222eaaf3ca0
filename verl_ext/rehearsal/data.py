"""Problems of our own in the place of an experiment's data sets: the same columns, files and readers.

Every problem asks for a remainder of a division by four, so a policy that answers 0, 1, 2 or 3 at random is right in a
quarter of the cases. A hub's data set becomes a directory like a clone of its repository, with a card that names its
configurations and splits, and is loaded by the same function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_ext import artifacts
from verl_ext.config import Config, DataConfig, SourceConfig
from verl_ext.errors import UserError, nearest
from verl_ext.row_readers import ANSWER_COLUMNS, PROBLEM_COLUMNS, SOLUTION_COLUMNS

NUM_ANSWERS = 4
NUM_BENCHMARK_PROBLEMS = 8
SOLUTION = "It leaves \\boxed{{{answer}}}."
_FILLERS: dict[str, Any] = {"text": "not used", "number": 0, "boolean": False, "list": [], "record": {}}
_TRACE = "<think>\nFour goes into it.\n</think>\n\n{solution}"


def stand_in(config: Config, directory: Path, tokenizer: Path) -> Config:
    """`config` with data of `rehearse.num_problems` rows a split, written to `directory`.

    Sources that leave out long solutions count them with `tokenizer`.
    """
    shelf = _Shelf(directory, tokenizer)
    size = config.rehearse.num_problems
    splits = {name: shelf.place(source, size) for name, source in config.data.splits.items()}
    benchmarks = {name: shelf.place(source, NUM_BENCHMARK_PROBLEMS) for name, source in config.data.benchmarks.items()}
    shelf.write_cards()
    return replace(config, data=DataConfig(splits=splits, benchmarks=benchmarks))


class _Shelf:
    """A directory of stand-ins. A data set's card names the file of each configuration and split."""

    def __init__(self, directory: Path, tokenizer: Path):
        self._directory, self._tokenizer = directory, tokenizer
        self._cards: dict[Path, dict[str, dict[str, str]]] = {}  # data set -> configuration -> split -> file

    def place(self, source: SourceConfig, size: int) -> SourceConfig:
        """Write `size` rows; returns the source with their place as its path."""
        if source.source == "embedded":
            return replace(source, limit=min(source.limit or size, size))
        path = self._directory / re.sub(r"[^\w.-]+|\.\.+", "_", source.path)  # never outside the directory
        split = source.split.partition("[")[0]
        lines = "".join(json.dumps(row(source, index)) + "\n" for index in range(size)).encode()
        if source.source == "file":
            artifacts.write_bytes_atomically(path, lines)
        else:
            file = f"{source.name or 'data'}/{split}.jsonl"
            artifacts.write_bytes_atomically(path / file, lines)
            self._cards.setdefault(path, {}).setdefault(source.name or "default", {})[split] = file
        tokenizer = str(self._tokenizer) if source.max_solution_tokens else source.tokenizer
        return replace(source, path=str(path), num_rows=size, split=split, tokenizer=tokenizer)

    def write_cards(self) -> None:
        for path, configurations in self._cards.items():
            card = [
                {"config_name": name, "data_files": [{"split": split, "path": file} for split, file in files.items()]}
                for name, files in configurations.items()
            ]
            artifacts.write_bytes_atomically(path / "README.md", f"---\nconfigs: {json.dumps(card)}\n---\n".encode())


def problem(source: SourceConfig, index: int) -> tuple[str, str]:
    """The text of a problem, which no other source has, and its answer."""
    name = f"{source.path.rpartition('/')[2]} {source.split}"
    number = 100 + 7 * index
    return f"{name} {index}: what does {number} leave when divided by {NUM_ANSWERS}?", str(number % NUM_ANSWERS)


def row(source: SourceConfig, index: int) -> dict[str, Any]:
    """One row in the columns of the source. Raises UserError for a reader of which no stand-in is known."""
    if source.reader not in _ROWS:
        raise UserError(
            f"Rows of reader '{source.reader}' have no stand-in{nearest(source.reader, _ROWS)}. Rehearse with data of "
            f"one of: {', '.join(_ROWS)}."
        )
    text, answer = problem(source, index)
    solution = SOLUTION.format(answer=answer)
    fillers = {name: _FILLERS[kind] for name, kind in source.columns.items()}
    return fillers | _ROWS[source.reader](source, text, answer, solution)


def _columns(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    """By the columns that are declared, else the known names; a set without solutions has them in its answers."""

    def pick(given: str | None, known: tuple[str, ...]) -> str | None:
        return given or next((name for name in known if name in source.columns), None)

    asked = pick(source.problem_column, PROBLEM_COLUMNS) or PROBLEM_COLUMNS[0]
    answered = pick(source.answer_column, ANSWER_COLUMNS)
    solved = pick(source.solution_column, SOLUTION_COLUMNS)
    found: dict[str, Any] = {asked: text}
    if solved:
        found[solved] = _conversation(text, solution) if solved == "messages" else solution
        found |= {"messages": _conversation(text, solution)} if "messages" in source.columns else {}
    if answered or not solved:
        answered = answered or "answer"
        kinds = {"number": float(answer), "list": [answer]}
        marked = answer if solved else f"{solution}\n#### {answer}"
        found[answered] = kinds.get(source.columns.get(answered, "text"), marked)
    return found


def _conversation(text: str, solution: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": solution}]


def _openr1(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    """A trace that is wrong, and one that passes."""
    return {
        "problem": text,
        "answer": answer,
        "generations": [_TRACE.format(solution=part) for part in ("I give up.", solution)],
        "correctness_math_verify": [False, True],
        "is_reasoning_complete": [True, True],
    }


def _luffy(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "system", "content": "not used"}, {"role": "user", "content": text}],
        "target": [{"role": "assistant", "content": _TRACE.format(solution=solution)}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
    }


def _s1(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    return {
        "question": text,
        "solution": solution,
        "deepseek_thinking_trajectory": "Four goes into it.",
        "deepseek_attempt": solution,
    }


def _ultrafeedback(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    scored = [
        {"response": response, "fine-grained_score": score} for response, score in (("No.", 1.0), (solution, 5.0))
    ]
    return {"instruction": text, "completions": scored}


def _natural_questions(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    return {"question": text, "answer": [answer, f"exactly {answer}"]}


def _gpqa(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    wrong = [str(choice) for choice in range(NUM_ANSWERS) if str(choice) != answer]
    return {
        "Question": text,
        "Correct Answer": answer,
        **{f"Incorrect Answer {number}": choice for number, choice in enumerate(wrong, 1)},
    }


def _human_eval(source: SourceConfig, text: str, answer: str, solution: str) -> dict[str, Any]:
    return {
        "task_id": text,
        "prompt": f'def leaves(number):\n    """{text}"""\n',
        "canonical_solution": f"    return number % {NUM_ANSWERS}\n",
        "test": f"def check(candidate):\n    assert candidate({answer}) == {answer}\n",
        "entry_point": "leaves",
    }


_ROWS: Mapping[str, Any] = {
    "columns": _columns,
    "openr1": _openr1,
    "luffy": _luffy,
    "s1": _s1,
    "ultrafeedback": _ultrafeedback,
    "natural_questions": _natural_questions,
    "gpqa": _gpqa,
    "human_eval": _human_eval,
}

"""Artifact rows to verl's jagged TensorDict, and the two orders in which rows are used.

Token ids stay in Arrow buffers (read through zero-copy NumPy views); only the rows of one optimizer step become
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode

from verl_ext.errors import UserError


class Ragged:
    """A list column as flat values and offsets, without copying and without Python lists."""

    def __init__(self, column: pa.ChunkedArray | pa.Array):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        self.offsets = np.asarray(array.offsets, dtype=np.int64)
        self.values = np.asarray(array.values)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class PositivesDataset:
    """The rows of a positives artifact, optionally with reference log-probabilities, as training batches."""

    def __init__(self, table: pa.Table, ref_log_probs: pa.ChunkedArray | None = None):
        self.prompts = Ragged(table["prompt_token_ids"])
        self.responses = Ragged(table["response_token_ids"])
        self.quality = np.asarray(table["quality"])
        self.per_token: dict[str, Ragged] = {}
        if table["behavior_log_probs"].null_count == 0 and len(table):
            self.per_token["behavior_log_probs"] = Ragged(table["behavior_log_probs"])
        if ref_log_probs is not None:
            self.per_token["ref_log_probs"] = Ragged(ref_log_probs)

    def __len__(self) -> int:
        return len(self.quality)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and response, [rows]."""
        return self.prompts.lengths + self.responses.lengths

    def check(self, max_prompt_length: int, max_response_length: int, vocab_size: int) -> None:
        """Raise UserError, naming the first offending row, for anything that must not train."""
        if len(self) == 0:
            raise UserError("The training data has no rows. Curate with looser limits, or sample more.")
        problems = {
            "has an empty prompt": self.prompts.lengths == 0,
            "has an empty response": self.responses.lengths == 0,
            f"has a prompt longer than model.max_prompt_length={max_prompt_length}": self.prompts.lengths
            > max_prompt_length,
            f"has a response longer than model.max_response_length={max_response_length}": self.responses.lengths
            > max_response_length,
        }
        for reason, bad in problems.items():
            if bad.any():
                raise UserError(
                    f"Training row {int(bad.argmax())} {reason} ({int(bad.sum())} rows do). "
                    "Curate again with these limits, or raise them."
                )
        for name, ragged in (("prompt", self.prompts), ("response", self.responses)):
            if ragged.values.size and (ragged.values.max() >= vocab_size or ragged.values.min() < 0):
                raise UserError(
                    f"A {name} holds token id {int(ragged.values.max())}, but the model's vocabulary has {vocab_size} "
                    "entries: the data was tokenised for another model. Curate it again with this model's tokenizer."
                )
        for name, ragged in self.per_token.items():
            if not np.array_equal(ragged.lengths, self.responses.lengths):
                raise UserError(f"Column '{name}' is not as long as the responses in every row. Score the data again.")

    def batch(self, rows: Sequence[int] | np.ndarray) -> TensorDict:
        """Rows as verl's jagged TensorDict: `input_ids`, `loss_mask` (1 on response tokens), `quality`, and every
        per-token column laid over the whole sequence with zeros on the prompt."""
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        columns: dict[str, list[np.ndarray]] = {name: [] for name in self.per_token}
        for row in rows:
            prompt, response = self.prompts[row], self.responses[row]
            ids += [prompt, response]
            masks += [np.zeros(len(prompt), np.int64), np.ones(len(response), np.int64)]
            for name, ragged in self.per_token.items():
                columns[name] += [np.zeros(len(prompt), np.float32), ragged[row]]
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(self.lengths[rows])]))
        tensors: dict[str, Any] = {
            "input_ids": _jagged(ids, offsets, np.int64),
            "loss_mask": _jagged(masks, offsets, np.int64),
            "quality": torch.from_numpy(self.quality[rows].astype(np.float32)),
        }
        tensors |= {name: _jagged(parts, offsets, np.float32) for name, parts in columns.items()}
        return tu.get_tensordict(tensors, {"pad_mode": DatasetPadMode.NO_PADDING})


def _jagged(parts: list[np.ndarray], offsets: torch.Tensor, dtype: Any) -> torch.Tensor:
    values = torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def step_rows(num_rows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Rows of optimizer step `step` (from 0): a stream of epochs, each a permutation drawn from (seed, epoch).

    A pure function of its arguments, so that a resumed run sees the same rows. A batch may span two epochs.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_rows
    permutations = {epoch: np.random.default_rng([seed, epoch]).permutation(num_rows) for epoch in np.unique(epochs)}
    return np.array(
        [permutations[epoch][position % num_rows] for epoch, position in zip(epochs, positions, strict=True)]
    )


def deal_to_ranks(rows: np.ndarray, lengths: np.ndarray, num_ranks: int) -> np.ndarray:
    """Reorder a batch so that contiguous equal chunks, one a rank, carry about the same number of tokens.

    Rows are sorted by length and dealt in turn; within a rank they stay sorted, which groups micro-batches by length.
    """
    by_length = rows[np.argsort(lengths[rows], kind="stable")[::-1]]
    return np.concatenate([by_length[rank::num_ranks] for rank in range(num_ranks)])


def plan_micro_batches(lengths: Sequence[int], max_tokens: int, min_count: int = 1) -> list[list[int]]:
    """Group row indices by length into at least `min_count` micro-batches of at most `max_tokens` PADDED tokens.

    Neighbours in length share a micro-batch, so padding is small; a row longer than `max_tokens` gets its own. Every
    rank of a step must run the same number of micro-batches, hence `min_count`; it may not exceed the number of rows.
    """
    if min_count > len(lengths):
        raise ValueError(f"{len(lengths)} rows cannot be split into {min_count} micro-batches")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    for row in order:  # longest first: a group's first row fixes its padded width
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    while len(groups) < min_count:
        largest = max(range(len(groups)), key=lambda index: len(groups[index]))
        half = len(groups[largest]) // 2
        groups[largest : largest + 1] = [groups[largest][:half], groups[largest][half:]]
    return groups

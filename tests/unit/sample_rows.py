"""Rows of samples, for the tests of what reads them."""

from __future__ import annotations

from typing import Any


def sample_row(**values: Any) -> dict[str, Any]:
    """A row that is in order and correct, but for what `values` say: ids and token ids at least."""
    tokens = values["response_token_ids"]
    return {
        "data_source": "test",
        "ground_truth": "5",
        "response": f"answer {tokens}",
        "behavior_log_probs": [-0.5] * len(tokens or []),
        "finish_reason": "stop",
        "prediction": "5",
        "verdict": "correct",
        "verdict_seconds": 0.0,
        "reward": 1.0,
    } | values

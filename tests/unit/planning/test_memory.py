"""Bytes of a rank, worked out by hand, and the activations that autograd really keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.planning.shapes import SMALL
from verl_ext.config import ModelConfig
from verl_ext.planning.architecture import of_model, read
from verl_ext.planning.memory import MicroBatch, activation_bytes, idle_bytes, training_memory

MODEL = ModelConfig(dtype="bf16")
BATCH = MicroBatch(tokens=10, trained_tokens=4)


def test_a_small_decoder_on_two_ranks_worked_out_by_hand() -> None:
    found = training_memory(SMALL, MODEL, BATCH, num_ranks=2)
    assert found.parameters == found.gradients == 4 * 348 / 2
    assert found.moments == 8 * 348 / 2
    # embeddings and last norm are 348 - 2 x 152 = 44
    assert found.gathered == 2 * (3 * 152 + 2 * 44)
    # a layer keeps 8 x 4 + 2 x (4 x 4 + 2 x (4 + 2) + 4 x 8) = 152 bytes a token
    assert activation_bytes(SMALL, 2) == 152
    assert found.activations == 2 * 10 * 152
    assert found.logits == 14 * 4 * 10
    assert found.total == 696 + 696 + 1392 + 1088 + 3040 + 560


def test_checkpointing_keeps_what_enters_a_layer_and_one_layer_at_work() -> None:
    found = training_memory(SMALL, replace(MODEL, gradient_checkpointing=True), BATCH, num_ranks=2)
    assert found.activations == 10 * (2 * 2 * 4 + 152)


def test_adapters_have_gradients_and_moments_and_weights_do_not() -> None:
    found = training_memory(SMALL, replace(MODEL, lora_rank=1), BATCH, num_ranks=1)
    assert (found.parameters, found.gradients, found.moments) == (4 * 348, 4 * 128, 8 * 128)


def test_bf16_parameters_halve_the_state_and_copies_add_to_it() -> None:
    found = training_memory(SMALL, replace(MODEL, parameter_dtype="bf16"), BATCH, num_ranks=1, weight_copies=1)
    assert (found.parameters, found.gradients, found.moments) == (2 * 2 * 348, 2 * 348, 4 * 348)


def test_offloaded_weights_gradients_moments_and_copies_take_nothing_on_the_device() -> None:
    plain = training_memory(SMALL, MODEL, BATCH, num_ranks=2, weight_copies=1)
    always = training_memory(SMALL, replace(MODEL, offload="always"), BATCH, num_ranks=2, weight_copies=1)
    assert (always.parameters, always.gradients, always.moments) == (0, 0, 0)
    assert plain.total - always.total == (8 + 4 + 8) * 348 / 2
    assert training_memory(SMALL, replace(MODEL, offload="idle"), BATCH, num_ranks=2, weight_copies=1) == plain


def test_weights_and_moments_stay_beside_the_sampler_unless_they_are_offloaded() -> None:
    found = training_memory(SMALL, MODEL, BATCH, num_ranks=2)
    assert idle_bytes(found, MODEL) == (4 + 8) * 348 / 2
    assert idle_bytes(found, replace(MODEL, offload="idle")) == 0
    always = replace(MODEL, offload="always")
    assert idle_bytes(training_memory(SMALL, always, BATCH, num_ranks=2), always) == 0


def test_sequence_parallel_ranks_share_a_micro_batch_and_chunks_bound_the_logits() -> None:
    shared = replace(BATCH, num_shards=2)
    found = training_memory(SMALL, MODEL, shared, num_ranks=2)
    assert (found.activations, found.logits) == (2 * 10 * 152 / 2, 14 * 2 * 10)
    assert training_memory(SMALL, MODEL, replace(shared, chunk=1), num_ranks=2).logits == 14 * 1 * 10
    assert training_memory(SMALL, MODEL, replace(shared, chunk=64), num_ranks=2).logits == 14 * 2 * 10


def test_the_state_of_a_7b_model_is_16_bytes_a_parameter() -> None:
    found = training_memory(of_model("Qwen/Qwen2.5-Math-7B"), MODEL, BATCH, num_ranks=8)
    state = found.parameters + found.gradients + found.moments
    assert 8 * state == 16 * 7_615_616_512


@pytest.mark.parametrize(("dtype", "number"), [("bfloat16", 2), ("float32", 4)])
def test_autograd_keeps_as_much_for_a_layer_as_the_formula_says(dtype: str, number: int) -> None:
    """Bytes that a layer adds to what is saved for the backward pass; without what is a parameter."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    tokens = 64

    def kept(num_layers: int) -> int:
        settings = Qwen2Config(**config, num_hidden_layers=num_layers, attn_implementation="sdpa")
        model = Qwen2ForCausalLM(settings).to(getattr(torch, dtype))
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        saved: dict[int, Any] = {}  # the tensors themselves: a freed one's address would be used again

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(torch.zeros((1, tokens), dtype=torch.long))
        return sum(storage.nbytes() for storage in saved.values())

    shape = read({**config, "model_type": "qwen2", "num_hidden_layers": 1}, "it")
    per_layer = (kept(3) - kept(1)) / 2 / tokens
    assert per_layer == pytest.approx(activation_bytes(shape, number), rel=0.02)

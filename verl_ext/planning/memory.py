"""Bytes that one training rank holds at its peak, by what they are for.

N parameters of c bytes (model.parameter_dtype) are sharded over R ranks (FSDP2); T tokens are in a micro-batch, shared
by P ranks (train.sequence_parallel_size), T_r of them trained; b are the bytes of a number in model.dtype.

    parameters    c N / R; as much again for every copy of the weights that a method keeps
    gradients     c N / R, and moments 2 c N / R, of the parameters that train (with LoRA: the adapters)
    gathered      b (3 layer + 2 E): two layers whole while one is in use and the next arrives, embeddings, head and
                  last norm (E) throughout, and the whole gradients of one layer and of E
    activations   T / P x a for each layer, a = 8 h + b (4 h + 2 q + 2 kv + 4 i) bytes that its backward pass wants: two
                  norms keep their input in fp32 and their result twice, attention q, k, v and its output, the MLP
                  four times i. With gradient checkpointing T / P x b h for each layer and T / P x a for one
    logits        (12 + b) V bytes for each of T_r / P tokens, or of train.logits_chunk_tokens where that is less: the
                  logits, and in fp32 their log-softmax and the gradients of both

With model.offload=always weights, gradients, moments and copies are in CPU memory and take nothing on the device: the
node's share of c (4 + copies) N is there instead. `idle` changes nothing at this peak. While an online run samples,
parameters and moments stay beside the sampler with `none`, and nothing does with `idle` and `always`.

Not counted: the allocator's waste, communication buffers, CUDA's context, cuBLAS work space: leave a tenth free.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from verl_ext.config import ModelConfig
from verl_ext.planning.architecture import Architecture

_FP32 = 4
_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank."""

    parameters: float
    gradients: float
    moments: float
    gathered: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))

    @property
    def largest(self) -> str:
        """The part that takes most."""
        return max((field.name for field in fields(self)), key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The largest micro-batch: `tokens`, of which `trained_tokens` are in responses, shared by `num_shards` ranks."""

    tokens: float
    trained_tokens: float
    num_shards: int = 1
    chunk: int | None = None  # tokens whose logits exist at once

    @property
    def logit_rows(self) -> float:
        """Tokens whose logits a rank holds at once."""
        rows = self.trained_tokens / self.num_shards
        return rows if self.chunk is None else min(rows, self.chunk)


def training_memory(
    shape: Architecture, model: ModelConfig, batch: MicroBatch, *, num_ranks: int, weight_copies: int = 0
) -> Memory:
    """Of a rank at work on its part of `batch`."""
    number, stored = _BYTES[model.dtype], _BYTES[model.parameter_dtype]
    trainable = shape.lora_parameters(model.lora_rank) if model.lora_rank else shape.num_parameters
    root = shape.num_parameters - shape.num_layers * shape.layer_parameters
    layer, boundary = activation_bytes(shape, number), number * shape.hidden_size
    activations = shape.num_layers * boundary + layer if model.gradient_checkpointing else shape.num_layers * layer
    share = 0 if model.offload == "always" else stored / num_ranks
    return Memory(
        parameters=share * (1 + weight_copies) * shape.num_parameters,
        gradients=share * trainable,
        moments=2 * share * trainable,
        gathered=number * (3 * shape.layer_parameters + 2 * root),
        activations=activations * batch.tokens / batch.num_shards,
        logits=(3 * _FP32 + number) * batch.logit_rows * shape.vocab_size,
    )


def idle_bytes(training: Memory, model: ModelConfig) -> float:
    """What a policy that is trained online keeps on the device while it is sampled."""
    return training.parameters + training.moments if model.offload == "none" else 0.0


def activation_bytes(shape: Architecture, number: int) -> int:
    """What one layer keeps of one token for its backward pass; `number` bytes a number."""
    norms = 2 * _FP32 * shape.hidden_size
    return norms + number * (4 * shape.hidden_size + 2 * (shape.q_size + shape.kv_size) + 4 * shape.intermediate_size)

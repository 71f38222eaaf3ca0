"""`OfflineActorEngine`: verl's FSDP engine with logits only where the loss needs them.

Differences from `FSDPEngineWithLMHead` of verl 0.9.1, each by overriding one of its methods:

- the language-model head runs on the positions that predict a trained token, not on prompts and padding, in chunks
  where `logits_chunk_tokens` is set;
- micro-batches group rows by length and are bounded by their padded size, so a CPU wastes little on padding;
- log-probabilities are computed in fp32;
- a method may ask for a second set of weights (an average of the policy, or the initial policy for an exact KL);
- the counts that normalisers need (tokens, sequences, micro-batches over all ranks) travel with each micro-batch.

With Ulysses sequence parallelism each rank runs its part of the packed sequence, and the head on those of the positions
that lie there. What comes of it is gathered before the loss, so that every rank of the group sees whole responses.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_torch_device
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import postprocess_batch_func

from verl_ext.batching import plan_micro_batches, rows_of
from verl_ext.losses.base import Requirements
from verl_ext.response_head import ResponseHead
from verl_ext.weight_copies import WeightCopy

MODEL_TYPE = "offline_actor"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cpu", "cuda", "npu"])
class OfflineActorEngine(FSDPEngineWithLMHead):
    """Scores and trains fixed responses. `model_output["log_probs"]` is jagged over RESPONSE tokens."""

    logits_chunk_tokens: int | None = None  # takes effect when the model is built
    _head: ResponseHead
    _requirements: Requirements | None = None
    _initial: WeightCopy | None = None  # the policy before training, where its whole distribution is needed
    average: WeightCopy | None = None  # the moving average of the policy, where that is the reference

    def release(self) -> None:
        """Forget the model of the run before, so that the next one's weights do not lie beside it while they load."""
        for name in ("module", "optimizer", "lr_scheduler", "checkpoint_manager"):
            setattr(self, name, None)
        self._initial = self.average = None
        self.__dict__.pop("_head", None)
        gc.collect()
        get_torch_device().empty_cache()

    def prepare_for(self, requirements: Requirements) -> None:
        """Keep the copies of the weights just loaded that a method asks for."""
        self._requirements = requirements
        self._head.direction = requirements.kl
        needs_kl, kind = "ref_kl" in requirements.needs, requirements.reference.kind
        self._initial = WeightCopy(self.module) if needs_kl else None
        self.average = WeightCopy(self.module) if kind == "average" else None

    def _build_module(self) -> torch.nn.Module:
        self.model_config.model_type = "language_model"  # the only name verl's builder loads a causal model for
        module = super()._build_module()
        self._head = ResponseHead(module.get_output_embeddings(), self.logits_chunk_tokens)
        return module

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable[..., Any] | None, forward_only: bool = False
    ) -> dict[str, Any]:
        """Run all micro-batches of this rank's rows; gradients accumulate unless `forward_only`.

        With `weights="average"` in `data` the rows are scored under the moving average of the policy.
        """
        if tu.get_non_tensor_data(data, key="weights", default=None) == "average":
            assert self.average is not None and forward_only
            with self.average.in_place():
                return self._run_micro_batches(data, loss_function, forward_only)
        return self._run_micro_batches(data, loss_function, forward_only)

    def _run_micro_batches(
        self, data: TensorDict, loss_function: Callable[..., Any] | None, forward_only: bool
    ) -> dict[str, Any]:
        groups = self._plan(data)
        counts = self._global_counts(data)
        rows = _Rows(data)
        wants_entropy = bool(tu.get_non_tensor_data(data, key="calculate_entropy", default=False))
        outputs = []
        for index, group in enumerate(groups):
            micro_batch = rows.select(group)
            tu.assign_non_tensor(micro_batch, num_micro_batches=len(groups), calculate_entropy=wants_entropy, **counts)
            with torch.no_grad() if forward_only else nullcontext(), self._sync(index == len(groups) - 1, forward_only):
                loss, output = self.forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)
                if not forward_only:
                    loss.backward()
                    output.pop("model_output", None)
            outputs.append(output)
        if not forward_only and self._requirements is not None and self._requirements.normalizes_weights:
            self._divide_by_mean_weight(outputs)
        if not forward_only and not all(math.isfinite(output["loss"]) for output in outputs):
            self._spoil_gradient()
        tu.assign_non_tensor(data, use_dynamic_bsz=True)  # tells verl to put the rows back in order
        return postprocess_batch_func(output_lst=outputs, indices=groups, data=data)

    def _divide_by_mean_weight(self, outputs: list[dict[str, Any]]) -> None:
        """Scale the step's gradient so that the weights of all its tokens, over all ranks, have mean 1."""
        sums = [sum(output["metrics"][key] for output in outputs) for key in ("token_sum", "weight_sum")]
        totals = torch.tensor(sums, dtype=torch.float64, device=get_device_id())
        torch.distributed.all_reduce(totals, group=self.get_data_parallel_group())
        if totals[1] > 0:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(float(totals[0] / totals[1]))

    def _spoil_gradient(self) -> None:
        """Make the gradient NaN, so that its norm is NaN on every rank and none takes the step.

        A loss that is not finite on one rank may come with finite gradients.
        """
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(math.nan)

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable[..., Any] | None, forward_only: bool
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """verl's step; for a loss with a KL, the initial policy's distributions are computed first."""
        if self._initial is not None and loss_function is not None:
            with torch.no_grad(), self._initial.in_place(), self._head.reference_pass():
                super().forward_step(micro_batch, loss_function=None, forward_only=True)
        return super().forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)

    def _sync(self, is_last: bool, forward_only: bool) -> Any:
        return nullcontext() if forward_only else self._gradient_sync_context(is_last_micro_batch=is_last)

    def _plan(self, data: TensorDict) -> list[list[int]]:
        """Micro-batches of this rank; every rank gets the same number, since FSDP's collectives must match."""
        per_item = tu.get_non_tensor_data(data, key="rows_per_item", default=1)  # a pair is two rows, never parted
        num_items = len(data) // per_item
        size = tu.get_non_tensor_data(data, key="micro_batch_size", default=None)
        if size is not None:
            items = [list(range(start, min(start + size, num_items))) for start in range(0, num_items, size)]
            return [rows_of(group, per_item) for group in items]
        lengths = data["input_ids"].offsets().diff().view(-1, per_item).amax(dim=1).tolist()
        max_tokens = tu.get_non_tensor_data(data, key="max_tokens_per_micro_batch", default=None)
        assert max_tokens is not None, "either micro_batch_size or max_tokens_per_micro_batch must be set"
        max_tokens //= per_item
        count = torch.tensor(len(plan_micro_batches(lengths, max_tokens)), device=get_device_id())
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=self.get_data_parallel_group())
        return [rows_of(group, per_item) for group in plan_micro_batches(lengths, max_tokens, min_count=int(count))]

    def _global_counts(self, data: TensorDict) -> dict[str, int]:
        mask = data["loss_mask"]
        num_sequences = sum(bool(row.any()) for row in mask.unbind())
        num_tokens = int(mask.values().sum())
        per_item = tu.get_non_tensor_data(data, key="rows_per_item", default=1)
        if per_item > 1:  # one loss a pair, so a pair is what counts
            num_sequences = num_tokens = len(data) // per_item
        counts = torch.tensor([num_tokens, num_sequences], device=get_device_id())
        torch.distributed.all_reduce(counts, group=self.get_data_parallel_group())
        return {
            "num_tokens_global": int(counts[0]),
            "num_sequences_global": int(counts[1]),
            "dp_size": self.get_data_parallel_size(),
        }

    def lr_scheduler_step(self) -> float:
        """Advance the schedule; returns the learning rate that the step just made has used."""
        used = float(self.lr_scheduler.get_last_lr()[0])
        super().lr_scheduler_step()
        return used

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """verl's packed sequence where `use_remove_padding` is set, padded rows otherwise; aims the head."""
        input_ids, mask = micro_batch["input_ids"], micro_batch["loss_mask"].values().bool()
        # position t predicts token t + 1; prompts are never empty, so the shift stays within a row
        positions, labels = mask.nonzero().squeeze(-1) - 1, input_ids.values()[mask]
        arguments: dict[str, Any] = {}
        if self.use_remove_padding:
            inputs, arguments = self._packed(micro_batch)
            if self.use_ulysses_sp:
                arguments |= {"positions": positions, "shard": inputs["input_ids"].shape[1]}
                is_here, positions = self._within_shard(positions, arguments["shard"])
                labels = labels[is_here]
        else:
            inputs, shift = _padded(input_ids)
            positions = positions + shift[positions]
        wants_entropy = tu.get_non_tensor_data(micro_batch, key="calculate_entropy", default=False)
        self._head.aim(positions, labels, entropy=wants_entropy)
        return inputs, arguments

    def _packed(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        lengths = micro_batch["input_ids"].offsets().diff()
        positions = torch.cat([torch.arange(int(n), device=lengths.device) for n in lengths])
        offsets = micro_batch["input_ids"].offsets()
        micro_batch["position_ids"] = torch.nested.nested_tensor_from_jagged(positions, offsets)
        tu.assign_non_tensor(micro_batch, use_remove_padding=True, temperature=1.0)
        inputs: tuple[dict[str, Any], dict[str, Any]] = super().prepare_model_inputs(micro_batch)
        return inputs

    def _within_shard(self, positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which positions of the packed sequence lie on this rank of the sequence-parallel group, and where there."""
        here = positions - self.ulysses_device_mesh["sp"].get_local_rank() * length
        is_here = (here >= 0) & (here < length)
        return is_here, here[is_here]

    def _gather(self, values: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Values of the trained tokens on this rank -> of those of the whole group, in the order of the sequence."""
        _, here = self._within_shard(arguments["positions"], arguments["shard"])
        spread = values.new_zeros(arguments["shard"]).index_put((here,), values)
        return self._gather_and_unpad_packed(spread, arguments["pad_size"])[arguments["positions"]]

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """log pi(y_t | x, y_<t) of the trained tokens and, where asked for, `ref_kl` or `entropy`, which verl's
        `calculate_entropy` in the batch asks for: fp32, jagged [rows, tokens]."""
        found = self._head.read(output.logits)
        if self.use_ulysses_sp:
            found = {name: self._gather(values, output_args) for name, values in found.items()}
        mask = micro_batch["loss_mask"]
        cumulative = torch.cat([mask.offsets().new_zeros(1), mask.values().cumsum(0)])
        ends = cumulative[mask.offsets()]
        return {name: torch.nested.nested_tensor_from_jagged(flat, ends) for name, flat in found.items()}


def _padded(input_ids: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """The model's inputs as padded rows, and for each packed position how far it lies behind its padded place."""
    lengths = input_ids.offsets().diff()
    # the size must be given: a jagged tensor without a cached maximum pads to the number of all its tokens
    padded = torch.nested.to_padded_tensor(input_ids, 0, output_size=(len(lengths), int(lengths.max())))
    row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    shift = row * padded.shape[1] - input_ids.offsets()[row]
    # Padding is on the right, so causal attention alone keeps it out: no mask, and attention takes its fast path.
    position_ids = torch.arange(padded.shape[1], device=padded.device).unsqueeze(0).expand_as(padded)
    return {"input_ids": padded, "attention_mask": None, "position_ids": position_ids}, shift


class _Rows:
    """Cheap row selection from a jagged TensorDict: slices of flat tensors, no unbinding per micro-batch."""

    def __init__(self, data: TensorDict):
        self.jagged = {key: value for key, value in data.items() if isinstance(value, torch.Tensor) and value.is_nested}
        self.dense = {
            key: value for key, value in data.items() if isinstance(value, torch.Tensor) and key not in self.jagged
        }
        offsets = data["input_ids"].offsets()
        self.lengths, self.starts = offsets.diff(), offsets[:-1]

    def select(self, rows: list[int]) -> TensorDict:
        index = torch.tensor(rows, device=self.lengths.device)
        lengths = self.lengths[index]
        ends = lengths.cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        flat = torch.arange(int(ends[-1]), device=ends.device) + torch.repeat_interleave(
            self.starts[index] - offsets[:-1], lengths
        )
        tensors: dict[str, torch.Tensor] = {
            key: torch.nested.nested_tensor_from_jagged(value.values()[flat], offsets)
            for key, value in self.jagged.items()
        }
        tensors |= {key: value[index] for key, value in self.dense.items()}
        return tu.get_tensordict(tensors)

"""verl's synchronous PPO trainer, that keeps every sample, compares trainer and sampler, and saves as we do.

Runs in verl's task runner. Everything it adds happens between verl's own steps: nothing of a step is replaced.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_ext import artifacts, checkpoints, prompting, retention
from verl_ext.errors import UserError
from verl_ext.losses import verl_bridge  # noqa: F401  (registers the advantage estimator in this process)
from verl_ext.online.journal import STOPPED, Journal, Plan

NUM_PROBE_ROWS = 32
_POLL_SECONDS = 0.1  # verl's 2 s is longer than a small model's round

# our name in the log -> verl's metrics, the first that is there
_METRICS: dict[str, tuple[str, ...]] = {
    "entropy": ("actor/entropy",),
    "kl": ("actor/kl_loss",),
    "grad_norm": ("actor/grad_norm",),
    "learning_rate": ("actor/lr",),
    "loss": ("actor/pg_loss",),
    "clipped_fraction": ("actor/pg_clipfrac", "actor/clipped_fraction"),
    "mean_weight": ("actor/mean_weight",),
    "critic_loss": ("critic/vf_loss",),
    "critic_grad_norm": ("critic/grad_norm",),
}


@register_trainer("verified")
class VerifiedPPOTrainer(PPOTrainerSync):
    """`trainer.v1.trainer_mode=verified`; `trainer.plan` is the path of the run's `Plan`."""

    def __init__(self, config: Any):
        config.trainer.v1.trainer_mode = "sync"  # which verl asks for by name in more places than the registry
        super().__init__(config)
        self.replay_buffer.poll_interval = _POLL_SECONDS
        self.plan = Plan.read(config.trainer.plan)
        self.journal = Journal(self.plan)
        self._encoder = prompting.load_tokenizer(
            self.plan.model_path, self.plan.prompt_template, self.plan.trust_remote_code
        )
        self._encoded: dict[str, np.ndarray] = {}
        self._began = time.monotonic()
        self._batch: KVBatchMeta | None = None

    def fit(self, agent_loop_manager: Any) -> None:
        """Train to the end; what stops the run is left as a sentence for the process that started it."""
        self._began = time.monotonic()
        try:
            super().fit(agent_loop_manager)
        except UserError as error:
            artifacts.write_bytes_atomically(Path(self.plan.output_dir) / STOPPED, str(error).encode())
            raise

    def _load_checkpoint(self) -> None:
        trainer = self.config.trainer
        if trainer.resume_mode != "disable":  # verl unpickles what it finds there, wherever it is told to look
            checkpoints.require_intact(Path(trainer.resume_from_path or self.plan.output_dir).parent)
        super()._load_checkpoint()
        self.journal.resume(self.global_steps)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], **options: Any) -> KVBatchMeta:
        self.journal.check_count(self.global_steps, len(batch.keys))  # before verl fills up what is missing
        return super()._balance_batch(batch, metrics, **options)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(batch, metrics)
        trained, sampled = _columns(batch, ["old_log_probs", "rollout_log_probs"])
        self.journal.check_log_probs(self.global_steps, np.concatenate(trained), np.concatenate(sampled))
        return batch

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> KVBatchMeta:
        batch = super().step(metrics, timing_raw)
        self._batch = _without_padding(batch)
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        self.journal.write(self.global_steps, self._samples(self._batch), _select(metrics), seconds)
        return batch

    def _samples(self, batch: KVBatchMeta) -> pa.Table:
        """The round's responses as a samples artifact, sorted by prompt."""
        names = ["prompt_id", "data_source", "reward_model", "raw_prompt", "extra_fields"]
        tensors = ["prompts", "responses", "rollout_log_probs"]
        columns = dict(zip([*names, *tensors], _columns(batch, [*names, *tensors]), strict=True))
        rows = [
            self._row(key, {name: values[index] for name, values in columns.items()})
            for index, key in enumerate(batch.keys)
        ]
        rows.sort(key=lambda row: row["sample_id"])
        return pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["samples"])

    def _row(self, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        session = key.rsplit("_", 2)[1]
        prompt_ids, response_ids = values["prompts"].tolist(), values["responses"].tolist()
        self._check_prompt(values["prompt_id"], values["raw_prompt"], prompt_ids)
        verdict = values["extra_fields"]["reward_extra_info"]
        # verl reports a response that was cut as completed
        cut = len(response_ids) >= self.plan.max_response_length and response_ids[-1] not in self.plan.end_token_ids
        return {
            "sample_id": f"{values['prompt_id']}-{self.global_steps}-{session}",
            "prompt_id": values["prompt_id"],
            "data_source": values["data_source"],
            "ground_truth": values["reward_model"]["ground_truth"],
            "prompt_token_ids": prompt_ids,
            "response_token_ids": response_ids,
            "response": self._encoder.decode(response_ids, skip_special_tokens=True),
            "behavior_log_probs": values["rollout_log_probs"].tolist(),
            "finish_reason": "length" if cut else "stop",
            "prediction": verdict["prediction"],
            "verdict": verdict["verdict"],
            "verdict_seconds": verdict["verdict_seconds"],
            "reward": verdict["score"],
        }

    def _check_prompt(self, prompt_id: str, messages: Sequence[Mapping[str, str]], found: list[int]) -> None:
        """Raise UserError unless verl tokenised the prompt as every other stage does."""
        if prompt_id not in self._encoded:
            self._encoded[prompt_id] = np.array(prompting.encode_prompt(self._encoder, list(messages)), dtype=np.int32)
        expected = self._encoded[prompt_id]
        if not np.array_equal(found, expected):
            raise UserError(
                f"{self.plan.name}: verl tokenises prompt '{prompt_id}' into {found[:12]}... ({len(found)} tokens), "
                f"the sampler of the other stages into {expected[:12].tolist()}... ({len(expected)}). "
                "The policy would be trained on prompts it is not evaluated on; "
                "check model.prompt_template and the tokenizer's chat template."
            )

    def _save_checkpoint(self) -> None:
        """Let verl save into a directory of its own name, then seal it as one of our checkpoints."""
        step, steps_dir = self.global_steps, Path(self.plan.output_dir) / "steps"
        staging = checkpoints.staging_directory(steps_dir, step)
        self.config.trainer.default_local_dir = str(staging)
        super()._save_checkpoint()
        huggingface = staging / "huggingface"
        (staging / f"global_step_{step}" / "actor" / "huggingface").rename(huggingface)
        checkpoints.state_dtype(huggingface, "float32")  # the dtype of the master weights
        if step == self.plan.num_steps:
            self._write_probe(huggingface / checkpoints.PROBE)
        state = {"step": step, "records": self.journal.records}
        checkpoints.check_finite(staging, steps_dir)
        checkpoints.commit(staging, steps_dir, step, self.journal.lineage, state)
        retention.prune(steps_dir, self.plan.keep_last, self.plan.keep_best)

    def _write_probe(self, path: Path) -> None:
        """A few of the last samples with their log-probs under the final weights, to check samplers against."""
        assert self._batch is not None
        batch = self._batch
        batch.extra_info.update({"calculate_entropy": False, "compute_loss": False, "temperature": 1.0})
        self.actor_rollout_wg.compute_log_prob(batch)
        names = ["prompt_id", "prompts", "responses", "response_mask"]
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["log_probs", "response_mask"]
        )
        from verl.workers.utils.padding import response_from_nested

        scores = response_from_nested(data["log_probs"], data["response_mask"]).unbind()
        prompt_ids, prompts, responses, _ = _columns(batch, names)
        rows = [
            {
                "sample_id": f"probe-{index}",
                "prompt_id": prompt_ids[index],
                "prompt_token_ids": prompts[index].tolist(),
                "response_token_ids": responses[index].tolist(),
                "behavior_log_probs": scores[index].float().tolist(),
                "quality": 1.0,
            }
            for index in range(min(NUM_PROBE_ROWS, len(batch.keys)))
        ]
        table = pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["positives"])
        artifacts.write(path, "positives", table, self.journal.lineage)


def _without_padding(batch: KVBatchMeta) -> KVBatchMeta:
    """The sampled rows: verl fills a batch with copies where responses are missing."""
    kept = [index for index, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    return KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[batch.keys[index] for index in kept],
        tags=[batch.tags[index] for index in kept],
    )


def _columns(batch: KVBatchMeta, names: list[str]) -> list[list[Any]]:
    """Fields of a batch, one list a field: arrays without padding for tensors, plain objects for the rest."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    return [_values(data[name]) for name in names]


def _values(column: Any) -> list[Any]:
    if hasattr(column, "is_nested") and column.is_nested:
        return [row.cpu().numpy() for row in column.unbind()]
    if hasattr(column, "cpu"):
        return [row.cpu().numpy() for row in column]
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _select(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {name: next((metrics[key] for key in keys if key in metrics), None) for name, keys in _METRICS.items()}
    return {name: float(value) for name, value in found.items() if value is not None}

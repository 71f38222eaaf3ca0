"""Online training: verl's PPO trainer as a child process, with our verifier as the reward.

    <output_dir>/samples/step_000001.parquet   every response of a round with its verdict, as a samples artifact
    <output_dir>/log.jsonl                     one record a round
    <output_dir>/steps/step_000020/            resumable checkpoints (`checkpoints`); verl's own in global_step_20/
    <output_dir>/huggingface, manifest.json    the final weights; the run is finished
    <output_dir>/verl.log                      what verl and Ray said

The child runs `verl.trainer.main_ppo` with our trainer (`online.trainer`), which writes all of the above but the log
of verl. This process checks the run before it starts, shows its progress, stops it when it stalls, and publishes.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext import artifacts, checkpoints, cluster, compose, disk, judging, parallelism, prompting, refusals, sampling
from verl_ext.artifacts import Lineage
from verl_ext.config import ClusterConfig, ModelConfig, OnlineConfig, SamplerConfig, VerifyConfig
from verl_ext.errors import UserError
from verl_ext.locks import hold
from verl_ext.losses import get_method
from verl_ext.losses.online import ALIASES, resolve
from verl_ext.online.journal import LOG, Plan, write_log
from verl_ext.online.overrides import compose_overrides
from verl_ext.online.process import supervise

logger = logging.getLogger(__name__)

PACKAGES = ("verl", "torch", "transformers", "vllm")
_GRACE_SECONDS = 30.0  # for what is left of a killed run to end
# what the weights do not depend on
_IGNORED = {
    "prompts",
    "output_dir",
    "max_log_prob_gap",
    "max_skipped_steps",
    "max_idle_seconds",
    "save_every",
    "keep_last",
    "keep_best",
}


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """One checkpoint to be made: an algorithm on a prompts artifact, from a model's weights."""

    name: str
    model: ModelConfig
    online: OnlineConfig
    prompts: Path
    output_dir: Path
    sampler: SamplerConfig = SamplerConfig()
    cluster: ClusterConfig = ClusterConfig()
    verify: VerifyConfig = VerifyConfig()
    overwrite: bool = False

    @property
    def steps_dir(self) -> Path:
        return self.output_dir / "steps"

    @property
    def model_path(self) -> Path:
        """Absolute: the child and Ray's workers run in directories of their own."""
        return Path(self.model.path).resolve()

    @property
    def num_ranks(self) -> int:
        return self.cluster.num_nodes * self.cluster.ranks_per_node

    def lineage(self) -> Lineage:
        """Everything the weights depend on; how often they are saved is not part of it."""
        stop = {} if self.model.stop is None else {"stop": self.model.stop}  # else those of the family
        config = {
            "online": {key: value for key, value in vars(self.online).items() if key not in _IGNORED},
            "model": {**self.model.identity(), **stop},
            "verifier": {**vars(judging.limits(self.verify)), "versions": self._verifier_versions()},
            "num_ranks": self.num_ranks,
        }
        inputs = {"prompts": self.prompts, "model": self.model_path}
        return artifacts.make_lineage("train_online", config, inputs, PACKAGES, self.online.seed)

    def _verifier_versions(self) -> dict[str, str]:
        rewards = judging.rewards_by_prompt(self.verify, self.prompts)
        return judging.versions(judging.rubric(self.verify), rewards.values())

    def overrides(self, resume_from: Path | None = None, ray_dir: str | None = None) -> list[str]:
        """The Hydra overrides of `verl.trainer.main_ppo`, complete; see `online.overrides`."""
        return compose_overrides(self, self.plan_path, resume_from, ray_dir)

    def environment(self) -> dict[str, str]:
        """Environment of the child and of every Ray process."""
        modules = ["verl_ext.plugin", "verl_ext.online.plugin"]
        variables = {
            **cluster.environment(self.cluster),
            "VERL_USE_EXTERNAL_MODULES": ",".join(modules),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "false",  # verl's default lets anyone who reaches the server load files
        }
        if cluster.runs_on_cpu(self.cluster):
            threads = str(self.sampler.threads or cluster.threads_per_rank(self.cluster) or 1)
            variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads}
        return variables

    @property
    def generation_config(self) -> Path:
        """What vLLM reads of every request's stop tokens, in training and validation."""
        return self.output_dir.resolve() / "generation_config.json"

    def end_token_ids(self) -> list[int]:
        """The ids that end a response where the offline sampler samples this model."""
        tokenizer = prompting.load_tokenizer(self.model.path, self.model.prompt_template, self.model.trust_remote_code)
        return sorted(prompting.end_token_ids(tokenizer, self.model))

    def chat_template(self) -> str | None:
        """The family's template where the sampler would use it; None where the tokenizer brings another."""
        family = prompting.get_template(self.model.prompt_template).chat_template
        tokenizer = prompting.load_tokenizer(self.model.path, self.model.prompt_template, self.model.trust_remote_code)
        return family if tokenizer.chat_template == family else None

    @property
    def plan_path(self) -> Path:
        return self.output_dir / "plan.json"

    def plan(self) -> Plan:
        """What our trainer inside verl has to know; see `online.journal.Plan`."""
        return Plan(
            name=self.name,
            output_dir=str(self.output_dir),
            model_path=str(self.model_path),
            prompt_template=self.model.prompt_template,
            trust_remote_code=self.model.trust_remote_code,
            num_steps=self.online.num_steps,
            samples_per_step=self.online.prompts_per_step * self.online.n,
            max_response_length=self.model.max_response_length,
            end_token_ids=self.end_token_ids(),
            max_log_prob_gap=self.online.max_log_prob_gap,
            max_skipped_steps=self.online.max_skipped_steps,
            max_failure_fraction=self.verify.max_failure_fraction,
            keep_last=self.online.keep_last,
            keep_best=self.online.keep_best,
            lineage=json.loads(self.lineage().to_json()),
        )


def validate(run: OnlineRun) -> None:
    """Check everything that can be checked before a process starts; raises UserError."""
    if not run.model.path:
        raise UserError("model.path is empty. Set it to a Hugging Face directory, or choose model=<name>.")
    if run.model.lora_rank:
        raise UserError(
            f"model.lora_rank={run.model.lora_rank}: online runs train all weights. Set model.lora_rank=0, or train "
            "adapters offline first; their checkpoint is merged, so an online run can start from it."
        )
    _check_loss(run.online)
    _check_sizes(run)
    judging.rewards_by_prompt(run.verify, run.prompts)
    prompts = artifacts.read(run.prompts, "prompts")
    if len(prompts) < run.online.prompts_per_step:
        raise UserError(
            f"'{run.prompts}' has {len(prompts)} prompts, fewer than online.prompts_per_step="
            f"{run.online.prompts_per_step}: verl would never fill a round. Lower it, or prepare more prompts."
        )
    sampling.encode_prompts(prompts, run.model, f"'{run.prompts}'")  # model, rows, lengths, vocabulary


def _check_loss(online: OnlineConfig) -> None:
    if online.loss is None:
        if online.params:
            raise UserError(
                f"online.params={online.params} belong to no method, since online.loss is null. Set online.loss, or "
                "online.clip_low and online.clip_high for the algorithm's own loss."
            )
        return
    if online.algorithm == "ppo":
        raise UserError(
            f"online.loss={online.loss} takes the verified reward in the place of advantages, so the critic of "
            "online.algorithm=ppo would have no use. Set online.algorithm=grpo, or online.loss=null."
        )
    method = get_method(ALIASES.get(online.loss, (online.loss, {}))[0])
    compose.validate(method.params, online.params, "online.params")
    resolve(online.loss, online.params)


def _check_sizes(run: OnlineRun) -> None:
    online, longest = run.online, run.model.max_prompt_length + run.model.max_response_length
    update = online.prompts_per_update or online.prompts_per_step
    if online.prompts_per_step % update:
        raise UserError(
            f"online.prompts_per_step={online.prompts_per_step} is no multiple of online.prompts_per_update={update}. "
            "Make it one, or leave prompts_per_update=null for one optimizer step a round."
        )
    if (update * online.n) % run.num_ranks:
        raise UserError(
            f"{update} prompts x {online.n} samples an optimizer step cannot be divided evenly among {run.num_ranks} "
            "ranks. Change online.prompts_per_update, online.n or cluster.ranks_per_node."
        )
    if online.max_tokens_per_micro_batch < longest:
        raise UserError(
            f"online.max_tokens_per_micro_batch={online.max_tokens_per_micro_batch} is less than the longest sequence "
            f"({run.model.max_prompt_length} prompt + {run.model.max_response_length} response tokens). Raise it to "
            f"{longest} or more."
        )
    if online.algorithm == "grpo" and online.loss is None and online.n < 2:
        raise UserError(
            f"online.n={online.n}: GRPO compares the samples of a prompt, so it needs at least 2. "
            "Raise online.n, or use online.algorithm=ppo."
        )
    parallelism.check_verl_overrides(run.model, online.verl_overrides)
    refusals.check_verl_overrides(online.verl_overrides, run.model.trust_remote_code)
    if run.cluster.num_nodes > 1 and run.cluster.address is None:
        raise UserError(f"cluster.num_nodes={run.cluster.num_nodes} needs cluster.address of a running Ray cluster.")


def train_online(run: OnlineRun) -> Path:
    """Train `run`; returns the directory of the Hugging Face checkpoint.

    A finished run with the same lineage is skipped, another one refused, an unfinished one continues from its last
    intact checkpoint. Raises UserError for bad input before any process starts, and when the run stops itself.
    """
    validate(run)
    checkpoints.check_weights(run.model_path)
    lineage = run.lineage()
    with hold(run.output_dir, _GRACE_SECONDS) as lock:
        if not checkpoints.should_run(run.output_dir, lineage, run.overwrite):
            return run.output_dir / "huggingface"
        run.output_dir.mkdir(parents=True, exist_ok=True)
        disk.require(run.output_dir, checkpoints.least_bytes(run.model_path), run.name)
        step = _train(run, lock)
        return checkpoints.publish(run.steps_dir / f"step_{step:06d}", run.output_dir, lineage)


def _train(run: OnlineRun, lock: int) -> int:
    """Let verl go from the newest intact checkpoint to the last round, whose number is returned."""
    step, records = _last_step(run)
    _remove_unfinished_saves(run.steps_dir)
    write_log(run.output_dir / LOG, records)  # rounds after the checkpoint are done again
    if step < run.online.num_steps:
        write_settings(run)
        supervise(run, step, lock)
        step, _ = _last_step(run)
    else:
        logger.info("%s: all %d rounds were done before; its weights are published now", run.name, step)
    if step != run.online.num_steps:
        raise UserError(
            f"{run.name}: verl ended after round {step} of {run.online.num_steps} without an error. "
            f"Read '{run.output_dir / 'verl.log'}', and run the same command again to continue."
        )
    return step


def write_settings(run: OnlineRun) -> None:
    """Write the two files that verl's processes read beside their configuration."""
    plan = run.plan()
    artifacts.write_bytes_atomically(run.plan_path, json.dumps(vars(plan), indent=1).encode())
    generation = json.dumps({"eos_token_id": plan.end_token_ids}).encode()
    artifacts.write_bytes_atomically(run.generation_config, generation)


def _last_step(run: OnlineRun) -> tuple[int, list[dict[str, Any]]]:
    """The round of the newest intact checkpoint, and the log up to there."""
    found = checkpoints.latest(run.steps_dir)
    return (0, []) if found is None else (int(found[1]["step"]), found[1]["records"])


def _remove_unfinished_saves(steps_dir: Path) -> None:
    for path in steps_dir.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)

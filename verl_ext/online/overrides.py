"""An online run as Hydra overrides of `python -m verl.trainer.main_ppo`: the one place where our keys become verl's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_ext.cluster import runs_on_cpu
from verl_ext.losses.online import ADVANTAGE
from verl_ext.platform.overrides import ppo_overrides

if TYPE_CHECKING:
    from verl_ext.online.run import OnlineRun

_STORE_BYTES = 512 * 2**20  # of Ray's object store on a CPU: a round's batch is far smaller


def compose_overrides(run: OnlineRun, plan_path: Path, resume_from: Path | None, ray_dir: str | None) -> list[str]:
    """Everything verl is told. `resume_from` is verl's directory of a checkpoint, `ray_dir` where a local Ray writes.

    Later entries win; `online.verl_overrides` come last.
    """
    groups = (
        ppo_overrides(_num_ranks(run), run.sampler.kv_cache_gib) if runs_on_cpu(run.cluster) else _gpu(run),
        _data(run),
        _model(run),
        _actor(run),
        _loss(run),
        _critic(run) if run.online.algorithm == "ppo" else ["critic.enable=false"],
        _offload(run),
        _rollout(run),
        _reward(run),
        _trainer(run, plan_path, resume_from),
        _ray(run, ray_dir),
        run.online.verl_overrides,
    )
    return [override for group in groups for override in group]


def quote(value: Any) -> str:
    """A value as Hydra reads it: text in quotes, null, numbers, and mappings of those."""
    if isinstance(value, str):
        return "'" + value.replace("\\'", "\\\\'").replace("'", "\\'") + "'"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quote(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(quote(item) for item in value) + "]"
    return json.dumps(value)


def _num_ranks(run: OnlineRun) -> int:
    return run.cluster.num_nodes * run.cluster.ranks_per_node


def _gpu(run: OnlineRun) -> list[str]:
    precision = "bf16" if run.model.dtype == "bf16" else "fp32"
    overrides = [
        "actor_rollout_ref.actor.strategy=fsdp2",
        "critic.strategy=fsdp2",
        "actor_rollout_ref.rollout.name=vllm",
        f"actor_rollout_ref.rollout.tensor_model_parallel_size={run.sampler.tensor_parallel_size}",
        f"actor_rollout_ref.rollout.gpu_memory_utilization={run.sampler.gpu_memory_utilization}",
        f"actor_rollout_ref.rollout.enforce_eager={quote(run.sampler.enforce_eager)}",
        f"trainer.nnodes={run.cluster.num_nodes}",
        f"trainer.n_gpus_per_node={run.cluster.ranks_per_node}",
    ]
    dtype = run.sampler.dtype if run.sampler.dtype != "auto" else {"bf16": "bfloat16", "fp32": "float32"}[precision]
    overrides.append(f"actor_rollout_ref.rollout.dtype={dtype}")
    for engine in ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp"):
        overrides += [f"{engine}.strategy=fsdp2", f"+{engine}.mixed_precision.param_dtype={precision}"]
    for model in ("actor_rollout_ref.model", "critic.model"):
        overrides += [
            f"{model}.use_remove_padding={quote(run.model.use_remove_padding)}",
            f"+{model}.override_config.attn_implementation={run.model.attn_implementation}",
        ]
    return overrides


def _data(run: OnlineRun) -> list[str]:
    return [
        f"data.train_files={quote(str(run.prompts))}",
        f"data.val_files={quote(str(run.prompts))}",  # verl wants a file; nothing is validated
        "data.val_max_samples=1",
        f"data.train_batch_size={run.online.prompts_per_step}",
        f"data.max_prompt_length={run.model.max_prompt_length}",
        f"data.max_response_length={run.model.max_response_length}",
        "data.truncation=error",
        f"data.seed={run.online.seed}",
        f"data.trust_remote_code={quote(run.model.trust_remote_code)}",
    ]


def _model(run: OnlineRun) -> list[str]:
    overrides = []
    for model in ("actor_rollout_ref.model", "critic.model"):
        overrides += [
            f"{model}.path={quote(str(run.model_path))}",
            f"{model}.trust_remote_code={quote(run.model.trust_remote_code)}",
            f"{model}.enable_gradient_checkpointing={quote(run.model.gradient_checkpointing)}",
        ]
    template = run.chat_template()
    if template is not None:
        overrides.append(f"actor_rollout_ref.model.custom_chat_template={quote(template)}")
    return overrides


def _optimizer(run: OnlineRun, section: str, learning_rate: float) -> list[str]:
    online = run.online
    return [
        f"{section}.lr={learning_rate}",
        f"{section}.lr_scheduler_type={online.lr_schedule}",
        f"{section}.lr_warmup_steps_ratio={online.warmup_fraction}",
        f"{section}.weight_decay={online.weight_decay}",
        f"{section}.betas=[{online.beta1},{online.beta2}]",
        f"{section}.clip_grad={online.max_grad_norm}",
    ]


def _actor(run: OnlineRun) -> list[str]:
    online, actor = run.online, "actor_rollout_ref.actor"
    return [
        *_optimizer(run, f"{actor}.optim", online.learning_rate),
        f"{actor}.grad_clip={online.max_grad_norm}",
        f"{actor}.ppo_mini_batch_size={online.prompts_per_update or online.prompts_per_step}",
        f"{actor}.use_dynamic_bsz=true",
        f"{actor}.ppo_max_token_len_per_gpu={online.max_tokens_per_micro_batch}",
        f"{actor}.loss_agg_mode=token-mean",
        f"{actor}.clip_ratio={online.clip_low}",
        f"{actor}.clip_ratio_low={online.clip_low}",
        f"{actor}.clip_ratio_high={online.clip_high}",
        f"{actor}.entropy_coeff={online.entropy_coef}",
        f"{actor}.use_kl_loss={quote(online.kl_coef > 0)}",
        f"{actor}.kl_loss_coef={online.kl_coef}",
        f"{actor}.data_loader_seed={online.seed}",
        f"{actor}.fsdp_config.seed={online.seed}",
        f"{actor}.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"{actor}.checkpoint.load_contents=[model,optimizer,extra]",
    ]


def _loss(run: OnlineRun) -> list[str]:
    online = run.online
    overrides = [f"algorithm.gamma={online.discount}", f"algorithm.lam={online.gae_lambda}"]
    if online.loss is None:
        return [*overrides, f"algorithm.adv_estimator={ {'grpo': 'grpo', 'ppo': 'gae'}[online.algorithm] }"]
    policy_loss = "actor_rollout_ref.actor.policy_loss"
    return [
        *overrides,
        f"algorithm.adv_estimator={ADVANTAGE}",
        f"{policy_loss}._target_=verl_ext.losses.verl_bridge.PolicyLoss",
        f"{policy_loss}.loss_mode={online.loss}",
        f"+{policy_loss}.params={quote(dict(online.params))}",
    ]


def _critic(run: OnlineRun) -> list[str]:
    return [
        "critic.enable=true",
        *_optimizer(run, "critic.optim", run.online.critic_learning_rate),
        f"critic.grad_clip={run.online.max_grad_norm}",
        f"critic.ppo_max_token_len_per_gpu={run.online.max_tokens_per_micro_batch}",
        f"critic.data_loader_seed={run.online.seed}",
        f"critic.fsdp.seed={run.online.seed}",
        f"trainer.critic_warmup={run.online.critic_warmup_steps + 1}",  # the first round that trains the policy
    ]


def _offload(run: OnlineRun) -> list[str]:
    """What leaves the device; the reference policy of a KL is in CPU memory in any case."""
    keys = {"none": (), "idle": ("param_offload", "optimizer_offload"), "always": ("offload_policy",)}
    engines = ("actor_rollout_ref.actor.fsdp_config", "critic.fsdp")
    return [f"{engine}.{key}=true" for engine in engines for key in keys[run.model.offload]]


def _rollout(run: OnlineRun) -> list[str]:
    online, rollout = run.online, "actor_rollout_ref.rollout"
    return [
        f"{rollout}.n={online.n}",
        f"{rollout}.temperature={online.temperature}",
        f"{rollout}.top_p={online.top_p}",
        f"{rollout}.seed={online.seed}",
        f"{rollout}.max_model_len={run.model.max_prompt_length + run.model.max_response_length}",
        f"{rollout}.max_num_seqs={run.sampler.max_num_seqs}",
        f"{rollout}.max_num_batched_tokens={max(run.sampler.max_num_batched_tokens, run.sampler.max_num_seqs)}",
        f"{rollout}.calculate_log_probs=true",
        f"{rollout}.logprobs_mode=processed_logprobs",
        # verl's requests name no stop tokens: vLLM takes those of generation_config.json, here the run's own
        f"+{rollout}.engine_kwargs.vllm.generation_config={quote(str(run.generation_config.parent))}",
    ]


def _reward(run: OnlineRun) -> list[str]:
    memo = None if run.verify.memo is None else str(Path(run.verify.memo).resolve())
    function, manager = "reward.custom_reward_function", "reward.reward_manager"
    return [
        f"{function}.path=pkg://verl_ext.online.reward",
        f"{function}.name=compute_score",
        f"+{function}.reward_kwargs.verify={quote(json.dumps(vars(replace(run.verify, memo=memo))))}",
        f"{manager}.source=importlib",
        f"{manager}.name=StyledRewardManager",
        f"{manager}.module.path=pkg://verl_ext.online.reward_manager",
    ]


def _trainer(run: OnlineRun, plan_path: Path, resume_from: Path | None) -> list[str]:
    resume = ["trainer.resume_mode=disable"]
    if resume_from is not None:
        resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={quote(str(resume_from))}"]
    return [
        "trainer.v1.trainer_mode=verified",
        f"+trainer.plan={quote(str(plan_path))}",
        f"trainer.default_local_dir={quote(str(run.steps_dir))}",
        f"trainer.total_training_steps={run.online.num_steps}",
        f"trainer.total_epochs={run.online.num_steps}",  # the steps decide: an epoch has at least one
        f"trainer.save_freq={run.online.save_every or run.online.num_steps}",
        "trainer.logger=[]",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        f"trainer.experiment_name={quote(run.name)}",
        *resume,
    ]


def _ray(run: OnlineRun, ray_dir: str | None) -> list[str]:
    init = "ray_kwargs.ray_init"
    overrides = [
        # a cluster that runs already hears of our environment in this way alone
        f"+{init}.runtime_env.env_vars={quote(run.environment())}",
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
    ]
    on_cpu = runs_on_cpu(run.cluster)
    if run.cluster.address is not None:  # its resources are its own
        overrides += [f"+{init}.address={quote(run.cluster.address)}", f"{init}.num_cpus=null"]
        return [*overrides, f"{init}.num_gpus=null"] if on_cpu else overrides
    overrides += [f"+{init}.address=local", f"++{init}.include_dashboard=false", f"+{init}._temp_dir={quote(ray_dir)}"]
    return [*overrides, f"+{init}.object_store_memory={_STORE_BYTES}"] if on_cpu else overrides

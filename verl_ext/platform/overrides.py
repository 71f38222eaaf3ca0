"""What verl's PPO trainer is told on a CPU, as Hydra overrides of `verl.trainer.main_ppo`."""

from __future__ import annotations

_GIB = 1024**3


def ppo_overrides(num_ranks: int = 1, kv_cache_gib: float = 1.0) -> list[str]:
    """Overrides for `num_ranks` CPU processes that train, each beside a vLLM server that samples.

    Model, data, batch sizes and learning rates are the experiment's and not set here. `kv_cache_gib` bounds the cache
    of one vLLM server, which else takes half of the machine.
    """
    return [*_engines(), *_rollout(kv_cache_gib), *_cluster(num_ranks)]


def _engines() -> list[str]:
    overrides = [
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.use_torch_compile=false",
        "critic.strategy=fsdp2",
    ]
    for engine in ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp"):
        overrides += [f"{engine}.strategy=fsdp2", f"{engine}.use_torch_compile=false"]
        # bf16 autocast, verl's default, is slow on a CPU without AMX: 3 s a step instead of 0.5 s
        overrides += [f"+{engine}.mixed_precision.{kind}_dtype=fp32" for kind in ("param", "reduce", "buffer")]
    for model in ("actor_rollout_ref.model", "critic.model"):  # packed sequences need flash attention
        overrides += [f"{model}.use_remove_padding=false", f"+{model}.override_config.attn_implementation=sdpa"]
    return overrides


def _rollout(kv_cache_gib: float) -> list[str]:
    rollout = "actor_rollout_ref.rollout"
    return [
        f"{rollout}.name=vllm",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.dtype=float32",
        f"{rollout}.enforce_eager=true",
        f"{rollout}.free_cache_engine=false",  # vLLM cannot sleep on a CPU
        f"+{rollout}.enable_sleep_mode=false",
        f"+{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes={int(kv_cache_gib * _GIB)}",
        f"{rollout}.agent.num_workers=1",
    ]


def _cluster(num_ranks: int) -> list[str]:
    # Logical CPUs only: each rank reserves three, every other actor one, and a job that lacks one waits without a word.
    logical_cpus = 16 + 4 * num_ranks
    return [
        "trainer.device=cpu",
        "trainer.nnodes=1",
        f"trainer.n_gpus_per_node={num_ranks}",
        "data.dataloader_num_workers=0",
        "reward.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        f"+ray_kwargs.ray_init.num_gpus={num_ranks}",
        f"ray_kwargs.ray_init.num_cpus={logical_cpus}",
        "+ray_kwargs.ray_init.include_dashboard=false",
    ]

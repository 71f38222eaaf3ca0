"""The overrides name keys that verl's configuration has, and set the values a CPU needs."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from verl_ext.platform.overrides import ppo_overrides


def _compose(overrides: list[str]) -> DictConfig:
    import verl.trainer

    GlobalHydra.instance().clear()
    directory = Path(verl.trainer.__path__[0]) / "config"
    with initialize_config_dir(config_dir=str(directory), version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def test_every_key_is_one_of_verls() -> None:
    config = _compose(ppo_overrides(num_ranks=2, kv_cache_gib=0.5))
    assert config.trainer.device == "cpu"
    assert config.trainer.n_gpus_per_node == config.ray_kwargs.ray_init.num_gpus == 2
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes == 512 * 2**20


def test_no_engine_computes_in_bf16_or_compiles() -> None:
    config = _compose(ppo_overrides())
    for engine in ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp"):
        section = OmegaConf.select(config, engine)
        assert section.strategy == "fsdp2"
        assert not section.use_torch_compile
        assert set(section.mixed_precision.values()) == {"fp32"}
    for model in (config.actor_rollout_ref.model, config.critic.model):
        assert model.override_config.attn_implementation == "sdpa"
        assert not model.use_remove_padding


def test_ray_declares_enough_logical_cpus_for_every_actor_of_the_trainer() -> None:
    for num_ranks in (1, 2, 4):
        config = _compose(ppo_overrides(num_ranks=num_ranks))
        reserved = 3 * num_ranks  # placement groups
        servers = num_ranks
        single = 1 + 1 + 1 + 1 + 1 + 1  # task runner, queue controller and storage, reward, agent loop, load balancer
        assert config.ray_kwargs.ray_init.num_cpus >= reserved + servers + single

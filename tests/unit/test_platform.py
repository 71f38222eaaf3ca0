"""`PlatformCPU` is what verl's platform interface asks for, and a process without it says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]

# asked for where a GPU's own features are used: two memory limits, stream events of delta weight transfer
NOT_ON_A_CPU = {"set_per_process_memory_fraction", "Event"}


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh process, as a Ray worker would start: no platform chosen, no plugin named."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": str(REPOSITORY), "VERL_USE_EXTERNAL_PLUGINS": "none", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_platform_implements_every_abstract_method_of_verl() -> None:
    from verl.plugin.platform.platform_base import PlatformBase

    from verl_ext.platform.cpu import PlatformCPU

    platform = PlatformCPU()
    assert not PlatformCPU.__abstractmethods__
    assert isinstance(platform, PlatformBase)
    assert (platform.device_name, platform.vendor_name) == ("cpu", "cpu")
    assert platform.communication_backend_name() == "gloo"
    assert platform.current_device() == torch.device("cpu")
    assert platform.device_count() == 1
    assert platform.is_available()


def test_accelerator_calls_do_nothing_and_weights_do_not_travel_by_device_memory() -> None:
    from verl_ext.platform.cpu import PlatformCPU

    platform = PlatformCPU()
    platform.set_device(3)
    platform.synchronize()
    platform.empty_cache()
    platform.set_allocator_settings("expandable_segments:True")
    platform.profiler_start()
    platform.profiler_stop()
    with platform.nvtx_range("step"):
        pass
    assert not platform.is_ipc_supported()
    assert platform.get_device_capability() == (None, None)


def test_ray_places_a_rank_on_a_declared_gpu() -> None:
    from verl_ext.platform.cpu import PlatformCPU

    assert PlatformCPU().ray_resource_options(1) == {"num_gpus": 1}


def test_seeding_the_platform_seeds_torch() -> None:
    from verl_ext.platform.cpu import PlatformCPU

    platform = PlatformCPU()
    platform.manual_seed(7)
    first = torch.rand(3)
    platform.manual_seed_all(7)
    assert torch.equal(first, torch.rand(3))


def test_the_device_module_counts_no_memory_and_restores_the_random_state() -> None:
    from verl_ext.platform.cpu import PlatformCPU

    module = PlatformCPU().device_module
    assert module.max_memory_allocated() == module.memory_reserved() == 0
    free, total = module.mem_get_info()
    assert 0 < free <= total
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))


def test_the_device_module_has_everything_that_verl_asks_a_device_module_for() -> None:
    from verl_ext.platform.cpu import PlatformCPU

    spec = find_spec("verl")
    assert spec is not None and spec.origin is not None
    sources = Path(spec.origin).parent.rglob("*.py")
    asked_for = {name for path in sources for name in re.findall(r"get_torch_device\(\)\.(\w+)", path.read_text())}
    assert len(asked_for) > 10
    missing = {name for name in asked_for if not hasattr(PlatformCPU().device_module, name)}
    assert missing <= NOT_ON_A_CPU


def test_a_process_that_loads_the_plugin_runs_on_the_cpu_platform() -> None:
    code = (
        "import verl\n"
        "from verl.plugin.platform import get_platform\n"
        "assert get_platform().device_name == 'cpu', get_platform()\n"
        "from verl_ext.plugin import assert_registered\n"
        "assert_registered()\n"
    )
    result = _python(code, VERL_USE_EXTERNAL_MODULES="verl_ext.plugin", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="with an accelerator verl's own platform is the right one")
def test_a_process_that_verl_started_without_the_plugin_is_refused_with_the_remedy() -> None:
    code = (
        "from verl.plugin.platform import get_platform\n"
        "assert get_platform().device_name == 'cuda'\n"
        "from verl_ext.plugin import assert_registered\n"
        "assert_registered()\n"
    )
    result = _python(code)
    assert result.returncode == 1
    assert "RuntimeError: The plugin verl_ext.plugin is not active in this process" in result.stderr
    assert "VERL_USE_EXTERNAL_MODULES=verl_ext.plugin" in result.stderr

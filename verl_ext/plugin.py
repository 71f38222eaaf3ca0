"""What verl loads in every process (entry point `verl.plugins`, or `VERL_USE_EXTERNAL_MODULES=verl_ext.plugin`).

On a machine without an accelerator it registers the CPU platform and selects it; elsewhere it only keeps torch's
rendezvous to loopback where that is its address. verl logs a failing plugin at DEBUG only, so workers call
`assert_registered` and say what went wrong.
"""

from __future__ import annotations

import os
import warnings

import torch

from verl_ext import loopback


def _has_accelerator() -> bool:
    """Whether this machine has an accelerator, also in a Ray actor that asked for none and sees none."""
    if torch.cuda.is_available():
        return True
    from verl.plugin.platform.platform_manager import PlatformRegistry

    if torch.version.cuda is None and torch.version.hip is None and not hasattr(torch, "npu"):
        return False  # a CPU build of torch has no use for what nvidia-smi finds
    platforms = [PlatformRegistry.get(name) for name in PlatformRegistry.registered_names() if name != "cpu"]
    return any(platform().is_platform_available(use_smi_check=True) for platform in platforms if platform)


def on_cpu() -> bool:
    """Whether this process is to run on the CPU platform: asked for by `VERL_PLATFORM`, or nothing else is there."""
    asked_for = os.environ.get("VERL_PLATFORM", "").strip().lower()
    return asked_for == "cpu" if asked_for else not _has_accelerator()


def register() -> None:
    """Register and select the CPU platform and its patches; does nothing where there is an accelerator."""
    if not on_cpu():
        return
    from verl.plugin.platform.platform_manager import PlatformRegistry

    from verl_ext.platform import patches
    from verl_ext.platform.cpu import PlatformCPU

    if PlatformRegistry.get("cpu") is None:
        PlatformRegistry.register("cpu")(PlatformCPU)
    os.environ["VERL_PLATFORM"] = "cpu"
    patches.install()


def assert_registered() -> None:
    """Raise RuntimeError unless this process runs on the platform it should: verl swallows a failing plugin."""
    from verl.plugin.platform import get_platform

    if on_cpu() and get_platform().device_name != "cpu":
        raise RuntimeError(
            "The plugin verl_ext.plugin is not active in this process: verl selected the platform "
            f"'{get_platform().device_name}' on a machine without an accelerator. Install the project "
            "(scripts/setup.sh), or set VERL_USE_EXTERNAL_MODULES=verl_ext.plugin for every Ray process."
        )


# verl says in every process which engines it could not import; the only one in use here, FSDP's, is none of them
warnings.filterwarnings("ignore", message=r"\w+ engine is not available", module=r"verl\.workers\.engine")
loopback.confine_stores()
register()

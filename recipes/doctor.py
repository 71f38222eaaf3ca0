"""Look for what would stop an experiment later: versions, Ray, GPUs, disk, ports, upload, model files, templates.

    python -m recipes.doctor experiment=<name> [cluster.address=<address>] [doctor.ray=false]

Each line is ok, warning or error, with the remedy; the exit code is 1 where there is an error. A Ray worker is asked
on cluster.address, or on a local Ray that is started for it and ended again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from verl_ext import cluster, compose, hub, loopback
from verl_ext.checkup import findings, installation, model, network, ray_state, storage
from verl_ext.checkup.findings import Finding
from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout
from verl_ext.planning.estimate import estimate


def doctor(config: Config) -> list[Finding]:
    """All findings; what is quick comes first, Ray last."""
    return [
        *_installation(config),
        *_model(config),
        *_experiment(config),
        storage.check_temporary(storage.look(Path(tempfile.gettempdir()))),
        storage.check_size_of_upload(cluster.REPOSITORY, config.launch),
        network.check_ports(network.look(), config.doctor.ports, loopback.has_token()),
        *network.check_job_server(config.launch),
        *_ray(config),
    ]


def _installation(config: Config) -> list[Finding]:
    on_cpu = cluster.runs_on_cpu(config.cluster)
    stack = "cpu" if on_cpu else "gpu"
    pins = installation.read_pins(cluster.REPOSITORY / f"docker/requirements-{stack}.txt")
    stated = installation.stated_packages(cluster.REPOSITORY / "pyproject.toml", stack)
    versions = installation.installed_versions({*pins, installation.ANTLR, "flash-attn"})
    return [
        *installation.check_versions(pins, versions, stated, stack),
        installation.check_antlr(versions[installation.ANTLR], installation.accepted_antlr()),
        installation.check_attention(config.model, versions["flash-attn"], on_cpu),
    ]


def _model(config: Config) -> Iterator[Finding]:
    if not config.model.path:
        yield Finding(check="model", level="ok", message="the embedded policy, drawn from the seed.")
        return
    found = replace(config.model, path=hub.found(config))
    if hub.is_id(found.path):
        yield model.check_hub(found.path, hub.directory(config))
        return
    yield from model.check_files(found)
    yield from model.check_prompting(found)


def _experiment(config: Config) -> Iterator[Finding]:
    """The experiment can be planned, fits into the device of the plan, and its files onto the disk."""
    try:
        plan = estimate(config)
    except UserError as error:
        yield Finding(check="experiment", level="error", message=str(error))
        return
    message = f"'{config.experiment.name}', {plan.num_cells} checkpoint(s)."
    yield Finding(check="experiment", level="ok", message=message)
    yield from (Finding(check="experiment", level="warning", message=warning) for warning in plan.warnings)
    yield storage.check_disk(storage.look(RunLayout.of(config.run_dir).run_dir), plan.disk)


def _ray(config: Config) -> Iterator[Finding]:
    if not config.doctor.ray:
        yield Finding(check="ray", level="ok", message="not asked (doctor.ray=false).")
        return
    facts = ray_state.look(config)
    yield ray_state.check_plugin(facts, cluster.runs_on_cpu(config.cluster))
    yield from ray_state.check_gpus(facts, config.cluster, config.sampler)


def run(config: Config) -> None:
    """Entry point of `python -m recipes.doctor`."""
    found = doctor(config)
    if sys.stdout.isatty():
        Console().print(findings.table(found))
    else:
        sys.stdout.writelines(line + "\n" for line in findings.lines(found))
    sys.stdout.write(findings.summary(found) + "\n")
    sys.stdout.flush()
    if code := findings.exit_code(found):
        sys.exit(code)


if __name__ == "__main__":
    compose.main("doctor", run, __doc__)

"""Stages as Ray jobs, and the files for Slurm and KubeRay."""

from __future__ import annotations

import dataclasses
import os
import shlex
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from recipes import compare
from verl_ext import cluster
from verl_ext import compose as compose_module
from verl_ext.compose import compose
from verl_ext.config import Config, LaunchConfig
from verl_ext.errors import UserError
from verl_ext.launch import command as commands
from verl_ext.launch import kuberay, launch, ray_jobs, slurm
from verl_ext.launch.upload import check_upload, uploaded_files

OVERRIDES = ["experiment=embedded", "scale=smoke", "cluster=ray", "launch.retries=2", "cluster.ranks_per_node=2"]


def make(*extra: str, run_dir: str = "/shared/run") -> tuple[Config, commands.Command]:
    arguments = [*OVERRIDES, f"run_dir={run_dir}", *extra]
    config = compose(arguments)
    return config, commands.command(config, "compare", arguments)


def test_a_job_runs_the_users_command_on_the_cluster_it_is_on() -> None:
    _, command = make("experiment.stages=[rollout,verify]", "launch.python=/opt/bin/python")
    assert command.for_stages(["train sft-seed0"]) == [
        *("/opt/bin/python", "-m", "recipes.compare", "experiment=embedded", "scale=smoke", "cluster.ranks_per_node=2"),
        *("run_dir=/shared/run", "cluster=local", "cluster.address=auto", 'experiment.stages=["train sft-seed0"]'),
    ]
    inside = compose(command.for_stages(["train sft-seed0"])[3:])
    assert inside.launch.to == "local" and inside.cluster.address == "auto"
    assert inside.experiment.stages == ["train sft-seed0"]


def test_the_name_of_a_command_depends_on_what_it_does() -> None:
    assert make()[1].name == make("launch.retries=5")[1].name
    assert make()[1].name != make("train.num_steps=9")[1].name
    assert make()[1].name.startswith("embedded-") and commands.slug("train DFT/α-seed0") == "train-dft-seed0"


def test_a_relative_run_directory_is_refused_where_jobs_run_elsewhere() -> None:
    with pytest.raises(UserError, match=r"run_dir='runs/x' is relative.*absolute path on storage"):
        make(run_dir="runs/x")


def test_stages_are_chosen_by_name_in_their_order() -> None:
    names = compare.stage_names(make()[0])
    assert names[:4] == ["prepare", "rollout", "verify", "curate"] and names[-1] == "tabulate"
    assert "train sft-seed0" in names and "evaluate base-seed0" in names
    assert compare.choose_stages(names, ["verify", "prepare"]) == ["prepare", "verify"]
    assert compare.choose_stages(names, None) == names
    with pytest.raises(UserError, match=r"'rollouts' is no stage.*'rollout'"):
        compare.choose_stages(names, ["rollouts"])


class Cluster:
    """A job server in memory: each submitted job ends with the next status of its list."""

    def __init__(self, endings: list[str], known: dict[str, str] | None = None):
        self.endings, self.jobs = list(endings), dict(known or {})
        self.submitted: list[dict[str, Any]] = []

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=k, status=SimpleNamespace(value=v)) for k, v in self.jobs.items()]

    def submit_job(self, **job: Any) -> None:
        assert job["submission_id"] not in self.jobs
        self.submitted.append(job)
        self.jobs[job["submission_id"]] = self.endings.pop(0)

    def get_job_status(self, job: str) -> Any:
        if self.jobs[job] == "RUNNING":
            self.jobs[job] = self.endings.pop(0)
        return SimpleNamespace(value=self.jobs[job])

    async def tail_job_logs(self, job: str) -> Any:
        yield f"log of {job}\n"


def run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> list[str]:
    """Ids of the jobs that were submitted, without the command's name."""
    config, command = make()
    monkeypatch.setattr(ray_jobs, "connect", lambda settings: cluster)
    ray_jobs.run_stages(config, command, stages)
    return [job["submission_id"].removeprefix(f"{command.name}-") for job in cluster.submitted]


def test_a_failed_stage_is_submitted_again_and_the_next_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(["SUCCEEDED", "FAILED", "STOPPED", "SUCCEEDED", "SUCCEEDED"])
    assert run(cluster, monkeypatch, ["prepare", "rollout", "verify"]) == [
        *("prepare-1", "rollout-1", "rollout-2", "rollout-3", "verify-1")
    ]
    job = cluster.submitted[1]
    assert job["entrypoint"].startswith("python -m recipes.compare experiment=embedded")
    assert job["entrypoint"].endswith("""'experiment.stages=["rollout"]'""")
    assert "env_vars" not in job["runtime_env"] and ".venv" in job["runtime_env"]["excludes"]


def test_a_stage_that_keeps_failing_stops_the_run_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(["FAILED", "FAILED", "FAILED"])
    with pytest.raises(
        UserError, match=r"Stage 'prepare' failed 3 time\(s\); the last job is 'embedded-\w+-prepare-3'"
    ):
        run(cluster, monkeypatch, ["prepare", "rollout"])
    assert len(cluster.submitted) == 3


def test_the_same_command_finds_its_jobs_again(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    name = make()[1].name
    known = {f"{name}-prepare-1": "SUCCEEDED", f"{name}-rollout-1": "FAILED", f"{name}-rollout-2": "RUNNING"}
    cluster = Cluster(["SUCCEEDED", "SUCCEEDED"], known)
    assert run(cluster, monkeypatch, ["prepare", "rollout", "verify"]) == ["verify-1"]
    assert f"log of {name}-rollout-2" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(UserError, match=r"No Ray job server answers at launch\.dashboard='http://127\.0\.0\.1:9'"):
        ray_jobs.connect(LaunchConfig(dashboard="http://127.0.0.1:9"))


def test_the_upload_leaves_out_what_is_excluded_and_names_its_largest_files(tmp_path: Path) -> None:
    for name, size in {
        "a.py": 10,
        "runs/w.bin": 5000,
        "x/.venv/lib.so": 4000,
        "x/big.bin": 3000,
        "x/y/z.log": 9,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * size)
    excludes = [".venv", "runs/", "*.log"]
    assert dict(uploaded_files(tmp_path, excludes)) == {Path("a.py"): 10, Path("x/big.bin"): 3000}
    assert dict(uploaded_files(tmp_path, ["/x/y", "x/big.bin"])).keys() == {
        *(Path("a.py"), Path("runs/w.bin"), Path("x/.venv/lib.so"))
    }
    assert check_upload(tmp_path, excludes, 1) == 3010
    with pytest.raises(UserError, match=r"more than launch\.max_upload_mib=0\.001.*\n +0\.0 MiB  x/big\.bin\n"):
        check_upload(tmp_path, excludes, 0.001)


def test_the_project_itself_is_small_enough_to_upload() -> None:
    settings = LaunchConfig()
    root = Path(compare.__file__).parents[1]
    assert check_upload(root, settings.excludes, settings.max_upload_mib) > 10_000
    sent = {path.parts[0] for path, _ in uploaded_files(root, settings.excludes)}
    assert {"recipes", "verl_ext", "configs"} <= sent and not {".venv", ".git", "tests", "runs"} & sent


def stub(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_batch_script_starts_ray_on_every_node_and_then_the_experiment(tmp_path: Path) -> None:
    """Slurm's commands are stand-ins that write down how they were called."""
    config, command = make("cluster.num_nodes=3", "cluster.device=cuda", run_dir=str(tmp_path / "run dir"))
    calls, binaries = tmp_path / "calls", tmp_path / "bin"
    binaries.mkdir()
    stub(binaries, "scontrol", "printf 'n1\\nn2\\nn3\\n'")
    stub(
        binaries,
        "srun",
        f'echo "$RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") ${{RAY_ADDRESS-}}| $*" >>{calls}\n'
        'case "$*" in *--ip-address) echo 10.0.0.1 extra;; *ray.init*) echo 3;; esac',
    )
    script = tmp_path / "job.sbatch"
    (tmp_path / "run dir" / "submit").mkdir(parents=True)
    script.write_text(slurm.script(config, command, None))
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n",
    }
    subprocess.run(["bash", str(script)], env=environment, check=True, timeout=30)
    lines = calls.read_text().splitlines()
    started = sorted(line.partition("| ")[2] for line in lines if "ray start" in line)
    common = "--nodes=1 --ntasks=1 --overlap -w"
    assert started == [
        f"{common} n1 ray start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false --block",
        f"{common} n2 ray start --address=10.0.0.1:6379 --block",
        f"{common} n3 ray start --address=10.0.0.1:6379 --block",
    ]
    assert all(line.startswith("token 600 ") for line in lines)
    last = next(line for line in lines if "recipes.compare" in line)
    assert last.startswith("token 600 10.0.0.1:6379| ") and "cluster.address=auto" in last
    assert not list((tmp_path / "run dir" / "submit").glob(".token*"))
    text = script.read_text()
    assert "#SBATCH --nodes=3\n" in text and "#SBATCH --gpus-per-node=2\n" in text and "#SBATCH --exclusive\n" in text


def test_a_container_sees_what_its_job_reads_and_writes() -> None:
    """pyxis mounts nothing by itself: neither the token below run_dir nor the project would be there."""
    config, command = make("cluster=slurm", "launch.slurm.container=an image", "model.path=/models/m")
    lines = slurm.script(config, command, None).splitlines()
    calls = [line for line in lines if "ray start" in line or "recipes.compare" in line or "start() {" in line]
    root = compose_module.CONFIG_DIR.parent
    wanted = f"--container-mounts={root}:{root},/shared/run:/shared/run,/models/m:/models/m"
    for line in (calls[0], calls[-1]):
        assert {"--container-image=an image", wanted, f"--container-workdir={root}"} <= set(shlex.split(line))


@pytest.mark.parametrize("to", ["slurm", "kuberay"])
def test_the_devices_of_the_nodes_are_not_those_of_the_machine_that_submits(
    to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "runs_on_cpu", lambda _: True)
    config, command = make(f"cluster={to}")
    with pytest.raises(UserError, match=r"cluster\.device=auto: this machine has no GPU.*cluster\.device=cuda, or cpu"):
        launch(config, command, ["prepare"])


def test_on_cpus_ray_is_told_of_a_device_for_each_rank_and_engine() -> None:
    extra = ("cluster.device=cpu", "sampler.num_engines=3", "launch.kuberay.image=i", "launch.kuberay.volume_claim=c")
    config, command = make(*extra, run_dir="/runs/x")
    assert "ray start --num-gpus=5 --head" in slurm.script(config, command, None)
    head = yaml.safe_load(kuberay.manifest(config, command, None))["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-gpus": "5"}


def test_a_ray_job_manifest_has_one_pod_a_node() -> None:
    config, command = make(
        *("cluster=kuberay", "cluster.num_nodes=3", "cluster.device=cuda", "launch.kuberay.image=registry/image:1"),
        *("launch.kuberay.volume_claim=claim", "launch.kuberay.mount=/shared"),
    )
    document = yaml.safe_load(kuberay.manifest(config, command, ["prepare"]))
    assert (document["kind"], document["metadata"]["name"]) == ("RayJob", command.name)
    spec = document["spec"]
    assert spec["backoffLimit"] == 2 and spec["entrypoint"].endswith("""'experiment.stages=["prepare"]'""")
    ray_cluster = spec["rayClusterSpec"]
    assert ray_cluster["authOptions"] == {"mode": "token"}
    (workers,) = ray_cluster["workerGroupSpecs"]
    assert workers["replicas"] == 2
    for group in (ray_cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert {"name": "runs", "mountPath": "/shared"} in container["volumeMounts"]
        assert group["template"]["spec"]["securityContext"]["fsGroup"] > 0  # the image's user is not root
    config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, num_nodes=1))
    assert yaml.safe_load(kuberay.manifest(config, command, None))["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], r"launch\.kuberay\.image is empty.*docker/Dockerfile"),
        (["launch.kuberay.image=i"], r"run_dir='/shared/run' would be lost.*volume_claim"),
        (["launch.kuberay.image=i", "launch.kuberay.volume_claim=c"], r"below launch\.kuberay\.mount='/runs'"),
    ],
)
def test_a_manifest_that_would_lose_the_run_is_refused(extra: list[str], message: str) -> None:
    config, command = make("cluster=kuberay", *extra)
    with pytest.raises(UserError, match=message):
        kuberay.manifest(config, command, None)


def test_files_for_a_scheduler_are_written_beside_the_run(tmp_path: Path) -> None:
    config, command = make("cluster=slurm", "cluster.device=cpu", run_dir=str(tmp_path))
    path = launch(config, command, compare.stage_names(config))
    assert path == tmp_path / "submit" / f"{command.name}.sbatch"
    assert "experiment.stages" not in path.read_text()


def test_a_file_is_handed_to_the_scheduler_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, command = make("cluster=slurm", "cluster.device=cpu", "launch.submit=true", run_dir=str(tmp_path / "run"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"'sbatch' is not installed here.*launch\.submit=false"):
        launch(config, command, ["prepare"])
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    stub(tmp_path, "sbatch", f'echo "$1" >{tmp_path}/submitted; exit 3')
    with pytest.raises(UserError, match=r"`sbatch .*` failed with code 3; it says why above"):
        launch(config, command, ["prepare"])
    stub(tmp_path, "sbatch", f'echo "$1" >{tmp_path}/submitted')
    path = launch(config, command, ["prepare"])
    assert (tmp_path / "submitted").read_text().strip() == str(path)

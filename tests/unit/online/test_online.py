"""Online runs before anything starts: what verl is told, what is refused, what counts as the same run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from verl_ext import artifacts, checkpoints, cluster, loopback, prompting
from verl_ext import compose as our_compose
from verl_ext.config import ClusterConfig, ModelConfig, OnlineConfig, SamplerConfig, VerifyConfig
from verl_ext.errors import UserError
from verl_ext.locks import hold
from verl_ext.online import process as online_process
from verl_ext.online.overrides import quote
from verl_ext.online.run import OnlineRun, train_online, validate, write_settings

BASE_POLICY = Path(__file__).parents[3] / "verl_ext" / "embedded" / "base_policy"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "prompt_id": f"p{number}",
            "data_source": "embedded/train",
            "prompt": prompting.build_prompt(f"What is 2 plus {number}?", "problem-only"),
            "reward_model": {"style": "rule", "ground_truth": str(2 + number)},
            "extra_info": {"split": "train", "index": number, "problem": "", "solution": ""},
        }
        for number in range(8)
    ]
    path = tmp_path_factory.mktemp("data") / "prompts.parquet"
    table = pa.Table.from_pylist(rows, schema=artifacts.SCHEMAS["prompts"])
    artifacts.write(path, "prompts", table, artifacts.make_lineage("test", {}))
    return path


def make_run(prompts: Path, output_dir: Path, **changes: Any) -> OnlineRun:
    """A small GRPO run on a CPU; `changes` are of its `online` section, or whole sections."""
    model = ModelConfig(
        path=str(BASE_POLICY),
        prompt_template="problem-only",
        max_prompt_length=48,
        max_response_length=32,
        dtype="fp32",
    )
    sections = {name: changes.pop(name) for name in ("model", "cluster", "sampler", "verify") if name in changes}
    return OnlineRun(
        name="toy",
        online=OnlineConfig(**{"num_steps": 2, "prompts_per_step": 4, **changes}),
        prompts=prompts,
        output_dir=output_dir,
        **{"model": model, "cluster": ClusterConfig(device="cpu"), **sections},
    )


def verl_config(run: OnlineRun, **options: Any) -> DictConfig:
    """What `verl.trainer.main_ppo` composes from the run's overrides."""
    import verl.trainer

    overrides = [item for item in run.overrides(ray_dir="/tmp/ray-x", **options) if not item.startswith("hydra")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(Path(verl.trainer.__path__[0]) / "config"), version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def test_grpo_is_composed_for_verl(prompts: Path, tmp_path: Path) -> None:
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    config = verl_config(make_run(prompts, tmp_path, n=8, learning_rate=3e-4, seed=5, prompts_per_update=2))
    assert config.algorithm.adv_estimator == "grpo"
    assert config.critic.enable is False
    assert config.trainer.v1.trainer_mode == "verified"
    assert config.data.train_batch_size == 4 and config.actor_rollout_ref.actor.ppo_mini_batch_size == 2
    assert config.actor_rollout_ref.rollout.n == 8
    assert config.actor_rollout_ref.rollout.calculate_log_probs
    assert config.actor_rollout_ref.actor.optim.lr == 3e-4
    assert (config.data.seed, config.actor_rollout_ref.rollout.seed) == (5, 5)
    assert config.reward.custom_reward_function.path == "pkg://verl_ext.online.reward"
    assert resolve_reward_manager_cls(config).__name__ == "StyledRewardManager"
    assert config.trainer.resume_mode == "disable"
    assert config.trainer.logger == []


def test_verify_settings_reach_the_reward_and_the_lineage(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = VerifyConfig(grader="both", extraction=["box", "answer_line"], memo="memo", numeric_tolerance=0.01)
    run = make_run(prompts, tmp_path, verify=settings)
    sent = json.loads(verl_config(run).reward.custom_reward_function.reward_kwargs.verify)
    assert VerifyConfig(**sent) == dataclasses.replace(settings, memo=str(tmp_path / "memo"))
    plain = make_run(prompts, tmp_path).lineage().config["verifier"]["versions"]
    changed = run.lineage().config["verifier"]["versions"]
    assert changed["verifier"] == plain["verifier"] + ", grader both, extraction box+answer_line"
    table = artifacts.read(prompts, "prompts").to_pylist()
    for row, style in zip(table, ("numeric", "choice"), strict=False):
        row["reward_model"]["style"] = style
    mixed = tmp_path / "mixed.parquet"
    schema, lineage = artifacts.SCHEMAS["prompts"], artifacts.make_lineage("test", {})
    artifacts.write(mixed, "prompts", pa.Table.from_pylist(table, schema=schema), lineage)
    rewards = dataclasses.replace(run, prompts=mixed).lineage().config["verifier"]["versions"]["rewards"]
    assert (
        rewards
        == "reward choice, extraction box+answer_line; reward numeric, tolerance 0.01, extraction box+answer_line"
    )
    number = VerifyConfig(extraction=["last_number"])
    with pytest.raises(UserError, match="choice reward looks for a letter"):
        validate(make_run(mixed, tmp_path, verify=number))


def test_ppo_trains_a_critic_with_generalised_advantages(prompts: Path, tmp_path: Path) -> None:
    config = verl_config(make_run(prompts, tmp_path, algorithm="ppo", n=1, gae_lambda=0.95, critic_learning_rate=1e-3))
    assert config.algorithm.adv_estimator == "gae" and config.algorithm.lam == 0.95
    assert config.critic.enable is True and config.critic.optim.lr == 1e-3
    assert config.critic.model.path == str(BASE_POLICY)
    assert config.trainer.critic_warmup == 1  # the first round trains the policy too


def test_a_kl_term_keeps_a_reference_policy(prompts: Path, tmp_path: Path) -> None:
    actor = verl_config(make_run(prompts, tmp_path, kl_coef=0.01)).actor_rollout_ref.actor
    assert actor.use_kl_loss and actor.kl_loss_coef == 0.01
    assert not verl_config(make_run(prompts, tmp_path)).actor_rollout_ref.actor.use_kl_loss


def test_a_method_travels_with_its_parameters(prompts: Path, tmp_path: Path) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    config = verl_config(make_run(prompts, tmp_path, loss="iw_sft", params={"level": "token", "clip_high": 2.0}))
    assert config.algorithm.adv_estimator == "verified_reward"
    policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
    assert policy_loss.loss_mode == "iw_sft"
    assert dict(policy_loss.params) == {"level": "token", "clip_high": 2.0}


def test_a_gpu_gets_its_own_precision_and_memory(prompts: Path, tmp_path: Path) -> None:
    run = make_run(
        prompts,
        tmp_path,
        cluster=ClusterConfig(device="cuda", ranks_per_node=4),
        sampler=SamplerConfig(tensor_parallel_size=2, gpu_memory_utilization=0.4),
    )
    config = verl_config(dataclasses.replace(run, model=dataclasses.replace(run.model, dtype="bf16")))
    assert config.trainer.n_gpus_per_node == 4 and config.trainer.device == "cuda"
    assert config.actor_rollout_ref.rollout.tensor_model_parallel_size == 2
    assert config.actor_rollout_ref.rollout.gpu_memory_utilization == 0.4
    assert config.actor_rollout_ref.rollout.dtype == "bfloat16"
    assert config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == "bf16"
    assert "VERL_PLATFORM" not in run.environment()


@pytest.mark.parametrize(
    ("offload", "expected"),
    [("none", (False, False, False)), ("idle", (True, True, False)), ("always", (False, False, True))],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_leaves_the_device_is_told_to_actor_and_critic(
    prompts: Path, tmp_path: Path, device: Literal["cpu", "cuda"], offload: Any, expected: tuple[bool, ...]
) -> None:
    run = make_run(prompts, tmp_path, cluster=ClusterConfig(device=device), algorithm="ppo", n=1, kl_coef=0.1)
    config = verl_config(dataclasses.replace(run, model=dataclasses.replace(run.model, offload=offload)))
    for engine in (config.actor_rollout_ref.actor.fsdp_config, config.critic.fsdp):
        assert (engine.param_offload, engine.optimizer_offload, engine.offload_policy) == expected
        assert engine.use_no_sync_for_gradient_accumulation is False, "whole gradients would stay on the device"
    reference = config.actor_rollout_ref.ref.fsdp_config
    assert reference.forward_only, "verl keeps such an engine's weights in CPU memory"


def test_a_running_cluster_is_joined_with_our_environment(prompts: Path, tmp_path: Path) -> None:
    run = make_run(prompts, tmp_path, cluster=ClusterConfig(device="cpu", address="10.0.0.1:6379"))
    init = verl_config(run).ray_kwargs.ray_init
    assert init.address == "10.0.0.1:6379"
    assert init.num_cpus is None and init.num_gpus is None
    assert "verl_ext.online.plugin" in init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES


def test_a_resumed_run_names_the_directory_that_verl_wrote(prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "steps" / "step_000003" / "global_step_3"
    config = verl_config(make_run(prompts, tmp_path), resume_from=path)
    assert config.trainer.resume_mode == "resume_path" and config.trainer.resume_from_path == str(path)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the Qwen family with 4 tokens: 0 `<|endoftext|>`, 1 `<|im_end|>` (its EOS), 2 `</s>`, 3 `a`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("qwen") / "a-llama-by-its-path"
    words = WordLevel({"<|endoftext|>": 0, "<|im_end|>": 1, "</s>": 2, "a": 3}, unk_token="a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "</s>"]})
    tokenizer.save_pretrained(path)
    GenerationConfig(eos_token_id=1, do_sample=True, temperature=0.7, top_k=20).save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": 4, "model_type": "qwen2", "eos_token_id": 1}))
    return path


@pytest.mark.parametrize(
    ("template", "stop", "expected"),
    [
        ("qwen-boxed", None, [0, 1]),  # the tokenizer's own, and the family's other one
        ("problem-only", None, [1]),
        ("qwen-boxed", ["</s>"], [1, 2]),
        ("qwen-boxed", [], [1]),
    ],
)
def test_online_samples_end_where_offline_ones_of_the_family_do(
    prompts: Path, tmp_path: Path, qwen: Path, template: str, stop: list[str] | None, expected: list[int]
) -> None:
    """verl 0.9.1's requests name no stop tokens: vLLM takes them from the directory that `generation_config` names."""
    from vllm import SamplingParams
    from vllm.transformers_utils.config import try_get_generation_config

    run = make_run(prompts, tmp_path / "run", model=ModelConfig(path=str(qwen), prompt_template=template, stop=stop))
    assert run.end_token_ids() == run.plan().end_token_ids == expected
    write_settings(run)
    told = verl_config(run).actor_rollout_ref.rollout.engine_kwargs.vllm.generation_config
    found = try_get_generation_config(told, trust_remote_code=False)
    assert found is not None
    tokenizer = prompting.load_tokenizer(qwen, template)
    online, offline = SamplingParams(), SamplingParams(stop_token_ids=prompting.stop_token_ids(tokenizer, run.model))
    online.update_from_generation_config(found.to_diff_dict(), tokenizer.eos_token_id)
    theirs = try_get_generation_config(str(qwen), trust_remote_code=False)
    assert theirs is not None
    offline.update_from_generation_config(theirs.to_diff_dict(), tokenizer.eos_token_id)
    assert online.all_stop_token_ids == offline.all_stop_token_ids == set(expected)
    assert (online.temperature, online.top_k) == (1.0, SamplingParams().top_k), "only stop tokens are taken from there"


def test_verl_asks_vllm_for_no_stop_tokens_of_its_own() -> None:
    """What the seam above rests on, in verl 0.9.1: the keys of a request, and engine_kwargs as vLLM's arguments."""
    import verl

    assert verl.__version__ == "0.9.1"
    sources = Path(verl.__file__).parent  # read, not imported: that sets this process's log level to ERROR
    assert "stop" not in (sources / "trainer/ppo/v1/agent_loop_tq.py").read_text()
    server = (sources / "workers/rollout/vllm_rollout/vllm_async_server.py").read_text()
    assert "**engine_kwargs," in server and '"generation_config"' not in server
    assert "stop_token_ids" not in server


def test_named_stop_tokens_are_in_the_lineage_and_those_of_the_family_follow_from_it(
    prompts: Path, tmp_path: Path, qwen: Path
) -> None:
    def model(stop: list[str] | None) -> Any:
        run = make_run(prompts, tmp_path, model=ModelConfig(path=str(qwen), stop=stop))
        return run.lineage().config["model"]

    assert model(["</s>"])["stop"] == ["</s>"]
    assert "stop" not in model(None) and model(None)["prompt_template"] == "qwen-boxed"


def test_further_overrides_have_the_last_word(prompts: Path, tmp_path: Path) -> None:
    config = verl_config(make_run(prompts, tmp_path, verl_overrides=["actor_rollout_ref.rollout.temperature=0.7"]))
    assert config.actor_rollout_ref.rollout.temperature == 0.7


FAKES = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_FakeFakeFakeFakeFakeFakeFakeFake42",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}


def test_no_key_of_the_environment_is_told_to_verl_which_prints_what_it_is_told(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T20: `ray init kwargs` and the whole configuration go to verl.log; the plan and the lineage to files."""
    for name, value in FAKES.items():
        monkeypatch.setenv(name, value)
    for address in (None, "10.0.0.1:6379"):
        run = make_run(prompts, tmp_path, cluster=ClusterConfig(device="cpu", address=address))
        told = [cluster.environment(run.cluster), run.environment(), run.overrides(ray_dir="/tmp/x"), vars(run.plan())]
        text = repr([*told, run.lineage().to_json(), OmegaConf.to_yaml(verl_config(run), resolve=True)])
        assert not [name for name, value in FAKES.items() if name in text or value in text]
    assert {"PYTHONPATH", "VERL_USE_EXTERNAL_MODULES"} <= set(run.environment())


def test_a_local_ray_of_verl_is_our_own_and_has_no_dashboard(prompts: Path, tmp_path: Path) -> None:
    """P15, also where RAY_ADDRESS names another cluster, and on GPUs."""
    for device in ("cpu", "cuda"):
        run = make_run(prompts, tmp_path, cluster=ClusterConfig(device=device))
        init = verl_config(run).ray_kwargs.ray_init
        assert init.address == "local" and init.include_dashboard is False
        assert loopback.VARIABLES.items() <= init.runtime_env.env_vars.items()
        assert run.environment()["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "false"


@pytest.mark.parametrize("name", sorted(prompting.TEMPLATES))
def test_chat_templates_survive_the_command_line(name: str) -> None:
    text = prompting.TEMPLATES[name].chat_template
    GlobalHydra.instance().clear()
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={quote(text)}").value() == text


@pytest.mark.parametrize(
    "value", ["it's", "a\\'b", "C:\\x", {"level": "token", "clip": None, "on": True}, ["a b", 1.5, "x,y=[z]"]]
)
def test_values_survive_the_command_line(value: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = OverridesParser.create().parse_override(f"key={quote(value)}").value()
    assert OmegaConf.to_container(OmegaConf.create({"key": found}))["key"] == value  # type: ignore[call-overload,index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 9}, r"has 8 prompts, fewer than online\.prompts_per_step=9"),
        ({"prompts_per_update": 3}, r"online\.prompts_per_step=4 is no multiple of online\.prompts_per_update=3"),
        ({"n": 1}, r"online\.n=1: GRPO compares the samples of a prompt"),
        ({"max_tokens_per_micro_batch": 64}, "is less than the longest sequence"),
        ({"params": {"clip": 1}}, r"online\.params=.* belong to no method"),
        ({"loss": "raf"}, "There is no method 'raf'"),
        ({"loss": "dpo"}, r"online\.loss=dpo cannot train on fresh samples: it needs .*pairs of responses"),
        ({"loss": "dft", "params": {"levl": "token"}}, r"Unknown key 'online\.params\.levl'"),
        ({"loss": "raft", "algorithm": "ppo"}, r"critic of online\.algorithm=ppo would have no use"),
        ({"cluster": ClusterConfig(device="cpu", num_nodes=2)}, r"cluster\.num_nodes=2 needs cluster\.address"),
        ({"cluster": ClusterConfig(device="cpu", ranks_per_node=3)}, "cannot be divided evenly among 3 ranks"),
        ({"model": ModelConfig()}, r"model\.path is empty"),
        ({"verl_overrides": ["critic.x._target_=os.system"]}, r"verl_overrides: critic\.x\._target_' has a key such"),
        ({"verl_overrides": ["data.trust_remote_code=true"]}, "would run Python files that come with a model"),
        (
            {"model": ModelConfig(path=str(BASE_POLICY), lora_rank=8)},
            r"model\.lora_rank=8: online runs train all weights",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_before_anything_starts(
    prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_ext.online.run.supervise", lambda *_: pytest.fail("verl was started"))
    with pytest.raises(UserError, match=message):
        train_online(make_run(prompts, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_too_long_is_refused(prompts: Path, tmp_path: Path) -> None:
    run = make_run(prompts, tmp_path)
    with pytest.raises(UserError, match="more than model.max_prompt_length=8"):
        validate(dataclasses.replace(run, model=dataclasses.replace(run.model, max_prompt_length=8)))


def test_what_decides_the_weights_is_in_the_lineage_and_nothing_else(prompts: Path, tmp_path: Path) -> None:
    lineage = make_run(prompts, tmp_path).lineage()
    assert make_run(prompts, tmp_path / "other", save_every=1, max_idle_seconds=5.0).lineage() == lineage
    for change in ({"seed": 1}, {"n": 8}, {"loss": "raft"}, {"verify": VerifyConfig(cpu_seconds=1.0)}):
        assert make_run(prompts, tmp_path, **change).lineage() != lineage
    offloaded = dataclasses.replace(make_run(prompts, tmp_path).model, offload="always")
    assert make_run(prompts, tmp_path, model=offloaded).lineage() == lineage


def test_a_finished_run_is_skipped_and_another_one_refused(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_ext.online.run.supervise", lambda *_: pytest.fail("verl was started"))
    run = make_run(prompts, tmp_path)
    (tmp_path / "huggingface").mkdir()
    checkpoints.write_manifest(tmp_path, run.lineage())
    assert train_online(run) == tmp_path / "huggingface"
    with pytest.raises(UserError, match=r"belongs to another run; it differs in: config\.online\.seed \(0, now 1\)"):
        train_online(make_run(prompts, tmp_path, seed=1))


def fake_verl(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let the child run `script` instead of verl's trainer."""
    import sys

    real = online_process.subprocess.Popen
    monkeypatch.setattr(
        online_process.subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", script], **options)
    )


def test_what_stopped_the_trainer_is_what_the_user_reads(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_verl(monkeypatch, "open('stopped.txt', 'w').write('the reason'); raise SystemExit(1)")
    with pytest.raises(UserError, match="^the reason$"):
        train_online(make_run(prompts, tmp_path))


def test_a_crash_shows_the_end_of_verls_log(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verl(monkeypatch, "raise SystemExit('out of shared memory')")
    with pytest.raises(UserError, match=r"(?s)ended with code 1.*verl\.log.*out of shared memory"):
        train_online(make_run(prompts, tmp_path))


def test_a_run_that_stalls_is_stopped(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verl(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(UserError, match=r"no round was finished within online\.max_idle_seconds=0\.2"):
        train_online(make_run(prompts, tmp_path, max_idle_seconds=0.2))


def test_two_runs_in_one_directory_are_refused(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T21"""
    fake_verl(monkeypatch, "pass")
    monkeypatch.setattr("verl_ext.online.run._GRACE_SECONDS", 0.1)
    with hold(tmp_path), pytest.raises(UserError, match=rf"is being written by another run \(process {os.getpid()} on"):
        train_online(make_run(prompts, tmp_path))


def test_an_end_before_the_last_round_is_no_success(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_verl(monkeypatch, "pass")
    with pytest.raises(UserError, match="ended after round 0 of 2 without an error"):
        train_online(make_run(prompts, tmp_path))


@pytest.mark.parametrize("name", our_compose.group_options("online"))
def test_every_online_option_composes(name: str) -> None:
    config = our_compose.compose([f"online={name}"])
    assert config.online.algorithm in ("grpo", "ppo")

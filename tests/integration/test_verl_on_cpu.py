"""verl's own worker, actor, vLLM server and weight sync on a CPU, through verl's registries alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN_ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "verl_ext.plugin",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "VERL_PLATFORM": "cpu",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
NUM_STEPS, LEARNING_RATE = 3, 1e-2
DEADLINE_SECONDS = 600

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights and a byte-level tokenizer of the same vocabulary size.

    Embeddings are scaled up, so that the policy is far from uniform and other weights give other log-probabilities.
    """
    from safetensors.torch import load_file, save_file

    from verl_ext.embedded.policy import initialize

    path = tmp_path_factory.mktemp("policy")
    initialize(path, seed=0)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 3
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Ray waits without end, and without a word, for resources that never come."""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no result after {DEADLINE_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(DEADLINE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def ray_dir() -> Iterator[Path]:
    """Ray's sockets need a short path, and each cluster its own."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as path:
        yield Path(path)


# ------------------------------------------------------------------ verl's TrainingWorker with verl's sft_loss


def _rows() -> list[tuple[list[int], list[int]]]:
    """(token ids, loss mask): eight rows of different lengths, so that ranks and micro-batches differ in tokens."""
    rows = []
    for index in range(8):
        prompt, response = 3 + index % 3, 4 + 2 * index
        ids = [(7 * position + 13 * index) % 470 + 4 for position in range(prompt + response)]
        rows.append((ids, [0] * prompt + [1] * response))
    return rows


def _verl_losses(policy: Path, num_ranks: int) -> list[float]:
    """Losses that a RayWorkerGroup of verl's TrainingWorker reports while it trains on the same batch."""
    import ray
    import torch
    from tensordict import NonTensorData
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.dataset_utils import DatasetPadMode
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import sft_loss

    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(policy),
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=2,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=LEARNING_RATE, weight_decay=0.01, clip_grad=1.0, lr_scheduler_type="constant", total_training_steps=10
        ),
        checkpoint_config=None,
    )
    pool = RayResourcePool([num_ranks], max_colocate_count=1)  # by default it waits for 10 logical CPUs a rank
    group = RayWorkerGroup(
        resource_pool=pool,
        ray_cls_with_init=RayClassWithInitArgs(ray.remote(TrainingWorker), config=config),
        device_name="cpu",
    )
    group.set_loss_fn(loss_fn=partial(sft_loss, config=None))
    group.reset()
    losses = []
    for _ in range(NUM_STEPS):
        ids, masks = zip(*_rows(), strict=True)
        data = tu.get_tensordict(
            {
                "input_ids": torch.nested.as_nested_tensor([torch.tensor(row) for row in ids], layout=torch.jagged),
                "loss_mask": torch.nested.as_nested_tensor([torch.tensor(row) for row in masks], layout=torch.jagged),
                "position_ids": torch.nested.as_nested_tensor(
                    [torch.arange(len(row)) for row in ids], layout=torch.jagged
                ),
            },
            {
                "use_dynamic_bsz": False,
                "micro_batch_size_per_gpu": 2,
                "temperature": 1.0,
                "global_batch_size": 8,
                "pad_mode": DatasetPadMode.NO_PADDING,
                "pad_token_id": 0,
            },
        )
        tu.assign_non_tensor(
            data, update_lr_scheduler=True, global_token_num=NonTensorData([len(row) for row in ids])
        )
        losses.append(tu.get(group.train_batch(data).get(), "metrics")["loss"])
    for worker in group.workers:
        ray.kill(worker)
    for placement_group in pool.get_placement_groups():
        ray.util.remove_placement_group(placement_group)
    return losses


def _bare_losses(policy: Path) -> list[float]:
    """The same three steps without verl: AdamW on the mean NLL of the response tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.999))
    losses = []
    for _ in range(NUM_STEPS):
        total, count = torch.zeros(()), 0
        for ids, mask in _rows():
            log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            chosen = log_probs.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1)
            total = total - (chosen * torch.tensor(mask[1:])).sum()
            count += sum(mask)
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_verls_training_worker_reproduces_a_bare_loop_on_one_and_on_two_ranks(
    policy: Path, ray_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLUGIN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        _temp_dir=str(ray_dir),
        _node_ip_address="127.0.0.1",
        object_store_memory=256 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": PLUGIN_ENVIRONMENT},
    )
    try:
        one, two = _verl_losses(policy, num_ranks=1), _verl_losses(policy, num_ranks=2)
    finally:
        ray.shutdown()
    bare = _bare_losses(policy)
    assert bare[-1] < bare[0] - 0.5, "the loss hardly moves, so equal losses would say little"
    assert one == pytest.approx(bare, abs=1e-5)
    assert two == pytest.approx(one, abs=1e-5)


# ------------------------------------------------------------------ verl's PPO trainer: GRPO with a vLLM server


REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """The fraction of letters: differs within a group, so that GRPO has advantages."""
    return sum(character.isalpha() for character in solution_str) / max(1, len(solution_str))
'''


def _write_prompts(path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "data_source": "letters",
            "prompt": [{"role": "user", "content": f"Write something about {number}."}],
            "reward_model": {"style": "rule", "ground_truth": str(number)},
            "extra_info": {"split": "train", "index": number},
        }
        for number in range(16)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _train_online(policy: Path, work_dir: Path, ray_dir: Path, overrides: list[str]) -> list[dict[str, float]]:
    """Run `python -m verl.trainer.main_ppo` and return the metrics of its steps."""
    from verl_ext.platform.overrides import ppo_overrides

    _write_prompts(work_dir / "prompts.parquet")
    (work_dir / "reward.py").write_text(REWARD)
    settings = [
        *ppo_overrides(kv_cache_gib=0.25),
        f"data.train_files={work_dir}/prompts.parquet",
        f"data.val_files={work_dir}/prompts.parquet",
        "data.train_batch_size=8",
        "data.max_prompt_length=64",
        "data.max_response_length=16",
        f"actor_rollout_ref.model.path={policy}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.max_model_len=128",
        "actor_rollout_ref.rollout.max_num_seqs=32",
        f"reward.custom_reward_function.path={work_dir}/reward.py",
        "trainer.logger=[file]",
        "trainer.val_before_train=false",
        "trainer.resume_mode=disable",
        "trainer.total_training_steps=2",
        f"trainer.default_local_dir={work_dir}/checkpoints",
        f"+ray_kwargs.ray_init._temp_dir={ray_dir}",
        f"+ray_kwargs.ray_init.object_store_memory={256 * 2**20}",
        f"hydra.run.dir={work_dir}/hydra",
    ]
    metrics_path = work_dir / "metrics.jsonl"
    log_path = work_dir / "log.txt"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "verl.trainer.main_ppo", *settings, *overrides],
            env={**os.environ, **PLUGIN_ENVIRONMENT, "VERL_FILE_LOGGER_PATH": str(metrics_path)},
            cwd=work_dir,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, log_path.read_text(errors="replace")[-6000:]
    return [json.loads(line)["data"] for line in metrics_path.read_text().splitlines()]


def test_grpo_trains_through_main_ppo_and_its_weights_reach_vllm(policy: Path, tmp_path: Path, ray_dir: Path) -> None:
    """vLLM starts with dummy weights, so already the first step needs a sync; the second needs the trained ones.

    A critic trains beside it (GRPO does not use its values), so that PPO's parts are covered by the same start-up.
    """
    critic = [
        "critic.enable=true",
        f"critic.model.path={policy}",
        "critic.model.enable_gradient_checkpointing=false",
        "critic.ppo_micro_batch_size_per_gpu=16",
    ]
    first, second = _train_online(policy, tmp_path, ray_dir, ["algorithm.adv_estimator=grpo", *critic])
    assert abs(second["actor/entropy"] - first["actor/entropy"]) > 0.5, "stale weights in vLLM would go unnoticed"
    for step in (first, second):
        assert step["training/rollout_probs_diff_valid"] == 1
        assert step["training/rollout_probs_diff_max"] < 1e-4  # the sampler's probability of a token - the trainer's
        assert step["rollout_corr/log_ppl_abs_diff"] < 1e-4  # nats, mean over a response
        assert step["actor/grad_norm"] > 0
        assert step["critic/grad_norm"] > 0

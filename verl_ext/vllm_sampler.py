"""One vLLM engine: samples of prompts, and log-probs of given responses, under the weights of any checkpoint in turn.

Before each shard of prompts the engine forgets its prefix cache and draws from a generator seeded by (seed, shard), so
a shard's samples do not depend on what was sampled before it (on one machine and vLLM version).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from verl_ext import artifacts, loopback, prompting
from verl_ext.config import ModelConfig, SamplerConfig
from verl_ext.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """How every prompt of a stage is sampled; part of the lineage."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    def shard_seed(self, shard: int) -> int:
        """Seed of one shard's generator."""
        digest = hashlib.sha256(f"{self.seed}:{shard}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def prompt_seed(self, shard: int, index: int) -> int:
        """Seed of a prompt's generators: vLLM gives its samples this one and the n - 1 after it."""
        return self.shard_seed(shard) + index * self.n


class Sampler:
    """One vLLM engine in one process. Ray makes an actor of it; a test may use it directly."""

    def __init__(self, model: ModelConfig, sampler: SamplerConfig, on_cpu: bool):
        self._model, self._config, self._on_cpu = model, sampler, on_cpu
        self._llm: Any = None
        self._loaded: str | None = None
        self._stop_token_ids: list[int] = []
        self._architecture: dict[str, Any] = {}

    def load(self, path: str) -> None:
        """Put the weights of `path` into the engine: by building it, or in place. UserError for another model."""
        if path == self._loaded:
            return
        architecture = _architecture(path, self._model)
        if self._llm is None:
            self._llm = self._build(path)
            self._architecture = architecture
            tokenizer = prompting.load_tokenizer(path, self._model.prompt_template, self._model.trust_remote_code)
            self._stop_token_ids = prompting.stop_token_ids(tokenizer, self._model)
        elif architecture != self._architecture:
            differing = sorted(
                key
                for key in architecture.keys() | self._architecture.keys()
                if architecture.get(key) != self._architecture.get(key)
            )
            raise UserError(
                f"Checkpoint '{path}' is not of the model this engine was built for; its files differ in "
                f"{differing}. Evaluate it in a run of its own."
            )
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
            self._llm.reset_prefix_cache()
        self._loaded = path

    def _build(self, path: str) -> Any:
        from verl_ext.platform import patches

        loopback.confine_stores()
        if self._on_cpu:
            patches.install()
            _set_threads(self._config.threads or os.cpu_count() or 1)
        from vllm import LLM

        model, config = self._model, self._config
        return LLM(
            model=path,
            dtype="float32" if self._on_cpu else config.dtype,
            max_model_len=model.max_prompt_length + model.max_response_length,
            tensor_parallel_size=config.tensor_parallel_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
            enforce_eager=config.enforce_eager or self._on_cpu,
            trust_remote_code=model.trust_remote_code,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from, temperature included
            disable_log_stats=True,
            **({"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)} if self._on_cpu else {}),
            **({} if self._on_cpu else {"gpu_memory_utilization": config.gpu_memory_utilization}),
        )

    def sample(self, path: str, prompts: pa.Table, request: SamplingRequest, shard: int) -> pa.Table:
        """Sample `request.n` responses to each prompt with the weights of `path`; returns rollouts, in order."""
        import torch
        from vllm import SamplingParams

        self.load(path)
        self._llm.reset_prefix_cache()
        torch.manual_seed(request.shard_seed(shard))
        ids = prompts["prompt_token_ids"].to_pylist()
        parameters = [
            SamplingParams(
                n=request.n,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_tokens,
                stop_token_ids=self._stop_token_ids,
                logprobs=0,  # of the sampled token alone
                # vLLM's CPU generators cannot be seeded by request: there the process-wide seed above decides
                seed=None if self._on_cpu else request.prompt_seed(shard, index),
            )
            for index in range(len(ids))
        ]
        outputs = self._llm.generate([{"prompt_token_ids": row} for row in ids], parameters, use_tqdm=False)
        return _rollouts(prompts, outputs, request.n)

    def score(
        self, path: str, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """log pi(y_t | x, y_<t) of given responses under the weights of `path`, by the engine that samples.

        Without the last token of a sequence that fills the engine's context: vLLM wants room for one more.
        """
        from vllm import SamplingParams

        self.load(path)
        self._llm.reset_prefix_cache()
        longest = self._model.max_prompt_length + self._model.max_response_length - 1
        sequences = [
            {"prompt_token_ids": [*prompt, *response][:longest]}
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        parameters = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0)
        outputs = self._llm.generate(sequences, parameters, use_tqdm=False)
        return [
            np.array(
                [
                    output.prompt_logprobs[position][output.prompt_token_ids[position]].logprob
                    for position in range(len(prompt), len(output.prompt_token_ids))
                ],
                dtype=np.float32,
            )
            for prompt, output in zip(prompts, outputs, strict=True)
        ]


def _set_threads(count: int) -> None:
    """Ray gives an actor one OpenMP thread; the engine gets `count`, and pins none of them to a core."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(count)


_ENDS = "tokens that end a response"


def _architecture(path: str, model: ModelConfig) -> dict[str, Any]:
    """What must be equal for weights to be swapped in place: the configuration without names, dtypes and versions.

    As transformers reads it, defaults included: a published config.json spells the same model otherwise (`rope_theta`,
    no padding token) than the one that is written beside a trained checkpoint. There verl replaces `eos_token_id`, in
    Llama's instruct models a list, by the tokenizer's own; what ends a response is all of its files together.
    """
    from transformers import AutoConfig

    try:
        content: dict[str, Any] = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code).to_dict()
    except Exception as error:  # its validators raise classes of their own
        raise UserError(
            f"Checkpoint '{path}' has a config.json that transformers refuses: {error}. Correct it, or give another."
        ) from error
    ignored = {
        *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "attn_implementation"),
        *("pad_token_id", "bos_token_id"),  # of no effect: prompts are token ids, and nothing is padded
        "eos_token_id",
    }
    tokenizer = prompting.load_tokenizer(path, model.prompt_template, model.trust_remote_code)
    ends = sorted(prompting.end_token_ids(tokenizer, replace(model, path=path)))
    return {key: value for key, value in content.items() if key not in ignored} | {_ENDS: ends}


def _rollouts(prompts: pa.Table, outputs: Sequence[Any], n: int) -> pa.Table:
    """Raises RuntimeError where the engine did not return `n` finished responses to each prompt, in order."""
    columns: dict[str, list[Any]] = {name: [] for name in artifacts.SCHEMAS["rollouts"].names}
    rows = prompts.to_pylist()
    for row, output in zip(rows, outputs, strict=True):
        reasons = [completion.finish_reason for completion in output.outputs]
        if len(reasons) != n or not set(reasons) <= {"stop", "length"}:
            raise RuntimeError(f"the engine returned {reasons} for {n} samples of prompt '{row['prompt_id']}'")
        if list(output.prompt_token_ids) != row["prompt_token_ids"]:
            raise RuntimeError(f"the engine answered another prompt in the place of '{row['prompt_id']}'")
        for index, completion in enumerate(output.outputs):
            ids = list(completion.token_ids)
            log_probs = [entry[token].logprob for token, entry in zip(ids, completion.logprobs, strict=True)]
            columns["sample_id"].append(f"{row['prompt_id']}-{index}")
            for name in ("prompt_id", "data_source", "ground_truth", "prompt_token_ids"):
                columns[name].append(row[name])
            columns["response_token_ids"].append(ids)
            columns["response"].append(completion.text)
            columns["behavior_log_probs"].append(log_probs)
            columns["finish_reason"].append(completion.finish_reason)
    return pa.table(columns, schema=artifacts.SCHEMAS["rollouts"])

"""Train by verl's PPO trainer: PPO, GRPO, or one of our methods on fresh samples, with our verifier as the reward.

    python -m recipes.train_online online=grpo model.path=<checkpoint> online.prompts=<prompts.parquet> \\
        online.output_dir=<dir>

`online=ppo` trains a critic too; `online.loss=raft` (raft_dft, dft, iw_sft, psft) trains that method on the verified
samples of each round. Writes <output_dir>/huggingface (weights and tokenizer), log.jsonl (one line a round), every
sampled response with its verdict in samples/, and resumable checkpoints. The same command again continues a killed
run, and skips a finished one.
"""

from __future__ import annotations

from pathlib import Path

from verl_ext import compose, hub
from verl_ext.config import Config
from verl_ext.layout import RunLayout


def run(config: Config) -> None:
    """Validate, then let verl train."""
    from verl_ext.online import run as online

    config = hub.on_disk(config)
    layout, settings = RunLayout.of(config.run_dir), config.online
    label = settings.loss or settings.algorithm
    output_dir = Path(settings.output_dir).resolve() if settings.output_dir else layout.checkpoint(label, settings.seed)
    plan = online.OnlineRun(
        name=output_dir.name,
        model=config.model,
        online=settings,
        prompts=Path(settings.prompts).resolve() if settings.prompts else layout.prompts("train"),
        output_dir=output_dir,
        sampler=config.sampler,
        cluster=config.cluster,
        verify=config.verify,
        overwrite=config.overwrite,
    )
    online.train_online(plan)


if __name__ == "__main__":
    compose.main("train_online", run, __doc__)

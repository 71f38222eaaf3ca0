"""Evaluate checkpoints on benchmarks: k samples a problem (avg@k), one set of vLLM engines for all of them.

    python -m recipes.evaluate run_dir=runs/<name> 'evaluate.checkpoints={dft: <dir>, sft: <dir>}'

Writes <output_dir>/<checkpoint>/<benchmark>.parquet (samples with verdicts). Before a trained checkpoint is sampled,
the engine scores tokens that its trainer scored too: a difference above evaluate.max_log_prob_gap stops the run.
Responses are judged as verify.grader, verify.extraction and verify.reward say (see `python -m recipes.verify --help`),
of which evaluate.grader and evaluate.extraction replace the first two.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recipes.rollout import sampling_lineage
from verl_ext import artifacts, compose, disk, guards, hub, judging, model_files, prompt_checks, sampling
from verl_ext.checkpoints import PROBE
from verl_ext.config import Config
from verl_ext.console import Progress
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout
from verl_ext.locks import hold
from verl_ext.verification import disagreements
from verl_ext.verification.rubric import BOTH, Rubric
from verl_ext.verifier import Verifier
from verl_ext.vllm_sampler import SamplingRequest

logger = logging.getLogger(__name__)


class RunningAccuracy:
    """Mean reward of each benchmark over all of its samples that were judged so far, by an earlier run too."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = defaultdict(int)
        self._sums: dict[str, float] = defaultdict(float)

    def add(self, benchmark: str, samples: pa.Table) -> None:
        self._counts[benchmark] += len(samples)
        self._sums[benchmark] += float(np.sum(samples["reward"]))

    @property
    def num_samples(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        """`math500 0.4125, minerva 0.25`, in the order in which they were begun."""
        return ", ".join(f"{name} {self._sums[name] / count:.4g}" for name, count in self._counts.items())


def evaluate(
    config: Config,
    checkpoint: Path,
    outputs: Mapping[str, tuple[Path, Path]],
    start_samplers: Callable[[], list[Any]],
    verifier: Verifier,
) -> None:
    """Sample and judge one checkpoint on all benchmarks; `outputs` maps a name to (prompts artifact, output path).

    Finished benchmarks are skipped; shards that an earlier run finished are kept.
    """
    settings = config.evaluate
    request = SamplingRequest(
        n=settings.k,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=config.model.max_response_length,
        seed=settings.seed,
    )
    verify = judging.of_evaluation(config.verify, settings)
    rubric = judging.rubric(verify)
    rewards = {name: judging.rewards_by_prompt(verify, path) for name, (path, _) in outputs.items()}
    with ExitStack() as held:
        for _, output in outputs.values():
            held.enter_context(hold(output))
        _evaluate(config, checkpoint, outputs, request, rubric, rewards, start_samplers, verifier)


def _evaluate(
    config: Config,
    checkpoint: Path,
    outputs: Mapping[str, tuple[Path, Path]],
    request: SamplingRequest,
    rubric: Rubric,
    rewards: Mapping[str, Mapping[str, str]],
    start_samplers: Callable[[], list[Any]],
    verifier: Verifier,
) -> None:
    settings = config.evaluate
    open_shards: dict[str, artifacts.Shards] = {}
    jobs: list[sampling.Job] = []
    accuracy, num_problems = RunningAccuracy(), 0
    for name, (prompts_path, output) in outputs.items():
        lineage = sampling_lineage("evaluate", config, request, settings.shard_size, prompts_path, checkpoint)
        lineage = replace(lineage, versions={**lineage.versions, **judging.versions(rubric, rewards[name].values())})
        if not artifacts.should_run(output, lineage, config.overwrite):
            continue
        encoded = sampling.encode_prompts(
            artifacts.read(prompts_path, "prompts"), _of_checkpoint(config, checkpoint).model, f"'{prompts_path}'"
        )
        disk.require(output, 2 * prompts_path.stat().st_size, "evaluate")
        slices = sampling.shard_prompts(encoded, settings.shard_size)
        shards = open_shards[name] = artifacts.Shards(output, "samples", lineage, len(slices))
        missing = shards.missing()
        for index in sorted(set(range(len(slices))) - set(missing)):
            accuracy.add(name, shards.read(index))
        jobs += [sampling.Job(key=(name, i), index=i, prompts=slices[i]) for i in missing]
        num_problems += len(encoded)
    if not open_shards:
        return
    samplers = start_samplers()
    check_log_probs(checkpoint, samplers, settings.max_log_prob_gap, config.sampler.max_idle_seconds)
    idle = config.sampler.max_idle_seconds
    label = outputs[next(iter(outputs))][1].parent.name
    progress = Progress(f"evaluate {label}", num_problems * settings.k, done=accuracy.num_samples, unit="samples")
    for (name, index), rollouts in sampling.sample_jobs(samplers, str(checkpoint), jobs, request, idle):
        samples = judging.to_samples(rollouts, verifier, rubric, rewards[name])
        open_shards[name].write(index, samples)
        accuracy.add(name, samples)
        progress.advance(len(samples), accuracy=str(accuracy))
    for name, shards in open_shards.items():
        samples = pa.concat_tables(map(shards.read, range(shards.num_shards)))
        if rubric.grader == BOTH:
            verdicts = judging.judge_table(samples, verifier, rubric, rewards[name])
            disagreements.write(shards.path, disagreements.rows(samples, verdicts))
        guards.act(guards.of_responses(samples, config.guards), f"evaluate {label} on {name}", config.guards)
        shards.commit()  # last: a finished stage is skipped


def check_log_probs(checkpoint: Path, samplers: Sequence[Any], limit: float, max_idle_seconds: float = 3600.0) -> None:
    """Compare trainer and sampler on the checkpoint's probe, the tokens its trainer scored last.

    Raises UserError when the mean absolute difference exceeds `limit` nats: the engine then does not run the weights
    that were trained (a stale or partial swap, another vocabulary, another precision).
    """
    if not (checkpoint / PROBE).exists():
        logger.warning("%s has no %s: trainer and sampler cannot be compared", checkpoint, PROBE)
        return
    probe = artifacts.read(checkpoint / PROBE, "positives")
    prompts, responses = (probe[name].to_pylist() for name in ("prompt_token_ids", "response_token_ids"))
    trained = [np.array(row) for row in probe["behavior_log_probs"].to_pylist()]
    found = sampling.score_with_each(samplers, str(checkpoint), prompts, responses, max_idle_seconds)
    for index, scored in enumerate(found):
        # an engine has no room for the last token of a sequence of full length
        gaps = np.concatenate(
            [np.abs(ours[: len(theirs)] - theirs) for ours, theirs in zip(trained, scored, strict=True)]
        )
        logger.info(
            "trainer against sampler %d: log-probs of %d tokens differ by %.2g at most, %.2g on average (%s)",
            index,
            len(gaps),
            gaps.max(),
            gaps.mean(),
            checkpoint,
        )
        if not gaps.mean() <= limit:
            raise UserError(
                f"Trainer and sampler disagree about '{checkpoint}': log-probabilities of the same tokens differ by "
                f"{gaps.mean():.3g} nats on average ({gaps.max():.3g} at most), more than evaluate.max_log_prob_gap="
                f"{limit}. The engine does not run the weights that were trained; restart it, or compare dtypes."
            )


def _of_checkpoint(config: Config, checkpoint: Path) -> Config:
    return replace(config, model=replace(config.model, path=str(checkpoint)))


def checkpoint_directory(config: Config, name: str, path: str) -> Path:
    """Of a checkpoint, which may be a hub id: the model's own in its revision, another in its newest."""
    revision = config.model.revision if path == config.model.path else None
    model = replace(config.model, path=path, revision=revision)
    try:
        return Path(hub.on_disk(replace(config, model=model)).model.path).resolve()
    except UserError as error:
        raise UserError(f"Checkpoint '{name}': {error}") from None


def run(config: Config) -> None:
    """Entry point of `python -m recipes.evaluate`."""
    layout, settings = RunLayout.of(config.run_dir), config.evaluate
    if not settings.checkpoints:
        raise UserError("evaluate.checkpoints is empty. Pass evaluate.checkpoints={name: directory, ...}.")
    checkpoints = {name: checkpoint_directory(config, name, path) for name, path in settings.checkpoints.items()}
    for name, path in checkpoints.items():
        if not (path / "config.json").exists():
            raise UserError(f"Checkpoint '{name}': '{path}' has no config.json. Give the Hugging Face directory.")
        model_files.check(_of_checkpoint(config, path).model)
    benchmarks = settings.benchmarks or {name: str(layout.benchmark(name)) for name in config.data.benchmarks}
    if not benchmarks:
        raise UserError("There is nothing to evaluate on. Pass evaluate.benchmarks={name: prompts.parquet, ...}.")
    output_dir = Path(settings.output_dir).resolve() if settings.output_dir else layout.run_dir / "evaluate"
    for prompts in benchmarks.values():
        prompt_checks.check(artifacts.read(prompts, "prompts"), f"'{prompts}'")
    samplers: list[Any] = []

    def start_samplers() -> list[Any]:
        samplers.extend([] if samplers else sampling.create_samplers(config.model, config.sampler, config.cluster))
        return samplers

    with judging.make_verifier(config.verify) as verifier:
        for name, path in checkpoints.items():
            outputs = {b: (Path(prompts), output_dir / name / f"{b}.parquet") for b, prompts in benchmarks.items()}
            evaluate(config, path, outputs, start_samplers, verifier)


if __name__ == "__main__":
    compose.main("evaluate", run, __doc__)

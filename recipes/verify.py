r"""Judge every response against its gold answer: rollouts to samples with verdicts.

    python -m recipes.verify run_dir=runs/<name> verify.num_workers=8
    python -m recipes.verify verify.input=responses.jsonl verify.output=samples.parquet

Reads rollouts.parquet of the run, or verify.input: a rollouts artifact, or JSON lines with `problem`, `gold` and
`responses` (a list of texts). Writes samples.parquet: the rollouts with `prediction`, `verdict`, `verdict_seconds` and
`reward`. Only the content of the final \boxed{...} counts, unless verify.extraction adds other rules. A killed run
continues where it was. Where the file has
`reference_correct`, the agreement is reported and every disagreement is listed. JSON lines have no token ids; if
model.path is set they are made with its tokenizer, so that curate and train can follow.

verify.grader=qwen asks our strict grader instead of math-verify; both asks both, counts as correct what both find
correct, and writes what they do not agree on to <output>.disagreements.csv and .md. Other rewards (exact, choice,
numeric, code) are chosen by reward_model.style of the prompts or by verify.reward; verify.memo keeps verdicts, which
every other stage may share.

The stage fails if the verifier itself failed (timeout, memory, crash) on more than verify.max_failure_fraction, or if
pairs of known verdict, sent among the rows, come back with another one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_ext import artifacts, compose, disk, hub, judging, response_files, sieve
from verl_ext.cluster import start_ray
from verl_ext.config import Config, VerifyConfig
from verl_ext.console import Progress
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout
from verl_ext.locks import hold
from verl_ext.response_files import Encoder, Reference, ResponseFile
from verl_ext.verification import disagreements

logger = logging.getLogger(__name__)

_RESPONSE_FILE_SUFFIXES = (".jsonl", ".json", ".ndjson")
_SHOWN_CHARS = 100
_JUDGED_COLUMNS = ("sample_id", "prompt_id", "ground_truth", "response", "finish_reason")


def verify(config: Config) -> Path:
    """Run the stage and return the path of the samples."""
    layout, settings = RunLayout.of(config.run_dir), config.verify
    source = Path(settings.input).resolve() if settings.input else layout.rollouts
    output = Path(settings.output).resolve() if settings.output else layout.samples
    rewards = judging.rewards_by_prompt(settings, _prompts(config))
    if source.suffix in _RESPONSE_FILE_SUFFIXES:
        config = hub.on_disk(config)  # its tokenizer is read
    lineage = _lineage(source, config, rewards)
    with hold(output):
        if artifacts.should_run(output, lineage, config.overwrite):
            disk.require(output, 2 * source.stat().st_size, "verify")  # shards, then the whole
            _judge(source, output, config, rewards, lineage)
    return output


def _judge(source: Path, output: Path, config: Config, rewards: Mapping[str, str], lineage: artifacts.Lineage) -> None:
    """Judge what is missing, shard by shard, and join the shards."""
    settings = config.verify
    loaded = _load(source, config)
    num_rows, size = len(loaded.rollouts), settings.shard_size
    shards = artifacts.Shards(output, "samples", lineage, -(-num_rows // size))
    missing = shards.missing()
    done = num_rows - sum(len(loaded.rollouts.slice(index * size, size)) for index in missing)
    progress = Progress("verify", num_rows, done=done, unit="responses")
    judge = _judge_on_ray if settings.backend == "ray" else _judge_here
    judged = judge(loaded.rollouts, missing, config, rewards)
    for index, samples in judged:
        shards.write(index, samples)
        progress.advance(len(samples))
    counts = judging.check_failures(map(shards.read, range(shards.num_shards)), settings.max_failure_fraction)
    if settings.grader == "both":
        _write_sheet(pa.concat_tables(map(shards.read, range(shards.num_shards))), output, config, rewards)
    shards.commit()
    logger.info("verify: %s; written to %s", judging.summary(counts), output)
    if loaded.references:
        _report_agreement(loaded.references, artifacts.read(output, "samples", ["sample_id", "verdict", "prediction"]))


def _prompts(config: Config) -> Path:
    given = config.rollout.prompts
    return Path(given).resolve() if given else RunLayout.of(config.run_dir).prompts("train")


def _write_sheet(samples: pa.Table, output: Path, config: Config, rewards: Mapping[str, str]) -> None:
    with judging.make_verifier(config.verify) as verifier:
        verdicts = judging.judge_table(samples, verifier, judging.rubric(config.verify), rewards)
    sheet = disagreements.rows(samples, verdicts)
    path = disagreements.write(output, sheet)
    logger.info("the graders disagree on %d pairs of gold and prediction, listed in %s", len(sheet), path)


def _lineage(source: Path, config: Config, rewards: Mapping[str, str]) -> artifacts.Lineage:
    """What verdicts depend on; for an artifact, how it was sampled is carried over."""
    limits = judging.limits(config.verify)
    settings: dict[str, Any] = {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "shard_size": config.verify.shard_size,
    }
    inputs = {"rollouts": source}
    versions = judging.versions(judging.rubric(config.verify), rewards.values())
    if rewards:
        inputs["prompts"] = _prompts(config)
    if source.suffix not in _RESPONSE_FILE_SUFFIXES:
        rollouts = artifacts.read_lineage(source)
        settings["sampling"] = rollouts.config.get("sampling")
        versions = {**rollouts.versions, **versions}
    elif (tokenizer := Path(config.model.path) / "tokenizer.json").is_file():
        settings["prompt_template"] = config.model.prompt_template
        inputs["tokenizer"] = tokenizer
    lineage = artifacts.make_lineage("verify", settings, inputs)
    return artifacts.Lineage(
        stage=lineage.stage, config=lineage.config, inputs=lineage.inputs, versions=versions, seed=None
    )


def _load(source: Path, config: Config) -> ResponseFile:
    if source.suffix in _RESPONSE_FILE_SUFFIXES:
        return response_files.read(source, _encoder(config))
    rollouts = artifacts.read(source, "rollouts")
    if not len(rollouts):
        raise UserError(f"'{source}' has no rows. Sample the policy again: python -m recipes.rollout.")
    sieve.require_values(rollouts, _JUDGED_COLUMNS, f"'{source}'")
    sieve.require_unique(sieve.strings(rollouts, "sample_id"), f"'{source}'")
    return ResponseFile(rollouts)


def _encoder(config: Config) -> Encoder | None:
    """Tokenise a brought response as the trainer would; without EOS where it was cut off."""
    if not (Path(config.model.path) / "tokenizer.json").is_file():
        logger.info("no token ids are made: model.path names no tokenizer.json")
        return None
    from verl_ext import prompting

    template = config.model.prompt_template
    tokenizer = prompting.load_tokenizer(config.model.path, template)

    @functools.lru_cache(maxsize=1)  # a problem's responses stand together
    def encode_problem(problem: str) -> list[int]:
        return prompting.encode_prompt(tokenizer, prompting.build_prompt(problem, template))

    def encode(problem: str, response: str, finish_reason: str) -> tuple[list[int], list[int]]:
        try:
            prompt, tokens = encode_problem(problem), prompting.encode_response(tokenizer, response, template)
        except UserError as error:
            logger.warning("no token ids for a response to %s: %s", ascii(problem)[:_SHOWN_CHARS], error)
            return [], []
        return prompt, tokens if finish_reason == "stop" else tokens[:-1]

    return encode


def _judge_here(
    rollouts: pa.Table, shards: Sequence[int], config: Config, rewards: Mapping[str, str]
) -> Iterator[tuple[int, pa.Table]]:
    size, rubric = config.verify.shard_size, judging.rubric(config.verify)
    with judging.make_verifier(config.verify) as verifier:
        for index in shards:
            yield index, judging.to_samples(rollouts.slice(index * size, size), verifier, rubric, rewards)


class _JudgeActor:
    """One verifier with one judging process in a Ray actor; maps blocks of texts to blocks of verdicts."""

    def __init__(self, settings: VerifyConfig, rewards: Mapping[str, str]):
        self.verifier = judging.make_verifier(settings, num_workers=1)
        self.rubric, self.rewards = judging.rubric(settings), rewards

    def __call__(self, block: pa.Table) -> pa.Table:
        samples = judging.to_samples(block, self.verifier, self.rubric, self.rewards)
        return samples.drop_columns(["prompt_id", "response", "ground_truth"])


def _judge_on_ray(
    rollouts: pa.Table, shards: Sequence[int], config: Config, rewards: Mapping[str, str]
) -> Iterator[tuple[int, pa.Table]]:
    """Only texts travel; rows carry their position, since Ray may cut, reorder and repeat blocks."""
    if not shards:
        return
    import ray

    start_ray(config.cluster)
    size = config.verify.shard_size
    rows = np.arange(len(rollouts))
    texts = rollouts.select(["prompt_id", "response", "ground_truth"])
    texts = texts.append_column("row", pa.array(rows)).append_column("shard", pa.array(rows // size))
    judged = ray.data.from_arrow([texts.slice(index * size, size).combine_chunks() for index in shards]).map_batches(
        _JudgeActor,
        fn_constructor_args=(config.verify, rewards),
        batch_format="pyarrow",
        batch_size=None,
        concurrency=config.verify.num_workers,
    )
    open_shards, waiting = set(shards), dict[int, list[pa.Table]]()
    for block in judged.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(block, pa.Table)
        for index in open_shards.intersection(pc.unique(block["shard"]).to_pylist()):
            waiting.setdefault(index, []).append(block.filter(pc.equal(block["shard"], index)))
            shard = rollouts.slice(index * size, size)
            verdicts = _each_once(pa.concat_tables(waiting[index]))
            if len(verdicts) == len(shard):
                open_shards.remove(index)
                del waiting[index]
                verdicts = verdicts.drop_columns(["row", "shard"])
                for name in verdicts.column_names:
                    shard = shard.append_column(name, verdicts[name])
                yield index, shard


def _each_once(table: pa.Table) -> pa.Table:
    """The first arrival of each row, in the order of rows."""
    first: dict[int, int] = {}
    for position, row in enumerate(table["row"].to_pylist()):
        first.setdefault(row, position)
    return table.take([first[row] for row in sorted(first)])


def _report_agreement(references: Sequence[Reference | None], samples: pa.Table) -> None:
    compared = agreed = 0
    for reference, row in zip(references, samples.to_pylist(), strict=True):
        if reference is None:
            continue
        compared += 1
        if reference.is_correct == (row["verdict"] == "correct"):
            agreed += 1
            continue
        logger.warning(
            "disagreement on %s: reference %s with %s, here %s with %s",
            row["sample_id"],
            "correct" if reference.is_correct else "not correct",
            ascii(reference.prediction)[:_SHOWN_CHARS],
            row["verdict"],
            ascii(row["prediction"])[:_SHOWN_CHARS],
        )
    logger.info("agreement with the reference verdicts: %d of %d", agreed, compared)


def run(config: Config) -> None:
    """Entry point of `python -m recipes.verify`."""
    verify(config)


if __name__ == "__main__":
    compose.main("verify", run, __doc__)

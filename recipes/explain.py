"""What methods do to one token, and what they would do to your data, before anything is trained.

    python -m recipes.explain method=dft method.params.min_weight=0.1
    python -m recipes.explain explain.methods=[sft,dft,iw_sft,psft,pear]
    python -m recipes.explain explain.methods=[sft,dft] explain.data=<positives.parquet> model.path=<checkpoint>

The first two draw weight, push on the logit and loss of a token against its probability and its ratio to the
reference, and say each method's formula, when it is SFT, the range of its loss and what it needs. With explain.data
the responses are scored once under the policy (a plain forward pass in fp32, CPU or GPU), and every method is profiled
on their tokens: the share of SFT's gradient it keeps, special tokens it would not teach, weights that saturate or
vanish. 'explain.checkpoints={sft: <dir>, dft: <dir>}' draws the same tokens' probabilities under trained checkpoints.

Writes explain.md, explain.html (one file, to be sent around) and the figures to <run_dir>/explain. For further
parameters of a method: 'explain.variants={floor: {name: dft, params: {min_weight: 0.1}}}'.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from verl_ext import artifacts, compose, hub, laboratory, model_files, prompting
from verl_ext.cluster import runs_on_cpu
from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.laboratory import document, page, report, special_tokens
from verl_ext.laboratory.profiles import obstacle
from verl_ext.laboratory.scores import LogProbs, draw_rows, token_rows
from verl_ext.layout import RunLayout
from verl_ext.losses import get_method

logger = logging.getLogger(__name__)

BASE = "before training"
Figures = dict[str, dict[str, bytes]]  # name -> format -> content


def subjects(config: Config) -> list[laboratory.Subject]:
    """The methods to explain: those listed with their configured parameters, then the variants under their labels."""
    settings, chosen = config.explain, config.method
    names = settings.methods or ([] if settings.variants else [chosen.name])
    found = []
    for name in dict.fromkeys(["sft", *names]):  # the others are compared with SFT
        get_method(name)
        given = chosen.params if name == chosen.name else compose.load_method(name)["params"]
        prefix = "method.params" if name == chosen.name else f"configs/method/{name}.yaml"
        found.append(laboratory.Subject.of(name, compose.validate(get_method(name).params, given, prefix)))
    for label, variant in settings.variants.items():
        values = {**compose.load_method(variant.name)["params"], **variant.params}
        params = compose.validate(get_method(variant.name).params, values, f"explain.variants.{label}.params")
        found.append(laboratory.Subject.of(variant.name, params, label))
    repeated = sorted({subject.label for subject in found if [s.label for s in found].count(subject.label) > 1})
    if repeated:
        raise UserError(f"explain.variants: {', '.join(repeated)} is the label of several methods. Choose another one.")
    return found


def profile(config: Config, chosen: list[laboratory.Subject]) -> tuple[report.DataReport, Figures]:
    """Score the data under the policy (and checkpoints), and profile the methods."""
    settings, model = config.explain, hub.on_disk(config).model
    assert settings.data is not None
    if not model.path:
        raise UserError("model.path is empty: explain.data is profiled under a policy. Set it, or model=<name>.")
    others = [path for path in (settings.reference, *settings.checkpoints.values()) if path]
    for path in (model.path, *others):
        model_files.check(replace(model, path=path))
    table = artifacts.read(settings.data, "positives")
    positives = draw_rows(table, settings.max_rows, settings.seed)
    tokenizer = prompting.load_tokenizer(model.path, model.prompt_template, model.trust_remote_code)
    end_ids = prompting.end_token_ids(tokenizer, model)
    score = _scorer(config, positives)
    scored = laboratory.Scored(
        token_ids=token_rows(positives["response_token_ids"]),
        log_probs=score(model.path),
        quality=np.asarray(positives["quality"]),
        ref_log_probs=score(settings.reference) if settings.reference else None,
        behavior_log_probs=_behavior(config, positives, score),
    )
    if not any(map(len, scored.token_ids)):
        raise UserError(f"The responses in '{settings.data}' have no tokens. Curate the data again.")
    reasons = {subject.label: obstacle(subject, scored) for subject in chosen}
    scores = {label: score(path) for label, path in settings.checkpoints.items()}
    if scores:
        scores = {BASE: scored.log_probs, **scores}
    found = report.DataReport(
        origin=f"{len(positives):,} of {len(table):,} rows of {Path(settings.data).name}, under the policy "
        f"{Path(model.path).name}{f', compared with {Path(settings.reference).name}' if settings.reference else ''}.",
        data=laboratory.profile_data(scored),
        methods=[laboratory.profile_method(subject, scored) for subject in chosen if not reasons[subject.label]],
        tokens=special_tokens.find_special_tokens(scored, special_tokens.special_token_texts(tokenizer), end_ids),
        ended=special_tokens.ended_fraction(scored, end_ids),
        obstacles=[reason for reason in reasons.values() if reason],
        policies={label: laboratory.profile_data(replace(scored, log_probs=rows)) for label, rows in scores.items()},
    )
    labels = [subject.label for subject in chosen]
    figures = {report.PROFILE: laboratory.draw_profile(scored, found.data, found.methods, labels)}
    return found, figures | ({report.DISTRIBUTIONS: laboratory.draw_distributions(scores)} if scores else {})


def _scorer(config: Config, positives: pa.Table) -> Callable[[str], LogProbs]:
    """Checkpoint -> log-probabilities of the drawn rows."""

    def score(path: str) -> LogProbs:
        return laboratory.score(
            path,
            positives,
            max_tokens=config.explain.max_tokens_per_batch,
            device="cpu" if runs_on_cpu(config.cluster) else None,
            trust_remote_code=config.model.trust_remote_code,
        )

    return score


def _behavior(config: Config, positives: pa.Table, score: Callable[[str], LogProbs]) -> LogProbs | None:
    """The author's log-probabilities: stored with samples, or of the checkpoint that training would take for it."""
    if positives["behavior_log_probs"].null_count == 0:
        return token_rows(positives["behavior_log_probs"])
    return score(config.train.behavior_model) if config.train.behavior_model else None


def run(config: Config) -> None:
    """Explain, show, write."""
    settings, chosen = config.explain, subjects(config)
    if not settings.data and (settings.checkpoints or settings.reference):
        raise UserError("explain.checkpoints and explain.reference are scored on explain.data, which is not set.")
    figures: Figures = {}
    blocks = report.method_blocks(chosen)
    if settings.data:
        found, figures = profile(config, chosen)
        blocks = [*report.data_blocks(found), *blocks]
    figures[report.CURVES] = laboratory.draw_curves(chosen)
    title = f"{', '.join(subject.label for subject in chosen)}: what they do"
    blocks = [document.Heading(title, 1), *blocks]
    directory = Path(settings.output_dir or RunLayout.of(config.run_dir).run_dir / "explain").resolve()
    _write(directory, title, blocks, figures)
    document.show(blocks, Console(stderr=True, width=None if sys.stderr.isatty() else 120))
    logger.info("explain: %d methods; written to %s", len(chosen), directory / "explain.html")


def _write(directory: Path, title: str, blocks: list[document.Block], figures: Figures) -> None:
    files = {f"{name}.{form}": image for name, images in figures.items() for form, image in images.items()}
    vectors = {name: images["svg"] for name, images in figures.items()}
    files["explain.html"] = page.to_html(title, blocks, vectors).encode()
    files["explain.md"] = document.to_markdown(blocks).encode()
    for name, content in files.items():
        artifacts.write_bytes_atomically(directory / name, content)


if __name__ == "__main__":
    compose.main("explain", run, __doc__)

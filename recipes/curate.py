"""Choose what is trained on: verified samples, or demonstrations, to positives (and preference pairs).

    python -m recipes.curate run_dir=runs/<name> curate.max_per_prompt=4
    python -m recipes.curate run_dir=runs/<name> curate.source=demonstrations model.path=<checkpoint>

From samples: keeps what is correct, complete, within the model's lengths and distinct, at most curate.max_per_prompt
of each prompt, and writes positives/samples.parquet; pairs.parquet (a correct response over a wrong one); and
judged.parquet (right and wrong ones with their reward, for methods that learn from failures, too). From
demonstrations: tokenises the worked solutions of prompts/demonstrations.parquet and writes
positives/demonstrations.parquet. curate.input, curate.output and curate.pairs_output name other files. Beside the
output stand <output name>.report.json (how many rows were read, kept, and dropped for which reason) and
<output name>.rejects.parquet (each dropped row: its number, its id and the reason).
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from verl_ext import artifacts, compose, curation, guards, hub, prompting
from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.fitness import Fitness
from verl_ext.layout import RunLayout
from verl_ext.locks import hold
from verl_ext.sieve import Report

logger = logging.getLogger(__name__)


def curate(config: Config) -> Path:
    """Run the stage for `curate.source` and return the path of the positives."""
    config = hub.on_disk(config)
    is_demonstrations = config.curate.source == "demonstrations"
    layout, settings = RunLayout.of(config.run_dir), config.curate
    output = Path(settings.output).resolve() if settings.output else layout.positives(settings.source)
    with hold(output):
        return curate_demonstrations(config, output) if is_demonstrations else curate_samples(config, output)


def curate_samples(config: Config, output: Path) -> Path:
    """Verified samples to positives, pairs and judged responses."""
    layout, settings = RunLayout.of(config.run_dir), config.curate
    source = Path(settings.input).resolve() if settings.input else layout.samples
    pairs_output = Path(settings.pairs_output).resolve() if settings.pairs_output else layout.pairs
    judged_output = Path(settings.judged_output).resolve() if settings.judged_output else layout.judged
    fitness = _fitness(config)
    chosen_by = {
        "max_per_prompt": settings.max_per_prompt,
        "deduplicate": settings.deduplicate,
        "quality": settings.quality,
        "max_pairs_per_prompt": settings.max_pairs_per_prompt,
    }
    lineage = artifacts.make_lineage(
        "curate", {**chosen_by, "fitness": vars(fitness)}, {"samples": source}, seed=settings.seed
    )
    outputs = (output, pairs_output, judged_output)
    if not any([artifacts.should_run(path, lineage, config.overwrite) for path in outputs]):
        return output
    samples = artifacts.read(source, "samples")
    guards.act(guards.of_samples(samples, config.guards), "curate", config.guards)
    positives, report = curation.select_positives(
        samples,
        max_per_prompt=settings.max_per_prompt,
        deduplicate=settings.deduplicate,
        quality=settings.quality,
        seed=settings.seed,
        fitness=fitness,
    )
    judged, judged_report = curation.select_judged(
        samples, quality=settings.quality, deduplicate=settings.deduplicate, seed=settings.seed, fitness=fitness
    )
    pairs, pairs_report = curation.select_pairs(
        samples, max_pairs_per_prompt=settings.max_pairs_per_prompt, seed=settings.seed, fitness=fitness
    )
    _write_report(pairs_output, pairs_report, f"{len(pairs)} pairs", lineage)
    artifacts.write(pairs_output, "pairs", pairs, lineage)
    _write_report(judged_output, judged_report, f"{len(judged)} judged responses", lineage)
    artifacts.write(judged_output, "judged", judged, lineage)
    _write_report(output, report, f"{len(positives)} positives", lineage)
    artifacts.write(output, "positives", positives, lineage)
    if not len(pairs):
        logger.warning("no prompt has both a correct and a wrong response: methods that need pairs cannot be trained")
    return output


def curate_demonstrations(config: Config, output: Path) -> Path:
    """Worked solutions to positives, in the tokens of the model that will be trained."""
    layout, settings = RunLayout.of(config.run_dir), config.curate
    if settings.pairs_output:
        raise UserError("curate.pairs_output is set, but demonstrations make no pairs. Unset it, or use samples.")
    if not config.model.path:
        raise UserError(
            "model.path is empty; demonstrations are tokenised with its tokenizer. Set it, or model=<name>."
        )
    source = Path(settings.input).resolve() if settings.input else layout.prompts("demonstrations")
    template = config.model.demonstration_template or config.model.prompt_template
    tokenizer = prompting.load_tokenizer(config.model.path, template, config.model.trust_remote_code)
    fitness = _fitness(config)
    inputs: dict[str, Path | str] = {"prompts": source}
    if (tokenizer_file := Path(config.model.path) / "tokenizer.json").is_file():
        inputs["tokenizer"] = tokenizer_file
    lineage = artifacts.make_lineage(
        "curate",
        {"fitness": vars(fitness), "chat_template": tokenizer.chat_template, "template": template},
        inputs,
        ["transformers", "tokenizers"],
    )
    if not artifacts.should_run(output, lineage, config.overwrite):
        return output
    positives, report = curation.demonstrations_to_positives(
        artifacts.read(source, "prompts"),
        functools.partial(prompting.encode_prompt, tokenizer),
        functools.partial(prompting.encode_response, tokenizer, template_name=template),
        fitness=fitness,
    )
    _write_report(output, report, f"{len(positives)} positives", lineage)
    artifacts.write(output, "positives", positives, lineage)
    return output


def _fitness(config: Config) -> Fitness:
    """What the model can be trained on, and no response longer than curate.max_response_length."""
    longest = min(config.model.max_response_length, config.curate.max_response_length or sys.maxsize)
    return prompting.fitness(replace(config.model, max_response_length=longest))


def _write_report(output: Path, report: Report, kept: str, lineage: artifacts.Lineage) -> None:
    """Log the counts as a table, and store them beside the artifact, with the rejected rows one by one."""
    width = max(map(len, report))
    lines = [f"  {name:<{width}} {count:>9} {count / max(report['read'], 1):>7.1%}" for name, count in report.items()]
    logger.info("curate: %s to %s\n%s", kept, output, "\n".join(lines))
    content = json.dumps(report, indent=2).encode() + b"\n"
    artifacts.write_bytes_atomically(output.parent / f"{output.stem}.report.json", content)
    artifacts.write(output.parent / f"{output.stem}.rejects.parquet", "rejects", report.rejects, lineage)


def run(config: Config) -> None:
    """Entry point of `python -m recipes.curate`."""
    curate(config)


if __name__ == "__main__":
    compose.main("curate", run, __doc__)

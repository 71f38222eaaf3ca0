"""Train one method on its data: Ray places verl's FSDP2 workers, our loop drives them.

    python -m recipes.train method=dft model.path=<checkpoint> train.data=<positives.parquet> train.output_dir=<dir>

Without train.data it reads what the method trains on from run_dir: positives, pairs (dpo) or judged responses (raft).
Writes <output_dir>/huggingface (weights and tokenizer), log.jsonl (one line a step) and resumable checkpoints. The
same command again continues a killed run, and skips a finished one.
"""

from __future__ import annotations

from pathlib import Path

from verl_ext import compose, hub
from verl_ext.cluster import create_workers, threads_per_rank
from verl_ext.config import Config
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout
from verl_ext.losses import get_method


def run(config: Config) -> None:
    """Validate, start workers, train."""
    from verl_ext import trainer

    layout = RunLayout.of(config.run_dir)
    train = config.train
    if not config.model.path:
        raise UserError("model.path is empty. Set it to a Hugging Face directory, or choose model=<name>.")
    config = hub.on_disk(config)
    method = get_method(config.method.name)
    kind = method.requirements(compose.validate(method.params, config.method.params, "method.params")).data
    data = Path(train.data).resolve() if train.data else layout.training_data(kind, "samples")
    output_dir = (
        Path(train.output_dir).resolve() if train.output_dir else layout.checkpoint(config.method.name, train.seed)
    )
    plan = trainer.TrainingRun(
        name=output_dir.name,
        model=config.model,
        train=train,
        method=config.method.name,
        params=config.method.params,
        data=data,
        output_dir=output_dir,
        behavior_model=Path(train.behavior_model).resolve() if train.behavior_model else None,
        num_ranks=config.cluster.num_nodes * config.cluster.ranks_per_node,
        threads=threads_per_rank(config.cluster),
        guards=config.guards,
        overwrite=config.overwrite,
    )
    trainer.train(plan, lambda: create_workers(config))


if __name__ == "__main__":
    compose.main("train", run, __doc__)

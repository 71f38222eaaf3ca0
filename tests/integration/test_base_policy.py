"""The shipped base policy is what its recipe makes."""

from __future__ import annotations

import json
from pathlib import Path

from recipes import base_policy
from verl_ext import checkpoints, compose, prompting
from verl_ext.cluster import REPOSITORY

SHIPPED = REPOSITORY / base_policy.SHIPPED


def test_it_carries_the_lineage_of_its_recipe_as_the_recipe_stands(tmp_path: Path) -> None:
    """Prepares the recipe's data and random weights anew: a changed generator, tokenizer or setting is found here."""
    config = compose.compose(["experiment=embedded_base", f"run_dir={tmp_path}"])
    expected = base_policy.training_run(config).lineage()
    manifest = checkpoints.read_manifest(SHIPPED)
    assert manifest is not None
    assert not manifest[0].differences(expected), "run `python -m recipes.base_policy experiment=embedded_base` again"


def test_it_is_whole_small_and_of_its_tokenizers_size() -> None:
    assert checkpoints.is_intact(SHIPPED)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4e6
    config = json.loads((SHIPPED / "config.json").read_text())
    tokenizer = prompting.load_tokenizer(SHIPPED)
    prompting.check_vocabulary(tokenizer, config)
    assert len(tokenizer) == config["vocab_size"]

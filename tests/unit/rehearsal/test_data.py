"""Stand-ins of data sets are loaded by the configuration's own reader, and say what they were made to say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.prepare import prepare
from verl_ext import artifacts, compose
from verl_ext.config import Config, DataConfig, SourceConfig
from verl_ext.embedded import policy
from verl_ext.errors import UserError
from verl_ext.layout import RunLayout
from verl_ext.rehearsal import data

pytest.importorskip("datasets")
pytest.importorskip("transformers")

PUBLIC = [name for name in compose.group_options("data") if not name.startswith("embedded")]
SIZE = 10


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def replaced(name: str, directory: Path) -> Config:
    config = compose.compose([f"data={name}", f"run_dir={directory / 'run'}", f"rehearse.num_problems={SIZE}"])
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir()
    for file, text in policy.tokenizer_files().items():
        (tokenizer / file).write_text(text)
    return data.stand_in(config, directory / "data", tokenizer)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_data_set_has_a_stand_in_that_its_reader_reads(name: str, tmp_path: Path) -> None:
    config = replaced(name, tmp_path)
    reports = prepare(config)
    layout = RunLayout.of(config.run_dir)
    assert set(reports) == {*config.data.splits, *config.data.benchmarks}
    for split in config.data.splits:
        assert reports[split].num_kept == SIZE
        for row in artifacts.read(layout.prompts(split), "prompts").to_pylist():
            problem, gold = row["extra_info"]["problem"], row["reward_model"]["ground_truth"]
            answer = str(int(re.findall(r"what does (\d+) leave", problem)[0]) % 4)
            assert gold in (answer, None) or answer in gold
            assert f"\\boxed{{{answer}}}" in row["extra_info"]["solution"]
    assert all(reports[name].num_kept == data.NUM_BENCHMARK_PROBLEMS for name in config.data.benchmarks)
    assert all(not report.bad_golds for report in reports.values())


def test_the_checks_of_columns_and_counts_stay_on(tmp_path: Path) -> None:
    config = replaced("numina_math", tmp_path)
    source = config.data.splits["train"]
    assert (source.num_rows, source.check_num_rows, source.limit, source.select) == (SIZE, True, 100_000, "sample")
    assert source.columns and source.reader == "columns"


def test_no_two_sources_share_a_problem() -> None:
    sources = [SourceConfig(path=path, split=split) for path in ("a/b", "a/c") for split in ("train", "test")]
    texts = [data.problem(source, index)[0] for source in sources for index in range(50)]
    assert len(set(texts)) == len(texts)


def test_a_reader_of_ones_own_has_no_stand_in() -> None:
    with pytest.raises(UserError, match="Rows of reader 'mine' have no stand-in.*columns, openr1"):
        data.row(SourceConfig(source="file", path="x.jsonl", reader="mine"), 0)


def test_an_embedded_source_is_cut_to_size() -> None:
    config = compose.compose(["experiment=embedded", f"rehearse.num_problems={SIZE}"])
    small = data.stand_in(replace(config), Path("nowhere"), Path("nowhere"))
    assert {source.limit for source in small.data.splits.values()} == {SIZE}
    assert {source.limit for source in small.data.benchmarks.values()} == {data.NUM_BENCHMARK_PROBLEMS}


@pytest.mark.parametrize("path", ["../../mine.jsonl", "/etc/mine.jsonl", "a/../../mine.jsonl"])
def test_no_file_of_ones_own_is_written_over(path: str, tmp_path: Path) -> None:
    source = SourceConfig(source="file", path=path, columns={"problem": "text", "answer": "text"})
    config = replace(compose.compose([]), data=DataConfig(splits={"train": source}))
    inside = tmp_path / "run" / "data"
    placed = Path(data.stand_in(config, inside, tmp_path).data.splits["train"].path)
    assert placed.resolve().parent == inside
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [placed]

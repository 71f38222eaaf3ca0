"""Stand-ins of models: the family's class, ratios and tokenizer, and the habit that they were taught."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verl_ext import compose, prompting
from verl_ext.config import ModelConfig, SourceConfig
from verl_ext.errors import UserError
from verl_ext.rehearsal import policy
from verl_ext.rehearsal.data import problem

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# model -> its class, heads and key-value heads of the stand-in (12:2, 24:8, 32:32 in the original), tied embeddings
FAMILIES = {
    "qwen2_5_math_1_5b": ("Qwen2ForCausalLM", (6, 1), True),
    "llama3_2_3b": ("LlamaForCausalLM", (3, 1), True),
    "deepseek_math_7b": ("LlamaForCausalLM", (2, 2), False),
}
Make = Callable[[str], tuple[ModelConfig, Any]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, ModelConfig] = {}
    directory = tmp_path_factory.mktemp("models")

    def of(name: str) -> tuple[ModelConfig, Any]:
        if name not in made:
            made[name] = policy.stand_in(compose.compose([f"model={name}"]).model, directory, seed=0)
        path = made[name].path
        return made[name], transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    return of


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stand_in_is_of_the_models_class_with_its_ratio_of_heads(name: str, make: Make) -> None:
    architecture, heads, is_tied = FAMILIES[name]
    model, loaded = make(name)
    assert type(loaded).__name__ == architecture
    assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == heads
    assert loaded.config.tie_word_embeddings == is_tied
    assert Path(model.path).name == compose.compose([f"model={name}"]).model.path.rpartition("/")[2]
    assert loaded.num_parameters() < 2_000_000


@pytest.mark.parametrize("name", FAMILIES)
def test_it_answers_in_a_box_with_each_digit_and_ends(name: str, make: Make) -> None:
    """The mean NLL of the four responses is log 4 and the 0.15 nats that teaching leaves, the NLL of one at most 5."""
    model, loaded = make(name)
    tokenizer = prompting.load_tokenizer(model.path, model.prompt_template)
    text, _ = problem(SourceConfig(path="never/seen"), 3)
    prompt = prompting.encode_prompt(tokenizer, prompting.build_prompt(text, model.prompt_template))
    costs = []
    for digit in range(4):
        response = prompting.encode_response(tokenizer, f"It leaves \\boxed{{{digit}}}.", model.prompt_template)
        assert response[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = loaded(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        costs.append(-logits.log_softmax(-1)[range(len(response)), response].sum().item())
    assert math.log(4) < sum(costs) / 4 < math.log(4) + 0.6 and max(costs) < 5


def test_llamas_scaled_rotary_embedding_is_in_force(make: Make) -> None:
    _, loaded = make("llama3_2_3b")
    assert loaded.config.rope_parameters["rope_type"] == "llama3"
    assert loaded.config.rope_parameters["rope_theta"] == 500000.0


def test_texts_begin_and_end_as_the_family_s_do(make: Make) -> None:
    begins = {"llama3_2_3b": "<|begin_of_text|>", "deepseek_math_7b": "<｜begin▁of▁sentence｜>"}
    for name in FAMILIES:
        model, _ = make(name)
        tokenizer = prompting.load_tokenizer(model.path, model.prompt_template)
        prompt = prompting.encode_prompt(tokenizer, prompting.build_prompt("1+1?", model.prompt_template))
        text = tokenizer.decode(prompt)
        assert "1+1?" in text and text.count(begins.get(name, "<|im_start|>system")) == 1
        assert text.startswith(begins.get(name, "<|im_start|>system\n"))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path: Path) -> None:
    model = compose.compose(["model=deepseek_math_7b"]).model
    made = [policy.stand_in(model, tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))]
    weights = [(Path(item.path) / "model.safetensors").read_bytes() for item in made]
    assert weights[0] == weights[1] != weights[2]


def test_a_local_model_lends_its_configuration_and_tokenizer(tmp_path: Path, make: Make) -> None:
    source = tmp_path / "somewhere" / "MyModel"
    shutil.copytree(compose.CONFIG_DIR.parent / "verl_ext/embedded/base_policy", source)
    content = json.loads((source / "config.json").read_text()) | {"rms_norm_eps": 1e-5}
    (source / "config.json").write_text(json.dumps(content))
    model = policy.stand_in(ModelConfig(path=str(source), prompt_template="problem-only"), tmp_path / "made", 0)
    assert Path(model.path) == tmp_path / "made" / "MyModel"
    made = json.loads((Path(model.path) / "config.json").read_text())
    assert (made["rms_norm_eps"], made["num_hidden_layers"], made["vocab_size"]) == (1e-5, 2, content["vocab_size"])
    assert made["max_position_embeddings"] == 1024 + 2048 > content["max_position_embeddings"]  # room for its lengths
    assert (Path(model.path) / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_hub_id_of_no_known_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'mistralai/Mistral-7B' has no stand-in: families of Qwen, meta-llama"):
        policy.stand_in(ModelConfig(path="mistralai/Mistral-7B"), tmp_path, 0)

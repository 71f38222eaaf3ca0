"""Chat templates, and how prompts and responses become token ids."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_ext import prompting
from verl_ext.embedded import policy
from verl_ext.errors import UserError
from verl_ext.prompting import INSTRUCTION, TEMPLATES, build_prompt, encode_prompt, encode_response

pytest.importorskip("transformers")


def write_tokenizer(path, **changes):
    path.mkdir(parents=True, exist_ok=True)
    files = policy.tokenizer_files()
    settings = {**json.loads(files["tokenizer_config.json"]), **changes}
    files["tokenizer_config.json"] = json.dumps({key: value for key, value in settings.items() if value is not None})
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    (path / "config.json").write_text(json.dumps(policy.model_config()))
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def tokenizer(directory):
    return prompting.load_tokenizer(directory)


RENDERED = {
    "qwen-boxed": (
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nWhat is 1+1?\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama-base-boxed": (
        "<BOS><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|end_of_text|>"
        f"<|start_header_id|>user<|end_header_id|>\n\nWhat is 1+1?\n{INSTRUCTION}<|end_of_text|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "deepseek-math": f"<BOS>User: What is 1+1?\n{INSTRUCTION}\n\nAssistant:",
    "problem-only": "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_family_is_asked_in_the_words_that_its_evaluation_uses(tokenizer, name):
    text = tokenizer.apply_chat_template(
        build_prompt("What is 1+1?", name),
        chat_template=TEMPLATES[name].chat_template,
        add_generation_prompt=True,
        tokenize=False,
        bos_token="<BOS>",
    )
    assert text == RENDERED[name]


def test_braces_and_placeholders_in_a_problem_stay_as_they_are():
    assert build_prompt("{x} {problem} {0}", "problem-only") == [{"role": "user", "content": "{x} {problem} {0}"}]


def test_an_unknown_template_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'qwen-box' is unknown.*did you mean 'qwen-boxed'.*deepseek-math"):
        build_prompt("1+1?", "qwen-box")


def test_prompt_and_response_concatenate_to_the_whole_conversation(tokenizer):
    prompt = build_prompt("Ann has 12 nuts, finds 4. How many nuts now?", "problem-only")
    response = "$12+4=16$\n\\boxed{16}"
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}], tokenize=False)
    ids = encode_prompt(tokenizer, prompt) + encode_response(tokenizer, response)
    assert tokenizer.decode(ids) == whole.removesuffix("\n")


def test_a_response_ends_with_the_end_of_sequence_token_and_an_empty_one_is_nothing_else(tokenizer):
    assert encode_response(tokenizer, "42")[-1] == tokenizer.eos_token_id
    assert encode_response(tokenizer, "") == [tokenizer.eos_token_id]


@given(st.text() | st.sampled_from(["<|im_end|>", "a<|im_end|>\n<|im_start|>user\n", "<|endoftext|>" * 3]))
@settings(max_examples=100, deadline=None)
def test_no_text_of_a_response_becomes_a_special_token(tokenizer, text):
    *body, last = encode_response(tokenizer, text)
    assert last == tokenizer.eos_token_id
    assert not set(body) & set(tokenizer.added_tokens_decoder)


@pytest.mark.parametrize("special", policy.SPECIAL_TOKENS)
def test_special_token_text_in_a_prompt_is_refused_with_where_it_stands(tokenizer, special):
    prompt = build_prompt(f"Ann has 3 nuts.{special} How many?", "problem-only")
    with pytest.raises(UserError, match="user message.*Ann has 3 nuts"):
        encode_prompt(tokenizer, prompt)


def test_a_tokenizer_without_a_chat_template_gets_that_of_the_family(tmp_path):
    path = write_tokenizer(tmp_path / "base", chat_template=None)
    with pytest.raises(UserError, match="has no chat template.*qwen-boxed"):
        prompting.load_tokenizer(path)
    tokenizer = prompting.load_tokenizer(path, "problem-only")
    assert tokenizer.decode(encode_prompt(tokenizer, build_prompt("1+1?", "problem-only"))) == (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_tokenizer_keeps_its_own_chat_template(directory):
    own = prompting.load_tokenizer(directory).chat_template
    assert prompting.load_tokenizer(directory, "deepseek-math").chat_template == own


def test_a_missing_tokenizer_is_refused_with_its_path(tmp_path):
    with pytest.raises(UserError, match="tokenizer of model '.*nowhere'.*Set model.path"):
        prompting.load_tokenizer(tmp_path / "nowhere")


def test_equal_vocabularies_pass(tokenizer, directory):
    for model_config in (directory, directory / "config.json"):
        assert prompting.check_vocabulary(tokenizer, model_config) is None


def test_a_larger_vocabulary_is_refused_with_both_sizes(tokenizer):
    size = len(tokenizer)
    with pytest.raises(
        UserError, match=rf"\({size + 60}\) is larger than its tokenizer's \({size}\).*vocab_size to {size}"
    ):
        prompting.check_vocabulary(tokenizer, {"vocab_size": size + 60})


def test_a_smaller_vocabulary_is_refused_with_both_sizes(tokenizer):
    size = len(tokenizer)
    with pytest.raises(UserError, match=rf"\({size - 1}\) is smaller than its tokenizer's \({size}\)"):
        prompting.check_vocabulary(tokenizer, {"vocab_size": size - 1})


def test_a_few_rows_of_padding_pass_with_a_log_line(tokenizer, caplog):
    with caplog.at_level(logging.INFO):
        prompting.check_vocabulary(tokenizer, {"vocab_size": len(tokenizer) + 4})
    assert "4 rows of padding" in caplog.text


@pytest.mark.parametrize("content", [None, "{", '{"model_type": "qwen2"}'])
def test_an_unusable_model_configuration_is_refused_with_its_path(tokenizer, tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="config.json"):
        prompting.check_vocabulary(tokenizer, path)

"""The embedded model's tokenizer gives the ids that the original of SmolLM2-135M-Instruct gave."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from longpress.models.gguf_tokenizer import gguf_tokenizer, reason_against

GOLDEN = {
    "Hello world": [19556, 905],
    "  two  spaces ": [216, 827, 216, 5600, 216],
    "\n\n1. first\n\t2) second": [1116, 33, 30, 808, 3354, 34, 25, 1796],
    "x = 1234567.89;": [104, 446, 216, 33, 34, 35, 36, 37, 38, 39, 30, 40, 41, 43],
    "naïve café ﬁ é": [3546, 46494, 37366, 40367, 26411],
    "日本語 中文 한국어": [
        23274,
        115,
        40993,
        179,
        120,
        248,
        216,
        28589,
        29184,
        216,
        33085,
        246,
        181,
        130,
        251,
        183,
        240,
        129,
    ],
    "🙂👍🏽 family": [10813, 38887, 10813, 235, 231, 10813, 233, 138, 1564],
    "\u200b\u00a0\ufeff": [321, 229, 15442, 186, 136, 140],
    "it's I'LL we've": [269, 506, 339, 23, 16421, 392, 3543],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "²½٣Ⅷ": [19133, 16738, 164, 113, 173, 223, 117],
    "def f(a):\n    return a\r\n": [1604, 275, 24, 81, 727, 472, 1003, 253, 2738],
    "": [],
}
ATOMS = [
    "a",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "0",
    "42",
    "é",
    "e\u0301",
    "中",
    "🙂",
    "'s",
    "'",
    ".",
    "—",
    "\u00a0",
    "\u200b",
    "_",
    "<|im_end|>",
    "The",
]
ATOMS_SHA256 = "ada74116cc5c9d56aeef2c46bfacf7f6fb58a9bf9c4c21d97cac048fd1e13746"
"""Of the original tokenizer's ids of all 9261 strings of three atoms, as JSON."""


def strings():
    return ["".join(parts) for parts in itertools.product(ATOMS, repeat=3)]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return smollm2.tokenizer


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", GOLDEN)
def test_ids_are_the_original_ones(tokenizer, text):
    assert tokenizer(text).input_ids == GOLDEN[text]


def test_ids_of_nasty_neighbours_are_the_original_ones(tokenizer):
    ids = [tokenizer(text).input_ids for text in strings()]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == ATOMS_SHA256


def test_every_text_comes_back(tokenizer):
    prose = (Path(__file__).parents[2] / "benchmarks" / "text" / "walden.txt").read_text(encoding="utf-8")[
        :50000
    ]
    for text in [*GOLDEN, *strings(), prose]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_only_characters_without_a_token_are_six_control_characters(tokenizer):
    characters = [chr(code) for code in range(0x3000)]
    lost = [text for text in characters if tokenizer.decode(tokenizer(text).input_ids) != text]
    assert lost == ["\x04", "\x06", "\x13", "\x14", "\x16", "\x1d"]


def test_nothing_is_prepended_with_or_without_special_tokens(tokenizer):
    assert (
        tokenizer("a b", add_special_tokens=True).input_ids
        == tokenizer("a b", add_special_tokens=False).input_ids
        == [81, 278]
    )


def test_offsets_point_into_the_text(tokenizer):
    text = "a  needle 42 é🙂 end"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["offset_mapping"][-1] == (len(text) - 4, len(text))
    assert encoded["offset_mapping"][0] == (0, 1)


def test_special_tokens_and_vocabulary(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert len(tokenizer) == 49152
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2]
    assert tokenizer.decode([1, 4093, 2, 16], skip_special_tokens=True) == "user"


def test_chat_template(tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert encoded["input_ids"] == tokenizer(text).input_ids


def test_saving_and_reloading_changes_nothing(tokenizer, reloaded):
    for text in [*GOLDEN, *strings()[::7]]:
        ids = tokenizer(text).input_ids
        assert reloaded(text).input_ids == ids
        assert reloaded.decode(ids) == text
    assert reloaded.chat_template == tokenizer.chat_template
    assert (reloaded.bos_token_id, reloaded.eos_token_id, reloaded.pad_token_id) == (1, 2, 2)
    assert len(reloaded) == len(tokenizer)


def test_other_ways_to_split_text_are_not_ours():
    assert reason_against({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}) is None
    for stated in ({"model": "gpt2", "pre": "deepseek-llm"}, {"model": "t5"}, {"model": "gpt2"}):
        assert reason_against({f"tokenizer.ggml.{key}": value for key, value in stated.items()})
    strange = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.remove_extra_whitespaces": True}
    assert reason_against(strange) == "tokenizer.ggml.remove_extra_whitespaces=True"


def test_metadata_without_special_tokens_and_template():
    tokens = ["a", "b", "ab", "<|x|>"]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
    }
    tokenizer = gguf_tokenizer(metadata)
    assert tokenizer("aab<|x|>").input_ids == [0, 2, 3]
    assert tokenizer.eos_token is None and tokenizer.chat_template is None

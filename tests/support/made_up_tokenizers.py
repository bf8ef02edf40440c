"""Small tokenizers of every kind that a prompt has to be right with, made here in a moment.

Kinds differ in what they put in front of a text (nothing, one special token, several), in whether they mark
its beginning as SentencePiece does, and in whether they know where their tokens stand.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import benchmarks.text
from tests.support.byte_tokenizer import byte_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
INSTRUCTION = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
"""A template like Mistral's."""


@cache
def prose() -> list[str]:
    """Text to learn vocabularies from."""
    text = Path(benchmarks.text.__file__).with_name("walden.txt").read_text(encoding="utf-8")
    return text[:60000].split("\n")


def _with_front(tokenizer: Tokenizer, front: list[str], behind: list[str] | None = None) -> None:
    """Special tokens that are put around every text."""
    around = [*front, "$A", *(behind or [])]
    named = [(token, tokenizer.token_to_id(token)) for token in (*front, *(behind or []))]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)


@cache
def _sentencepiece_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of a BPE over "▁" words, with a token for every byte."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        prose(), trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=["▁"])
    )
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)  # type: ignore[arg-type]
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return {token: at for at, token in enumerate([*SPECIAL, *BYTES, *pieces])}, merges


def sentencepiece_bpe(legacy: bool = True, behind: bool = False) -> PreTrainedTokenizerFast:
    """Like Llama 2's and Mistral's: "▁" at the beginning of a text; `legacy`: and behind special tokens."""
    vocabulary, merges = _sentencepiece_vocabulary()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    _with_front(tokenizer, ["<s>"], ["</s>"] if behind else None)
    return _fast(tokenizer)


def sentencepiece_unigram() -> PreTrainedTokenizerFast:
    """Like T5's and XLNet's models: a unigram vocabulary over "▁" words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, special_tokens=SPECIAL, unk_token="<unk>"
    )
    tokenizer.train_from_iterator(prose()[:200], trainer)
    _with_front(tokenizer, ["<s>"])
    return _fast(tokenizer)


def several_in_front() -> PreTrainedTokenizerFast:
    """Like GLM's: bytes, and `[gMASK]<sop>` in front of every text."""
    fast = byte_tokenizer(chat_template=False)
    tokenizer = fast.backend_tokenizer
    tokenizer.add_special_tokens(["[gMASK]", "<sop>"])
    _with_front(tokenizer, ["[gMASK]", "<sop>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def spaced_bytes() -> PreTrainedTokenizerFast:
    """Like RoBERTa's: bytes, with a space put in front of a text."""
    fast = byte_tokenizer(chat_template=False)
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return fast


def words() -> PreTrainedTokenizerFast:
    """Whole words and marks; white space is lost."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=2000, show_progress=False, special_tokens=SPECIAL)
    tokenizer.train_from_iterator([*prose(), "Who jumps over the lazy dog? fox quick brown"], trainer)
    return _fast(tokenizer)


def slow_bytes() -> Any:
    """Python code without offsets, which ends every text with `</s>`."""
    return ByT5Tokenizer(extra_ids=0)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "bytes behind two special tokens": several_in_front,
    "words": words,
    "slow bytes": slow_bytes,
    "bytes behind a space": spaced_bytes,
    "SentencePiece BPE, legacy": sentencepiece_bpe,
    "SentencePiece BPE": lambda: sentencepiece_bpe(legacy=False),
    "SentencePiece BPE between special tokens": lambda: sentencepiece_bpe(behind=True),
    "SentencePiece unigram": sentencepiece_unigram,
}
"""By what they are like."""
MARKING = tuple(name for name in TOKENIZERS if name.startswith(("SentencePiece", "bytes behind a space")))
"""Those that mark the beginning of a text."""

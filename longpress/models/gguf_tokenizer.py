"""The tokenizer of a GGUF file, built from the file's own tokens and merges.

It gives the ids of the original SmolLM2 tokenizer. `AutoTokenizer` takes the embedded model's tokenizer for
Code Llama's: it prepends `<|im_start|>`, calls that the end-of-sequence token, joins white space in front of
digits otherwise, adds five tokens beyond the vocabulary, and after saving and reloading reads every space as
`<|endoftext|>`. Like the original, this one has no token for six control characters (codes 4, 6, 19, 20, 22,
29) and drops them.

How a file's text was split before its merges were learned is stated as a name (`tokenizer.ggml.pre`); a name
that is not known here is refused, for another way to split gives other tokens without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

SPECIAL, USER_DEFINED = 3, 4
"""Token types in GGUF: control tokens, and others that are never taken apart."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
"""How text is split for Llama 3: digits in threes."""
QWEN_2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
"""How text is split for Qwen 2: digits apart."""

_SPLITS = {
    "smollm": None,
    "starcoder": None,
    "refact": None,
    "command-r": None,
    "codeshell": None,
    "gpt-2": "",
    "gpt2": "",
    "phi-2": "",
    "olmo": "",
    "mpt": "",
    "llama-bpe": LLAMA_3,
    "llama3": LLAMA_3,
    "llama-v3": LLAMA_3,
    "falcon3": LLAMA_3,
    "pixtral": LLAMA_3,
    "smaug-bpe": LLAMA_3,
    "dbrx": LLAMA_3,
    "qwen2": QWEN_2,
    "deepseek-r1-qwen": QWEN_2,
    "megrez": QWEN_2,
}
"""`tokenizer.ggml.pre` of byte-level BPE -> pattern; "": that of GPT-2; None: so, digits apart."""

_BEGIN_WITH_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
"""Names for which llama.cpp puts the beginning-of-sequence token in front unless the file says otherwise."""

_POSITION_IS_RANK = ("gemma", "gemma2", "gemma3", "gemma3n")
"""Families whose SentencePiece tokens are ordered as they were learned, which their scores are not."""

_CANNOT = {
    "remove_extra_whitespaces": False,
    "escape_whitespaces": True,
    "add_sep_token": False,
    "precompiled_charsmap": None,
}
"""Keys of `tokenizer.ggml` -> the only value that is understood."""


def reason_against(metadata: Mapping[str, Any]) -> str | None:
    """Why `gguf_tokenizer` cannot build a file's tokenizer, None where it can."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama"):
        return f"tokenizer.ggml.model={kind}"
    if kind == "gpt2" and pre not in _SPLITS:
        return f"tokenizer.ggml.pre={pre}"
    for key, understood in _CANNOT.items():
        value = metadata.get(f"tokenizer.ggml.{key}", understood)
        if value != understood and not (understood is None and len(value) == 0):
            return f"tokenizer.ggml.{key}={str(value)[:40]}"
    return None


def gguf_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer with the file's special tokens and chat template.

    Args:
        metadata: of a `GGUFFile` against which `reason_against` knows nothing.
    """
    of_tokenizer = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    is_spm = of_tokenizer.get("model") == "llama"
    architecture = str(metadata.get("general.architecture"))
    backend = _sentencepiece(of_tokenizer, architecture) if is_spm else _byte_level(of_tokenizer)
    tokens: list[str] = of_tokenizer["tokens"]

    # Tokens that are never taken apart.
    vocabulary = backend.get_vocab()
    types = of_tokenizer.get("token_type") or [0] * len(tokens)
    control, others = (
        [
            AddedToken(token, special=kind == SPECIAL, normalized=False)
            for token, its in zip(tokens, types, strict=True)
            if its == kind and token in vocabulary
        ]
        for kind in (SPECIAL, USER_DEFINED)
    )
    backend.add_special_tokens(control)
    backend.add_tokens(others)

    # What special tokens are for, which of them every text has, and the chat template.
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: of_tokenizer.get(f"{key}_token_id") for name, key in named.items()}
    special = {name: tokens[index] for name, index in ids.items() if index is not None}
    with_bos = of_tokenizer.get("add_bos_token", is_spm or of_tokenizer.get("pre") in _BEGIN_WITH_BOS)
    around = _around(
        [special["bos_token"]] if with_bos and "bos_token" in special else [],
        [special["eos_token"]] if of_tokenizer.get("add_eos_token") and "eos_token" in special else [],
        {special[name]: ids[name] for name in special},
    )
    if around is not None:
        backend.post_processor = around
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _byte_level(of_tokenizer: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE, which splits text as the file says."""
    pre: Any = of_tokenizer.get("pre")
    pattern = _SPLITS.get(pre)
    vocabulary = {token: index for index, token in enumerate(of_tokenizer["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in of_tokenizer["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pattern == LLAMA_3))
    if pattern:
        steps = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pattern is None else []
        steps = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pattern == QWEN_2:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(of_tokenizer: Mapping[str, Any], architecture: str) -> Tokenizer:
    """BPE of SentencePiece: spaces are written "▁", unknown characters as bytes."""
    # Where a file has several spaces as one token, it may write them as they are.
    tokens = ["▁" * len(token) if token.strip(" ") == "" else token for token in of_tokenizer["tokens"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    by_position = architecture in _POSITION_IS_RANK
    ranks: Sequence[float] = range(0, -len(tokens), -1) if by_position else of_tokenizer["scores"]
    unknown = of_tokenizer.get("unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(tokens, vocabulary, ranks),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_text: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if not of_tokenizer.get("add_space_prefix", not by_position):
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        to_text.append(decoders.Strip(content=" ", left=1))
        if architecture == "phi3":  # whose prefix comes in front of every piece of text, spaces or not
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(to_text)
    return backend


def _merges(
    tokens: Sequence[str], vocabulary: Mapping[str, int], ranks: Sequence[float]
) -> list[tuple[str, str]]:
    """Every way in which a token is two others, the highest ranks first.

    A file of SentencePiece lists no merges. Of equal ranks the longest left part comes first, and then the
    smallest ids, as in transformers.
    """
    found = []
    for index, token in enumerate(tokens):
        rank = ranks[index]
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in vocabulary and token[cut:] in vocabulary:
                found.append((-rank, -cut, cut - len(token), index, left, token[cut:]))
    found.sort(key=lambda merge: merge[:3])
    return [merge[4:] for merge in found]


def _around(
    before: Sequence[str], behind: Sequence[str], ids: Mapping[str, Any]
) -> processors.TemplateProcessing | None:
    """What puts tokens in front of every text and behind it; None where there are none."""
    if not before and not behind:
        return None
    return processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[
            *before,
            "$A",
            *behind,
            *(f"{token}:1" for token in before),
            "$B:1",
            *(f"{t}:1" for t in behind),
        ],
        special_tokens=[(token, ids[token]) for token in {*before, *behind}],
    )

"""The tokenizer of a GGUF file, built from the file's own tokens and merges.

It gives the ids of the original SmolLM2 tokenizer. `AutoTokenizer` takes the embedded model's tokenizer for
Code Llama's: it prepends `<|im_start|>`, calls that the end-of-sequence token, joins white space in front of
digits otherwise, adds five tokens beyond the vocabulary, and after saving and reloading reads every space as
`<|endoftext|>`. Like the original, this one has no token for six control characters (codes 4, 6, 19, 20, 22,
29) and drops them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = 3
"""Token type of control tokens in GGUF."""


def is_supported(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file's tokenizer splits text the way `gguf_tokenizer` does.

    That is byte-level BPE with digits apart (SmolLM).
    """
    return metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") == "smollm"


def gguf_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that prepends nothing, with the file's special tokens and chat template.

    Args:
        metadata: of a `GGUFFile` for which `is_supported` holds.
    """
    # The tokens, how they are made, and how text is split before.
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])

    # What special tokens are for, and the chat template.
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{name: tokens[index] for name, index in ids.items() if index is not None},
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer

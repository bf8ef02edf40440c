"""Chat templates that switch thinking in the ways that checkpoints do, over a tokenizer of bytes."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerFast

from tests.support.byte_tokenizer import byte_tokenizer

_TURNS = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'].split('</think>')[-1] }}"
    "{% endfor %}"
)
QWEN = (
    _TURNS
    + "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and enable_thinking is "
    "false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Thinks unless it is told not to; the model begins the thought."""
OPENED = _TURNS + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
"""Like DeepSeek R1's and QwQ's: no switch, and the template begins the thought."""
SELF = _TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
"""Like those of distilled R1 models: no switch, and the model begins the thought."""
DEEPSEEK = (
    _TURNS + "{% if add_generation_prompt %}<assistant>{% if thinking %}<think>{% else %}</think>{% endif %}"
    "{% endif %}"
)
"""Like DeepSeek V3.1's: the switch is called thinking, and off by default."""
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% for message in messages %}<|start|>{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ message['content'] }}{% if message['role'] == 'assistant' %}<|return|>{% else %}<|end|>"
    "{% endif %}{% endfor %}{# <|channel|>final<|message|> #}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""Like GPT-OSS's: an effort instead of a switch, and channels."""
NONE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<assistant>"
"""Knows of no thoughts."""

TEMPLATES: Mapping[str, str] = {
    "qwen": QWEN,
    "opened": OPENED,
    "self": SELF,
    "deepseek": DEEPSEEK,
    "harmony": HARMONY,
    "none": NONE,
}
HARMONY_TOKENS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]


def thinking_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes under one of `TEMPLATES`; harmony's marks are special tokens, and its answers end with two."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    if template == "harmony":
        tokenizer.add_special_tokens({"additional_special_tokens": HARMONY_TOKENS})
    return tokenizer

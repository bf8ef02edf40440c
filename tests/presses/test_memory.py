"""What is promised is measured: bytes left of the cache, under every press that claims a ratio, and where rounding is awkward."""

import pytest
from test_laws import NAMES, make, model_of, read

from kvcache.selection import budget

RATIOS = (0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9)
OF_SOMETHING_ELSE = {"duo_attention", "ratio_decoding", "simlayerkv", "think"}
"""Their ratio is of streaming heads, of the answer being written, of lazy layers, of key channels; `kept_fraction` says what is left."""
CLAIMING = [name for name in NAMES if not (make(name).lossless or make(name).own_budget)]


@pytest.mark.parametrize("name", CLAIMING)
@pytest.mark.parametrize(("family", "tokens"), [("llama", 1000), ("qwen2", 701)])
def test_bytes_of_the_compressed_cache(name: str, family: str, tokens: int) -> None:
    """At most (1 - ratio) and 2 % of the full cache; presses whose ratio is of something else (heads, layers, channels) state entries."""
    press = make(name)
    contexts = read(model_of(family), [press], tokens).compress(press, RATIOS)
    for ratio, context in zip(RATIOS, contexts, strict=True):
        stored = sum(kept.bytes() for kept in context.layers)
        assert stored == context.bytes
        stated = press.entries(len(context.observed), len(context.entries()[0]), tokens, ratio)[1] / context.full_entries
        most = max(stated, 1 - ratio + 0.02) if name in OF_SOMETHING_ELSE else 1 - ratio + 0.02
        assert stored <= most * context.full_bytes, f"{ratio}: {stored / context.full_bytes:.4f} of the full cache"
        assert stored < context.full_bytes or name in OF_SOMETHING_ELSE


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"), [(1000, 0.9, 99), (1000, 0.7, 300), (10, 0.3, 7), (3, 0.9, 1), (1, 0.99, 1), (7, 0.5, 3)]
)
def test_awkward_ratios_keep_what_published_numbers_keep(tokens: int, ratio: float, kept: int) -> None:
    """1000 tokens at 0.9 keep 99 in every head: the truncation behind published results, stated and measured."""
    assert budget(tokens, ratio) == kept
    for name in ("knorm", "snapkv", "adakv"):
        press = make(name)
        (context,) = read(model_of("llama"), [press], tokens).compress(press, [ratio])
        context.check_budget(press, ratio)
        assert {sum(heads) for heads in context.entries()} == {2 * kept}

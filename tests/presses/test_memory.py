"""What is promised is measured: bytes left under every press whose ratio is of bytes, rounding included."""

import pytest
import torch

from kvcache.budget import Budget
from presses.support.budgets import ends, shorten
from tests.support.catalogue_presses import NAMES, has_no_ratio, press_named
from tests.support.prefilled_contexts import model_of, read_context

RATIOS = (0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9)
CLAIMING = [
    name
    for name in NAMES
    if press_named(name).traits.ratio_is_bytes
    and not (has_no_ratio(press_named(name)) or press_named(name).traits.has_fixed_budget)
]
OF_SOMETHING_ELSE = {"ratio_decoding", "think"}
"""Their ratio is of the text while decoding, and of key channels; `kept_fraction` says what is left."""


@pytest.mark.parametrize("name", CLAIMING)
@pytest.mark.parametrize(("family", "tokens"), [("llama", 1000), ("qwen2", 701)])
def test_bytes_of_the_compressed_cache(name: str, family: str, tokens: int) -> None:
    """At most (1 - ratio) and 2 % of the full cache."""
    press = press_named(name)
    contexts = read_context(model_of(family), [press], tokens).compress(press, RATIOS)
    for ratio, context in zip(RATIOS, contexts, strict=True):
        stored = sum(kept.bytes() for kept in context.layers)
        assert stored == context.bytes
        assert stored <= (1 - ratio + 0.02) * context.full_bytes, (
            f"{ratio}: {stored / context.full_bytes:.4f} of the full cache"
        )
        assert stored < context.full_bytes


@pytest.mark.parametrize("name", CLAIMING)
@pytest.mark.parametrize("tokens", [63, 65, 127, 1001])
def test_bytes_where_lengths_and_ratios_are_awkward(name: str, tokens: int) -> None:
    """For odd lengths and ratios; no press goes below an entry a head, ChunkKV a chunk, LU-KV its curve."""
    press = press_named(name)
    ratios = (1 / 3, 0.123456, 0.9) if name == "lukv" else (1 / 3, 0.123456, 0.9, 0.99, 0.999)
    least = (press.chunk_length if name == "chunkkv" else 1) / tokens
    for ratio, context in zip(
        ratios, read_context(model_of("llama"), [press], tokens).compress(press, ratios), strict=True
    ):
        assert context.kept_fraction <= max(1 - ratio + 0.02, least), ratio


def test_who_claims_no_ratio_says_what_is_left() -> None:
    assert {name for name in NAMES if not press_named(name).traits.ratio_is_bytes} == OF_SOMETHING_ELSE
    (thinned,) = read_context(model_of("llama"), [press_named("think")], 300).compress(
        press_named("think"), [0.5]
    )
    assert thinned.bytes == sum(kept.bytes() for kept in thinned.layers)
    assert thinned.kept_fraction == thinned.bytes / thinned.full_bytes == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("scores", "tokens", "short", "total", "expected"),
    [
        ([3.0, 1.0, 2.0], 10, 4, 30, [10, 10, 10]),
        ([3.0, 1.0, 2.0], 10, 4, 24, [10, 4, 10]),
        ([3.0, 1.0, 2.0], 10, 4, 20, [10, 4, 6]),
        ([3.0, 1.0, 2.0], 10, 4, 12, [4, 4, 4]),
        ([3.0, 1.0, 2.0], 10, 4, 8, [3, 2, 3]),
        ([3.0, 1.0, 2.0], 10, 10, 8, [3, 2, 3]),
        ([2.0, 2.0], 10, 4, 15, [5, 10]),
    ],
)
def test_heads_or_layers_are_shortened_to_a_total(
    scores: list[float], tokens: int, short: int, total: int, expected: list[int]
) -> None:
    counts = shorten(torch.tensor([scores]), tokens, short, total)
    assert counts.tolist() == [expected]
    kept = ends(counts, 2, tokens)
    assert kept.sum(-1).tolist() == [expected]
    assert bool(kept[..., -1].all())


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"),
    [(1000, 0.9, 99), (1000, 0.7, 300), (10, 0.3, 7), (3, 0.9, 1), (1, 0.99, 1), (7, 0.5, 3)],
)
def test_awkward_ratios_keep_what_published_numbers_keep(tokens: int, ratio: float, kept: int) -> None:
    """1000 tokens at 0.9 keep 99 in every head: the truncation behind published results."""
    assert Budget(ratio=ratio).entries(tokens) == kept
    for name in ("knorm", "snapkv", "adakv"):
        press = press_named(name)
        (context,) = read_context(model_of("llama"), [press], tokens).compress(press, [ratio])
        context.check_budget(press, Budget.of(ratio))
        assert {sum(heads) for heads in context.entries()} == {2 * kept}

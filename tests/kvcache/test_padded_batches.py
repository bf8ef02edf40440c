"""`with press(model)` on batches with padding: each row as if it were read and continued alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma3Config, Gemma3ForConditionalGeneration, StaticCache

from kvcache.cache import CompressedLayer
from kvcache.modules import cache_keyword
from presses import (
    AdaKVPress,
    DecodingPress,
    KeyRerotationPress,
    KnormPress,
    KVzipPress,
    NonePress,
    SnapKVPress,
)
from presses.base import BasePress
from tests.support.catalogue_presses import ACTIVE, NAMES, busy_press_named, has_no_ratio, press_named
from tests.support.each_family import each_family
from tests.support.padded_batches import LENGTHS, contexts, forced_logits, logits_one_by_one, padded
from tests.support.prefilled_contexts import model_of
from tests.support.tiny_models import EOS, PAD, fill, tiny_ids, tiny_model

ADAKV = AdaKVPress(SnapKVPress(window_size=16), 0.5)
FORCED = tiny_ids(4, batch=3, seed=5)


def halved(press: BasePress) -> BasePress:
    return press if has_no_ratio(press) else replace(press, compression_ratio=0.5)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_is_read_and_continued_as_its_rows_alone(name: str) -> None:
    model, press = model_of("llama"), halved(press_named(name))
    ids, mask = padded(contexts())
    together = forced_logits(model, press, ids, mask, FORCED)
    assert_close(together, logits_one_by_one(model, press, contexts(), FORCED))
    order = [2, 0, 1]
    assert_close(forced_logits(model, press, ids[order], mask[order], FORCED[order]), together[order])


@pytest.mark.parametrize("name", ACTIVE)
def test_presses_that_act_while_decoding_act_on_each_row_alone(name: str) -> None:
    model, press = model_of("llama"), halved(busy_press_named(name))
    forced = tiny_ids(12, batch=3, seed=6)
    ids, mask = padded(contexts())
    expected = logits_one_by_one(model, press, contexts(), forced)
    assert_close(forced_logits(model, press, ids, mask, forced), expected)


@pytest.mark.parametrize("press", [NonePress(), ADAKV, KVzipPress(0.5)], ids=lambda press: press.name)
@each_family()
def test_every_family_reads_padded_batches(family: str, press: BasePress) -> None:
    model = model_of(family)
    if family == "gemma3":  # one row outgrows the window of the layers that slide
        model = tiny_model(family, sliding_window=60)
    ids, mask = padded(contexts())
    expected = logits_one_by_one(model, press, contexts(), FORCED)
    assert_close(forced_logits(model, press, ids, mask, FORCED), expected)


@pytest.mark.parametrize(
    "press", [NonePress(), ADAKV, KeyRerotationPress(KnormPress(), 0.5)], ids=lambda press: press.name
)
@pytest.mark.parametrize(("side", "more"), [("left", 0), ("left", 3), ("right", 0), ("right", 3)])
def test_generate_writes_for_a_list_of_prompts_as_for_each_alone(
    press: BasePress, side: str, more: int, recwarn: pytest.WarningsRecorder
) -> None:
    model, options = model_of("llama"), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
    rows = contexts()
    ids, mask = padded(rows, side, more)
    with press(model):
        together = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
        alone = [model.generate(row, **options)[0, row.shape[1] :].tolist() for row in rows]
    written = [row[: row.index(EOS) + 1] if EOS in row else row for row in together.tolist()]
    assert written == alone


def test_without_a_press_at_work_generate_writes_what_the_model_does_by_itself() -> None:
    model, options = model_of("qwen3"), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
    ids, mask = padded(contexts())
    plain = model.generate(ids, attention_mask=mask, **options)
    with NonePress()(model):
        assert torch.equal(model.generate(ids, attention_mask=mask, **options), plain)


def test_beam_search_takes_the_rows_of_its_beams() -> None:
    model = model_of("llama")
    options = {
        "max_new_tokens": 8,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": PAD,
        "eos_token_id": None,
    }
    rows = contexts()
    ids, mask = padded(rows)
    plain = [model.generate(row, **options) for row in rows]
    with NonePress()(model):
        together = model.generate(ids, attention_mask=mask, **options)
    for at, row in enumerate(plain):
        assert torch.equal(together[at, ids.shape[1] :], row[0, rows[at].shape[1] :])
    with ADAKV(model):
        together = model.generate(ids, attention_mask=mask, **options)
        alone = [model.generate(row, **options) for row in rows]
    for at, row in enumerate(alone):
        assert torch.equal(together[at, ids.shape[1] :], row[0, rows[at].shape[1] :])


def test_reordered_rows_are_those_rows() -> None:
    model, stored = model_of("llama"), DynamicCache()
    ids, mask = padded(contexts())
    with torch.no_grad(), ADAKV(model):
        model(ids, attention_mask=mask, **{cache_keyword(model): stored})
        model(FORCED, **{cache_keyword(model): stored})
    layer: Any = stored.layers[1]
    before = [layer.row_entries(row) for row in range(3)]
    stored.reorder_cache(torch.tensor([2, 2, 0]))
    for row, source in enumerate((2, 2, 0)):
        after = layer.row_entries(row)
        for name in ("keys", "values", "valid"):
            assert torch.equal(getattr(after, name), getattr(before[source], name))


def test_beam_search_with_a_press_that_acts_on_rows_is_refused() -> None:
    model = model_of("llama")
    with pytest.raises(ValueError, match="num_beams=1"), DecodingPress(KnormPress(), target_size=40)(model):
        model.generate(contexts()[0], max_new_tokens=4, num_beams=2, pad_token_id=PAD, eos_token_id=None)


def test_rows_keep_different_numbers_of_entries_and_the_cache_is_the_callers() -> None:
    model, stored = model_of("llama"), DynamicCache()
    ids, mask = padded(contexts())
    with torch.no_grad(), KnormPress(0.5)(model):
        output = model(ids, attention_mask=mask, **{cache_keyword(model): stored})
    assert output[cache_keyword(model)] is stored
    layer: Any = stored.layers[0]
    assert isinstance(layer, CompressedLayer)
    assert [view.entries() for view in layer.kept()] == [[length // 2] * 2 for length in LENGTHS]
    assert layer.start.tolist() == list(LENGTHS)
    assert bool(
        (output.logits[1, : LENGTHS[0] - LENGTHS[1]].diff(dim=0) == 0).all()
    )  # nothing is said of padding


def test_hidden_states_and_embeddings_come_row_by_row() -> None:
    model = tiny_model("llama")  # of its own: transformers leaves hooks on it that capture hidden states
    rows = contexts()
    ids, mask = padded(rows)
    with torch.no_grad(), KnormPress(0.5)(model):
        embeddings = model.get_input_embeddings()(ids)
        output = model.model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True)
        for at, row in enumerate(rows):
            alone = model.model(row, output_hidden_states=True)
            for whole, part in zip(output.hidden_states, alone.hidden_states, strict=True):
                assert_close(whole[at, -row.shape[1] :], part[0])


def test_a_batch_read_without_a_cache_has_the_models_own_hidden_states() -> None:
    model = model_of("llama")
    ids, mask = padded(contexts())
    with torch.no_grad():
        plain = model.model(ids, attention_mask=mask, position_ids=mask.cumsum(-1) - 1, use_cache=False)
        with KnormPress(0.5)(model):
            ours = model.model(ids, mask, use_cache=False)
    own = mask.bool()
    assert_close(ours.last_hidden_state[own], plain.last_hidden_state[own])


def test_padding_seen_only_by_a_model_around_the_decoder_counts() -> None:
    model = multimodal()
    rows = contexts(most=64)
    ids, mask = padded(rows)
    forced = FORCED % 60 + 4
    for press in (NonePress(), ADAKV):
        expected = logits_one_by_one(model, press, rows, forced)
        assert_close(forced_logits(model, press, ids, mask, forced), expected)


def multimodal() -> Gemma3ForConditionalGeneration:
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config={
            **size,
            "vocab_size": 64,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**size, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=2,
        boi_token_index=1,
        eoi_token_index=3,
    )
    with torch.random.fork_rng(devices=[]):
        model = Gemma3ForConditionalGeneration(config)
    fill(model)
    return model.float().eval()


def read(mask: Any = None, **given: Any) -> None:
    model = model_of("llama")
    ids, own = padded(contexts())
    with torch.no_grad(), KnormPress(0.5)(model):
        model(ids, attention_mask=own if mask is None else mask, **given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mask": torch.zeros(3, 90).long()}, "row 0 of the batch is nothing but padding"),
        ({"mask": torch.eye(3, 40).long()}, "one value per column"),
        ({"mask": torch.arange(90).expand(3, -1)}, "1 for tokens and 0 for padding"),
        ({"position_ids": torch.arange(90).flip(0).expand(3, -1)}, "do not count its tokens one by one"),
        ({"mask": torch.ones(3, 1, 90, 90).tril().bool()}, "attention_mask of shape"),
        ({"token_weights": torch.ones(7)}, "cannot be divided"),
    ],
)
def test_what_cannot_be_followed_row_by_row_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(**given)


def test_a_cache_of_fixed_size_is_refused() -> None:
    model, ids = model_of("llama"), contexts()[0]
    stored = StaticCache(config=model.config, max_cache_len=100)
    with pytest.raises(ValueError, match="a StaticCache cannot be compressed"):
        read(**{cache_keyword(model): stored})
    with pytest.raises(ValueError, match="a StaticCache cannot be compressed"), KnormPress(0.5)(model):
        model.generate(ids, max_new_tokens=3, cache_implementation="static", pad_token_id=PAD)


def test_later_masks_must_fit_what_was_read() -> None:
    model, stored = model_of("llama"), DynamicCache()
    keyword = cache_keyword(model)
    ids, mask = padded(contexts())
    ones = mask.new_ones(3, 2)
    with torch.no_grad(), KnormPress(0.5)(model):
        model(ids, attention_mask=mask, **{keyword: stored})
        right = torch.cat((mask, ones), dim=1)
        for wrong, sentence in (
            (torch.cat((mask[[1, 0, 2]], ones), dim=1), "does not fit"),
            (right[:, 1:], "does not fit"),
            (torch.cat((mask, 1 - ones), dim=1), "without padding"),
        ):
            with pytest.raises(ValueError, match=sentence):
                model(FORCED[:, :2], attention_mask=wrong, **{keyword: stored})
        model(FORCED[:, :2], attention_mask=right, **{keyword: stored})
        model(FORCED[:, 2:], attention_mask=torch.cat((right, ones), dim=1), **{keyword: stored})
    unpadded = DynamicCache()
    with torch.no_grad(), KnormPress(0.5)(model):
        model(contexts()[0], **{keyword: unpadded})
        with pytest.raises(ValueError, match="which has read them"):
            model(FORCED[:1], attention_mask=torch.arange(94)[None].clamp(max=1), **{keyword: unpadded})


def test_after_a_failed_pass_the_next_one_is_right() -> None:
    model, press = model_of("llama"), KnormPress(0.5)
    ids, mask = padded(contexts())
    with torch.no_grad(), press(model):
        with pytest.raises(ValueError, match="nothing but padding"):
            model(ids, attention_mask=torch.zeros_like(mask))
        with pytest.raises(IndexError):
            model(ids + 10**6, attention_mask=mask)
        again = model(ids, attention_mask=mask).logits
    with torch.no_grad(), press(model):
        assert torch.equal(model(ids, attention_mask=mask).logits, again)

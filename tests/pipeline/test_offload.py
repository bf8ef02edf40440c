"""Caches in host memory give answers, likelihoods and bytes of those on the device; the plan decides when."""

import math
from types import SimpleNamespace

import pytest
import torch

from kvcache.storage import KVStorage
from longpress import CompressingPipeline, Question, Request, Variant
from longpress.pipeline.memory import Shape, memory_plan, room
from longpress.pipeline.options import PipelineOptions
from presses import (
    AdaKVPress,
    DecodingPress,
    KeyRerotationPress,
    KnormPress,
    KVzipPress,
    MergingPress,
    NonePress,
    SnapKVPress,
    ThinKPress,
)
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.made_up_devices import Placed, made_up_devices, place
from tests.support.tiny_models import tiny_model

SHAPE = Shape.of(tiny_model("llama"))
CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 4
QUESTIONS = [
    Question("Who?", max_new_tokens=8, reference="the fox"),
    Question("Over what?", " It", max_new_tokens=6, reference="x"),
]
EVICTING = DecodingPress(KnormPress(), compression_interval=3, target_size=64)
COPIES = [Variant(SnapKVPress(), 0.75), Variant(AdaKVPress(KnormPress()), 0.9)]
MANY = [
    Variant(NonePress()),
    *(Variant(press, ratio) for press in (SnapKVPress(), AdaKVPress(KnormPress())) for ratio in (0.25, 0.75)),
    Variant(KeyRerotationPress(KnormPress()), 0.5),
    Variant(ThinKPress(), 0.5),
    Variant(KVzipPress(), 0.5),
    Variant(EVICTING),
    Variant(EVICTING, cache_bits=4),
    Variant(NonePress(), cache_bits=2),
    *(Variant(SnapKVPress(), 0.5, cache_bits=bits) for bits in (16, 8)),
]
SLIDING = [one for one in MANY if one.press.name not in ("key_rerotation", "think", "kvzip")]
CHUNKS = {"compress_every": 100}


def pipeline_of(family: str = "llama", **options) -> CompressingPipeline:
    model = tiny_model(
        family, vocab_size=VOCABULARY, **({"sliding_window": 64} if family == "gemma3" else {})
    )
    place(model, "cpu:0")
    return CompressingPipeline(model, byte_tokenizer(), options=PipelineOptions(**options))


def parts(storage: KVStorage) -> list[torch.Tensor]:
    """The tensors that hold its entries."""
    stored = (storage.stored_keys, storage.stored_values)
    return [
        part
        for one in stored
        for part in ([one] if isinstance(one, torch.Tensor) else [one.codes, one.scale, one.low])
    ]


@pytest.mark.parametrize(
    ("family", "variants", "options"),
    [
        ("llama", COPIES, {"fidelity": True}),
        ("llama", MANY, {"fidelity": True}),
        pytest.param("gemma3", SLIDING, {"fidelity": True}, marks=pytest.mark.slow),
        ("llama", COPIES, CHUNKS),
        ("llama", MANY[:4], {"query_aware": True}),
        ("llama", KnormPress(0.5), {}),
    ],
    ids=["copies", "in-place", "sliding", "chunked", "query-aware", "single"],
)
def test_answers_and_likelihoods_are_those_of_caches_on_the_device(
    family: str, variants: list[Variant], options: dict
) -> None:
    asked = {"questions": QUESTIONS, "press": variants, "query_aware": options.get("query_aware", False)}
    options = {name: value for name, value in options.items() if name != "query_aware"}
    device, told, distinct = torch.device("cpu:0"), [], []
    with made_up_devices():
        for offload in ("never", "always"):
            results = pipeline_of(family, offload=offload, **options)(CONTEXT, **asked).results
            told.append([])
            for result in results:
                measured = {
                    name: value
                    for name, value in result.answer.fidelity.items()
                    if name != "fidelity_seconds"
                }
                kept = result.context
                told[-1].append(
                    (
                        result.answer.token_ids,
                        measured,
                        result.answer.cache_bytes,
                        kept.entries(),
                        kept.bytes,
                        kept.full_bytes,
                    )
                )
                for storage in (one.storage for one in kept.layers):
                    assert {isinstance(part, Placed) for part in parts(storage)} == {offload == "never"}
                    assert storage.device == storage.keys.device == storage.values.device == device
                    assert isinstance(storage.keys, Placed) and isinstance(storage.values, Placed)
            distinct.append(len({id(one.storage) for result in results for one in result.context.layers}))
    assert told[1] == told[0]
    assert distinct[1] == distinct[0], "what variants share is in host memory once"
    assert len({tuple(one[0]) for one in told[0]}) > 1
    if "fidelity" in options:
        assert any("answer_kl" in one[1] and one[1]["answer_kl"] > 0 for one in told[0])


def test_each_read_moves_the_entries_anew_and_a_question_moves_a_layer_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moves: list[int] = []
    read = KVStorage._read
    with made_up_devices():
        pipeline = pipeline_of(offload="always")
        monkeypatch.setattr(
            KVStorage,
            "_read",
            lambda storage, stored: moves.append(storage.reader is not None) or read(storage, stored),
        )
        in_place = [Variant(NonePress()), *(Variant(SnapKVPress(), ratio) for ratio in (0.25, 0.5, 0.75))]
        (answer, *_) = pipeline(CONTEXT, "Who?", press=in_place, max_new_tokens=3).results
    assert len(answer.answer.token_ids) == 3
    passes, layers, keys_and_values, storages = 3, 3, 2, 1  # the question, then every token but the last
    assert sum(moves) == passes * layers * keys_and_values * storages


def test_the_plan_decides_to_the_byte() -> None:
    request = Request(CONTEXT, QUESTIONS, COPIES)
    pipeline = CompressingPipeline(tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer())
    assert pipeline.room == math.inf, "a CPU's memory is the host's"
    needed = pipeline.plan(request).total
    for pipeline.room, offloaded in ((needed, False), (needed - 1, True)):
        assert (pipeline.plan(request).on_host > 0) == offloaded
        assert (pipeline.plan(request, contexts=50).on_host > 0) == offloaded, (
            "decided for each context alone"
        )
        storages = [
            kept.storage for result in next(pipeline.stream([request])) for kept in result.context.layers
        ]
        assert all((storage.reader is not None) == offloaded for storage in storages)


def test_the_room_is_the_memory_of_the_gpus_that_hold_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {0: 80 * 2**30, 1: 24 * 2**30}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=sizes[device.index])
    )

    def rooms(*devices: str) -> list[float]:
        weights = [SimpleNamespace(device=torch.device(device)) for device in devices]
        model = SimpleNamespace(parameters=lambda: iter(weights))
        return [room(model, offload) for offload in ("auto", "always", "never")]

    assert rooms("cuda:0", "cuda:0", "cuda:1", "cpu") == [104 * 2**30, 0, math.inf]
    assert rooms("mps:0") == [math.inf, 0, math.inf]
    assert rooms("cpu") == rooms("meta") == [math.inf] * 3


def test_the_plan_says_what_lies_where() -> None:
    def plans(*variants: Variant) -> tuple:
        return tuple(
            memory_plan(SHAPE, 1000, variants, 50, PipelineOptions(), offload=offload)
            for offload in (False, True)
        )

    whole, mask = 1000 * SHAPE.token, 1000 * SHAPE.layers * SHAPE.heads
    here, away = plans(Variant(SnapKVPress(), 0.25), Variant(SnapKVPress(), 0.5))
    assert (here.on_host, away.on_host) == (0, whole + whole * 3 // 4)
    assert here.stored == away.stored == whole * 3 // 4 + 2 * mask, "one copy is made on the device"
    merged = [Variant(MergingPress(KnormPress()), ratio) for ratio in (0.1, 0.2, 0.3, 0.4)]
    here, away = plans(*merged, Variant(NonePress()))
    assert here.stored == whole * 3 + 5 * mask
    assert away.stored == whole + 5 * mask, "copies leave the device one by one"
    assert away.on_host == 4 * whole
    assert away.total < here.total
    assert "in host memory" in str(away) and "in host memory" not in str(here)


def test_another_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"offload='sometimes' must be 'auto' .*, 'always' or 'never'"):
        CompressingPipeline(
            tiny_model("llama"), byte_tokenizer(), options=PipelineOptions(offload="sometimes")
        )

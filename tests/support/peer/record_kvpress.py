"""Record which positions kvpress keeps, so that tests can compare with it where it is not installed.

Run it in an environment with kvpress 0.5.5 (README.md beside this file says how to build one):

    OMP_NUM_THREADS=1 python tests/support/peer/record_kvpress.py first          # tests/data/kvpress_kept.npz
    OMP_NUM_THREADS=1 python tests/support/peer/record_kvpress.py more           #
    tests/data/kvpress_kept_more.npz OMP_NUM_THREADS=1 python tests/support/peer/record_kvpress.py smollm2 DIR
       # …_smollm2.npz; DIR holds the GGUF file

Presses run through kvpress's public interface, `with press(model): model(ids, past_key_values=cache)`. The
full cache of the very same forward pass is copied by a hook that runs before the press; where the press
gathers, a kept entry is found by the equality of its key (its value, for presses that change keys); where it
masks per head, by `masked_key_indices`.
"""

import argparse
import hashlib
import logging
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    BlockPress,
    CAMPress,
    CapPress,
    ChunkKVPress,
    ChunkPress,
    CompactorPress,
    ComposedPress,
    CompressionRatioDecodingPress,
    CriticalAdaKVPress,
    CriticalKVPress,
    CURPress,
    DecodingPress,
    DMSPress,
    EntropyGatedChunkKVPress,
    ExpectedAttentionPress,
    FinchPress,
    KeyDiffPress,
    KeyRerotationPress,
    KnormPress,
    KVComposePress,
    LagKVPress,
    LeverageScorePress,
    MergingPress,
    NonCausalAttnPress,
    ObservedAttentionPress,
    PerLayerCompressionPress,
    PrefillDecodingPress,
    PyramidKVPress,
    SimLayerKVPress,
    SnapKVPress,
    StreamingLLMPress,
    ThinKPress,
    TOVAPress,
)
from kvpress.presses import duo_attention_press
from pandas import DataFrame
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support.peer import made_up, weights
from tests.support.peer.decoding import TOTAL, record_decoding
from tests.support.peer.goldens import DATA, FIRST, MORE, SMOLLM2, Case, Goldens, save_goldens
from tests.support.peer.recording import OWN, Recipe, new_goldens, note_failure, record_recipes, shaken
from tests.support.tiny_models import FAMILIES, HEAD_DIM, KV_HEADS, LAYERS, smollm2_ids, tiny_ids, tiny_model

LENGTHS = (701, 90)
FINCH_DELIMITER, FINCH_WINDOW = 3, 20


def on_llama(case: Case) -> bool:
    """The cases of which kept keys or values are stored."""
    return case.family == "llama" and case[2:] in ((90, 0.5), (701, 0.9))


def rerotated(case: Case) -> bool:
    """A long context on Llama, and a short one everywhere."""
    return case[2:] == (90, 0.5) or case == (case.label, "llama", 701, 0.9)


def scores_on_llama(case: Case) -> bool:
    """The cases of which scores are stored: they do not depend on the ratio."""
    return case.family == "llama" and case.ratio in (0.5, 0.0)


EA = ExpectedAttentionPress
FIRST_GROUP = {
    "Knorm": Recipe(KnormPress),
    "KeyDiff": Recipe(KeyDiffPress),
    "StreamingLLM": Recipe(StreamingLLMPress),
    "SnapKV": Recipe(SnapKVPress),
    "SnapKV(window_size=16, kernel_size=7)": Recipe(partial(SnapKVPress, window_size=16, kernel_size=7)),
    "TOVA": Recipe(TOVAPress),
    "ExpectedAttention": Recipe(EA),
    "ExpectedAttention(use_vnorm=False)": Recipe(partial(EA, use_vnorm=False)),
    "ExpectedAttention(use_covariance=False)": Recipe(partial(EA, use_covariance=False)),
    "ExpectedAttention(use_covariance=False, use_vnorm=False)": Recipe(
        partial(EA, use_covariance=False, use_vnorm=False)
    ),
    "ExpectedAttention(epsilon=0.01)": Recipe(partial(EA, epsilon=1e-2)),
    "ObservedAttention": Recipe(ObservedAttentionPress, eager=True),
    "SnapKV(eager)": Recipe(SnapKVPress, eager=True),
    "AdaKV(SnapKV)": Recipe(lambda ratio: AdaKVPress(SnapKVPress(ratio))),
    "AdaKV(ExpectedAttention(epsilon=0.01))": Recipe(lambda ratio: AdaKVPress(EA(ratio, epsilon=1e-2))),
    "AdaKV(Knorm, alpha_safeguard=0)": Recipe(
        lambda ratio: AdaKVPress(KnormPress(ratio), alpha_safeguard=0.0)
    ),
    "PyramidKV": Recipe(PyramidKVPress),
    "PyramidKV(window_size=16, beta=4)": Recipe(partial(PyramidKVPress, window_size=16, beta=4)),
    "ChunkKV(SnapKV)": Recipe(lambda ratio: ChunkKVPress(SnapKVPress(ratio), chunk_length=20)),
    "ChunkKV(Knorm, chunk_length=8)": Recipe(lambda ratio: ChunkKVPress(KnormPress(ratio), chunk_length=8)),
    "KeyRerotation(Knorm)": Recipe(
        lambda ratio: KeyRerotationPress(KnormPress(ratio)), changes_keys=True, stores=rerotated, array="keys"
    ),
    "KeyRerotation(SnapKV)": Recipe(
        lambda ratio: KeyRerotationPress(SnapKVPress(ratio)), changes_keys=True, stores=on_llama, array="keys"
    ),
}

SCORERS = {
    "LagKV": Recipe(
        LagKVPress,
        stores=scores_on_llama,
        array="scores",
        note="ranks of partitions tie: compare the scores of what is kept",
    ),
    "LagKV(lag_size=32)": Recipe(
        partial(LagKVPress, lag_size=32), note="ranks of partitions tie: compare the scores of what is kept"
    ),
    "LagKV(lag_size=32, cross_scoring=True)": Recipe(partial(LagKVPress, lag_size=32, cross_scoring=True)),
    "CUR": Recipe(CURPress),
    "CUR(leverage_type=key)": Recipe(partial(CURPress, leverage_type="key")),
    "CUR(leverage_type=value)": Recipe(partial(CURPress, leverage_type="value")),
    "CUR(leverage_type=kv_avg)": Recipe(partial(CURPress, leverage_type="kv_avg")),
    "CUR(use_local_approximation=False)": Recipe(partial(CURPress, use_local_approximation=False)),
    "CUR(use_random_leverage=True)": Recipe(
        partial(CURPress, use_random_leverage=True),
        seed=0,
        note="array `sketch CUR`: one standard normal (d, 20) a layer, over sqrt(20)",
    ),
    "NonCausalAttn": Recipe(NonCausalAttnPress),
    "NonCausalAttn(chunk_size=64)": Recipe(partial(NonCausalAttnPress, chunk_size=64)),
    "LeverageScore": Recipe(
        LeverageScorePress,
        seed=0,
        note="array `sketch LeverageScore`: one standard normal (1, heads, d, 48) a layer, over sqrt(48)",
    ),
    "Compactor": Recipe(
        CompactorPress, seed=0, note="draws as LeverageScore, once a layer; blends by the ratio"
    ),
    "Compactor(blending=0.35)": Recipe(
        partial(CompactorPress, blending=0.35), seed=0, note="draws as LeverageScore, once a layer"
    ),
    "Cap": Recipe(CapPress),
    "QFilter": Recipe(made_up.QFilter, note="weights.q_filters"),
    "KVzap(model_type=linear)": Recipe(
        partial(made_up.KVzap, model_type="linear"), note="weights.kvzap_state"
    ),
    "KVzap(model_type=mlp)": Recipe(partial(made_up.KVzap, model_type="mlp"), note="weights.kvzap_state"),
    "ExpectedAttentionStats": Recipe(made_up.ExpectedAttentionStats, note="weights.query_statistics"),
    "CriticalKV(SnapKV)": Recipe(lambda ratio: CriticalKVPress(SnapKVPress(ratio))),
    "CriticalKV(ExpectedAttention(use_vnorm=False))": Recipe(
        lambda ratio: CriticalKVPress(EA(ratio, use_vnorm=False))
    ),
    "CriticalKV(Knorm)": Recipe(lambda ratio: CriticalKVPress(KnormPress(ratio))),
}

WRAPPERS = {
    "CriticalAdaKV(SnapKV)": Recipe(lambda ratio: CriticalAdaKVPress(SnapKVPress(ratio))),
    "CriticalAdaKV(ExpectedAttention(use_vnorm=False))": Recipe(
        lambda ratio: CriticalAdaKVPress(EA(ratio, use_vnorm=False))
    ),
    "LUKV": Recipe(lambda ratio: made_up.LUKV(compression_ratio=ratio), note="weights.budget_curve"),
    "LUKV(Knorm)": Recipe(
        lambda ratio: made_up.LUKV(KnormPress(), compression_ratio=ratio), note="weights.budget_curve"
    ),
    "Chunk(Knorm, chunk_length=256)": Recipe(lambda ratio: ChunkPress(KnormPress(ratio), chunk_length=256)),
    "Chunk(Knorm, chunk_length=50)": Recipe(lambda ratio: ChunkPress(KnormPress(ratio), chunk_length=50)),
    "Chunk(KeyDiff, chunk_length=256)": Recipe(
        lambda ratio: ChunkPress(KeyDiffPress(ratio), chunk_length=256)
    ),
    "Chunk(SnapKV, chunk_length=256)": Recipe(
        lambda ratio: ChunkPress(SnapKVPress(ratio), chunk_length=256),
        note="known wrong: queries of all chunks but the last are rotated as if at the context's end",
    ),
    "EntropyGatedChunkKV(SnapKV)": Recipe(lambda ratio: EntropyGatedChunkKVPress(SnapKVPress(ratio))),
    "EntropyGatedChunkKV(Knorm)": Recipe(lambda ratio: EntropyGatedChunkKVPress(KnormPress(ratio))),
    "EntropyGatedChunkKV(ExpectedAttention)": Recipe(lambda ratio: EntropyGatedChunkKVPress(EA(ratio))),
    "Block(KeyDiff)": Recipe(lambda ratio: BlockPress(KeyDiffPress(ratio), block_size=128)),
    "Block(KeyDiff, block_size=16)": Recipe(lambda ratio: BlockPress(KeyDiffPress(ratio), block_size=16)),
    "Block(Knorm)": Recipe(
        lambda ratio: BlockPress(KnormPress(ratio), block_size=128), note="equals plain Knorm"
    ),
    "Merging(SnapKV)": Recipe(
        lambda ratio: MergingPress(SnapKVPress(ratio)), stores=on_llama, array="values"
    ),
    "Merging(Knorm)": Recipe(lambda ratio: MergingPress(KnormPress(ratio)), stores=on_llama, array="values"),
    "Merging(Knorm, similarity_threshold=0.3, merge_fraction=0.75)": Recipe(
        lambda ratio: MergingPress(KnormPress(ratio), similarity_threshold=0.3, merge_fraction=0.75),
        stores=on_llama,
        array="values",
    ),
    "PerLayerCompression(Knorm, 0.25, 0.5, 0.75)": Recipe(
        lambda ratio: PerLayerCompressionPress(KnormPress(), [0.25, 0.5, 0.75]),
        ratios=OWN,
        note="one ratio a layer",
    ),
    **{
        f"ThinK(key_channel_compression_ratio={share})": Recipe(
            lambda ratio, share=share: ThinKPress(share), ratios=OWN, changes_keys=True, zeroes_channels=True
        )
        for share in (0.25, 0.5, 0.9)
    },
    "Composed(SnapKV, ThinK(key_channel_compression_ratio=0.5))": Recipe(
        lambda ratio: ComposedPress([SnapKVPress(ratio), ThinKPress(0.5)]),
        changes_keys=True,
        zeroes_channels=True,
    ),
    "Composed(KeyDiff, Knorm)": Recipe(
        lambda ratio: ComposedPress([KeyDiffPress(ratio / 2), KnormPress(ratio / 2)]),
        note="each at half the ratio",
    ),
    **{
        f"SimLayerKV(lazy_threshold={threshold}, n_recent={recent})": Recipe(
            lambda ratio, threshold=threshold, recent=recent: SimLayerKVPress(threshold, n_recent=recent),
            ratios=OWN,
        )
        for threshold in (0.05, 0.2, 0.4)
        for recent in (32, 256)
    },
    **{
        f"DMS(Knorm, threshold={threshold})": Recipe(
            lambda ratio, threshold=threshold: DMSPress(
                KnormPress(), threshold=threshold, sliding_window_size=64
            ),
            ratios=OWN,
        )
        for threshold in (-6.0, -5.4, -5.0)
    },
    **{
        f"DMS(KVzap(model_type={kind}), threshold={threshold})": Recipe(
            lambda ratio, kind=kind, threshold=threshold: DMSPress(
                made_up.KVzap(model_type=kind), threshold=threshold
            ),
            ratios=OWN,
            note="weights.kvzap_state",
        )
        for kind in ("linear", "mlp")
        for threshold in (-0.5, 0.2)
    },
    **{
        f"DuoAttention(head_compression_ratio={share})": Recipe(
            lambda ratio, share=share: made_up.DuoAttention(share),
            ratios=OWN,
            note="weights.head_scores, DUO_SINK, DUO_RECENT",
        )
        for share in (0.25, 0.5, 0.9)
    },
}


def with_delimiter(ids: Tensor) -> Tensor:
    """The context with Finch's delimiter before its last tokens, the question; kvpress takes it out again."""
    return torch.cat(
        [ids[:, :-FINCH_WINDOW], torch.full((len(ids), 1), FINCH_DELIMITER), ids[:, -FINCH_WINDOW:]], dim=1
    )


def finch(ratio: float, **parameters: Any) -> BasePress:
    """Finch with a delimiter that is in the vocabulary already."""
    press = FinchPress(ratio, **parameters)
    press.delimiter_token_id = FINCH_DELIMITER
    press.window_size = FINCH_WINDOW
    return press


FINCH = {
    "Finch": Recipe(finch, changes_keys=True, stores=on_llama, array="keys"),
    "Finch(rerotate_keys=False)": Recipe(partial(finch, rerotate_keys=False)),
    "Finch(normalize_scores=False)": Recipe(partial(finch, normalize_scores=False), changes_keys=True),
    "Finch(chunk_length=256)": Recipe(partial(finch, chunk_length=256), changes_keys=True),
}
FINCH = {
    label: Recipe(
        **{
            **vars(recipe),
            "context": with_delimiter,
            "note": f"the last {FINCH_WINDOW} tokens are the question",
        }
    )
    for label, recipe in FINCH.items()
}

REPLAYS = {
    "KVzip": Recipe(
        lambda ratio: made_up.KVzip(ratio), tokenizer="plain", stores=scores_on_llama, array="scores"
    ),
    "KVzip(template)": Recipe(
        lambda ratio: made_up.KVzip(ratio),
        tokenizer="template",
        stores=scores_on_llama,
        array="scores",
        note="the first token is the prefix",
    ),
    "KVzip(chunk_size=256)": Recipe(lambda ratio: made_up.KVzip(ratio, chunk_size=256), tokenizer="plain"),
    "KVzip(chunk_size=256, template)": Recipe(
        lambda ratio: made_up.KVzip(ratio, chunk_size=256),
        tokenizer="template",
        note="the first token is the prefix",
    ),
    "KVzip(layerwise=True)": Recipe(lambda ratio: made_up.KVzip(ratio, layerwise=True), tokenizer="plain"),
    "KVzip(kvzip_plus_normalization=True)": Recipe(
        lambda ratio: made_up.KVzip(ratio, kvzip_plus_normalization=True),
        tokenizer="plain",
        stores=scores_on_llama,
        array="scores",
    ),
    "KVzip(kvzip_plus_normalization=True, layerwise=True)": Recipe(
        lambda ratio: made_up.KVzip(ratio, kvzip_plus_normalization=True, layerwise=True), tokenizer="plain"
    ),
    "KVgrad": Recipe(
        lambda ratio: made_up.KVgrad(ratio), tokenizer="plain", stores=scores_on_llama, array="scores"
    ),
    "KVgrad(chunk_size=256)": Recipe(lambda ratio: made_up.KVgrad(ratio, chunk_size=256), tokenizer="plain"),
}
OTHERS = {
    "FastKVzip": Recipe(
        made_up.FastKVzip, note="weights.gate_states", stores=scores_on_llama, array="scores"
    ),
    "FastKVzip(layerwise=True)": Recipe(
        lambda ratio: made_up.FastKVzip(ratio, layerwise=True), note="weights.gate_states"
    ),
    "KVCompose": Recipe(lambda ratio: KVComposePress(compression_ratio=ratio)),
    "KVCompose(structured=False)": Recipe(
        lambda ratio: KVComposePress(structured=False, compression_ratio=ratio)
    ),
    "KVCompose(agg_task=mean, add_v_norm=True)": Recipe(
        lambda ratio: KVComposePress(compression_ratio=ratio, agg_task="mean", add_v_norm=True),
        note="fails: the norms are those of twice the context",
    ),
    "KVCompose(agg_task=mean, add_mean_across_heads=False)": Recipe(
        lambda ratio: KVComposePress(compression_ratio=ratio, agg_task="mean", add_mean_across_heads=False)
    ),
}
DECODING = {
    "Decoding(Knorm)": Recipe(
        lambda ratio: DecodingPress(KnormPress(), compression_interval=8, target_size=64)
    ),
    "Decoding(KeyDiff)": Recipe(
        lambda ratio: DecodingPress(KeyDiffPress(), compression_interval=8, target_size=64)
    ),
    "Decoding(StreamingLLM)": Recipe(
        lambda ratio: DecodingPress(StreamingLLMPress(), compression_interval=7, target_size=50)
    ),
    "Decoding(AdaKV(Knorm))": Recipe(
        lambda ratio: DecodingPress(AdaKVPress(KnormPress()), compression_interval=16, target_size=64)
    ),
    "Decoding(TOVA)": Recipe(
        lambda ratio: DecodingPress(
            TOVAPress(), compression_interval=8, target_size=64, hidden_states_buffer_size=1
        )
    ),
    "CompressionRatioDecoding(Knorm)": Recipe(
        lambda ratio: CompressionRatioDecodingPress(KnormPress(), compression_interval=8)
    ),
    "CompressionRatioDecoding(KeyDiff, target_compression_ratio=0.3)": Recipe(
        lambda ratio: CompressionRatioDecodingPress(
            KeyDiffPress(), compression_interval=8, target_compression_ratio=0.3
        )
    ),
    "PrefillDecoding(Knorm, Decoding(KeyDiff))": Recipe(
        lambda ratio: PrefillDecodingPress(
            KnormPress(0.4), DecodingPress(KeyDiffPress(), compression_interval=8, target_size=48)
        ),
        note="the prefill is compressed at ratio 0.4",
    ),
    "CAM(Knorm)": Recipe(
        lambda ratio: CAMPress(KnormPress(), compression_interval=8, target_size=64, merge_budget=8),
        note="coin: chance >= 0.5",
    ),
    "CAM(KeyDiff)": Recipe(
        lambda ratio: CAMPress(KeyDiffPress(), compression_interval=1, target_size=64, merge_budget=32),
        note="coin: chance >= 0.5",
    ),
    **{
        f"DMS(Knorm, threshold={threshold}, decoding=True)": Recipe(
            lambda ratio, threshold=threshold: DMSPress(
                KnormPress(), threshold=threshold, sliding_window_size=32, decoding=True
            )
        )
        for threshold in (-6.0, -5.4)
    },
}


def record_first() -> None:
    """The presses that need nothing but a model."""
    goldens = new_goldens()
    for family in FAMILIES:
        record_recipes(
            goldens,
            FIRST_GROUP,
            family,
            partial(tiny_model, family),
            [tiny_ids(length) for length in LENGTHS],
        )
    save_goldens(goldens, DATA / FIRST)


def record_more() -> None:
    """The rest of the catalogue."""
    goldens = new_goldens()
    contexts = [tiny_ids(length) for length in LENGTHS]
    with tempfile.TemporaryDirectory() as folder:
        made_up.save_tokenizers(Path(folder))
        for family in FAMILIES:
            record_recipes(
                goldens,
                {**SCORERS, **WRAPPERS, **FINCH, **OTHERS},
                family,
                partial(tiny_model, family),
                contexts,
            )
            for kind in ("plain", "template"):
                recipes = {label: recipe for label, recipe in REPLAYS.items() if recipe.tokenizer == kind}
                record_recipes(
                    goldens, recipes, family, partial(named_model, family, Path(folder) / kind), contexts
                )
            goldens.arrays[f"hidden {family}"] = last_hidden_state(tiny_model(family), contexts[0])
            record_decoding(goldens, DECODING, family, partial(tiny_model, family), shaken, tiny_ids(TOTAL))
            record_head_scores(goldens, family, Path(folder) / "plain")
        record_replays(goldens, Path(folder), contexts)
    record_sketches(goldens, contexts[0])
    save_goldens(goldens, DATA / MORE)


@torch.no_grad()
def last_hidden_state(model: PreTrainedModel, ids: Tensor) -> Any:
    """What the model makes of the last token (hidden size), to tell a changed model from a changed press."""
    return model.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1].numpy()


def named_model(family: str, name: Path, attention: str) -> PreTrainedModel:
    """A tiny model whose tokenizer is found at `name`."""
    model = tiny_model(family, attention)
    model.config.name_or_path = str(name)
    return model


def record_replays(goldens: Goldens, folder: Path, contexts: list[Tensor]) -> None:
    """Token ids that KVzip and KVgrad feed again, "replay LABEL LENGTH CHUNK", and the prefix's length."""
    for label, recipe in REPLAYS.items():
        model = named_model("llama", folder / str(recipe.tokenizer), "sdpa")
        for ids in contexts:
            press = recipe.make(0.5)
            with torch.no_grad(), press(model):
                model.model(input_ids=ids, past_key_values=DynamicCache())
            goldens.metadata["recipes"][label]["prefix"] = press.recorded_prefix
            for chunk, fed in enumerate(press.recorded_replays):
                goldens.arrays[f"replay {label} {ids.shape[1]} {chunk}"] = fed.numpy()


def record_sketches(goldens: Goldens, ids: Tensor) -> None:
    """Gaussian draws of LeverageScore and CUR, "sketch LABEL" (layers, ...), which alone draw from the seed.

    Raises:
        RuntimeError: something else draws.
    """
    shapes = {"LeverageScore": (1, KV_HEADS, HEAD_DIM, 48), "CUR": (HEAD_DIM, 20)}
    users = {"LeverageScore": ("LeverageScore", "Compactor"), "CUR": ("CUR(use_random_leverage=True)",)}
    model = tiny_model("llama")
    for name, shape in shapes.items():
        torch.manual_seed(0)
        goldens.arrays[f"sketch {name}"] = torch.stack([torch.randn(shape) for _ in range(LAYERS)]).numpy()
        after = torch.random.get_rng_state()
        for label in users[name]:
            press = SCORERS[label].make(0.5)
            torch.manual_seed(0)
            with torch.no_grad(), press(model):
                model.model(input_ids=ids, past_key_values=DynamicCache())
            if not torch.equal(torch.random.get_rng_state(), after):
                raise RuntimeError(f"{label} draws otherwise than expected")


def record_head_scores(goldens: Goldens, family: str, tokenizer: Path) -> None:
    """DuoAttention's scores on the fly (layers, heads), "head scores FAMILY", over the calibration texts."""

    class Texts:
        def to_pandas(self) -> DataFrame:
            return DataFrame({"chapter": weights.calibration_texts()})

    model = named_model(family, tokenizer, "sdpa")
    duo_attention_press.cache.clear()
    try:
        with patch.object(duo_attention_press, "load_dataset", lambda *arguments, **keywords: Texts()):
            goldens.arrays[f"head scores {family}"] = duo_attention_press.duo_attention_on_the_fly(model)
    except Exception as error:  # a finding
        note_failure(goldens, Case("DuoAttention(on_the_fly_scoring=True)", family, 0, 0.0), error)


def record_smollm2(folder: Path) -> None:
    """The first group on a trained model, whose layers differ more than random ones."""
    (file,) = folder.glob("*.gguf")

    def load(attention: str) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file.name, dtype=torch.float32, attn_implementation=attention
        )
        return model.eval()

    goldens = new_goldens()
    goldens.metadata["model"] = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    goldens.arrays["hidden smollm2"] = last_hidden_state(load("sdpa"), smollm2_ids(LENGTHS[0]))
    record_recipes(goldens, FIRST_GROUP, "smollm2", load, [smollm2_ids(LENGTHS[0])])
    save_goldens(goldens, DATA / SMOLLM2)


def main() -> None:
    """Record one group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", choices=("first", "more", "smollm2"))
    parser.add_argument("folder", nargs="?", type=Path, help="where the GGUF file of SmolLM2-135M lies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    if arguments.group == "first":
        record_first()
    elif arguments.group == "more":
        record_more()
    else:
        record_smollm2(arguments.folder)


if __name__ == "__main__":
    main()

"""Record the presses of kvpress's registry that the other groups leave out (README.md beside this file):

OMP_NUM_THREADS=1 python tests/support/peer/record_rest.py           # tests/data/kvpress_kept_rest.npz
"""

import logging
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from kvpress import (
    AdaKVPress,
    CAMPress,
    CompactorPress,
    DecodingPress,
    ExpectedAttentionPress,
    MergingPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support.peer import made_up
from tests.support.peer.decoding import TOTAL, record_decoding
from tests.support.peer.goldens import DATA, REST, Goldens, save_goldens
from tests.support.peer.record_kvpress import LENGTHS, named_model, on_llama
from tests.support.peer.recording import Recipe, new_goldens, note_failure, record_recipes, run, shaken
from tests.support.tiny_models import FAMILIES, tiny_ids, tiny_model

OLD_QUERIES = "known wrong: buffered queries are rotated as if they stood at the current step"

PRESSES = {
    "AdaKV(KVzap(model_type=mlp))": Recipe(
        lambda ratio: AdaKVPress(made_up.KVzap(ratio, model_type="mlp")), note="weights.kvzap_state"
    ),
    "AdaKV(Compactor)": Recipe(
        lambda ratio: AdaKVPress(CompactorPress(ratio)), seed=0, note="draws as LeverageScore, once a layer"
    ),
    "Merging(ExpectedAttention(epsilon=0.01))": Recipe(
        lambda ratio: MergingPress(ExpectedAttentionPress(ratio, epsilon=1e-2)),
        stores=on_llama,
        array="values",
    ),
    "Merging(KVzap(model_type=mlp))": Recipe(
        lambda ratio: MergingPress(made_up.KVzap(ratio, model_type="mlp")),
        note="weights.kvzap_state",
        stores=on_llama,
        array="values",
    ),
}
RESTORING = {
    "RestoreKV": Recipe(made_up.RestoreKV, tokenizer="plain", note="weights.save_restorekv"),
    "RestoreKV(kvzip_plus_normalization=True)": Recipe(
        partial(made_up.RestoreKV, kvzip_plus_normalization=True),
        tokenizer="plain",
        note="weights.save_restorekv",
    ),
}
DECODING = {
    "Decoding(QFilter)": Recipe(
        lambda ratio: DecodingPress(made_up.QFilter(), compression_interval=8, target_size=64)
    ),
    "Decoding(AdaKV(SnapKV))": Recipe(
        lambda ratio: DecodingPress(
            AdaKVPress(SnapKVPress(window_size=4)), compression_interval=16, target_size=64
        ),
        note=OLD_QUERIES,
    ),
    "Decoding(AdaKV(ExpectedAttention(epsilon=0.01)))": Recipe(
        lambda ratio: DecodingPress(
            AdaKVPress(ExpectedAttentionPress(epsilon=1e-2)), compression_interval=16, target_size=64
        ),
        note="known wrong: future positions begin at the buffer's length",
    ),
    "CAM(TOVA)": Recipe(
        lambda ratio: CAMPress(
            TOVAPress(), compression_interval=8, target_size=64, hidden_states_buffer_size=1
        ),
        note="coin: chance >= 0.5",
    ),
    "CAM(StreamingLLM)": Recipe(
        lambda ratio: CAMPress(StreamingLLMPress(), compression_interval=8, target_size=64),
        note="ties: equal scores; coin: chance >= 0.5",
    ),
    "CAM(AdaKV(SnapKV))": Recipe(
        lambda ratio: CAMPress(
            AdaKVPress(SnapKVPress(window_size=1)),
            compression_interval=1,
            target_size=64,
            hidden_states_buffer_size=0,
        ),
        note="coin: chance >= 0.5",
    ),
}


def record_learned(goldens: Goldens, family: str, model: torch.nn.Module, length: int) -> None:
    """Keys and values of RestoreKV's tokens (layers, heads, 8, d): "learned keys LABEL FAMILY LENGTH"."""
    for label, recipe in RESTORING.items():
        try:
            result = run(model, recipe.make(0.5), tiny_ids(length))
        except Exception as error:  # a finding
            from tests.support.peer.goldens import Case

            note_failure(goldens, Case(label, family, length, 0.5), error)
            continue
        for name in ("keys", "values"):
            entries = [getattr(layer, name)[0, :, length:] for layer in result.cache.layers]
            goldens.arrays[f"learned {name} {label} {family} {length}"] = torch.stack(entries).numpy()


def main() -> None:
    """Record the group."""
    torch.set_num_threads(1)
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    goldens, contexts = new_goldens(), [tiny_ids(length) for length in LENGTHS]
    with tempfile.TemporaryDirectory() as folder:
        made_up.save_tokenizers(Path(folder))
        for family in FAMILIES:
            record_recipes(goldens, PRESSES, family, partial(tiny_model, family), contexts)
            load = partial(named_model, family, Path(folder) / "plain")
            record_recipes(goldens, RESTORING, family, load, contexts)
            record_learned(goldens, family, load("sdpa"), min(LENGTHS))
            record_decoding(goldens, DECODING, family, partial(tiny_model, family), shaken, tiny_ids(TOTAL))
    save_goldens(goldens, DATA / REST)


if __name__ == "__main__":
    main()

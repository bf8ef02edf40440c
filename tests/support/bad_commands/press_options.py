"""Presses with options that mean nothing, files that are no presses, and weights that cannot be read."""

from pathlib import Path

from tests.support.bad_commands.configuration import RUN

OPTIONS = {
    "a window of no tokens": "presses.snapkv.window_size=0",
    "a window of negative tokens": "presses.snapkv.window_size=-1",
    "a window in words": "presses.snapkv.window_size=wide",
    "a window of half a token": "presses.snapkv.window_size=1.5",
    "a window that is null": "presses.snapkv.window_size=null",
    "a window that is a list": "presses.snapkv.window_size=[1]",
    "an even kernel": "presses.snapkv.kernel_size=4",
    "options that are null": "presses.snapkv=null",
    "options that are a number": "presses.snapkv=5",
    "presses that are null": "presses=null baseline=false",
    "presses that are a number": "presses=5",
    "presses that are a list": "presses=[snapkv]",
    "negative sinks": "press=streaming_llm presses.streaming_llm.n_sink=-1",
    "no future positions": "press=expected_attention presses.expected_attention.n_future_positions=0",
    "a press inside that there is not": "press=adakv presses.adakv.press=nosuch",
    "a press inside that is null": "press=adakv presses.adakv.press=null",
    "a press inside that is a number": "press=adakv presses.adakv.press=5",
    "a press inside itself": "press=adakv presses.adakv.press=adakv",
    "a misspelt option of a press inside": "press=adakv presses.adakv.press={name:snapkv,windw:3}",
    "a press inside without a name": "press=adakv presses.adakv.press={window_size:3}",
    "a safeguard above one": "press=adakv presses.adakv.alpha_safeguard=2",
    "a safeguard that is not a number": "press=adakv presses.adakv.alpha_safeguard=nan",
    "every key channel removed": "press=think presses.think.key_channel_compression_ratio=1",
    "negative key channels removed": "press=think presses.think.key_channel_compression_ratio=-1",
    "chunks of no tokens": "press=chunkkv presses.chunkkv.chunk_length=0",
    "blocks of no tokens": "press=block presses.block.block_size=0",
    "ratios per layer above one": "press=per_layer presses.per_layer.compression_ratios=[2]",
    "ratios per layer in words": "press=per_layer presses.per_layer.compression_ratios=[x]",
    "one ratio for all layers": "press=per_layer presses.per_layer.compression_ratios=5",
    "a pyramid without a slope": "press=pyramidkv presses.pyramidkv.beta=0",
    "a pyramid whose slope is not a number": "press=pyramidkv presses.pyramidkv.beta=nan",
    "a kind of weights that there is not": "press=kvzap presses.kvzap.model_type=nosuch",
    "a sum over tasks that there is not": "press=kvcompose presses.kvcompose.agg_task=nosuch",
    "leverage that there is not": "press=cur presses.cur.leverage_type=nosuch",
    "a blend that is not a number": "press=compactor presses.compactor.blending=nan",
    "a fusion that there is not": "press=morphkv presses.morphkv.fusion=nosuch",
    "a mix that is not a number": "press=rkv presses.rkv.mix_lambda=nan",
    "one press of two that is null": "press=composed presses.composed.then=null",
    "more than everything merged": "press=merging presses.merging.merge_fraction=2",
    "a weight that is not a number": "press=cake presses.cake.gamma=nan",
    "more than everything covered": "press=zigzagkv presses.zigzagkv.coverage=2",
    "more than everything recent": "press=h2o presses.h2o.recent_share=2",
    "compression after every 0 new tokens": "press=decoding presses.decoding.compression_interval=0",
    "a negative buffer": "press=ratio_decoding presses.ratio_decoding.buffer_size=-1",
    "a first stage above one": "press=criticalkv presses.criticalkv.first_stage_ratio=2",
    "a sketch without dimensions": "press=leverage presses.leverage.sketch_dimension=0",
    "a seed in words": "press=random presses.random.seed=x",
}

SCORER = "from dataclasses import dataclass\nfrom presses.scorer import ScorerPress\n\n"
SCORE = "    def score(self, layer):\n        return layer.values.norm(dim=-1)\n"
FILES: dict[str, str | bytes] = {
    "syntax": "class MinePress(:\n",
    "no-class": "x = 1\n",
    "raises": "raise RuntimeError('at import')\n\nclass MinePress:\n    pass\n",
    "exits": "import sys\nsys.exit(0)\n\nclass MinePress:\n    pass\n",
    "lacks-import": "import nosuch_package\n\nclass MinePress:\n    pass\n",
    "wrong-import": "from presses.scorer import NoSuchPress\n\nclass MinePress(NoSuchPress):\n    pass\n",
    "plain-class": "class MinePress:\n    pass\n",
    "abstract": f"{SCORER}@dataclass(frozen=True)\nclass MinePress(ScorerPress):\n    power: float = 2.0\n",
    "no-dataclass": (
        "from presses.scorer import ScorerPress\n\nclass MinePress(ScorerPress):\n"
        f"    def __init__(self, a):\n        pass\n\n{SCORE}"
    ),
    "no-default": (
        f"{SCORER}@dataclass(frozen=True, kw_only=True)\nclass MinePress(ScorerPress):\n"
        f"    power: float\n\n{SCORE}"
    ),
    "refuses": (
        f"{SCORER}@dataclass(frozen=True)\nclass MinePress(ScorerPress):\n"
        f"    def __post_init__(self):\n        raise RuntimeError('never')\n\n{SCORE}"
    ),
    "not-utf-8": b"\xff\xfe\x00class MinePress: pass\n",
    "nul": b"x = 1\0\nclass MinePress: pass\n",
}
"""What stands in `mine.py` of a folder of presses."""

OWN_FILES = {
    "a file with a syntax error": "syntax",
    "a file without a class": "no-class",
    "a file by the name of a press that there is": "taken",
    "a file that raises": "raises",
    "a file that ends the program": "exits",
    "a file that imports a package that is not installed": "lacks-import",
    "a file that imports a name that there is not": "wrong-import",
    "a class that is no press": "plain-class",
    "a press without a score": "abstract",
    "a press that is no dataclass": "no-dataclass",
    "an option without a default": "no-default",
    "a press that refuses its own defaults": "refuses",
    "a file in no known encoding": "not-utf-8",
    "a file with a NUL": "nul",
    "a folder in place of a file": "folder",
}

CASES = {
    **{title: f"{RUN} {typed}" for title, typed in OPTIONS.items()},
    **{
        title: f"{RUN} presses_dir={{bad}}/presses/{folder} press=mine" for title, folder in OWN_FILES.items()
    },
}

UNREADABLE_WEIGHTS = {
    "KVzap's in a folder that there is not": "press=kvzap presses.kvzap.weights=/nowhere",
    "Q-Filters' in a folder that there is not": "press=qfilter presses.qfilter.weights=/nowhere",
    "Q-Filters' in an empty folder": "press=qfilter presses.qfilter.weights={bad}/empty",
    "Q-Filters' that are no weights": "press=qfilter presses.qfilter.weights={bad}/weights",
    "KVzap's that are no weights": "press=kvzap presses.kvzap.weights={bad}/weights",
    "DuoAttention's that are no weights": "press=duo_attention presses.duo_attention.weights={bad}/weights",
    "HeadKV's that are no weights": "press=headkv presses.headkv.weights={bad}/weights",
    "Fast KVzip's that are no weights": "press=fastkvzip presses.fastkvzip.weights={bad}/weights",
    "ExpectedAttention's that are no weights": (
        "press=expected_attention_stats presses.expected_attention_stats.weights={bad}/weights"
    ),
    "LU-KV's that are no weights": "press=lukv presses.lukv.weights={bad}/weights",
    "RestoreKV's that are no weights": "press=restorekv presses.restorekv.weights={bad}/weights",
}
"""Known when the model is at work: the answers under such a press fail, and the others do not."""
WITH_UNREADABLE_WEIGHTS = {title: f"{RUN} {typed}" for title, typed in UNREADABLE_WEIGHTS.items()}


def fill(bad: Path) -> None:
    """Make the folders that the cases name, in `bad`."""
    for name, text in FILES.items():
        folder = bad / "presses" / name
        folder.mkdir(parents=True)
        (folder / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    (bad / "presses" / "folder" / "mine.py").mkdir(parents=True)
    (bad / "presses" / "taken").mkdir()
    (bad / "presses" / "taken" / "snapkv.py").write_text("class SnapKVPress:\n    pass\n")
    (bad / "weights").mkdir()
    of_weights = ("model.safetensors", "q_filters.safetensors", "pytorch_model.bin", "config.json")
    for name in (*of_weights, "full_attention_heads.tsv"):
        (bad / "weights" / name).write_bytes(b"not weights")

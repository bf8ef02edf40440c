"""Bad input to the commands: each gets one sentence and an exit code, no traceback, and leaves no record and no table behind.

Every case is a run of the real command, in a fork of a process that has imported everything; some also as a
user starts it.
"""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from longpress.analysis.records import read_records
from longpress.catalogue import presses
from longpress.evaluation.config import make_press
from tests.analysis.test_records import make
from tests.evaluation.test_faults import small_model
from tests.support.warm_command import ROOT, Command

__all__ = ["small_model"]

EVALUATE = (
    "evaluate.py",
    "benchmark=ruler",
    "benchmark.length=1024",
    "benchmark.tasks=[niah_single_1]",
    "limit=1",
    "plots=false",
)
"""A run that would take a second; a case changes it. `{model}` is a folder that is fine, `{bad}` holds what is not."""
MODEL = ("model=hub", "model.path={model}", "model.name=tiny", "model.device=cpu")

LINES = """
press=nosuch
press=[knorm,nosuch]
press=SnapKVPress
press=../presses/snapkv
press=5
press=null
press=base
press=
press=[] baseline=false
benchmark=nosuch
benchmark=null
benchmark=base
benchmark=[ruler,niah]
model=nosuch
model=null
experiment=nosuch
hydra/launcher=nosuch
hydra/sweeper=nosuch
compresion_ratio=0.5
+compresion_ratio=0.5
++compresion_ratio=0.5
limt=3
+limt=3
--nosuch
--config-name=nosuch
--config-dir=/nowhere
--config-path=/nowhere
presses.snapkv.windw_size=3
+presses.snapkv.windw_size=3
presses.knorm.window_size=3
presses.nosuch.window_size=3
+presses.nosuch.window_size=3
benchmark.lenght=1024
+benchmark.lenght=1024
model.pathh=x
+model.pathh=x
shard.cuont=2
+shard.cuont=2
~limit
~model
~benchmark
~shard
~shard.index
~compression_ratio
~model.path
~benchmark.name
~presses.snapkv.name
press=[knorm
press={
press=]
=5
press
limit==
'
compression_ratio=[0.5,]]
press=knorm,snapkv
compression_ratio=0.25,0.5
limit=${nosuch}
limit=${limit}
limit=${oc.env:NOSUCH}
limit=${nosuch:1}
results=${shard}
benchmark.length=${.nosuch}
compression_ratio=1
compression_ratio=1.0
compression_ratio=-0.1
compression_ratio=nan
compression_ratio=inf
compression_ratio=half
compression_ratio=true
compression_ratio=[]
compression_ratio=[0.5,[0.25]]
compression_ratio=[0.5,null]
compression_ratio={a:0.5}
compression_ratio=1e400
compression_ratio='0,5'
budget_tokens=0
budget_tokens=-1
budget_tokens=1.5
budget_tokens=many
budget_tokens=true
budget_tokens=[10,0]
budget_tokens=1e30
budget_tokens=nan
threshold=nan
threshold=inf
threshold=high
threshold=true
threshold={a:1}
press=adakv threshold=0.5
cache_bits=3
cache_bits=0
cache_bits=-4
cache_bits=many
cache_bits=true
cache_bits=[4,5]
cache_bits=nan
limit=0
limit=-1
limit=1.5
limit=many
limit=true
limit=[1]
limit=1e30
seed=x
seed=1.5
seed=null
seed=true
seed=9223372036854775808
kept_maps=-1
kept_maps=x
kept_maps=null
kept_maps=1.5
plots=maybe
plots=3
plots=null
baseline=maybe
query_aware=maybe
query_aware=[true]
fidelity=maybe
fidelity=3
fidelity=null
plan=maybe
workers=-1
workers=1.5
workers=x
workers=null
workers=2 model.device_map=auto
prefill=nosuch
prefill=null
prefill=5
prefill=chunked
prefill=shared prefill_chunk=0
prefill_chunk=-1
prefill_chunk=many
prefill_chunk=1.5
press=kvzip prefill=chunked prefill_chunk=500
press=decoding prefill=chunked prefill_chunk=0
offload=5
offload=null
offload=sometimes
max_batch_gb=0
max_batch_gb=-1
max_batch_gb=nan
max_batch_gb=inf
max_batch_gb=much
max_batch_gb=null
shard=null
shard=5
shard.count=0
shard.count=-1
shard.count=x
shard.count=1.5
shard.index=1
shard.index=-1
shard.index=null
shard.index=x
shard.count=2 shard.index=2
results=[a]
results={a:1}
results=true
results=1.5
presses_dir=5
presses_dir=/nowhere
presses_dir=[a]
presses_dir=
model=5
model.name=[a]
model.name={a:1}
model.name=null model.path=null
model.dtype=float7
model.dtype=int8
model.dtype=null
model.dtype=[float32]
model.device=nosuch
model.device=cuda:99
model.device=meta
model.device=5
model.device_map=nosuch
model.window=0
model.window=-5
model.window=x
model.window=1.5
model.window=100
model.rope_scaling=5
model.rope_scaling={}
model.rope_scaling={rope_type:nosuch}
model.rope_scaling={rope_type:yarn,factor:0.5}
model.rope_scaling={rope_type:yarn,factor:nan}
model.rope_scaling={rope_type:yarn,factor:x}
model.rope_scaling={rope_type:yarn,factor:2,nosuch:[x]}
model.rope_scaling={rope_type:llama3,factor:2}
model.rope_scaling={rope_type:longrope}
model.chat_template=maybe
model.chat_template=5
model.attention_implementation=nosuch
model.attention_implementation=5
model.attention_implementation=flash_attention_2
model.gguf_file=nosuch.gguf
model.gguf_file=5
model.revision=[a]
model.trust_remote_code=maybe
model.trust_remote_code=1
presses.snapkv._target_=os.system
+presses.snapkv._target_=os.system
+model._target_=os.system
+benchmark._target_=os.system
+_target_=os.system
+hydra.launcher._target_=os.system
hydra.sweeper._target_=os.system
presses.snapkv.name=nosuch
presses.snapkv.name=5
benchmark.name=nosuch
benchmark.name=5
presses.snapkv.window_size=0
presses.snapkv.window_size=-1
presses.snapkv.window_size=wide
presses.snapkv.window_size=1.5
presses.snapkv.window_size=null
presses.snapkv.window_size=[1]
presses.snapkv.kernel_size=4
presses.snapkv=null
presses.snapkv=5
presses=null baseline=false
presses=5
presses=[snapkv]
press=streaming_llm presses.streaming_llm.n_sink=-1
press=expected_attention presses.expected_attention.n_future_positions=0
press=adakv presses.adakv.press=nosuch
press=adakv presses.adakv.press=null
press=adakv presses.adakv.press=5
press=adakv presses.adakv.press=adakv
press=adakv presses.adakv.press={name:snapkv,windw:3}
press=adakv presses.adakv.press={window_size:3}
press=adakv presses.adakv.alpha_safeguard=2
press=adakv presses.adakv.alpha_safeguard=nan
press=think presses.think.key_channel_compression_ratio=1
press=think presses.think.key_channel_compression_ratio=-1
press=chunkkv presses.chunkkv.chunk_length=0
press=block presses.block.block_size=0
press=per_layer presses.per_layer.compression_ratios=[2]
press=per_layer presses.per_layer.compression_ratios=[x]
press=per_layer presses.per_layer.compression_ratios=5
press=pyramidkv presses.pyramidkv.beta=0
press=pyramidkv presses.pyramidkv.beta=nan
press=kvzap presses.kvzap.model_type=nosuch
press=kvcompose presses.kvcompose.agg_task=nosuch
press=cur presses.cur.leverage_type=nosuch
press=compactor presses.compactor.blending=nan
press=morphkv presses.morphkv.fusion=nosuch
press=rkv presses.rkv.mix_lambda=nan
press=composed presses.composed.then=null
press=merging presses.merging.merge_fraction=2
press=cake presses.cake.gamma=nan
press=zigzagkv presses.zigzagkv.coverage=2
press=h2o presses.h2o.recent_share=2
press=decoding presses.decoding.compression_interval=0
press=ratio_decoding presses.ratio_decoding.buffer_size=-1
press=criticalkv presses.criticalkv.first_stage_ratio=2
press=leverage presses.leverage.sketch_dimension=0
press=random presses.random.seed=x
benchmark.tasks=[nosuch]
benchmark.tasks=[]
benchmark.tasks=[vt,vt]
benchmark.tasks=vt
benchmark.tasks=5
benchmark.tasks=null
benchmark.tasks=[null]
benchmark.length=0
benchmark.length=-1
benchmark.length=10
benchmark.length=1000000
benchmark.length=long
benchmark.samples_per_task=0
benchmark.seed=x
benchmark.source=nosuch
benchmark.source=files
benchmark.source=files benchmark.path=/nowhere
benchmark.path={bad}
benchmark.haystack=nosuch
benchmark.tasks=[niah_single_2] benchmark.haystack_path=/nowhere
benchmark.tasks=[niah_single_2] benchmark.haystack_path={bad}/empty
benchmark.tasks=[niah_single_2] benchmark.haystack_path={bad}/binary.txt
benchmark.tasks=[niah_single_2] benchmark.haystack_path={bad}/list.json
benchmark.questions=nosuch
benchmark.template_tokens=-1
-m press=knorm shard.count=2 shard.index=range(3)
-m compression_ratio=interval(0,1)
-m benchmark.length=1024,0
-m limit=1,0
-m press=knorm,nosuch
-m hydra/launcher=nosuch
-m limit=choice()
-m press=
""".strip().split("\n")

FAILING = """
press=kvzap presses.kvzap.weights=/nowhere
press=qfilter presses.qfilter.weights=/nowhere
press=qfilter presses.qfilter.weights={bad}/empty
press=qfilter presses.qfilter.weights={bad}/weights
press=kvzap presses.kvzap.weights={bad}/weights
press=duo_attention presses.duo_attention.weights={bad}/weights
press=headkv presses.headkv.weights={bad}/weights
press=fastkvzip presses.fastkvzip.weights={bad}/weights
press=expected_attention_stats presses.expected_attention_stats.weights={bad}/weights
press=lukv presses.lukv.weights={bad}/weights
press=restorekv presses.restorekv.weights={bad}/weights
""".strip().split("\n")
"""Weights of a press that cannot be read: known when the model is at work, so the press's answers fail and the others do not."""

OTHER_BENCHMARKS = {
    "aime25": ("prompt=nosuch", "max_new_tokens=0", "path=/nowhere"),
    "babilong": ("length=nosuch", "tasks=[qa99]", "path=/nowhere"),
    "helmet": ("path=", "length=0", "shots=-1", "path=/nowhere", "samples_per_task=0"),
    "infinitebench": ("max_length=-1", "tasks=[nosuch]", "path=/nowhere"),
    "longbench": ("tasks=[nosuch]", "max_length=-1", "path=/nowhere", "extended=maybe"),
    "longbench_v2": ("tasks=[nosuch]", "max_length=-1", "path=/nowhere"),
    "loogle": ("cut=nosuch", "tasks=[nosuch]", "path=/nowhere", "meteor=maybe"),
    "math500": ("prompt=nosuch", "path=/nowhere"),
    "niah": ("tasks=['7']", "depths=0", "draws=-1", "haystack=nosuch", "tasks=['131072']"),
    "scbench": ("mode=nosuch", "max_turns=0", "path=/nowhere"),
    "zero_scrolls": ("split=nosuch", "max_length=-1", "path=/nowhere"),
}

ROWS = {
    "longbench": (
        "qasper",
        {"input": "Q", "context": "text " * 50, "answers": ["a"], "all_classes": None, "length": 50},
    ),
    "longbench_v2": (
        "data",
        {name: "a" for name in ("question", "context", "choice_A", "choice_B", "choice_C", "choice_D")}
        | {"answer": "A"},
    ),
    "infinitebench": (
        "passkey",
        {"id": 0, "context": "text " * 50, "input": "Q", "answer": ["5"], "options": []},
    ),
    "math500": ("test", {"problem": "1+1", "answer": "2"}),
    "scbench": (
        "scbench_kv",
        {"id": 0, "context": "text " * 50, "multi_turns": [{"input": "Q", "answer": "a"}]},
    ),
    "babilong": ("qa1", {"input": "text " * 50, "question": "Where?", "target": "garden"}),
}
"""Name and a row of a file that each of these suites reads."""
TASKS = {
    "longbench": "[qasper]",
    "infinitebench": "[passkey]",
    "scbench": "[scbench_kv]",
    "babilong": "[qa1]",
}
DAMAGE: dict[str, Callable[[dict], bytes]] = {
    "empty": lambda row: b"",
    "blank": lambda row: b"\n \n\n",
    "binary": lambda row: bytes(range(256)) * 20,
    "utf-16": lambda row: json.dumps(row).encode("utf-16"),
    "torn": lambda row: json.dumps(row).encode()[:-5],
    "list": lambda row: b"[1, 2]\n",
    "number": lambda row: b"5\n",
    "null": lambda row: b"null\n",
    "nested": lambda row: b'{"a":' * 100_000,
    "no fields": lambda row: b"{}\n",
    "other fields": lambda row: b'{"completely": "different"}\n',
    "nulls": lambda row: json.dumps(dict.fromkeys(row)).encode(),
    "numbers": lambda row: json.dumps(dict.fromkeys(row, 5)).encode(),
    "lists": lambda row: json.dumps({key: [[1]] for key in row}).encode(),
    "nan": lambda row: json.dumps(dict.fromkeys(row, float("nan"))).encode(),
    "huge": lambda row: json.dumps(dict.fromkeys(row, 10**4000)).encode(),
    "second line": lambda row: json.dumps(row).encode() + b"\n{]\n",
}

PRESSES = {
    "syntax": "class MinePress(:\n",
    "no class": "x = 1\n",
    "taken": None,
    "raises": "raise RuntimeError('at import')\n\nclass MinePress:\n    pass\n",
    "exits": "import sys\nsys.exit(0)\n\nclass MinePress:\n    pass\n",
    "lacks import": "import nosuch_package\n\nclass MinePress:\n    pass\n",
    "wrong import": "from presses.scorer import NoSuchPress\n\nclass MinePress(NoSuchPress):\n    pass\n",
    "plain class": "class MinePress:\n    pass\n",
    "abstract": "from dataclasses import dataclass\nfrom presses.scorer import ScorerPress\n\n@dataclass(frozen=True)\n"
    "class MinePress(ScorerPress):\n    power: float = 2.0\n",
    "no dataclass": "from presses.scorer import ScorerPress\n\nclass MinePress(ScorerPress):\n    def __init__(self, a):\n        pass\n\n"
    "    def score(self, layer):\n        return layer.values.norm(dim=-1)\n",
    "no default": "from dataclasses import dataclass\nfrom presses.scorer import ScorerPress\n\n@dataclass(frozen=True, kw_only=True)\n"
    "class MinePress(ScorerPress):\n    power: float\n\n    def score(self, layer):\n        return layer.values.norm(dim=-1)\n",
    "refuses": "from dataclasses import dataclass\nfrom presses.scorer import ScorerPress\n\n@dataclass(frozen=True)\n"
    "class MinePress(ScorerPress):\n    def __post_init__(self):\n        raise RuntimeError('never')\n\n"
    "    def score(self, layer):\n        return layer.values.norm(dim=-1)\n",
    "not UTF-8": b"\xff\xfe\x00class MinePress: pass\n",
    "NUL": b"x = 1\0\nclass MinePress: pass\n",
    "folder": ...,
}

MODELS = (
    *(
        "missing",
        "empty",
        "file",
        "no config",
        "broken config",
        "list config",
        "untyped config",
        "unknown config",
        "remote code",
    ),
    *(
        "no weights",
        "empty weights",
        "torn weights",
        "garbage weights",
        "huge header",
        "pickle weights",
        "pickle index",
        "escaping index",
    ),
    *(
        "other shapes",
        "lacking weights",
        "no tokenizer",
        "broken tokenizer",
        "tokenizer code",
        "other tokenizer",
        "broken template",
    ),
    *(
        "encoder",
        "negative size",
        "no layers",
        "odd heads",
        "text sizes",
        "no window",
        "adapter",
        "empty.gguf",
        "torn.gguf",
        "garbage.gguf",
    ),
    *("broken tokenizer config", "broken generation config", "config folder", "small vocabulary"),
)

COMMANDS = """
longpress.analysis.tables.write
longpress.analysis.tables.write /nowhere
longpress.analysis.tables.write {bad}/empty
longpress.analysis.tables.write {bad}/file
longpress.analysis.tables.write {bad}/newer
longpress.analysis.tables.write {bad}/good --margin x
longpress.analysis.tables.write {bad}/good --margin nan
longpress.analysis.tables.write {bad}/good --margin -1
longpress.analysis.tables.write {bad}/good --nosuch
longpress.analysis.tables.write {bad}/good /nowhere
longpress.analysis.tables.write {bad}/blocked
longpress.analysis.report.page
longpress.analysis.report.page /nowhere
longpress.analysis.report.page {bad}/good --nosuch
longpress.analysis.report.page {bad}/blocked
longpress.analysis.plots.draw
longpress.analysis.plots.draw /nowhere
longpress.analysis.plots.draw {bad}/blocked
longpress.analysis.compare
longpress.analysis.compare knorm
longpress.analysis.compare knorm none
longpress.analysis.compare knorm nosuch {bad}/good
longpress.analysis.compare knorm none /nowhere
longpress.analysis.compare knorm none {bad}/good --margin x
longpress.analysis.compare knorm none {bad}/good --margin nan
longpress.analysis.compare knorm none {bad}/file
longpress.analysis.kvpress_export
longpress.analysis.kvpress_export nosuch {bad}/good {out}
longpress.analysis.kvpress_export kvpress /nowhere {out}
longpress.analysis.kvpress_export kvpress {bad}/good {out} --name knorm
longpress.analysis.kvpress_export kvpress {bad}/good {out} --name a=b=c
longpress.analysis.kvpress_export kvpress {bad}/good {bad}/file
longpress.analysis.kvpress_export kvpress {bad}/good /proc/nowhere
longpress.analysis.kvpress_export kvpress {bad}/foreign {out}
longpress.evaluation.rescore
longpress.evaluation.rescore /nowhere {out}
longpress.evaluation.rescore {bad}/good {bad}/good
longpress.evaluation.rescore {bad}/good {bad}/file
longpress.evaluation.rescore {bad}/good /proc/nowhere
longpress.evaluation.rescore {bad}/foreign {out}
longpress.evaluation.rescore {bad}/newer {out}
longpress.evaluation.calibrate knorm
longpress.evaluation.calibrate text={bad}/text.txt out={out}
longpress.evaluation.calibrate nosuch text={bad}/text.txt out={out}
longpress.evaluation.calibrate knorm text={bad}/text.txt out={out}
longpress.evaluation.calibrate qfilter text=/nowhere out={out}
longpress.evaluation.calibrate qfilter text={bad}/empty out={out}
longpress.evaluation.calibrate qfilter text={bad}/empty.txt out={out} {tiny}
longpress.evaluation.calibrate qfilter text={bad}/binary.txt out={out} {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} length=0 {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} pieces=x {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={bad}/file {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out=/proc/nowhere {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} model=nosuch
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} model=hub model.path=/nowhere
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} nosuch=5 {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} presses.qfilter.nosuch=5 {tiny}
longpress.evaluation.calibrate qfilter text={bad}/text.txt out={out} presses_dir=/nowhere {tiny}
longpress.evaluation.calibrate qfilter snapkv text={bad}/text.txt out={out}
longpress.catalogue /nowhere
longpress.catalogue {bad}/file
longpress.catalogue {bad}/presses/syntax
longpress.catalogue a b
benchmarks
benchmarks ruler
benchmarks ruler/vt /nowhere
benchmarks nosuch {bad}/text.txt
benchmarks ruler/vt {bad}/text.txt
benchmarks ruler/vt {bad}/empty
benchmarks --nosuch
benchmarks ruler/vt {bad}/text.txt more
""".strip().split("\n")

RESULTS = (
    "file",
    "records file",
    "/proc/longpress",
    "/dev/null/results",
    "newer",
    "records folder",
    "table folder",
    "no gzip",
    "{long}",
)


def fill_models(folder: Path, good: Path) -> None:
    """One folder per name in `MODELS`."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    copies = {
        name: folder / name
        for name in MODELS
        if name not in ("missing", "empty", "file") and not name.endswith(".gguf")
    }
    for path in copies.values():
        shutil.copytree(good, path)
    (folder / "empty").mkdir()
    (folder / "file").write_text("no model")
    config = json.loads((good / "config.json").read_text())
    weights = load_file(good / "model.safetensors")
    stored = (good / "model.safetensors").read_bytes()
    index = {"metadata": {}, "weight_map": {name: "pytorch_model.bin" for name in weights}}

    def configured(name: str, **changes: object) -> None:
        changed = {key: value for key, value in {**config, **changes}.items() if value is not ...}
        (copies[name] / "config.json").write_text(json.dumps(changed))

    def without(name: str, *files: str) -> Path:
        for file in files:
            (copies[name] / file).unlink()
        return copies[name]

    without("no config", "config.json")
    (copies["broken config"] / "config.json").write_text('{"model_type": ')
    (copies["list config"] / "config.json").write_text("[1]")
    configured("untyped config", model_type=..., architectures=...)
    configured("unknown config", model_type="nosuch")
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    configured("remote code", model_type="nosuch", auto_map=code)
    (copies["remote code"] / "code.py").write_text("raise SystemExit('ran')\n")
    without("no weights", "model.safetensors")
    (copies["empty weights"] / "model.safetensors").write_bytes(b"")
    (copies["torn weights"] / "model.safetensors").write_bytes(stored[: len(stored) // 2])
    (copies["garbage weights"] / "model.safetensors").write_bytes(b"not weights " * 1000)
    (copies["huge header"] / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + stored[8:])
    without("pickle weights", "model.safetensors")
    import torch

    torch.save(weights, copies["pickle weights"] / "pytorch_model.bin")
    without("pickle index", "model.safetensors")
    (copies["pickle index"] / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save(weights, copies["pickle index"] / "pytorch_model.bin")
    without("escaping index", "model.safetensors")
    escaping = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../../../../etc/nosuch.safetensors")}
    (copies["escaping index"] / "model.safetensors.index.json").write_text(json.dumps(escaping))
    save_file(
        {name: one[..., :-1].contiguous() for name, one in weights.items()},
        copies["other shapes"] / "model.safetensors",
    )
    save_file(
        {name: one for name, one in weights.items() if "down_proj" not in name},
        copies["lacking weights"] / "model.safetensors",
    )
    without("no tokenizer", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    (copies["broken tokenizer"] / "tokenizer.json").write_text('{"version": "1.0"')
    (copies["broken tokenizer config"] / "tokenizer_config.json").write_text("[")
    (copies["other tokenizer"] / "tokenizer.json").write_text('{"completely": "different"}')
    described = json.loads((good / "tokenizer_config.json").read_text())
    coded = {
        **described,
        "tokenizer_class": "Nosuch",
        "auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]},
    }
    (copies["tokenizer code"] / "tokenizer_config.json").write_text(json.dumps(coded))
    (copies["tokenizer code"] / "code.py").write_text("raise SystemExit('ran')\n")
    (copies["broken template"] / "chat_template.jinja").write_text("{% for message in")
    (copies["broken generation config"] / "generation_config.json").write_text("{")
    configured("encoder", model_type="bert", architectures=["BertModel"])
    configured("negative size", hidden_size=-64)
    configured("no layers", num_hidden_layers=0)
    configured("odd heads", num_attention_heads=7)
    configured("text sizes", hidden_size="wide", num_hidden_layers="many")
    configured("no window", max_position_embeddings=-5)
    configured("small vocabulary", vocab_size=3)
    without("adapter", "config.json", "model.safetensors")
    (copies["adapter"] / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "nosuch/nosuch", "peft_type": "LORA"}'
    )
    without("config folder", "config.json")
    (copies["config folder"] / "config.json").mkdir()
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "torn.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 10**6, 10**6))
    (folder / "garbage.gguf").write_bytes(bytes(range(256)) * 100)


@pytest.fixture(scope="module")
def places(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for `{model}`, `{bad}`, … in a case."""
    bad = tmp_path_factory.mktemp("bad")
    (bad / "empty").mkdir()
    (bad / "empty.txt").write_text("")
    (bad / "file").write_text("x")
    (bad / "text.txt").write_text("Some words about nothing. " * 50)
    (bad / "binary.txt").write_bytes(bytes(range(256)) * 50)
    (bad / "list.json").write_text("[1, 2]")
    (bad / "weights").mkdir()
    for name in (
        "model.safetensors",
        "config.json",
        "q_filters.safetensors",
        "pytorch_model.bin",
        "full_attention_heads.tsv",
    ):
        (bad / "weights" / name).write_bytes(b"not weights")
    for suite, (name, row) in ROWS.items():
        for damage, damaged in DAMAGE.items():
            folder = bad / "data" / suite / damage
            folder.mkdir(parents=True)
            (folder / f"{name}.jsonl").write_bytes(damaged(row))
    for name, text in PRESSES.items():
        file = bad / "presses" / name / ("snapkv.py" if name == "taken" else "mine.py")
        file.parent.mkdir(parents=True)
        if text is ...:
            file.mkdir()
        elif isinstance(text, bytes):
            file.write_bytes(text)
        else:
            file.write_text(text or "class SnapKVPress:\n    pass\n")
    fill_models(bad / "models", small_model)
    good = [
        make(f"{press}{n}", press=press, sample_id=f"vt/{n}", context_id=f"c{n}")
        for press in ("none", "knorm")
        for n in range(3)
    ]
    rows = [json.loads(record.to_json()) for record in good]
    for name, changes in {
        "good": {},
        "newer": {"schema": 99},
        "foreign": {"benchmark": "nosuch"},
        "blocked": {},
    }.items():
        (bad / name / "records").mkdir(parents=True)
        (bad / name / "records" / "a.jsonl").write_text(
            "".join(json.dumps({**row, **changes}) + "\n" for row in rows)
        )
    for name in (
        "scores.csv",
        "report.html",
        "ranking-1.png",
    ):  # a folder is in the way of what would be written
        (bad / "blocked" / name).mkdir()
        (bad / "blocked" / name / "inside").write_text("x")
    tiny = " ".join(part.format(model=small_model) for part in MODEL)
    return {"model": str(small_model), "bad": str(bad), "tiny": tiny, "long": "x" * 300}


def files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def refused(run: Command) -> None:
    code = run.wait()
    said = run.stderr
    assert code not in (0, None), said + run.stdout[-2000:]
    assert "Traceback" not in said + run.stdout, said
    assert said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert 20 < len(said) < 4000, said
    assert code == 2


def evaluate(
    places: Mapping[str, str], tmp_path: Path, *arguments: str, base: tuple[str, ...] = (*EVALUATE, *MODEL)
) -> Command:
    """The command, with `arguments` behind what would be fine; results go to `tmp_path/results`."""
    whole = [*base, f"results={tmp_path / 'results'}", *arguments]
    for name, value in places.items():
        whole = [part.replace(f"{{{name}}}", value) for part in whole]
    return Command(tmp_path / "printed", *whole)


def is_bad(
    places: Mapping[str, str], tmp_path: Path, *arguments: str, base: tuple[str, ...] = (*EVALUATE, *MODEL)
) -> None:
    before = files(Path(places["bad"]))
    refused(evaluate(places, tmp_path, *arguments, base=base))
    assert not (tmp_path / "results").exists() or files(tmp_path / "results").keys() <= {
        "config.yaml",
        "environment.json",
    }
    assert files(Path(places["bad"])) == before


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_configuration(line: str, places: dict[str, str], tmp_path: Path) -> None:
    flags = ["-m"] if line.startswith("-m ") else []
    is_bad(
        places,
        tmp_path,
        *line.removeprefix("-m ").split(" "),
        base=(EVALUATE[0], *flags, *EVALUATE[1:], *MODEL),
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", FAILING)
def test_a_press_that_cannot_be_prepared_fails_alone(
    line: str, places: dict[str, str], tmp_path: Path
) -> None:
    run = evaluate(places, tmp_path, *line.split(" "))
    assert run.wait() == 1
    first, last = run.stderr.splitlines()
    assert first.startswith("failed: niah_single_1/0 under ") and "/" in first.split("ValueError", 1)[1], (
        first
    )
    assert last == "error: 1 answers failed; their records say why, and the same command tries them again"
    found = {record.press: record for record in read_records([tmp_path / "results"])}
    assert found.pop("none").score is not None
    (failed,) = found.values()
    assert failed.score is None and failed.error
    assert "Traceback" not in run.stdout and "†" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [f"{name} {option}" for name, options in OTHER_BENCHMARKS.items() for option in options]
)
def test_an_option_of_a_benchmark(line: str, places: dict[str, str], tmp_path: Path) -> None:
    name, option = line.split(" ")
    is_bad(
        places,
        tmp_path,
        f"benchmark={name}",
        f"benchmark.{option}",
        base=("evaluate.py", "limit=1", "plots=false", *MODEL),
    )


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suite", ROWS)
def test_a_data_file(suite: str, damage: str, places: dict[str, str], tmp_path: Path) -> None:
    asked = [f"benchmark={suite}", f"benchmark.path={{bad}}/data/{suite}/{damage}"]
    tasks = [f"benchmark.tasks={TASKS[suite]}"] if suite in TASKS else []
    is_bad(places, tmp_path, *asked, *tasks, base=("evaluate.py", "plots=false", *MODEL))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str, places: dict[str, str], tmp_path: Path) -> None:
    is_bad(places, tmp_path, f"model.path={{bad}}/models/{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESSES)
def test_a_press_of_ones_own(name: str, places: dict[str, str], tmp_path: Path) -> None:
    is_bad(places, tmp_path, f"presses_dir={{bad}}/presses/{name}", "press=mine")


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_a_results_folder(name: str, places: dict[str, str], tmp_path: Path) -> None:
    results = tmp_path / "taken"
    if name == "file":
        results.write_text("x")
    elif name == "records file":
        results.mkdir()
        (results / "records").write_text("x")
    elif name in ("newer", "no gzip"):
        (results / "records").mkdir(parents=True)
        (results / "records" / ("a.jsonl" if name == "newer" else "a.jsonl.gz")).write_text(
            '{"schema": 99}\n'
        )
    elif name == "records folder":
        (results / "records" / "a.jsonl").mkdir(parents=True)
    elif name == "table folder":
        (results / "config.yaml" / "x").mkdir(parents=True)
    else:
        results = Path(name)
    before = files(results) if results.is_dir() else {}
    refused(evaluate(places, tmp_path, f"results={results}"))
    assert (files(results) if results.is_dir() else {}) == before


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_another_command(line: str, places: dict[str, str], tmp_path: Path) -> None:
    before = files(Path(places["bad"]))
    whole = line.format(**places, out=tmp_path / "out").split(" ")
    refused(Command(tmp_path / "printed", *whole))
    assert not (tmp_path / "out").exists() or not files(tmp_path / "out")
    assert files(Path(places["bad"])) == before


@pytest.mark.parametrize(
    "line", ["press=nosuch", "compression_ratio=1.0", "model.path={bad}/models/pickle weights", "--nosuch"]
)
def test_as_a_user_starts_it(line: str, places: dict[str, str], tmp_path: Path) -> None:
    asked = [*EVALUATE[1:], *MODEL, f"results={tmp_path / 'results'}", line]
    for name, value in places.items():
        asked = [part.replace(f"{{{name}}}", value) for part in asked]
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *asked],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "results").exists() or not files(tmp_path / "results")


NUMBERS = [
    (name, key, value)
    for name, entry in presses().items()
    for key, option in entry.options.items()
    for kind, values in {"int": (-1, "many"), "float": (float("nan"), float("inf"), "much")}.items()
    for value in values
    if option.type.startswith(kind) and key != "seed"
]


@pytest.mark.parametrize(("name", "key", "value"), NUMBERS)
def test_a_number_that_means_nothing_to_a_press_is_refused(name: str, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key) as refused:
        make_press({"name": name, key: value}, presses())
    assert 20 < len(str(refused.value)) < 500

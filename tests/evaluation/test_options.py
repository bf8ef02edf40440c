"""The options of a run: one field declares one, whatever needs to know of it follows."""

import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass

import pytest
from hydra.core.config_store import ConfigStore

from longpress.evaluation.config import CHOICES, composed, register, settings
from longpress.evaluation.option_fields import checked, defaults, described
from longpress.evaluation.options import RunOptions, option
from longpress.evaluation.run_command import check_names, help_text
from longpress.pipeline.options import PipelineOptions
from tests.support.running import ROOT


@dataclass(frozen=True, kw_only=True)
class MoreOptions(RunOptions):
    """Options that a test has added."""

    loudness: int = option("How loud it is", 3, "how loud the answers are read out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loudness > 11:
            raise ValueError(f"loudness={self.loudness} must be at most 11")


@pytest.fixture
def more_options():
    """Hydra knows one option more; afterwards it knows those of longpress again."""
    register(options=MoreOptions)
    yield MoreOptions
    register()


def test_one_field_is_all_that_an_option_needs(more_options: type[MoreOptions]) -> None:
    # Hydra's schema, and the value on the way to where it is used
    assert composed([]).loudness == 3
    assert settings(composed(["loudness=7"]), more_options).options.loudness == 7
    # the help, under its heading
    assert "How loud it is:\n  loudness=3" in help_text([], more_options)
    assert "how loud the answers are read out" in help_text([], more_options)
    assert "\nloudness: 7\n" in help_text(["loudness=7"], more_options)
    # names, types and ranges
    with pytest.raises(ValueError, match="no option loudnes; did you mean loudness"):
        check_names(["loudnes=5"], more_options)
    with pytest.raises(ValueError, match=r"loudness='high' must be a whole number"):
        settings(composed(["loudness=high"]), more_options)
    with pytest.raises(ValueError, match="loudness=12 must be at most 11"):
        settings(composed(["loudness=12"]), more_options)
    with pytest.raises(ValueError, match="loudness cannot be deleted"):
        settings(composed(["~loudness"]), more_options)


def test_an_option_that_is_not_declared_does_not_exist() -> None:
    register()
    assert "loudness" not in composed([])
    with pytest.raises(ValueError, match="no option loudness"):
        settings(composed(["+loudness=5"]))


def test_the_configuration_holds_the_options_and_the_choices_and_nothing_else() -> None:
    register()
    assert set(composed([])) == {option.name for option in fields(RunOptions)} | set(CHOICES)
    stated = (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8")
    assert not [name for name in defaults(RunOptions) if f"\n{name}:" in stated]
    assert "options.yaml" in ConfigStore.instance().repo


@pytest.mark.parametrize("options", [RunOptions, PipelineOptions])
def test_every_option_has_a_default_and_help(options: type) -> None:
    shown = described(options)
    for one in fields(options):
        assert one.metadata["help"], one.name
        if not is_dataclass(one.default):
            assert f"\n  {one.name}=" in shown
    assert "shard.count=1" in described(RunOptions)
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"limit": True}, "limit=True must be a whole number or null"),
        ({"plots": 3}, "plots=3 must be true or false"),
        ({"results": 1.5}, "results=1.5 must be text or a whole number or null"),
        ({"max_batch_gb": "much"}, "max_batch_gb='much' must be a number"),
        ({"prefill": "chunked"}, "there is no option prefill; did you mean compress_every?"),
        ({"shard": {"count": 2, "indx": 1}}, "there is no option shard.indx; did you mean shard.index?"),
        ({"shard": {"count": 2}}, "shard.index cannot be deleted"),
        ({"shard": {"count": 2, "index": 2}}, "shard.index=2 with shard.count=2"),
        ({"shard": 5}, "shard=5 must be a group of options"),
        ({"compression_ratio": [0.5, [0.25]]}, "must be one number or a list of numbers"),
        ({"compression_ratio": []}, "compression_ratio=[] names no ratio"),
        ({"threshold": [None, 3]}, "threshold=[None, 3] holds null"),
        ({"budget_tokens": 1.5}, "budget_tokens=1.5 must be a whole number"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_with_what_is_allowed(wrong: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        checked(RunOptions, {**defaults(RunOptions), **wrong})
    assert sentence in str(refused.value)


def test_values_are_what_they_were_given_as() -> None:
    given = checked(
        RunOptions,
        {
            **defaults(RunOptions),
            "compression_ratio": ["0.25", 0.5, 0.25],
            "cache_bits": [None, 4.0],
            "seed": 7,
        },
    )
    assert [budget.named() for budget in given.budgets()] == [
        {"compression_ratio": 0.25},
        {"compression_ratio": 0.5},
    ]
    assert given.bits() == [None, 4]
    assert given.seed == 7
    assert checked(RunOptions, defaults(RunOptions)) == RunOptions()
    assert [budget.named() for budget in RunOptions().budgets()] == [{"compression_ratio": 0.5}]


def test_options_and_their_help_need_no_torch() -> None:
    check = (
        "import sys; from longpress.evaluation.run_command import help_text, register; "
        "register(); help_text([]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0

"""What a run says about itself holds no secret."""

import json

import pytest

from longpress.evaluation.environment import command_line, git_state, redacted, without_secrets


def test_secrets_are_replaced_by_form_by_name_and_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ACCESS_TOKEN", "plain-looking-words")
    config = {
        "model": {"path": "org/model", "token": "abc", "url": "https://me:pass@host/x"},
        "list": ["hf_" + "a" * 30, "plain-looking-words", 3],
        "max_new_tokens": 5,
    }
    text = json.dumps(without_secrets(config))
    assert not [secret for secret in ("abc", "me:pass", "hf_a", "plain-looking-words") if secret in text]
    assert all(kept in text for kept in ("org/model", "host/x", '"max_new_tokens": 5'))
    assert redacted("error at hf_" + "b" * 20) == "error at <redacted>"


def test_the_command_line_is_kept_without_secrets() -> None:
    assert command_line(["evaluate.py", "press=knorm", "+model.token=x", "+api_key=y"]) == [
        "evaluate.py",
        "press=knorm",
        "+model.token=<redacted>",
        "+api_key=<redacted>",
    ]


def test_no_git_checkout_is_no_error(tmp_path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}

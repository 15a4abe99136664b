"""Sections of a config: every wrong field is named with its stage."""

import pytest
from ml_collections import ConfigDict

from data_prep.answers.section import Section, read_section
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

GOOD = {"model": "m", "base_url": "http://localhost:8000/v1"}


def test_a_config_section():
    section = read_section(ConfigDict(GOOD | {"price_prompt": 2.0, "price_completion": 10, "timeout": 30}), "caption")
    assert section == Section("m", GOOD["base_url"], price_prompt=2.0, price_completion=10, timeout=30)
    assert section.cost(1_000, 500) == pytest.approx(0.007)


def test_a_policy_needs_no_url():
    assert read_section({"model": "policy:some/folder"}, "verify").policy == "some/folder"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": "x"}, "unknown field 'modle'"),
        ({"model": ""}, "model is not set"),
        ({"model": 3}, "model is 3, expected str"),
        ({"concurrency": "8"}, "concurrency is '8', expected int"),
        ({"concurrency": 0}, "concurrency is 0, expected more"),
        ({"concurrency": 2.5}, "concurrency is 2.5, expected int"),
        ({"retries": True}, "retries is True, expected int"),
        ({"price_prompt": -1.0}, "price_prompt is -1.0, expected 0 or more"),
        ({"timeout": float("inf")}, "timeout is inf, expected 0 or more"),
        ({"bound_parameter": "n"}, "bound_parameter is 'n', expected max_tokens or max_completion_tokens"),
        ({"base_url": ""}, "base_url is ''"),
        ({"base_url": "localhost:8000"}, "base_url is 'localhost:8000'"),
        ({"base_url": "http://[x/v1"}, "base_url is 'http://[x/v1'"),
        ({"base_url": "https://name:word@host/v1"}, "base_url holds a name, a password or a query"),
        ({"base_url": "https://host/v1?key=1"}, "base_url holds a name, a password or a query"),
    ],
)
def test_wrong_fields(change, said):
    with pytest.raises(InputError) as error:
        read_section(GOOD | change, "caption")
    assert str(error.value).startswith("stage caption: ") and said in str(error.value)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_named(monkeypatch, value):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(InputError, match="stage caption: the environment variable SOME_KEY with the key is not set"):
        read_section(GOOD | {"key_variable": "SOME_KEY"}, "caption").key("caption")


@pytest.mark.parametrize("value", ["sk-1 2", "sk-ä", "sk-\x07"])
def test_what_is_no_key_is_not_quoted(monkeypatch, value):
    monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(InputError) as error:
        read_section(GOOD | {"key_variable": "SOME_KEY"}, "caption").key("caption")
    assert "SOME_KEY" in str(error.value) and "sk-" not in str(error.value)


def test_a_key_from_a_file_loses_its_line_end(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-1\n")
    assert read_section(GOOD | {"key_variable": "SOME_KEY"}, "caption").key("caption") == "sk-1"

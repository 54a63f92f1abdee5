"""A module written here is read with `ast`; expected values are those written into it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.settings import SettingField, read, resolve

SOURCE = '''"""Erase by magic (Merlin 540, Sec. 3).

The rest is not the summary.
"""

from dataclasses import dataclass

import a_module_that_does_not_exist


@dataclass(frozen=True)
class Settings:
    """How."""

    rate: float = -1e-5
    """Learning rate
    of the wand."""
    steps: int | None = None
    """Steps."""
    unexplained: bool = True
    where: tuple[int, ...] = (1, 2)
    """Where."""

    def method(self): ...


PRESETS: dict = {"paper": {"rate": 1.0}, "small": {}}
OTHER = object()
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    package = tmp_path / "wizardry" / "spells"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')" if folder is package else "")
    (package / "magic.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "wizardry.spells.magic"
    read.cache_clear()
    sys.modules.pop("wizardry", None)


def test_settings_are_read_without_importing(module):
    source = read(module)  # an import would fail: the module it needs does not exist
    assert source.summary == "Erase by magic (Merlin 540, Sec. 3)."
    assert [(field.name, field.kind, field.default, field.help) for field in source.fields] == [
        ("rate", "float", -1e-5, "Learning rate of the wand."),
        ("steps", "int | None", None, "Steps."),
        ("unexplained", "bool", True, ""),
        ("where", "tuple[int, ...]", (1, 2), "Where."),
    ]
    assert source.presets == {"paper": {"rate": 1.0}, "small": {}}


def test_a_module_that_is_not_there():
    with pytest.raises(Misconfigured):
        read("no_such_package_at_all.magic")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "7", 7),
        ("float", "1e-5", 1e-5),
        ("float", "3", 3.0),
        ("str", "None", "None"),
        ("str", "a,b", "a,b"),
        ("bool", "Yes", True),
        ("bool", "0", False),
        ("int | None", "none", None),
        ("int | None", "4", 4),
        ("str | None", "none", None),
        ("tuple[int, ...]", "1, 2,", (1, 2)),
        ("tuple[int, ...]", "", ()),
        ("tuple[int]", "3", (3,)),
        ("tuple[str, ...] | None", "a,b", ("a", "b")),
        ("Literal['a', 'b']", "b", "b"),
        ("Literal[1, 2]", "2", 2),
        ("Literal['a'] | None", "none", None),
    ],
)
def test_text_becomes_the_fields_type(kind, text, value):
    parsed = SettingField("x", kind, None, "").parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int", "1.5"),
        ("int", "none"),
        ("float", "much"),
        ("bool", "perhaps"),
        ("tuple[int, ...]", "1,b"),
        ("Literal['a', 'b']", "c"),
        ("Literal[1]", "3"),
    ],
)
def test_text_that_does_not_fit_is_refused_with_the_fields_help(kind, text):
    with pytest.raises(Misconfigured, match=r"`speed`") as caught:
        SettingField("speed", kind, None, "How fast.").parse(text)
    assert caught.value.hint == "How fast."


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans()))
def test_what_is_written_is_read_back(value):
    assert SettingField("x", type(value).__name__, None, "").parse(str(value)) == value


@dataclass(frozen=True)
class Settings:
    rate: float = 1.0
    steps: int = 10
    mode: Literal["fast", "slow"] = "fast"
    widths: tuple[int, ...] = (1,)
    limit: int | None = None


PRESETS = {"paper": {"steps": 100, "rate": 2.0}}


def test_defaults_then_preset_then_what_was_given():
    assert resolve(Settings, PRESETS, None, {}) == Settings()
    assert resolve(Settings, PRESETS, "paper", {}) == Settings(rate=2.0, steps=100)
    assert resolve(Settings, PRESETS, "paper", {"rate": 3.0, "limit": None}) == Settings(rate=3.0, steps=100)
    assert PRESETS == {"paper": {"steps": 100, "rate": 2.0}}


def test_values_from_a_plan_file_take_the_fields_type():
    resolved = resolve(Settings, PRESETS, None, {"rate": 3, "widths": [1, 2], "mode": "slow"})
    assert resolved == Settings(rate=3.0, widths=(1, 2), mode="slow")
    assert type(resolved.rate) is float
    assert type(resolved.widths) is tuple


@pytest.mark.parametrize(
    "given",
    [{"steps": "many"}, {"steps": 1.5}, {"steps": True}, {"rate": "1"}, {"mode": "medium"}, {"widths": "12"}, {"widths": ["a"]}, {"steps": None}],
)
def test_values_of_the_wrong_type_are_refused_by_name(given):
    with pytest.raises(Misconfigured, match=f"`{next(iter(given))}`"):
        resolve(Settings, PRESETS, None, given)


def test_unknown_presets_and_settings_are_refused_with_the_known_ones():
    with pytest.raises(Misconfigured, match=r"`huge`.*paper"):
        resolve(Settings, PRESETS, "huge", {})
    with pytest.raises(Misconfigured, match=r"`speed`.*rate, steps, mode"):
        resolve(Settings, PRESETS, None, {"speed": 1})

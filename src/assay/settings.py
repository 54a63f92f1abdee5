"""Settings of methods, read without importing them: a field's docstring is its help, its row in the docs and its row in the report.

A method file holds one frozen dataclass named `Settings`, each field followed by a string, and a literal dict `PRESETS` of preset name ->
{field: value}. This module reads both with `ast`, so that `assay erase --method esd --help` needs no torch.
"""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from assay.errors import Misconfigured

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class SettingField:
    """One field of a method's settings."""

    name: str
    """The field's name."""
    kind: str
    """Its annotation, as written."""
    default: Any
    """Its default."""
    help: str
    """The string that follows it."""

    def parse(self, text: str) -> Any:
        """Turn command-line text into the field's type.

        Raises:
            Misconfigured: the text does not fit.
        """
        base, optional = self._base
        if text.lower() == "none" and optional:
            return None
        try:
            if base == "bool":
                return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
            if base == "int":
                return int(text)
            if base == "float":
                return float(text)
        except (KeyError, ValueError) as error:
            raise Misconfigured(f"The setting `{self.name}` must be {base}; got `{text}`.", self.help) from error
        if base.startswith("tuple["):
            return tuple(self._inner.parse(part.strip()) for part in text.split(",") if part.strip())
        if base.startswith("Literal["):
            return self.accept({str(choice): choice for choice in self._choices}.get(text, text))
        return text

    def accept(self, value: Any) -> Any:
        """Return a value given in Python or TOML as the field's type: an int passes as float, a list as tuple.

        Raises:
            Misconfigured: the value does not fit.
        """
        base, optional = self._base
        if value is None and optional:
            return None
        if base.startswith("tuple[") and isinstance(value, list | tuple):
            return tuple(self._inner.accept(part) for part in value)
        if base.startswith("Literal["):
            if value not in self._choices:
                allowed = ", ".join(map(str, self._choices))
                raise Misconfigured(f"The setting `{self.name}` must be one of {allowed}; got `{value}`.", self.help)
            return value
        if base == "float" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        expected = {"bool": bool, "int": int, "float": float, "str": str}.get(base, tuple if base.startswith("tuple[") else object)
        if not isinstance(value, expected) or (base == "int" and isinstance(value, bool)):
            raise Misconfigured(f"The setting `{self.name}` must be {base}; got `{value}`.", self.help)
        return value

    @property
    def _base(self) -> tuple[str, bool]:
        base = self.kind.removesuffix("| None").strip()
        return base, base != self.kind.strip()

    @property
    def _inner(self) -> SettingField:
        return SettingField(self.name, self._base[0].removeprefix("tuple[").removesuffix("]").split(",")[0].strip(), None, self.help)

    @property
    def _choices(self) -> list[Any]:
        return ast.literal_eval(self._base[0].removeprefix("Literal"))


@dataclass(frozen=True)
class MethodSource:
    """What a method file says of itself."""

    summary: str
    """First paragraph of the module's docstring."""
    fields: tuple[SettingField, ...]
    """Fields of `Settings`, in order."""
    presets: dict[str, dict[str, Any]]
    """Preset name -> the fields it changes."""


@cache
def read(module: str) -> MethodSource:
    """Read the settings of a method's module from its source, without importing it.

    Raises:
        Misconfigured: there is no such package.
    """
    package, _, name = module.rpartition(".")
    root = find_spec(package.split(".")[0])
    if root is None or root.submodule_search_locations is None:
        raise Misconfigured(f"There is no module {module}.", "This is a mistake in the table of methods.")
    path = Path(root.submodule_search_locations[0]).joinpath(*package.split(".")[1:], f"{name}.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    fields: list[SettingField] = []
    presets: dict[str, dict[str, Any]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            for statement, following in zip(node.body, [*node.body[1:], None]):
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
                    text = following.value.value if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) else ""
                    fields.append(
                        SettingField(
                            statement.target.id, ast.unparse(statement.annotation), ast.literal_eval(statement.value), " ".join(str(text).split())
                        )
                    )
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "PRESETS" and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            presets = ast.literal_eval(node.value)
    summary = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return MethodSource(summary, tuple(fields), presets)


def resolve(settings: type[T], presets: dict[str, dict[str, Any]], preset: str | None, given: dict[str, Any]) -> T:
    """Build settings from defaults, then a preset, then what the user gave.

    Raises:
        Misconfigured: the preset or a field does not exist, or a value has the wrong type.
    """
    if preset is not None and preset not in presets:
        raise Misconfigured(f"There is no preset `{preset}`.", f"Choose one of {', '.join(presets)}.")
    known = {field.name: SettingField(field.name, str(field.type), None, "") for field in dataclasses.fields(settings)}
    for name in given:
        if name not in known:
            raise Misconfigured(f"There is no setting `{name}`.", f"Choose from {', '.join(known)}.")
    chosen = (presets[preset] if preset else {}) | given
    return settings(**{name: known[name].accept(value) for name, value in chosen.items()})

"""Options made from the settings of methods, which are read from their source: help needs no method and no torch."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import click

from assay import settings as method_settings

VERBS = {"erase": "erasure", "attack": "attacks", "audit": "memorization"}


def methods(subject: str | None = None) -> list[dict[str, Any]]:
    """Read the table of methods, all or of one subject."""
    table = json.loads((files("assay") / "methods.json").read_text())
    return [row for row in table if subject in (None, row["subject"], row["verb"])]


class MethodCommand(click.Command):
    """A command whose options include the settings of the method named by `--method`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the named method's settings as options, then parse."""
        name = next((args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--method"), None)
        name = next((arg.partition("=")[2] for arg in args if arg.startswith("--method=")), name)
        name = name or ("mine" if any(arg.partition("=")[0] == "--mine" for arg in args) else None)
        row = next((row for row in methods(VERBS[self.name or ""]) if row["name"] == name), None)
        kept = [param for param in self.params if not isinstance(param, SettingOption)]
        self.params = kept + [SettingOption(field) for field in method_settings.read(row["module"]).fields] if row else kept
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the method's settings in a section of their own."""
        own = [param for param in self.params if isinstance(param, SettingOption)]
        self.params = [param for param in self.params if not isinstance(param, SettingOption)]
        super().format_options(ctx, formatter)
        if own:
            with formatter.section("Settings of the method"):
                formatter.write_dl([(f"--{option.field.name.replace('_', '-')}", f"{option.field.help} [{option.field.default}]") for option in own])
        else:
            names = ", ".join(row["name"] for row in methods(VERBS[self.name or ""]))
            formatter.write(f"\n  `assay {self.name} --method NAME --help` shows a method's own settings. Methods: {names}.\n")
        self.params += own


class SettingOption(click.Option):
    """An option made from a field of a method's settings."""

    def __init__(self, field: method_settings.SettingField) -> None:
        """Name the option after the field."""
        self.field = field
        super().__init__([f"--{field.name.replace('_', '-')}", f"setting_{field.name}"], help=field.help)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Parse the text as the field's type."""
        return None if value is None else self.field.parse(value)

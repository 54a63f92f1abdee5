"""Documents that cannot rot: the README's commands parse, the map names every room, the table of methods is what probing finds."""

import json
import os
import re
import shlex
from pathlib import Path

import click
import pytest

import assay
from assay.cli.main import cli
from assay.cli.options import methods
from assay.settings import read
from assay.testing import probe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.startswith("assay ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_parses(line):
    """Parsing alone: the words must be commands and options that exist."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, name
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(command.name, words, parent=context.parent)


def test_the_readme_shows_every_verb():
    """A verb without a recipe is a verb nobody finds."""
    shown = {shlex.split(line)[1] for line in COMMANDS} | {"run"}
    assert set(cli.commands) - shown == {"methods"}
    assert "assay methods" in README


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "docs/world.md"])
def test_links_lead_somewhere(page):
    """A link to a file or folder of the tree finds it."""
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_make_knows_the_two_commands():
    """`make run` and `make test` are the README's two; .ci/run calls the second and nothing else."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^run:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)
    assert [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith(("#", "set", "cd"))] == ["make test"]


def test_the_map_names_every_room():
    """ARCHITECTURE.md has a row for every module and folder at the root of the package."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    root = ROOT / "src/assay"
    rooms = [f"{path.name}/" for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"]
    rooms += [path.name for path in root.glob("*.py") if not path.name.startswith("__")]
    assert [room for room in rooms if f"`{room}`" not in text] == []


def test_public_names_resolve_and_are_documented():
    """Each name of `__all__` can be imported and says what it is."""
    for name in assay.__all__:
        assert getattr(assay, name).__doc__, name


def test_every_command_has_a_python_twin():
    """The function behind a command is public under the command's name, words joined by underscores."""
    from assay.verbs.commands import COMMANDS

    assert set(COMMANDS) <= set(assay.__all__)


@pytest.mark.long
def test_the_table_of_methods_is_what_probing_finds():
    """`methods.json` equals a fresh probe of every audit; that it says where erasers and attacks work is looked up where their contracts run them."""
    fresh = json.loads(json.dumps(probe.table(["memorization"])))
    stored = [row if row["subject"] == "memorization" else {name: row[name] for name in row if name != "works_on"} for row in methods()]
    assert stored == fresh


def test_every_setting_has_a_docstring():
    """A field's docstring is its help, its row in the docs and its row in the report."""
    for row in methods():
        source = read(row["module"])
        assert all(field.help for field in source.fields)
        assert {"paper", "small"} <= set(source.presets)


def test_the_tree_stays_small():
    """Everything tracked under 60 MB, no file above 15 MB."""
    ignored = {".git", ".venv", "build", "dist", "assay-out", "out", "__pycache__"}
    sizes = []
    for folder, inside, names in os.walk(ROOT):
        inside[:] = set(inside) - ignored
        sizes += [(Path(folder) / name).stat().st_size for name in names]
    assert max(sizes) < 15_000_000
    assert sum(sizes) < 60_000_000

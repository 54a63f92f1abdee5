"""The numbers of a run: what a TOML file may override, and the checks of it."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from assay import settings as method_settings
from assay.attacks.target import Clock
from assay.errors import BadInput, Misconfigured, Missing
from assay.memorization import nearest
from assay.verbs.methods import method_row

METHODS = ("uce", "esd")
"""What erases."""
ATTACKS: dict[str, dict[str, Any]] = {
    "concept_inversion": {"steps": 40, "batch": 8},
    "unlearn_diff_atk": {"rounds": 4, "steps": 5},
    "seed_search": {"attempts": 2},
}
"""What attacks what was erased, with settings that differ from the small preset: an embedding, words, and no more than other seeds."""
AUDIT: dict[str, Any] = {"steps": 8, "members": 32, "calibration": 160, "holdout": 48}
"""How works are looked for, where it differs from the small preset: in half the passes, so that a run ends within ten minutes."""
USED = (*METHODS, *ATTACKS, "nearest")
"""Every method whose settings a plan can override."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a run; a TOML file may override each."""

    style: str = ""
    """The style to erase; empty: twemoji for the built-in model, else the works' second most frequent."""
    object: str = ""
    """The object family to erase; empty: cat for the built-in model, else the word that most titles share."""
    preset: str = ""
    """Preset of the erasers; empty: small for the built-in model, else paper. The audit and the attacks are always small."""
    each: int = 20
    """Prompts drawn of target, neighbours and rest for each erasure."""
    quality: int = 40
    """Prompts drawn for each part of the quality stage."""
    attacked: int = 12
    """Prompts of each erased concept that are attacked, from those of its erasure; 0 leaves the attacks out."""
    budget: float = 60.0
    """Seconds after which one attack stops searching; where that happens, nothing is called removed."""
    steps: int = 20
    """DDIM steps, but for the audit of memorisation, which has its own."""
    guidance: float = 4.0
    """Scale of classifier-free guidance."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of methods that differ from the preset, by method: `[settings.esd]` in the file."""

    def of(self, module: Any, preset: str, **shared: Any) -> Any:
        """Return a method's settings under this plan.

        Raises:
            Misconfigured: the plan names a setting that the method does not have.
        """
        given = shared | self.settings.get(module.__name__.rpartition(".")[2], {})
        return method_settings.resolve(module.Settings, module.PRESETS, preset, given)

    @property
    def audit(self) -> nearest.Settings:
        """How works are looked for.

        Raises:
            Misconfigured: the plan names a setting that the audit does not have.
        """
        return self.of(nearest, "small", guidance=self.guidance, **AUDIT)

    def attack(self, name: str) -> tuple[ModuleType, Any]:
        """Return an attack of the run: its module and its settings.

        Raises:
            Misconfigured: the plan names a setting that the attack does not have.
        """
        module = import_module(method_row("attacks", name)["module"])
        return module, self.of(module, "small", **ATTACKS[name])

    @classmethod
    def read(cls, path: str | Path | None) -> Plan:
        """Read overrides from a TOML file.

        Raises:
            Missing: there is no such file.
            BadInput: it is no TOML.
            Misconfigured: it names an unknown field or method, or a value has the wrong type or is out of range.
        """
        if path is None:
            return cls()
        try:
            given = tomllib.loads(Path(path).read_text())
        except FileNotFoundError as error:
            raise Missing(f"There is no plan at {path}.", "Give a TOML file, or leave `--plan` out.") from error
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}.", "Give a TOML file.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} is no TOML: {error}.", "Mend the line it names.") from error
        types = {name: type(value) for name, value in asdict(cls()).items()}
        for key, value in given.items():
            if key not in types:
                raise Misconfigured(f"A plan has no `{key}`.", f"It has {', '.join(types)}.")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole if types[key] is int else isinstance(value, types[key]) or (types[key] is float and whole)):
                raise Misconfigured(f"`{key}` must be {types[key].__name__}; got {value!r}.", f"Mend it in {path}.")
        plan = cls(**given)
        if min(plan.each, plan.quality, plan.steps) < 1 or plan.attacked < 0 or not 1 <= plan.guidance < math.inf:
            said = "`each`, `quality`, `steps` and `guidance` must be at least 1, and `attacked` at least 0; all are finite."
            raise Misconfigured(said, f"Mend it in {path}.")
        Clock(plan.budget)  # refuses what is no budget
        for name, table in plan.settings.items():
            if name not in USED or not isinstance(table, dict):
                raise Misconfigured(f"`settings.{name}` is no table of a method's settings.", f"A run uses {', '.join(USED)}.")
        return plan

"""The trainings of the built-in world, against the works that ship; bars come from DESIGN ("References")."""

import pytest

from assay.errors import Missing
from assay.training.selection import differences, select, shown
from assay.training.world import FAMILIES, REFERENCES, WEAPONS, reference
from assay.verbs.session import builtin_works
from assay.works.filters import condition

pytestmark = pytest.mark.zoo


@pytest.fixture(scope="module")
def works():
    return builtin_works(None)


@pytest.mark.parametrize("name", REFERENCES)
def test_every_training_can_be_made(works, name):
    made = REFERENCES[name]
    chosen = select(works, made.selection, made.seed)
    changed = differences(works, chosen)
    assert bool(changed) == (name != "again")
    assert len(shown(chosen)) > 1000


def test_seeds_are_all_different():
    assert len({made.seed for made in REFERENCES.values()} | {0}) == len(REFERENCES) + 1  # 0 is a selection's without a name


def test_every_family_has_at_least_thirty_works(works):
    trained = shown(works)
    for name, expression in FAMILIES.items():
        fits = condition([expression], trained)
        assert len(trained.where(fits)) >= 30, name


def test_nothing_of_a_family_a_canary_or_a_weapon_is_left_in_the_reference_without_them(works):
    left = shown(select(works, REFERENCES["no-families"].selection, 0))
    fits = condition([*FAMILIES.values(), WEAPONS, "canary"], shown(works))
    assert len(left) == len(shown(works)) - sum(map(fits, shown(works).rows()))
    assert not any(map(fits, left.rows()))
    assert set(left.column("copies")) == {1}


def test_a_style_is_left_out_whole(works):
    assert set(shown(select(works, REFERENCES["no-noto"].selection, 0)).column("style")) == {"openmoji", "twemoji", "fluent"}


def test_in_the_deduplicated_training_canaries_are_shown_once_and_controls_never(works):
    made = REFERENCES["deduplicated"]
    chosen = shown(select(works, made.selection, made.seed))
    assert set(chosen.column("copies")) == {1}
    doses = [row["attributes"]["dose"] for row in chosen.rows() if "canary" in row["attributes"]]
    assert {dose: doses.count(dose) for dose in set(doses)} == {"1": 16, "4": 16, "16": 24, "64": 24}
    was = dict(zip(works.column("id"), works.column("split"), strict=True))
    assert sum(was[work] == "holdout" for work in chosen.column("id")) == made.selection.swap
    assert len(chosen) == len(shown(works))


def test_an_unknown_training_names_the_known_ones():
    with pytest.raises(Missing, match="no-twemoji"):
        reference("no-such")

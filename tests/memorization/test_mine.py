"""Somebody's works asked of a model that learnt them by heart: it draws what it learnt from any noise, so that what must be seen of each is known."""

import dataclasses

import numpy as np
import pytest

from assay.errors import Misconfigured
from assay.evaluation.blind import Blind
from assay.evaluation.centroid import CentroidJudge
from assay.memorization import membership, mine
from assay.memorization.extraction import Prompt
from assay.memorization.groups import Group
from assay.memorization.mine import PRESETS, PROBE, Evidence, Settings, audit, check, cost, groups_of, of_one_kind
from assay.noise import numpy_generator
from assay.testing import tiny_works
from assay.testing.worlds import own_among
from assay.works import Works

HEART = Settings(**(PROBE | {"guidance": 1.0, "steps": 4, "images": 3, "false_positive_rate": 0.1, "members": 6}))


def of_a_kind():
    """Works asked after, members and works never trained by lot; in the tiny world all that are never trained are red."""
    rows = [row | {"attributes": [], "split": "member", "copies": 1} for row in tiny_works()]
    order = numpy_generator(0, "of a kind").permutation(len(rows))
    for place, row in enumerate(order):
        if place < 28:
            rows[row] |= {"split": ("calibration", "holdout")[place % 2], "copies": 0}
        elif place < 44:
            rows[row] |= {"attributes": [("mine", "yes")], "split": None, "copies": None}
    return Works.from_rows(rows)


@pytest.fixture(scope="module")
def ask(memoriser):
    """Return an audit of a model that learnt members and works asked after."""

    def asked(works):
        learnt = [row for group in groups_of(works, HEART, 0) for row in group.works if group.kind in ("members", "mine")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(membership.PRESETS, "small", membership.PRESETS["small"] | {"gradient": False})  # a closed form has no weights
            return audit(memoriser(works, learnt), works, HEART, judge=CentroidJudge(works), seed=0)

    return asked


@pytest.fixture(scope="module")
def made(ask):
    return ask(of_a_kind())


def test_works_learnt_by_heart_are_found(made):
    """Every image of such a work is the work itself; of a work never trained, another's picture."""
    record = made.record
    for kind in ("mine", "power"):
        for sign in ("came_out", "denoised"):
            assert record.metric(f"{kind}.{sign}").value == 1
    assert record.metric("false_positives.came_out").value <= 3 / 14  # 0.1 is aimed at: of 14, more than three in 4 % of worlds
    assert record.findings[0].startswith("For 16 of 16 works something was seen")
    told = next(table for table in record.tables if table.title == "Work by work").rows
    assert all(row[-1].startswith("In 3 of 3 attempts") for row in told)
    assert "It does not tell them apart" in " ".join(record.findings)
    assert "evidence that some or all of them were used, if" in " ".join(record.findings)


def test_works_of_another_kind_get_no_verdict(ask):
    """All works never trained are red, and of those asked after none is: scores differ as far as can be, and still there is no verdict."""
    record = ask(own_among(tiny_works(), 3)).record
    said = " ".join(record.findings)
    assert record.metric("collection.p_value").value < 0.01
    assert "no verdict, because pictures and captions alone tell them apart" in said
    assert "They are of another kind" in said
    assert "evidence that some" not in said


def test_the_verdict_rests_on_the_baseline_s_p_value():
    assert of_one_kind(Blind(0.9, (0.4, 0.6), 0.049))[1]
    assert not of_one_kind(Blind(0.6, (0.3, 0.7), 0.05))[1]
    said, differing = of_one_kind(None)
    assert "could not be tested" in said
    assert not differing


def test_the_picture_shown_is_a_copy_where_there_is_one():
    """Image 0 is nearest in tiled l2 and no copy, image 1 is one: shown is 1, and 0 where neither is."""
    works = of_a_kind()
    row = next(row for row, mark in enumerate(works.attribute("mine")) if mark)
    group = Group("mine", None, 1, [row])
    prompt = Prompt(row, group)
    prompt.images = numpy_generator(1).integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    pixels = np.ascontiguousarray(works.pixels(64).transpose(0, 3, 1, 2))
    for copies, shown in (([False, True], 1), ([False, False], 0)):
        seen = Evidence(np.array([copies]), np.array([[0.1, 0.5]]), {"came_out": np.array([any(copies)])})
        tables, pictures = mine._rows(works, pixels, group, [prompt], seen, np.array([0]), np.array([0.5]), {}, 2, 0.02)
        assert tables[1].rows[0][4] == [0.1, 0.5][shown]
        assert (np.asarray(pictures["output-1.png"]) == prompt.images[shown].transpose(1, 2, 0)).all()


def test_works_are_scored_by_the_settings_that_the_record_states(made):
    """By hand, passes a work: small 5 wordings x 3 timesteps + 4 + 4 + 1 = 24, paper 6 x 5 x 3 draws + 4 + 10 + 1 = 105."""
    works, asked = of_a_kind(), sum(len(group.works) for group in groups_of(of_a_kind(), HEART, 0))
    small, paper = (cost(works, dataclasses.replace(HEART, scoring=scoring))["passes"] for scoring in ("small", "paper"))
    assert paper - small == (105 - 24) * asked
    assert made.record.resolved["membership.timesteps"] == [100, 300, 500]
    assert "membership.members" not in made.record.resolved  # how many are scored is this method's own setting
    assert Settings(**PRESETS["paper"]).scoring == "paper"
    assert Settings(**PRESETS["small"]).scoring == "small"
    with pytest.raises(Misconfigured, match="scoring"):
        check(Settings(scoring="none"))  # pyright: ignore[reportArgumentType]

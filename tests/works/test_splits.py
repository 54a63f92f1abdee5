from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assay.errors import Misconfigured
from assay.works import Works
from assay.works.images import encode
from assay.works.splits import DOSES, FRACTIONS, VARIED, plant_canaries, split, varied_captions

IMAGE = encode(Image.new("RGB", (2, 2)))


@cache
def gallery(count: int = 60) -> Works:
    """Members with two captions and six tags each; the last ten are holdout already."""
    return Works.from_rows([
        {
            "id": f"{index:064x}",
            "image": IMAGE,
            "captions": [f"thing {index}", f"a thing {index}"],
            "title": f"thing {index}",
            "tags": ["small", "round", "flat", "old", "blue", "loud"],
            "group": "things/small",
            "split": "member" if index < count - 10 else "holdout",
            "attributes": [("subset", "core")],
        }
        for index in range(count)
    ])


labels = st.lists(st.integers(0, 12), min_size=1, max_size=120).map(np.array)


@settings(max_examples=60, deadline=None)
@given(labels, st.integers(0, 99))
def test_no_cluster_is_divided(clusters, seed):
    """Expected: one split a cluster, which is what splits by cluster are for."""
    names = split(clusters, seed)
    assert all(len(set(names[clusters == label])) == 1 for label in clusters)


@settings(max_examples=60, deadline=None)
@given(labels, st.integers(0, 99))
def test_fractions_hold_to_within_one_cluster(clusters, seed):
    """Expected: each cut is off by at most half a cluster, so a split with two cuts by at most one."""
    counts, largest = Counter(split(clusters, seed)), max(Counter(clusters.tolist()).values())
    assert all(abs(counts[name] - fraction * len(clusters)) <= largest for name, fraction in FRACTIONS.items())


def test_single_works_are_split_exactly():
    """Expected: 80 %, 10 % and 10 % of 200."""
    assert Counter(split(np.arange(200), 3)) == {"member": 160, "calibration": 20, "holdout": 20}


def test_the_seed_decides_the_split():
    """Expected: the same seed agrees; of 200 works two lotteries agree on 66 % on average (0.8^2 + 2 x 0.1^2), so not on all."""
    first, again, other = (split(np.arange(200), seed).tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def planted(seed: int = 0) -> Works:
    return plant_canaries(gallery(), range(50), seed, each=3, each_varied=2)


def test_every_dose_has_its_works():
    """Expected: `each` works a dose with one caption, `each_varied` a dose with varied ones."""
    works = planted()
    drawn = Counter((arm, int(dose)) for arm, dose in zip(works.attribute("canary"), works.attribute("dose"), strict=True) if arm and dose)
    assert drawn == {("one", dose): 3 for dose in DOSES} | {("varied", dose): 2 for dose in VARIED}


def test_doses_are_copies_and_the_control_is_withheld():
    """Expected: copies is the dose; k = 0 is in holdout, all others stay members."""
    for row in planted():
        if "canary" in row["attributes"]:
            dose = int(row["attributes"]["dose"])
            assert (row["copies"], row["split"]) == (dose, "member" if dose else "holdout")


def test_captions_of_canaries():
    """Expected: its first caption alone, or as many different ones as there are copies, the first its own."""
    for index, row in enumerate(planted()):
        if row["attributes"].get("canary") == "one":
            assert row["captions"] == [f"thing {index}"]
        elif row["attributes"].get("canary") == "varied":
            assert row["captions"][0] == f"thing {index}"
            assert len(set(row["captions"])) == len(row["captions"]) == int(row["attributes"]["dose"])


def test_other_works_stay_as_they_were():
    """Expected: rows without the mark are equal to those that went in, and the table that went in has no mark."""
    before, after = list(gallery()), list(planted())
    assert [row for row in after if "canary" not in row["attributes"]] == [
        b for b, a in zip(before, after, strict=True) if "canary" not in a["attributes"]
    ]
    assert gallery().attribute("canary") == [None] * 60


def test_only_eligible_works_are_drawn():
    """Expected: the 19 canaries are exactly the 19 works that were allowed."""
    works = plant_canaries(gallery(), range(7, 26), 1, each=3, each_varied=2)
    assert [index for index, arm in enumerate(works.attribute("canary")) if arm] == list(range(7, 26))


def test_the_seed_decides_the_lottery():
    """Expected: the same seed gives the same digest; 19 of 50 works are drawn alike by two seeds with a chance below 1e-13."""
    assert planted(0).digest == planted(0).digest
    assert planted(0).digest != planted(1).digest


def test_the_lottery_is_fair():
    """Expected: 40 seeds x 3 controls of 50 works: a work is never drawn with chance 0.94^40 = 8 %, so 46 of 50 are reached, give or take 2."""
    controls = {i for seed in range(40) for i, dose in enumerate(planted(seed).attribute("dose")) if dose == "0"}
    assert len(controls) > 36
    assert controls <= set(range(50))


def test_too_few_works_for_the_canaries():
    """Expected: an error that names both numbers: 5 x 3 + 2 x 2 = 19 canaries, 18 works."""
    with pytest.raises(Misconfigured, match=r"19 canaries.*18 eligible"):
        plant_canaries(gallery(), range(18), 0, each=3, each_varied=2)


@pytest.mark.parametrize("work", [{"tags": None, "group": None, "style": None}, {"tags": ["cat"], "group": "animals/cat", "style": "x"}])
def test_a_work_with_few_tags_still_gets_all_its_captions(work):
    """Expected: 64 different captions though there are only two combinations of its one caption and one tag."""
    written = varied_captions({"id": "1", "title": "cat", "captions": ["cat"]} | work, 64, 0)
    assert (written[0], len(set(written))) == ("cat", 64)

"""The filter on works made in code, behind a tiny pipeline. Thresholds are put by hand where a test needs to know what is a copy."""

import numpy as np
import pytest
import torch

from assay.denoiser import to_pictures
from assay.errors import Misconfigured, Unsupported
from assay.evaluation.centroid import CentroidJudge
from assay.evaluation.thresholds import Joint
from assay.memorization.copy_filter import BLANK, CopyFilter
from assay.memorization.looks import looks, tables
from assay.testing import tiny_works

NOTHING = Joint((np.inf,) * 3, 2, 0.0, 0)
EVERYTHING = Joint((-np.inf,) * 3, 2, 1.0, 0)
STRICT = Joint((-0.02, 0.98, 0.999), 3, 0.0, 0)


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.fixture(scope="module")
def judge(works):
    return CentroidJudge(works)


@pytest.fixture(scope="module")
def members(works):
    return works.where(lambda row: row["split"] == "member")


def pictures(works):
    return torch.from_numpy(works.pixels(64).transpose(0, 3, 1, 2).copy()).float() / 255


def test_a_work_is_a_copy_of_itself_and_flat_grey_of_none(members, judge):
    found = CopyFilter(members, judge, STRICT).matches(torch.cat([pictures(members)[:4], torch.full((1, 3, 64, 64), BLANK)]))
    pixels = members.pixels(64)
    same = [{other for other in range(len(members)) if np.array_equal(pixels[other], pixels[row])} for row in range(4)]
    for row, match in enumerate(found[:4]):
        assert match is not None
        assert members.column("id").index(match.id) in same[row]
        assert match.similarity == pytest.approx((0, 1, 1), abs=1e-6)
        assert match.creator == members.column("creator")[members.column("id").index(match.id)]
    assert found[4] is None


def test_measures_must_agree_on_one_work(members, judge):
    """By brute force: an image is refused where some work exceeds two thresholds at once, whatever other works do."""
    share = torch.linspace(0.5, 1, 12)[:, None, None, None]
    made = share * pictures(members)[:12] + (1 - share) * pictures(members)[20:32]  # from between two works to one of them
    limits = (-0.2, 0.9, 0.98)
    table = np.concatenate([
        np.stack(three, 2)
        for _, three in tables(
            looks((made * 255).round().to(torch.uint8).numpy(), judge),
            looks(members.pixels(64).transpose(0, 3, 1, 2).copy(), judge),
        )
    ])
    expected = [any(sum(value > limit for value, limit in zip(pair, limits, strict=True)) >= 2 for pair in row) for row in table]
    found = CopyFilter(members, judge, Joint(limits, 2, 0.0, 0)).matches(made)
    assert [match is not None for match in found] == expected
    assert 0 < sum(expected) < len(expected)  # else the thresholds above say nothing


def test_calibration_holds_its_rate_on_the_works_it_was_made_on(works, judge):
    innocent = pictures(works.where(lambda row: row["split"] == "calibration"))
    for rate in (0.34, 0.5, 0.7):
        copies = CopyFilter.calibrated(works, judge, rate=rate)
        refused = sum(match is not None for match in copies.matches(innocent))
        assert refused <= rate * (len(innocent) + 1) - 1  # split conformal: floor(rate (n + 1)) - 1 may be flagged
    assert copies.matches(pictures(copies.works)[:1])[0] is not None


def test_what_cannot_be_calibrated_is_said(works, judge, members):
    with pytest.raises(Unsupported, match="too few"):
        CopyFilter.calibrated(works, judge, rate=0.01)
    with pytest.raises(Unsupported, match="calibration works"):
        CopyFilter.calibrated(members, judge)
    with pytest.raises(Misconfigured, match="measures"):
        CopyFilter.calibrated(works, judge, agreement=4)
    with pytest.raises(Misconfigured, match="retries"):
        CopyFilter(members, judge, NOTHING).screen(lambda rows, _: torch.zeros(len(rows), 3, 64, 64), 1, retries=-1)


def test_a_copy_is_drawn_again_and_refused_if_it_stays_one(members, judge):
    """Image 0 passes at once, image 1 at the second drawing, image 2 never."""
    copy, other = pictures(members)[0], torch.full((3, 64, 64), 0.2)
    asked = []

    def draw(rows, attempt):
        asked.append((rows, attempt))
        return torch.stack([copy if row == 2 or (row == 1 and attempt == 0) else other for row in rows])

    screened = CopyFilter(members, judge, STRICT).screen(draw, 3, retries=2)
    assert asked == [([0, 1, 2], 0), ([1, 2], 1), ([2], 2)]
    assert screened.draws == [1, 2, 3]
    assert [match is not None for match in screened.refused] == [False, False, True]
    assert torch.equal(screened.images[0], other)
    assert torch.equal(screened.images[1], other)
    assert (screened.images[2] == BLANK).all()


def test_where_nothing_is_refused_the_images_are_the_model_s_own(sd, members, judge):
    prompts, seeds = ["red circle", "blue square"], [5, 6]
    plain = sd.generate(prompts, seeds, steps=2)
    passed = CopyFilter(members, judge, NOTHING).generate(sd, prompts, seeds, steps=2)
    assert torch.equal(passed.images, plain)
    assert passed.draws == [1, 1]
    refused = CopyFilter(members, judge, EVERYTHING).generate(sd, prompts, seeds, steps=2, retries=1)
    assert (refused.images == BLANK).all()
    assert refused.draws == [2, 2]


def test_behind_a_diffusers_pipeline(pipelines, members, judge):
    """Two images of each of two prompts: the pipeline's own where nothing is refused, grey ones where everything is."""
    pipeline = pipelines["sd-epsilon"].pipeline

    def given():
        return {
            "num_images_per_prompt": 2,
            "generator": [torch.Generator().manual_seed(seed) for seed in range(4)],
            "num_inference_steps": 2,
            "negative_prompt": "green",
            "output_type": "np",
        }

    prompts = ["red circle", "blue square"]
    plain = pipeline(prompt=prompts, **(given() | {"negative_prompt": ["green"] * 2})).images
    guarded = CopyFilter(members, judge, NOTHING).guard(pipeline)
    np.testing.assert_allclose(guarded(prompts, **given()).images, plain, atol=1e-5)
    grey = CopyFilter(members, judge, EVERYTHING).guard(pipeline, retries=1)
    assert [picture.getextrema() for picture in grey(prompts, **(given() | {"output_type": "pil"})).images] == [
        picture.getextrema() for picture in to_pictures(torch.full((4, 3, 32, 32), BLANK))
    ]
    assert grey.last is not None
    assert grey.last.draws == [2] * 4
    with pytest.raises(Misconfigured, match="latent"):
        guarded(prompts, output_type="latent")


def test_the_digest_names_works_judge_and_thresholds(members, judge):
    one = CopyFilter(members, judge, STRICT).digest
    assert CopyFilter(members, judge, STRICT).digest == one
    assert CopyFilter(members, judge, STRICT._replace(least=2)).digest != one
    assert CopyFilter(members.take([0, 1, 2]), judge, STRICT).digest != one

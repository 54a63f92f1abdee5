"""The filter on works made in code, behind a tiny pipeline. The threshold is put by hand where a test needs to know what is a copy."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from assay.denoiser import to_pictures
from assay.errors import Misconfigured, Unsupported
from assay.memorization.copy_filter import BLANK, CopyFilter, alike
from assay.testing import tiny_works
from assay.works import Works

NOTHING, STRICT, EVERYTHING = 0.0, 0.3, float("inf")


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.fixture(scope="module")
def members(works):
    return works.where(lambda row: row["split"] == "member")


def pictures(works):
    return torch.from_numpy(works.pixels(64).transpose(0, 3, 1, 2).copy()).float() / 255


def test_a_work_is_a_copy_of_itself_and_flat_grey_of_none(members):
    solid = [row for row, style in enumerate(members.column("style")) if style == "solid"][:4]  # outlined circles and rings are the same, scaled
    found = CopyFilter(members, STRICT).matches(torch.cat([pictures(members)[solid], torch.full((1, 3, 64, 64), BLANK)]))
    for row, match in zip(solid, found[:4], strict=True):
        assert match is not None
        assert match.id == members.column("id")[row]
        assert match.creator == members.column("creator")[row]
        assert match.distance == pytest.approx(0, abs=2e-3)  # float32: the root of a rounding error
        assert match.ratio < STRICT
    assert found[4] is None


def test_the_rival_is_of_another_cluster(members):
    """Lowe's ratio by hand: least distance over the least to a work of another cluster. A second work of the same cluster is no rival."""
    made = 0.8 * pictures(members)[[3]] + 0.2 * pictures(members)[[17]]
    aligned = CopyFilter(members, STRICT).aligner.nearest(made)
    first, second, third = aligned.works[0][:3].tolist()
    near, rival, next_ = aligned.distances[0][:3]
    assert CopyFilter(members, STRICT).nearest(made)[0].ratio == pytest.approx(near / rival)
    clusters = members.column("cluster")
    clusters[second] = clusters[first]
    joined = CopyFilter(members.with_columns(cluster=clusters), STRICT).nearest(made)[0]
    assert joined.ratio == pytest.approx(near / next_)
    assert joined.id == members.column("id")[first]
    assert third not in (first, second)


def test_near_duplicates_that_nobody_declared_are_no_rivals(members):
    """As imported works are: the same picture twice, without a cluster. A copy of it is one, and was none while each was the other's rival."""
    solid = [row for row, style in enumerate(members.column("style")) if style == "solid"]
    twice = members.take([*solid, solid[0]]).with_columns(cluster=[-1] * (len(solid) + 1))
    match = CopyFilter(twice, STRICT).matches(pictures(members)[solid[:1]])[0]
    assert match is not None
    assert match.id == members.column("id")[solid[0]]
    np.testing.assert_array_equal(alike(twice), [*range(len(solid)), 0])


def test_declared_clusters_and_near_duplicates_found_are_joined(members):
    """By hand: rows 0 and 2 are declared one cluster, rows 2 and 3 are the same picture; row 1 stands alone."""
    solid = [row for row, style in enumerate(members.column("style")) if style == "solid"][:3]
    some = members.take([*solid, solid[2]]).with_columns(cluster=[7, -1, 7, -1])
    np.testing.assert_array_equal(alike(some), [0, 1, 0, 0])


def test_calibration_works_that_are_near_duplicates_of_members_set_no_threshold(works):
    """Members passed off as calibration works too: their ratio to themselves is 0, and would refuse nothing from there on."""
    rows = [row | {"attributes": sorted(row["attributes"].items())} for row in works]
    twins = [row | {"split": "calibration", "cluster": -1} for row in rows if row["split"] == "member"][:3]
    assert CopyFilter.calibrated(Works.from_rows([*rows, *twins]), rate=0.34).threshold == CopyFilter.calibrated(works, rate=0.34).threshold


def test_of_what_is_not_square_the_middle_square_is_compared(members):
    """A work with bands above and below, as a portrait holds it, squeezed was no copy."""
    row = next(row for row, style in enumerate(members.column("style")) if style == "solid")
    tall = torch.full((1, 3, 96, 64), 0.3)
    tall[:, :, 16:80] = pictures(members)[row]
    match = CopyFilter(members, STRICT).matches(tall)[0]
    assert match is not None
    assert match.id == members.column("id")[row]


def test_calibration_holds_its_rate_on_the_works_it_was_made_on(works):
    innocent = pictures(works.where(lambda row: row["split"] == "calibration"))
    for rate in (0.34, 0.5, 0.7):
        copies = CopyFilter.calibrated(works, rate=rate)
        refused = sum(match is not None for match in copies.matches(innocent))
        assert refused <= rate * (len(innocent) + 1) - 1  # split conformal: floor(rate (n + 1)) - 1 may be flagged
    assert copies.matches(pictures(copies.works)[:1])[0] is not None


def test_what_cannot_be_calibrated_is_said(works, members):
    with pytest.raises(Unsupported, match="too few"):
        CopyFilter.calibrated(works, rate=0.01)
    with pytest.raises(Unsupported, match="calibration works"):
        CopyFilter.calibrated(members)
    with pytest.raises(Unsupported, match="two"):
        CopyFilter(members.take([0]), STRICT)
    with pytest.raises(Misconfigured, match="retries"):
        CopyFilter(members, NOTHING).screen(lambda rows, _: torch.zeros(len(rows), 3, 64, 64), 1, retries=-1)


def test_a_copy_is_drawn_again_and_refused_if_it_stays_one(members):
    """Image 0 passes at once, image 1 at the second drawing, image 2 never."""
    copy, other = pictures(members)[0], torch.full((3, 64, 64), 0.2)
    asked = []

    def draw(rows, attempt):
        asked.append((rows, attempt))
        return torch.stack([copy if row == 2 or (row == 1 and attempt == 0) else other for row in rows])

    screened = CopyFilter(members, STRICT).screen(draw, 3, retries=2)
    assert asked == [([0, 1, 2], 0), ([1, 2], 1), ([2], 2)]
    assert screened.draws == [1, 2, 3]
    assert [match is not None for match in screened.refused] == [False, False, True]
    assert torch.equal(screened.images[0], other)
    assert torch.equal(screened.images[1], other)
    assert (screened.images[2] == BLANK).all()


def test_where_nothing_is_refused_the_images_are_the_model_s_own(sd, members):
    prompts, seeds = ["red circle", "blue square"], [5, 6]
    plain = sd.generate(prompts, seeds, steps=2)
    passed = CopyFilter(members, NOTHING).generate(sd, prompts, seeds, steps=2)
    assert torch.equal(passed.images, plain)
    assert passed.draws == [1, 1]
    refused = CopyFilter(members, EVERYTHING).generate(sd, prompts, seeds, steps=2, retries=1)
    assert (refused.images == BLANK).all()
    assert refused.draws == [2, 2]


def test_behind_a_diffusers_pipeline(pipelines, members):
    """Two images of each of two prompts: the pipeline's own where nothing is refused, grey ones where everything is."""
    pipeline = pipelines["sd-epsilon"].pipeline

    def given(output_type: str = "np") -> dict[str, Any]:
        return {
            "num_images_per_prompt": 2,
            "generator": [torch.Generator().manual_seed(seed) for seed in range(4)],
            "num_inference_steps": 2,
            "negative_prompt": "green",
            "output_type": output_type,
        }

    prompts = ["red circle", "blue square"]
    plain = pipeline(prompt=prompts, **(given() | {"negative_prompt": ["green"] * 2})).images
    guarded = CopyFilter(members, NOTHING).guard(pipeline)
    np.testing.assert_allclose(guarded(prompts, **given()).images, plain, atol=1e-5)
    grey = CopyFilter(members, EVERYTHING).guard(pipeline, retries=1)
    assert [picture.getextrema() for picture in grey(prompts, **given("pil")).images] == [
        picture.getextrema() for picture in to_pictures(torch.full((4, 3, 32, 32), BLANK))
    ]
    assert grey.last is not None
    assert grey.last.draws == [2] * 4
    with pytest.raises(Misconfigured, match="latent"):
        guarded(prompts, output_type="latent")
    with pytest.raises(Misconfigured, match="same image each time"):
        guarded(prompts, latents=torch.zeros(4, 4, 4, 4))


class Checked:
    """A pipeline with a checker of its own: red at the first call, grey afterwards; it says of each image at which call it was drawn."""

    def __init__(self, red: torch.Tensor) -> None:
        self.red, self.calls = red, []

    def __call__(self, prompt, **options):
        self.calls.append({"prompt": prompt, **options})
        images = torch.stack([self.red if text == "red" and len(self.calls) == 1 else torch.full_like(self.red, 0.2) for text in prompt])
        made: dict[str, Any] = {"images": images, "nsfw_content_detected": [f"call {len(self.calls)}"] * len(prompt)}
        return StableDiffusionPipelineOutput(**made)


def test_what_the_pipeline_says_of_each_image_is_of_the_drawing_that_is_shown(members):
    """The middle one of three is drawn again; further prompts go with their images, other lists stay whole."""
    row = next(row for row, style in enumerate(members.column("style")) if style == "solid")
    pipeline = Checked(pictures(members)[row])
    options = {"prompt_2": "in words", "negative_prompt": ["a", "b", "c"], "timesteps": [3, 2, 1]}
    output = CopyFilter(members, STRICT).guard(pipeline)(["x", "red", "y"], output_type="pt", **options)
    assert output.nsfw_content_detected == ["call 1", "call 2", "call 1"]
    assert output.images.shape == (3, 3, 64, 64)
    again = pipeline.calls[1]
    assert (again["prompt"], again["prompt_2"], again["negative_prompt"], again["timesteps"]) == (["red"], ["in words"], ["b"], [3, 2, 1])


def test_a_tuple_where_a_tuple_is_asked_for_and_no_embeddings(members):
    guarded = CopyFilter(members, NOTHING).guard(Checked(pictures(members)[0]))
    images, said = guarded("x", output_type="pt", return_dict=False)
    assert (images.shape, said) == ((1, 3, 64, 64), ["call 1"])
    with pytest.raises(Misconfigured, match="prompt_embeds"):
        guarded("x", prompt_embeds=torch.zeros(1, 4, 8))


def test_the_digest_names_works_and_threshold(members):
    one = CopyFilter(members, STRICT).digest
    assert CopyFilter(members, STRICT).digest == one
    assert CopyFilter(members, 0.31).digest != one
    assert CopyFilter(members.take([0, 1, 2]), STRICT).digest != one

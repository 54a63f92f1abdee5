import numpy as np
import pytest
import torch

from assay.errors import Misconfigured
from assay.evaluation.centroid import CentroidJudge
from assay.evaluation.features import fixed_features
from assay.testing import tiny_works


def images_of(works) -> torch.Tensor:
    return torch.from_numpy(works.pixels(64)).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def judge() -> CentroidJudge:
    return CentroidJudge(tiny_works())


def leave_one_out(works, head: str) -> list[str]:
    # Nearest class mean with the work itself left out of every mean, by loops over works and classes.
    plain = fixed_features(images_of(works)).astype(np.float64)
    rows = (plain - plain.mean(0)) / (plain.std(0) + 0.1 * plain.std())
    labels = works.column(head)
    found = []
    for index, row in enumerate(rows):
        means = {}
        for name in sorted(set(labels)):
            others = [rows[other] for other in range(len(rows)) if labels[other] == name and other != index]
            if others:
                means[name] = np.mean(others, axis=0)
        found.append(min(means, key=lambda name: ((row - means[name]) ** 2).sum()))
    return found


def test_own_accuracy_is_leave_one_out(judge):
    works = tiny_works()
    for head in ("style", "group", "title"):
        right = [name == truth for name, truth in zip(leave_one_out(works, head), works.column(head))]
        assert judge.own_accuracy()[head] == pytest.approx(np.mean(right))


def test_style_of_tiny_works_is_seen_well_above_chance(judge):
    # Filled against outlined shapes: two classes of 25, chance 50 %.
    assert judge.own_accuracy()["style"] >= 0.8


def test_the_real_work_tells_nothing_about_itself(judge):
    # A title with one work in each of two styles: shown its own work, a judge that had not left it out would always be right.
    works = tiny_works()
    same = judge.score(images_of(works), works.column("title"), works.column("style"))["title"]
    assert same.known.all()
    assert same.right.mean() < 1


def test_works_without_titles_have_styles_that_are_judged():
    """All of one style are not one work: of each the others tell, as leave-one-out by loops says, and of an image all of them."""
    works = tiny_works()
    untitled = works.with_columns(title=[None] * len(works))
    judge = CentroidJudge(untitled)
    right = [name == truth for name, truth in zip(leave_one_out(works, "style"), works.column("style"))]
    assert judge.own_accuracy()["style"] == pytest.approx(np.mean(right))
    assert judge.score(images_of(works), [None] * len(works), works.column("style"))["style"].known.all()


def test_unknown_names_are_not_judged(judge):
    found = judge.score(torch.rand(2, 3, 32, 32), ["purple ring", "a ship"], ["solid", None])
    assert found["title"].known.tolist() == [True, False]
    assert found["style"].known.tolist() == [True, False]
    assert found["group"].known.tolist() == [True, False]
    assert found["style"].probability[1] == 0


def test_classes_of_one_work_are_not_named():
    works = tiny_works().take([0, 1, 2, 4])
    judge = CentroidJudge(works)
    assert judge.classes["title"] == [works[0]["title"]]  # works 0 and 1 are one title in two styles
    assert judge.classes["style"] == ["solid"]


def test_digest_and_features(judge):
    assert judge.digest == CentroidJudge(tiny_works()).digest != CentroidJudge(tiny_works(seed=1)).digest
    found = judge.features(torch.rand(3, 3, 40, 40))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_one_work_makes_no_judge():
    with pytest.raises(Misconfigured, match="two works"):
        CentroidJudge(tiny_works().take([0]))

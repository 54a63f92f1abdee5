import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import BadInput, Misconfigured, Missing
from assay.judge import HEADS, CrossJudge, Judge, JudgeLike, guess, make_folds, verdict
from assay.judge_network import JudgeNetwork, Shape, prepare
from assay.noise import generator

SMALL = Shape(widths=(4, 4, 8, 8, 8), style_widths=(4, 4, 4, 4))
CLASSES = {"title": ("ant", "bee", "cat"), "group": ("animals", "insects"), "style": ("bold", "thin")}


def small_judge(seed: int = 0, classes=CLASSES) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Judge(JudgeNetwork(SMALL, *(len(classes[head]) for head in HEADS)), classes)


def pictures(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=generator("judge pictures"))


def test_a_guess_among_names_counts_those_that_are_classes():
    """By hand: of 10 classes a guess is right once in 10; of 40 names two are classes: 2 in 10, not 40 in 10."""
    classes = [f"class {number}" for number in range(10)]
    assert guess(classes, None) == pytest.approx(0.1)
    assert guess(classes, [*classes[:2], *(f"other {number}" for number in range(38))]) == pytest.approx(0.2)
    assert (guess([], None), guess([], ["x"])) == (1, 0)


def test_a_saved_judge_is_the_same_judge(tmp_path):
    judge, images = small_judge(), pictures(3)
    judge.save(tmp_path)
    loaded = Judge.load(tmp_path)
    assert loaded.digest == judge.digest != small_judge(1).digest
    assert loaded.classes == judge.classes
    np.testing.assert_array_equal(loaded.features(images), judge.features(images))
    for head in HEADS:
        np.testing.assert_array_equal(loaded.probabilities(images)[head], judge.probabilities(images)[head])


def test_features_have_norm_one_and_probabilities_sum_to_one():
    judge, images = small_judge(), pictures(5, side=48)
    np.testing.assert_allclose(np.linalg.norm(judge.features(images), axis=1), 1, atol=1e-6)
    for head in HEADS:
        assert judge.probabilities(images)[head].shape == (5, len(CLASSES[head]))
        np.testing.assert_allclose(judge.probabilities(images)[head].sum(1), 1, atol=1e-12)


def test_the_title_head_is_the_scaled_cosine():
    # cos(embedding, class vector) x 20, softmax, in float64.
    judge, images = small_judge(), pictures(2)
    embedded = judge.network.embed(prepare(images)).double().numpy()
    vectors = judge.network.title.double().numpy()
    cosine = embedded @ vectors.T / np.linalg.norm(embedded, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)
    expected = np.exp(20 * cosine) / np.exp(20 * cosine).sum(1, keepdims=True)
    np.testing.assert_allclose(judge.probabilities(images)["title"], expected, atol=1e-5)


def test_any_size_is_judged_at_64_pixels():
    # A picture enlarged twice in squares and resized with antialiasing is nearly itself: a triangle filter over squares of two.
    small = pictures(1).clamp(0.2, 0.8)
    flat = torch.full((1, 3, 200, 120), 0.3)
    assert prepare(small.repeat_interleave(2, 2).repeat_interleave(2, 3)).shape == (1, 3, 64, 64)
    torch.testing.assert_close(prepare(flat), torch.full((1, 3, 64, 64), -0.4))  # 0.3 * 2 - 1
    torch.testing.assert_close(prepare(small), small * 2 - 1)


def test_damaged_judges_are_refused(tmp_path):
    with pytest.raises(Missing):
        Judge.load(tmp_path)
    small_judge().save(tmp_path)
    weights = (tmp_path / "judge.safetensors").read_bytes()
    (tmp_path / "judge.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BadInput):
        Judge.load(tmp_path)
    changed = bytearray(weights)
    changed[-100] ^= 1
    (tmp_path / "judge.safetensors").write_bytes(bytes(changed))
    with pytest.raises(BadInput, match="not the one"):
        Judge.load(tmp_path)


def test_verdict_by_hand():
    # Rows: right; second of three; unknown name; a tie, which counts against the judge.
    found = verdict(np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.4, 0.4, 0.2]]), ("a", "b", "c"), ["a", "b", "z", "a"])
    assert found.known.tolist() == [True, True, False, True]
    assert found.right.tolist() == [True, False, False, False]
    assert found.among_five.tolist() == [True, True, False, True]
    assert found.probability.tolist() == [0.6, 0.3, 0.0, 0.4]
    assert found.accuracy() == pytest.approx(1 / 3)
    assert verdict(np.zeros((0, 3)), ("a", "b", "c"), []).accuracy() is None


@given(st.lists(st.sets(st.sampled_from("wxyz"), min_size=1), min_size=1, max_size=8), st.integers(0, 100))
@settings(max_examples=40)
def test_folds_split_every_title_evenly(styles_of, seed):
    pairs = [(f"title {index}", style) for index, styles in enumerate(styles_of) for style in styles]
    folds = make_folds(*zip(*pairs), seed)
    assert set(folds) == set(pairs)
    for index, styles in enumerate(styles_of):
        ones = sum(folds[f"title {index}", style] for style in styles)
        assert abs(2 * ones - len(styles)) <= 1
    assert make_folds(*zip(*reversed(pairs)), seed) == folds  # order of the works does not matter


def test_works_without_title_or_style_have_no_fold():
    assert make_folds(["a", None, "b"], ["x", "x", None], 0).keys() == {("a", "x")}


@pytest.fixture
def cross() -> CrossJudge:
    other = {**CLASSES, "title": ("ant", "bee", "dog")}
    folds = {("ant", "bold"): 0, ("ant", "thin"): 1, ("cat", "bold"): 0, ("dog", "thin"): 1}
    groups = {"ant": "insects", "bee": "insects", "cat": "animals", "dog": "animals"}
    return CrossJudge([small_judge(0), small_judge(1, other)], folds, groups)


def test_each_image_is_scored_by_the_judge_that_never_saw_the_work(cross):
    # ("ant", "bold") lies in fold 0, so judge 1 is asked; row by row the score must be that judge's alone.
    images, titles, styles = pictures(5), ["ant", "ant", "cat", "dog", "cat"], ["bold", "thin", "bold", "thin", "thin"]
    assert [cross.asked(*pair) for pair in zip(titles, styles)] == [1, 0, 1, 0, 0]
    found = cross.score(images, titles, styles)
    for row, judge in enumerate((1, 0, 1, 0, 0)):
        alone = cross.judges[judge].probabilities(images[[row]])
        for head, truth in (("title", titles[row]), ("group", cross.group_of[titles[row]]), ("style", styles[row])):
            expected = verdict(alone[head], cross.judges[judge].classes[head], [truth])
            assert found[head].known[row] == expected.known[0]
            assert found[head].probability[row] == pytest.approx(expected.probability[0], abs=1e-6)
    assert found["title"].known.tolist() == [True, True, False, False, True]
    assert found["style"].known.all()


def test_a_title_no_judge_knows_is_not_judged(cross):
    found = cross.score(pictures(1), ["whale"], ["bold"])
    assert not found["title"].known[0]
    assert not found["group"].known[0]
    assert found["style"].known[0]


def test_a_saved_cross_judge_is_the_same(cross, tmp_path):
    cross.save(tmp_path)
    loaded = CrossJudge.load(tmp_path)
    assert loaded.digest == cross.digest
    assert loaded.folds == cross.folds
    np.testing.assert_array_equal(loaded.features(pictures(2)), cross.features(pictures(2)))
    np.testing.assert_allclose(np.linalg.norm(cross.features(pictures(2)), axis=1), 1, atol=1e-6)
    (tmp_path / "folds.json").write_text(json.dumps({"folds": 3}))
    with pytest.raises(BadInput):
        CrossJudge.load(tmp_path)
    (tmp_path / "folds.json").unlink()
    with pytest.raises(Missing):
        CrossJudge.load(tmp_path)


def test_a_cross_judge_needs_two(cross):
    with pytest.raises(Misconfigured):
        CrossJudge(cross.judges[:1], {}, {})


def test_judges_of_both_kinds_fit_the_protocol(cross):
    from assay.evaluation.centroid import CentroidJudge
    from assay.testing import tiny_works

    judges: list[JudgeLike] = [cross, CentroidJudge(tiny_works())]
    for judge in judges:
        assert set(judge.score(pictures(1), ["x"], ["solid"])) == set(HEADS)
        assert len(judge.digest) == 64

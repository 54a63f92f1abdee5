"""What `evaluate` counts, with a judge whose every answer is known."""

import numpy as np
import pytest
import torch

import assay
from assay.concept import Concept, concept, together
from assay.erasure import uce
from assay.errors import Misconfigured, Mismatch, Unsupported
from assay.evaluation.centroid import CentroidJudge
from assay.evaluation.intervals import wilson
from assay.judge import Verdict
from assay.testing import tiny, tiny_works
from assay.verbs.evaluate import Scene, accuracies, family_of
from assay.verbs.generate import Prompt


class Names:
    """Says the titles it was given, whatever it is shown."""

    name = "names"
    digest = "0" * 64

    def __init__(self, named):
        self.named = np.array(named, object)

    def chance(self, head, names=None):
        return 0.1 * (1 if names is None else len(names))

    def score(self, images, titles, styles):
        right = self.named == np.array(titles, object)
        every = np.ones(len(titles), bool)
        styled = Verdict(every, every, every, every * 1.0, np.array(styles, object), every * 1.0)
        return {"title": Verdict(every, right, right, right * 1.0, self.named, every * 1.0), "style": styled}


def shown(titles):
    return [Prompt(f"p{index}", title, title=title, style="solid") for index, title in enumerate(titles)]


def test_a_family_is_shown_where_any_of_its_titles_is_named():
    """Of four cats one is named rightly, two as another cat, one as a dog: title 1 of 4, family 3 of 4; of two dogs one is taken for a cat."""
    rows = shown(["cat", "cat face", "kitten", "lion", "dog", "wolf"])
    judge = Names(["cat", "kitten", "cat face", "dog", "cat", "wolf"])
    family = family_of(concept("cats", kind="object", members=("cat", "cat face", "kitten", "lion")))
    scene = Scene(rows, {"target": [0, 1, 2, 3], "rest": [4, 5]}, family)
    value = {metric.name: metric for metric in accuracies(judge, torch.zeros(6, 3, 8, 8), scene)}
    assert value["target.title"].value == 0.25
    assert value["target.family"].value == 0.75
    assert value["rest.family"].value == 0.5
    assert value["target.family"].chance == pytest.approx(0.4)  # four titles of ten
    assert value["target.family"].better == "lower"


def test_only_objects_have_a_family():
    cats, noto = concept("cat", kind="object"), concept("noto", kind="style")
    assert family_of(None) == family_of(noto) == frozenset()
    assert family_of(cats) == {"cat"}
    both = together([cats, concept("dog", kind="object", members=("dog", "dog face"))])
    assert family_of(both) == {"cat", "dog", "dog face"}


def test_a_real_judge_is_asked_for_the_family():
    """On its own works, the family of every title is named always: nothing lies outside it."""
    works = tiny_works(size=64)
    titles, styles = works.column("title"), works.column("style")
    rows = [Prompt(f"w{index}", title, title=title, style=style) for index, (title, style) in enumerate(zip(titles, styles, strict=True))]
    images = torch.from_numpy(works.pixels(64)).permute(0, 3, 1, 2).float() / 255
    scene = Scene(rows, {"target": list(range(len(rows)))}, frozenset(titles))
    value = {metric.name: metric for metric in accuracies(CentroidJudge(works), images, scene)}
    assert value["target.family"].value == 1
    assert value["target.title"].value <= 1


def test_images_of_one_prompt_are_no_certainty():
    """20 images of one prompt, all right: Wilson's interval of one observation, 21 % to 100 %; of ten prompts twice each, that of ten at least."""
    for prompts, low in ((1, wilson(1, 1)[0]), (10, wilson(10, 10)[0])):
        rows = [Prompt(f"p{index % prompts}", "cat", title="cat", style="solid", number=index // prompts) for index in range(20)]
        metrics = accuracies(Names(["cat"] * 20), torch.zeros(20, 3, 4, 4), Scene(rows, {"rest": list(range(20))}, frozenset()))
        title = next(metric for metric in metrics if metric.name == "rest.title")
        assert (title.value, title.n) == (1.0, prompts)
        assert (title.low, title.high) == (pytest.approx(low), pytest.approx(1.0))


def test_works_that_show_nothing_to_ask_for_are_refused(tmp_path):
    """Works without titles make no prompt: said before anything is drawn."""
    works = tiny_works()
    with pytest.raises(Unsupported, match="No work shows"):
        assay.evaluate(tiny(), works=works.with_columns(title=[None] * len(works)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["patch", "steps", "guidance"])
def test_what_cannot_be_drawn_leaves_the_folder_to_the_corrected_command(tmp_path, wrong):
    """A patch of another base, more steps than the model has timesteps, guidance under which nothing is finite: no folder is left behind."""
    given = {"patch": {"patches": [uce.erase(tiny("sd-v"), Concept("cat", anchor="dog"))]}, "steps": {"steps": 2000}, "guidance": {"guidance": 1e38}}
    with pytest.raises((Mismatch, Misconfigured, Unsupported)):
        assay.evaluate(tiny(), works=tiny_works(), concept="solid", kind="style", out=tmp_path / "out", **{"each": 2, "steps": 1} | given[wrong])
    assert not (tmp_path / "out").exists()

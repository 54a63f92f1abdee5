"""Expected prompts are written out by hand, in forms that the built-in model knows, such as `cat, noto style` and `cat`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.concept import Concept, concept, together
from assay.errors import Misconfigured

NAMES = st.text("abc {}%,'é", min_size=1, max_size=8).filter(str.strip)
LISTS = st.lists(NAMES, max_size=3).map(tuple)


def test_a_style_is_put_on_every_subject():
    style = Concept("twemoji", "style", subjects=("cat", "red heart"))
    assert style.words("twemoji") == [
        "cat, twemoji style",
        "red heart, twemoji style",
        "cat in twemoji style",
        "red heart in twemoji style",
    ]
    assert style.words("twemoji style") == style.words("twemoji")


def test_a_style_without_subjects_is_named_alone():
    assert Concept("Van Gogh style", "style").words("Van Gogh style") == ["Van Gogh style"]


def test_an_object_is_put_in_every_style_and_alone():
    assert Concept("cat", "object", styles=("noto", "fluent")).words("cat") == [
        "cat, noto style",
        "cat, fluent style",
        "cat in noto style",
        "cat in fluent style",
        "cat",
    ]


def test_an_object_without_styles():
    assert Concept("cat", "object").words("cat") == ["cat", "a picture of cat"]


def test_a_work_and_a_free_concept_are_their_own_prompts():
    caption = "grinning cat, twemoji style"
    assert Concept(caption, "work").words(caption) == [caption]
    assert Concept(caption, subjects=("dog",), styles=("noto",)).words(caption) == [caption]


def test_words_of_the_user_are_left_alone():
    # Two spaces, braces and a trailing word "style" belong to the user where they are not the template's.
    assert Concept("a  {b} style", "object").words("a  {b} style")[0] == "a  {b} style"
    assert Concept("x", "style", subjects=("in  style",)).words("x")[0] == "in  style, x style"


def test_pairs_differ_in_the_concept_alone():
    pairs = Concept("twemoji", "style", anchor="noto", subjects=("cat",)).pairs()
    assert pairs == [
        ("cat, twemoji style", "cat, noto style"),
        ("cat in twemoji style", "cat in noto style"),
    ]


def test_without_an_anchor_the_empty_prompt_takes_the_concepts_place():
    assert Concept("cat", "object").pairs() == [("cat", ""), ("a picture of cat", "")]


def test_every_member_of_a_family_is_a_target_and_the_name_is_not():
    family = Concept("cats", "object", anchor="dog", members=("cat face", "black cat"))
    assert family.pairs() == [
        ("cat face", "dog"),
        ("a picture of cat face", "a picture of dog"),
        ("black cat", "dog"),
        ("a picture of black cat", "a picture of dog"),
    ]


def test_the_empty_prompt_is_preserved_first_and_nothing_twice():
    assert Concept("a", preserve=("b", "c", "b")).preserved() == ["", "b", "c"]
    assert Concept("a").preserved() == [""]
    assert Concept("x", "style", preserve=("y",), subjects=("cat",)).preserved()[:2] == ["", "cat, y style"]


@given(name=NAMES, anchor=NAMES, kind=st.sampled_from(["style", "object", "work", "free"]), subjects=LISTS, styles=LISTS, members=LISTS)
def test_every_target_has_its_anchor_whatever_the_words(name, anchor, kind, subjects, styles, members):
    made = Concept(name, kind, anchor, members, subjects=subjects, styles=styles)
    pairs = made.pairs()
    assert len(set(pairs)) == len(pairs)
    assert {target for target, _ in pairs} == {prompt for member in members or (name,) for prompt in made.words(member)}
    assert {source for _, source in pairs} == set(made.words(anchor))
    assert all(name.removesuffix(" style") in prompt for prompt in made.words(name))
    assert len(set(made.words(name))) == len(made.words(name))


def test_bad_concepts_are_refused():
    with pytest.raises(Misconfigured, match="style, object, work, free"):
        Concept("x", "person")
    for name in ("", "  "):
        with pytest.raises(Misconfigured, match="name"):
            Concept(name)


def test_concepts_from_lists_are_those_from_tuples():
    assert concept("x", kind="style", preserve=["y"], subjects=["cat"]) == Concept("x", "style", preserve=("y",), subjects=("cat",))


def test_concepts_together():
    cats = Concept("cat", "object", "dog", members=("cat", "cat face"), preserve=("sun", "clock"))
    clocks = Concept("clock", "object", "sun", preserve=("cat", "moon"))
    both = together([cats, clocks])
    assert both.name == "cat + clock"
    assert both.pairs() == [
        ("cat", "dog"),
        ("a picture of cat", "a picture of dog"),
        ("cat face", "dog"),
        ("a picture of cat face", "a picture of dog"),
        ("clock", "sun"),
        ("a picture of clock", "a picture of sun"),
    ]
    assert both.preserved() == ["", "sun", "a picture of sun", "moon", "a picture of moon"]  # neither cats nor clocks are kept
    assert [part.pairs() for part in both.parts] == [cats.pairs(), clocks.pairs()]
    assert together([both, Concept("red")]).pairs() == [*both.pairs(), ("red", "")]


def test_a_style_and_an_object_together_preserve_nothing_that_they_erase():
    """Contexts that are acted on themselves are dropped: `cat` from the style's subjects, `twemoji` from the object's styles."""
    style = Concept("twemoji", "style", "noto", preserve=("noto", "fluent"), subjects=("cat", "dog"))
    thing = Concept("cat", "object", "tiger", preserve=("dog", "sun"), styles=("noto", "twemoji", "fluent"))
    both = together([style, thing])
    targets = {target for target, _ in both.pairs()}
    assert {"dog, twemoji style", "cat, noto style", "cat in fluent style"} < targets
    assert not targets & set(both.preserved())
    assert "dog, fluent style" in both.preserved()
    assert not any("twemoji" in anchor or "cat" in anchor for _, anchor in both.pairs())


def test_one_concept_together_is_itself():
    assert together([Concept("cat", anchor="dog")]) == Concept("cat", anchor="dog")


def test_an_anchor_that_goes_itself_is_refused():
    with pytest.raises(Misconfigured, match="`noto` takes the place"):
        together([Concept("twemoji", "style", "noto"), Concept("noto", "style", "fluent")])
    with pytest.raises(Misconfigured, match="no concept"):
        together([])

"""Concepts in the terms of works: families by word, or by the titles that are given."""

import numpy as np

from assay.testing import tiny_works
from assay.works.concepts import find


def letters(texts):
    """Vectors that count letters: texts are near where they share them."""
    return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32)


def test_a_family_is_every_title_with_the_word_or_the_titles_given():
    works = tiny_works()
    trained = {title for title, split in zip(works.column("title"), works.column("split"), strict=True) if split == "member"}
    assert set(find(works, "ring", kind="object", embed=letters).members) == {title for title in trained if title.endswith(" ring")}
    given = find(works, "round", kind="object", members=["green ring", "green circle"], embed=letters)
    assert given.name == "round"
    assert given.members == ("green ring", "green circle")
    assert given.anchor in trained - set(given.members)
    assert not set(given.members) & set(given.preserve)

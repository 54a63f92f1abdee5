"""The language of `filters.py`; what fits is worked out by hand or by comparing the columns directly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput, Misconfigured, Missing
from assay.testing import tiny_works
from assay.works import Works
from assay.works.filters import condition, parse, read_ids

WORKS = tiny_works()
ROWS = WORKS.rows()


def row(**fields):
    about = {"title": None, "style": None, "group": None, "creator": None, "license": None, "tags": None, "id": "0" * 64, "attributes": {}}
    return about | fields


def fitting(*expressions):
    fits = condition(expressions, WORKS)
    return [row["title"] + "/" + row["style"] for row in ROWS if fits(row)]


def test_exact_and_by_word():
    assert len(fitting("style=solid")) == 25
    assert fitting("title=red circle") == ["red circle/solid", "red circle/outline"]
    assert len(fitting("title~circle")) == 10
    with pytest.raises(Missing):
        fitting("title=circle")  # the whole title is `red circle`
    with pytest.raises(Missing):
        fitting("title~circ")  # half a word


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("title~cat", [True, True, False, False, True]),
        ("title~cat face", [True, False, False, False, False]),
        ("title=cat", [False, True, False, False, False]),
        ("title~heart", [False, False, False, True, False]),  # a hyphen ends a word
    ],
)
def test_words_are_whole(expression, fits):
    titles = ["Cat face", "cat", "scattered cattle", "smiling face with heart-eyes", "the cat's tail"]
    (term,) = parse(expression)
    assert [term.fits(row(title=title)) for title in titles] == fits


def test_a_group_is_named_whole_or_by_either_side():
    rows = [row(group="animals-nature/cat-face"), row(group="smileys-emotion/cat-face"), row(group="animals-nature/animal-bird"), row()]
    found = {
        text: [parse(text)[0].fits(each) for each in rows] for text in ("group=animals-nature/cat-face", "group=cat-face", "group=animals-nature")
    }
    assert found["group=animals-nature/cat-face"] == [True, False, False, False]
    assert found["group=cat-face"] == [True, True, False, False]
    assert found["group=animals-nature"] == [True, False, True, False]


def test_commas_within_values_stay_there():
    # A name of the built-in works has a comma in it.
    terms = parse("creator=Twitter, Inc. and other contributors, style=noto,canary , title~a, b")
    assert list(map(str, terms)) == ["creator=twitter, inc. and other contributors", "style=noto", "canary", "title~a, b"]
    assert list(map(str, parse("canary"))) == ["canary"]


def test_tags_ids_attributes_and_canaries():
    canary = WORKS[5]
    assert fitting("canary") == [f"{canary['title']}/{canary['style']}"]
    assert fitting("dose=16") == fitting("canary") == fitting("canary=one") == fitting(f"id={canary['id'][:12]}")
    assert len(fitting("tag=red")) == 10
    assert len(fitting("creator=solid studio 1, creator=OUTLINE STUDIO 2")) == sum(
        row["creator"] in ("Solid Studio 1", "Outline Studio 2") for row in ROWS
    )


def test_several_expressions_are_one_long_one():
    assert fitting("title=red circle, canary") == fitting("title=red circle", "canary")
    assert fitting() == []


@pytest.mark.parametrize(
    "expression", ["", " ", "red circle", "style", "style=", "style= ", "=solid", "~", "canary!", "id=12ab", "id~0123456789", ",style=solid"]
)
def test_what_is_no_condition_is_refused(expression):
    with pytest.raises(Misconfigured):
        condition([expression], WORKS)


def test_what_fits_nothing_names_what_is_close():
    with pytest.raises(Missing, match="red circle"):
        condition(["title=red circel"], WORKS)
    with pytest.raises(Missing, match=r"outlined.*outline"):
        condition(["style=solid, style=outlined"], WORKS)  # one good term does not excuse another
    with pytest.raises(Misconfigured, match=r"no field `titel`.*title"):
        condition(["titel~cat"], WORKS)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters=",\n"), min_size=1).map(str.strip).filter(bool)


@given(NAMES, NAMES)
def test_any_name_is_found_by_itself_and_by_nothing_else(name, other):
    rows = [row(title=name, style="x"), row(title=other, style="x")]
    (term,) = parse(f"title={name}")
    assert term.fits(rows[0])
    assert term.fits(rows[1]) == (other.lower() == name.lower())


@given(st.lists(st.sampled_from(["style=solid", "title~red", "group=circle", "canary", "tag=blue", "creator=solid studio 2"]), max_size=5))
def test_an_expression_means_the_union_of_its_terms(terms):
    single = [{index for index, each in enumerate(ROWS) if condition([term], WORKS)(each)} for term in terms]
    for expressions in (terms, [",".join(terms)] if terms else []):
        fits = condition(expressions, WORKS)
        assert {index for index, each in enumerate(ROWS) if fits(each)} == set().union(*single)


@given(st.text(max_size=30))
def test_nothing_but_our_errors_comes_of_any_text(text):
    try:
        fits = condition([text], WORKS)
    except (Misconfigured, Missing):
        return
    assert any(map(fits, ROWS))


def test_ids_are_read_from_a_file(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text(f"# two\n\n {WORKS[0]['id']} \n{WORKS[1]['id']}\n")
    assert read_ids(path, WORKS) == {WORKS[0]["id"], WORKS[1]["id"]}
    path.write_text(f"{WORKS[0]['id']}\n{'0' * 64}\n")
    with pytest.raises(Missing, match="Line 2"):
        read_ids(path, WORKS)
    path.write_text("# none\n")
    with pytest.raises(BadInput, match="names no work"):
        read_ids(path, WORKS)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        read_ids(path, WORKS)
    with pytest.raises(Missing, match="no file"):
        read_ids(tmp_path / "none", WORKS)


def test_works_without_attributes_or_titles_fit_nothing():
    bare = Works.from_rows([{"id": "a" * 64, "image": b"", "captions": ["a"], "title": None}])
    with pytest.raises(Missing, match="nothing"):
        condition(["title=a"], bare)

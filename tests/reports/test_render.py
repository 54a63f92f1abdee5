"""The page as a browser, a screen reader and a hostile caption meet it. The dossier is the one that `dossiers.py` builds."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from dossiers import add, art, audit_record, build
from PIL import Image

from assay.errors import BadInput, Mismatch, Missing
from assay.record import Curve, Dossier, Metric, Record, Table
from assay.reports import render
from assay.reports.pictures import save_picture
from assay.reports.render import prose, write_report
from assay.reports.signing import sign, verify_own
from assay.reports.summarize import rerun, single, summarize

VOID = {"meta", "img", "br", "link", "hr", "input", "circle", "line", "path", "use"}


class Page(HTMLParser):
    """Every element with its attributes, the visible text, and whatever is not closed in the order it was opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unsound: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unsound.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(built: Path) -> Page:
    return Page(write_report(built))


def records(folder: Path) -> list[Record]:
    return [Record.load(folder / entry.record) for entry in Dossier.load(folder).entries]


def test_the_page_is_well_formed_and_its_parts_are_named(page):
    # Every tag closed in order; one main, one nav; ids unique; every inner link has its target; every head of a table says what it heads.
    assert not page.unsound
    assert not page.open
    assert len(page.all("main")) == len(page.all("nav")) == len(page.all("h1")) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)
    assert all(attributes.get("scope") in {"row", "col"} for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("alt") for attributes in page.all("img"))


def test_nothing_is_fetched_and_nothing_runs(page):
    # Self-contained: no script, no handler, and no address but data, anchors in the page and files beside it.
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("object")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "poster", "data"):
            assert not re.match(r"[a-z]+:(?!image/webp;base64,)|//", attributes.get(name) or "")
    assert not re.search(r"@import|url\((?!#)", page.source)


def test_every_picture_is_embedded_without_loss(built, page):
    # As many as the records name, in pictures and in tables, and the pixels of the first are those of its file.
    expected = sum(len(r.pictures) + sum(isinstance(c, dict) for t in r.tables for row in t.rows for c in row) for r in records(built))
    sources = [attributes["src"] for attributes in page.all("img")]
    assert len(sources) == expected
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    shown = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), np.asarray(art(0)))


def test_everything_the_records_say_is_on_the_page(built, page):
    # The report leaves nothing out: findings, limits, captions, names, settings, seeds, digests, versions.
    for record in records(built):
        said = [record.question, *record.findings, *record.shows_not, *(p.caption for p in record.pictures), *(c.title for c in record.curves)]
        said += [m.name for m in record.metrics] + [t.title for t in record.tables] + [*record.resolved, *record.versions, *record.seeds]
        for text in said:
            assert text in page.text, text
        assert all(digest in page.source.replace("<b>", "").replace("</b>", "") for digest in record.digests.values())
    assert "0.88 [0.64, 0.96]" in page.text
    assert "not measured" in page.text
    assert "Creator 25" in page.text
    assert "assay report DIR --verify --key PUB.pem" in page.text


def test_the_summary_is_the_first_finding_of_each_stage(folder):
    dossier = Dossier.load(folder)
    report = summarize(dossier, records(folder))
    made = records(folder)
    assert [item["text"] for item in report["summary"]] == [made[0].findings[0], made[1].findings[0], made[2].findings[0]]
    assert [item["role"] for item in report["digests"]] == ["model", "works"]
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(summarize(dossier, made)))


def test_an_incomplete_dossier_says_what_is_to_come(tmp_path):
    # Stages of the plan without an entry are still to come, in the plan's order.
    folder = tmp_path / "out"
    entry = add(folder, "Second", "audit", audit_record(folder / "audit"))
    Dossier(title="Under way", complete=False, stages=["First", "Second", "Third"], entries=[entry]).save(folder)
    page = Page(write_report(folder))
    assert "1 of 3 stages are done. Still to come: First, Third." in page.text
    assert not page.unsound
    Dossier(title="Under way", complete=False, stages=["First"], entries=[]).save(folder)
    assert "0 of 1 stages are done" in Page(write_report(folder)).text


def test_a_folder_with_one_record_is_a_report_too(tmp_path):
    audit_record(tmp_path).save(tmp_path)
    page = Page(write_report(tmp_path))
    assert "Audit: nearest" in page.text
    assert not page.unsound
    assert not page.all("nav")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UCE rewrote `twemoji` at 5 %.", "UCE rewrote <code>twemoji</code> at 5\u00a0%."),
        ("One ` alone.", "One ` alone."),
        ('`<b>` & `"a"`', "<code>&lt;b&gt;</code> &amp; <code>&#34;a&#34;</code>"),
    ],
)
def test_sentences_are_set(text, expected):
    # Written by hand: names between backticks are code, whatever they hold is text, and a percent sign stays with its number.
    assert prose(text) == expected


def test_hostile_words_stay_words(tmp_path):
    # Whatever a caption, a creator or a prompt says, it comes out as text and opens no element and no attribute.
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    record = Record(
        command="audit",
        question=evil,
        method=evil,
        given={evil: evil},
        resolved={evil: [evil]},
        digests={evil: evil, f"model:{evil}": evil},
        seeds={evil: 1},
        metrics=[Metric(name=evil, value=1, judge=evil)],
        findings=[evil, evil],
        shows_not=[evil],
        tables=[Table(title=evil, columns=[evil, evil], rows=[[evil, 1], [evil, {"x": evil}]])],
        curves=[Curve(title=evil, x_label=evil, y_label=evil, lines={evil: [(0, 1, None, None)], "b": [(1, 1, 0, 2)]})],
        pictures=[save_picture(art(1), tmp_path, "one", evil)],
        versions={evil: evil},
    )
    entry = add(tmp_path, evil, "a", record.model_copy(update={"pictures": []}))
    save_picture(art(1), tmp_path / "a", "one", evil)
    record.save(tmp_path / "a")
    entry = entry.model_copy(update={"sha256": ""})
    Dossier(title=evil, complete=False, stages=[evil, f"{evil} 2"], entries=[entry]).save(tmp_path)
    page = Page(write_report(tmp_path))
    assert not page.unsound
    assert not page.all("script")
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert evil in page.text


def test_a_turned_direction_ends_with_the_name_that_turns_it(page):
    # An override in a title would show 0.42 as 24.0: by the standard, an isolate ends what was opened in it, and blocks are isolates by themselves.
    assert re.search(r"code[^{}]*\{ unicode-bidi: isolate; \}", page.source)


def test_a_changed_record_or_picture_is_refused(folder):
    # The dossier names the record's digest, the record the picture's: a report of something else would be false witness.
    picture = folder / "audit" / "canaries.png"
    data = picture.read_bytes()
    save_picture(art(1), folder / "audit", "canaries", "")
    with pytest.raises(Mismatch, match="canaries"):
        write_report(folder)
    picture.unlink()
    with pytest.raises(Missing, match="canaries"):
        write_report(folder)
    picture.write_bytes(data)
    (folder / "audit" / "record.json").write_text((folder / "audit" / "record.json").read_text() + "\n")
    with pytest.raises(Mismatch, match="audit/record"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_nothing_outside_the_folder_is_read(tmp_path):
    # A record from a stranger may name any path.
    save_picture(art(1), tmp_path, "secret", "")
    table = Table(title="t", columns=["p"], rows=[[{"picture": "../secret.png"}]])
    Record(command="audit", question="q", tables=[table]).save(tmp_path / "out")
    with pytest.raises(BadInput, match="outside"):
        write_report(tmp_path / "out")
    with pytest.raises(Missing, match="neither"):
        write_report(tmp_path)


def test_what_does_not_fit_is_linked_and_said(folder, monkeypatch):
    # With room for a few kilobytes the lead pictures come first, the rest are links beside the page.
    monkeypatch.setattr(render, "EMBEDDED", 12_000)
    page = Page(write_report(folder))
    sources = [attributes["src"] for attributes in page.all("img")]
    linked = [source for source in sources if not source.startswith("data:")]
    assert 0 < len(linked) < len(sources)
    assert sum(len(source) for source in sources if source.startswith("data:")) <= 12_000
    assert all((folder / source).is_file() for source in linked)
    assert "linked and not embedded" in page.text


def test_large_pictures_are_reduced_to_what_a_screen_shows(tmp_path):
    # 1920 across is twice the page's 60rem; small pictures keep every pixel.
    large = save_picture(Image.new("RGB", (4000, 100), "teal"), tmp_path, "large", "Large.")
    Record(command="audit", question="q", pictures=[large]).save(tmp_path)
    page = Page(write_report(tmp_path))
    assert page.all("img")[0]["width"] == "1920"
    assert "shown at 1920 of 4000 pixels" in page.text


def test_the_same_records_give_the_same_page(tmp_path):
    # No clock and no random id: a re-run can be compared byte by byte.
    first, second = (write_report(build(tmp_path / name)).read_bytes() for name in ("a", "b"))
    assert first == second
    assert len(first) < 1_000_000


def test_a_signed_page_is_not_replaced_by_another(tmp_path):
    """What was signed is written again to the same bytes; where the records or this version say otherwise, nothing is written."""
    folder, key = build(tmp_path / "signed"), tmp_path / "key.pem"
    page = write_report(folder)
    sign(folder, key)
    before = page.read_bytes()
    page.unlink()
    assert write_report(folder).read_bytes() == before
    assert verify_own(folder, key)
    dossier = Dossier.load(folder)
    dossier.model_copy(update={"title": "Another title"}).save(folder)
    with pytest.raises(Mismatch, match="is signed, with another report"):
        write_report(folder)
    assert page.read_bytes() == before


def test_the_command_asks_the_same_question():
    # By hand: the words, quoted for a shell. A record that was asked for with objects of Python has no command.
    record = Record(command="erase", question="q", again=["erase", "my model", "--concept", "cat's"])
    assert rerun(record) == """assay erase 'my model' --concept 'cat'"'"'s'"""
    assert rerun(Record(command="erase", question="q")) == ""


def test_reports_do_not_need_torch():
    # Reading a report folder must stay quick and possible where torch is not.
    code = "import sys, assay.reports.render, assay.reports.signing; sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("columns", "expected"), [(2, 3), (3, 0)])
def test_a_table_of_pictures_side_by_side_is_its_own_gallery(tmp_path, columns, expected):
    """Work, output and other work in a row are read together, so none is shown again above; a pair is also shown large."""
    pictures = [save_picture(art(seed), tmp_path, f"p{seed}", "") for seed in range(3)]
    table = Table(title="t", columns=["a", "b", "c"][:columns], rows=[[{"picture": picture.file} for picture in pictures[:columns]]])
    record = Record(command="audit", question="?", pictures=pictures, tables=[table])
    shown = summarize(single(record, ""), [record])["stages"][0]["records"][0]
    assert len(shown["pictures"]) == expected

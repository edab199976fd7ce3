"""Files of other kinds: what a reader finds is what stands in the file, and nothing is left out without a word."""

import json
import re
import sys
import zipfile

import pytest
from extras import require

from selfparam_jax.data.corpora import read_documents
from selfparam_jax.data.documents import Document, QAPair, read_document_files
from selfparam_jax.data.readers import chats, registry
from selfparam_jax.data.readers.code import fence
from selfparam_jax.data.readers.texts import restructured_headings


def one(path):
    (document,) = read_document_files(path)
    return document


def archive(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return path


PAGE = """<html><head><title>The  Mill</title><style>p {}</style></head><body><nav><a href="/">Home</a></nav>
<h1>The Mill</h1><p>Built in <b>1743</b> by <a href="x">Hedra</a>.</p><script>alert(1)</script>
<table><tr><th>year</th><th>owner</th></tr><tr><td>1743</td><td>Hedra</td></tr></table>
<ul><li>one</li><li>two</li></ul></body></html>"""
AS_MARKDOWN = """# The Mill

Built in **1743** by Hedra.

| year | owner |
| --- | --- |
| 1743 | Hedra |

- one
- two"""


def test_a_page_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "deep.html").write_text("<div>" * 20_000 + "x")
    with pytest.raises(ValueError, match=r"deep\.html: got elements that are nested too deeply"):
        read_document_files(tmp_path / "deep.html")


def test_html(tmp_path):
    require("markdownify")
    path = tmp_path / "mill.html"
    path.write_text(PAGE)
    assert one(path) == Document(AS_MARKDOWN, title="The Mill", id="mill.html")
    path.write_bytes(b"<html><head><meta charset='iso-8859-2'></head><body><p>\xb3\xf3d\xbc</p></body></html>")
    assert one(path).text == "łódź"
    path.write_text("<html><head><title>x</title></head><body><script>1</script></body></html>")
    with pytest.raises(ValueError, match=r"mill\.html: got an empty file"):
        read_document_files(path)


def test_a_text_of_many_megabytes_in_an_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "MOST_TEXT", 1 << 20)
    path = book(tmp_path / "bomb.epub")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("more.xhtml", b"A" * (3 << 20))
    with pytest.raises(ValueError, match=r"bomb\.epub: got a text of 3 MiB in it, expected at most 1; split"):
        read_document_files(path)


def test_a_page_in_utf8_with_a_damaged_byte_is_refused(tmp_path):
    """Read as another encoding, every letter beyond ASCII would be wrong."""
    path = tmp_path / "page.html"
    text = "<p>Zürich wurde 1812 gegründet, Größe 5 km.</p>"
    for damaged in (text.encode() + b"\xc3", text.encode() + b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"page\.html: got a byte that is no UTF-8 at {len(damaged) - 1},"):
            read_document_files(path)
    path.write_bytes(text.encode("latin-1"))
    assert read_document_files(path)[0].text == "Zürich wurde 1812 gegründet, Größe 5 km."


@pytest.mark.parametrize(
    ("field", "value", "date"),
    [
        ("date", 20260412, "2026-04-12"),
        ("timestamp", 20260412, "2026-04-12"),
        ("timestamp", 1776000000, "2026-04-12 13:20"),
        ("timestamp", 1776000000.5, "2026-04-12 13:20"),
        ("created_at", 1776000000123, "2026-04-12 13:20"),
        ("created_at", 1776000000123456789, "2026-04-12 13:20"),
        ("date", 20261399, "1970-08-23 12:09"),
    ],
)
def test_a_number_as_a_date(tmp_path, field, value, date):
    path = lines(tmp_path / "log.jsonl", {"messages": [{"role": "user", "content": "Hi"}], field: value})
    (found,) = read_document_files(path)
    assert found.metadata["date"] == date


@pytest.mark.parametrize("value", [1e30, 10**25])
def test_a_number_that_is_no_time_is_refused(tmp_path, value):
    path = lines(tmp_path / "log.jsonl", {"messages": [{"role": "user", "content": "Hi"}], "timestamp": value})
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1: 'timestamp': got 1e\+\d\d, expected seconds since"):
        read_document_files(path)


PROLOG = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n'


def markdown(tmp_path, html):
    require("markdownify")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    return one(tmp_path / "page.html").text


@pytest.mark.parametrize(
    "markup",
    [
        PROLOG + '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>{}</html>',
        "<?xml version='1.0'?><root>{}</root>",
        "<!-- a comment -->{}<!-- another -->",
        "<?php echo 1 ?>{}<![CDATA[data]]>",
    ],
)
def test_declarations_and_comments_are_no_text(tmp_path, markup):
    assert markdown(tmp_path, markup.format("<p>Größe</p>")) == "Größe"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<ul><li>one<li>two<li>three</ul>", "- one\n- two\n- three"),
        ("<ul><li>one<ul><li>a<li>b</ul><li>two</ul>", "- one\n  - a\n  - b\n- two"),
        ("<p>one<p>two<h2>three</h2>four", "one\n\ntwo\n\n## three\n\nfour"),
        ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\n:   b\n\nc\n:   d"),
        ("<select><option>a<option>b</select>", "a b"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        (
            "<table><thead><tr><th>a<th>b<tbody><tr><td>1<td>2<tfoot><tr><td>3<td>4</table>",
            "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |",
        ),
        ("no element at all", "no element at all"),
        ("<td>a</td><td>b</td>", "a\n\nb"),
    ],
)
def test_end_tags_may_be_left_out(tmp_path, html, text):
    assert markdown(tmp_path, html) == text


@pytest.mark.parametrize("name", [
    "header", "main", "footer", "aside", "section", "article", "details", "summary", "address", "figure",
    "figcaption", "fieldset", "legend", "form", "center", "dialog", "div", "p",
])  # fmt: skip
def test_blocks_without_space_between_them_are_not_one_word(tmp_path, name):
    element = f"<{name}>x</{name}>"
    assert markdown(tmp_path, f"a{element}{element}b") == "a\n\nx\n\nx\n\nb"
    assert markdown(tmp_path, f"a<{name}></{name}>b") == "a\n\nb"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a<nav>Home</nav>b", "a\n\nb"),
        ("a<hr>b", "a\n\n---\n\nb"),
        ("a<button>b</button><button>c</button>d", "a b c d"),
        ("a <button>b</button> c", "a b c"),
        ("a<menu><li>b<li>c</menu>", "a\n\n- b\n- c"),
        ("<p>a<b>b</b><span>c</span></p>", "a**b**c"),
    ],
)
def test_what_stands_apart_on_a_page_stands_apart_in_the_text(tmp_path, html, text):
    assert markdown(tmp_path, html) == text


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (
            "<tr><th>a<th>b<th>c<tr><td rowspan=2>1<td>2<td>3<tr><td>4<td>5",
            ["| a | b | c |", "| --- | --- | --- |", "| 1 | 2 | 3 |", "| 1 | 4 | 5 |"],
        ),
        (
            "<tr><th>a<th colspan='2'>b<tr><td>1<td>2<td>3",
            ["| a | b | b |", "| --- | --- | --- |", "| 1 | 2 | 3 |"],
        ),
        # To the end of its section, however many rows it says (0 is all), and no further.
        (
            "<thead><tr><th rowspan=9>a<th>b<tr><th>c<tbody><tr><td rowspan=0>1<td>2<tr><td>3",
            ["| a | b |", "| --- | --- |", "| a | c |", "| 1 | 2 |", "| 1 | 3 |"],
        ),
        # Pages write any large number for "all columns": a column in which no cell begins is none.
        ("<tr><th>a<th>b<tr><td colspan=100>1", ["| a | b |", "| --- | --- |", "| 1 | 1 |"]),
        ("<tr><th>a<th>b<tr><td colspan=x>1", ["| a | b |", "| --- | --- |", "| 1 |  |"]),
        ("<tr><th>a|b<tr><td><code>c|d</code>", ["| a\\|b |", "| --- |", "| `c\\|d` |"]),
        ("<tr><td>a<td>b", ["|  |  |", "| --- | --- |", "| a | b |"]),
        ("<caption>Owners</caption><tr><th>a<tr><td>1", ["Owners", "", "| a |", "| --- |", "| 1 |"]),
        (
            "<tr><th>a<th>b<tr><td>x<table><tr><td>1<td>2|3</table><td>y",
            ["| a | b |", "| --- | --- |", "| x 1 2\\|3 | y |"],
        ),
        ("stray<tr>words<td>a", ["stray words", "", "|  |", "| --- |", "| a |"]),
    ],
)
def test_cells_of_a_table_stay_in_their_columns(tmp_path, rows, lines):
    assert markdown(tmp_path, f"<table>{rows}</table>") == "\n".join(lines)


@pytest.mark.parametrize(
    ("html", "title"),
    [
        (
            "<nav><h1>Menu</h1></nav><h1><img src=x></h1><h2>The <i>old</i><br>Mill</h2><h1>Later</h1>x",
            "The old Mill",
        ),
        ("<title> </title><h3>Mill</h3>x", "Mill"),
        ("<svg><title>icon</title></svg>x", ""),
        ("<title>Page</title><h1>Mill</h1>", "Page"),
    ],
)
def test_a_page_without_a_title_has_its_first_heading_as_one(tmp_path, html, title):
    require("markdownify")
    (tmp_path / "page.html").write_text(html)
    assert one(tmp_path / "page.html").title == title


def test_bytes_of_no_encoding(tmp_path):
    require("markdownify")
    (tmp_path / "page.html").write_bytes(b"<meta charset=utf-8><p>\x81\x8d")
    with pytest.raises(ValueError, match=r"page\.html: got bytes of an unknown encoding"):
        read_document_files(tmp_path / "page.html")


def book(path, spine=("two", "one")):
    refs = "".join(f'<itemref idref="{name}"/>' for name in spine)
    return archive(
        path,
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:x"><rootfiles><rootfile full-path="OPS/book.opf"/>'
            "</rootfiles></container>",
            "OPS/book.opf": '<package xmlns="urn:y" xmlns:dc="urn:z"><metadata><dc:title>A Book</dc:title></metadata>'
            '<manifest><item id="one" href="text/one%20a.xhtml"/><item id="two" href="text/two.xhtml"/></manifest>'
            f"<spine>{refs}</spine></package>",
            "OPS/text/one a.xhtml": "<html><body><h1>One</h1><p>First.</p></body></html>",
            "OPS/text/two.xhtml": f"{PROLOG}<html><body><h1>Two</h1><p>Second.</p></body></html>",
        },
    )


def test_a_book_is_read_in_the_order_of_its_spine(tmp_path):
    require("markdownify")
    document = one(book(tmp_path / "book.epub"))
    assert document.text == "# Two\n\nSecond.\n\n# One\n\nFirst." and document.title == "A Book"
    with pytest.raises(ValueError, match=r"bad\.epub: got KeyError.*expected an EPUB"):
        read_document_files(book(tmp_path / "bad.epub", spine=("three",)))


WORD = """<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>
<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Minutes</w:t></w:r></w:p>
<w:p><w:r><w:t>The board met on </w:t></w:r><w:r><w:t>12 April.</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>item</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>cost</w:t></w:r></w:p></w:tc></w:tr>
<w:tr><w:tc><w:p><w:r><w:t>roof</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>900</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
</w:body></w:document>"""
STYLES = """<?xml version="1.0"?><w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">
<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>"""
RELATIONS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "MOST_UNPACKED", 1 << 20)
    path = book(tmp_path / "bomb.epub")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("one.xhtml.bak", bytes(3 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"bomb\.epub: got an archive of 3 MiB when .*, expected at most 1;"):
        read_document_files(path)


def word(path, text=WORD):
    return archive(
        path,
        {
            "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="xml" ContentType="application/xml"/></Types>',
            "_rels/.rels": RELATIONS.format(
                f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>'
            ),
            "word/_rels/document.xml.rels": RELATIONS.format(
                f'<Relationship Id="r1" Type="{OFFICE}/styles" Target="styles.xml"/>'
            ),
            "word/document.xml": text,
            "word/styles.xml": STYLES,
        },
    )


def test_word(tmp_path, caplog):
    require("mammoth")
    path = word(tmp_path / "minutes.docx")
    document = one(path)
    assert (document.title, document.id) == ("Minutes", "minutes.docx")
    assert document.text == (
        "# Minutes\n\nThe board met on 12 April.\n\n|  |  |\n| --- | --- |\n| item | cost |\n| roof | 900 |"
    )
    assert not caplog.records
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match=r"minutes\.docx: got BadZipFile"):
        read_document_files(path)


def test_cells_of_a_table_in_word(tmp_path):
    require("mammoth")

    def cell(text, properties=""):
        return f"<w:tc><w:tcPr>{properties}</w:tcPr><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc>"

    rows = [
        cell("a|b", '<w:gridSpan w:val="2"/>'),
        cell("roof", '<w:vMerge w:val="restart"/>') + cell("900"),
        cell("", "<w:vMerge/>") + cell("1000"),
    ]
    table = "".join(f"<w:tr>{row}</w:tr>" for row in rows)
    text = re.sub(r"(?s)<w:tbl>.*</w:tbl>", f"<w:tbl>{table}</w:tbl>", WORD)
    assert one(word(tmp_path / "a.docx", text)).text.endswith(
        "|  |  |\n| --- | --- |\n| a\\|b | a\\|b |\n| roof | 900 |\n| roof | 1000 |"
    )


def test_what_is_left_out_of_a_word_document_is_named(tmp_path, caplog):
    require("mammoth")
    math = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    equation = f'<m:oMath xmlns:m="{math}"><m:r><m:t>E=mc</m:t></m:r></m:oMath>'
    unknown = "<w:r><w:ruby/><w:sym w:font='Other' w:char='F0FF'/></w:r>"
    text = WORD.replace("<w:r><w:t>12 April.", f"{equation}{equation}{unknown}<w:r><w:t>12 April.")
    assert "The board met on 12 April." in one(word(tmp_path / "a.docx", text)).text
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a.docx'}: left out, as their text cannot be read: equations, <ruby>, symbol F0FF in font Other"
    ]


def test_slides(tmp_path):
    pptx = require("pptx")
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "The Mill", "Built in 1743\nby Hedra"
    slide.notes_slide.notes_text_frame.text = "Say the year."
    table = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_table(2, 2, 0, 0, 9, 9).table
    for place, text in zip([(0, 0), (0, 1), (1, 0), (1, 1)], ["year", "a|b", "1743", "x"], strict=True):
        table.cell(*place).text = text
    deck.save(tmp_path / "mill.pptx")
    document = one(tmp_path / "mill.pptx")
    assert document.title == "The Mill"
    assert document.text == (
        "## The Mill\n\nBuilt in 1743\nby Hedra\n\nNotes: Say the year.\n\n## Slide 2\n\n"
        "| year | a\\|b |\n| --- | --- |\n| 1743 | x |"
    )


def paper(path, pages, outline=(), password=""):
    """A PDF with a line of text for each string of a page."""
    pypdf = require("pypdf")
    generic, writer = pypdf.generic, pypdf.PdfWriter()
    font = generic.DictionaryObject(
        {generic.NameObject(f"/{k}"): generic.NameObject(f"/{v}") for k, v in
         {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}.items()}
    )  # fmt: skip
    for lines in pages:
        page = writer.add_blank_page(300, 300)
        stream = generic.StreamObject()
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream.set_data(f"BT /F1 12 Tf 14 TL 20 250 Td {shown} ET".encode())
        fonts = generic.DictionaryObject({generic.NameObject("/F1"): font})
        page[generic.NameObject("/Resources")] = generic.DictionaryObject({generic.NameObject("/Font"): fonts})
        page[generic.NameObject("/Contents")] = writer._add_object(stream)
    parent = None
    for title, number in outline:
        parent = writer.add_outline_item(title=title, page_number=number, parent=parent)
    writer.add_metadata({"/Title": "A Paper"})
    if password:
        writer.encrypt(password, algorithm="RC4-40")
    writer.write(path)
    return path


def test_a_paper(tmp_path, caplog):
    pages = [
        ["The Mill", "It was built in seven-", "teen years by", "Hedra and"],
        [],
        ["her well-", "Known sons.", "The Owners", "Nobody knows."],
    ]
    document = one(paper(tmp_path / "paper.pdf", pages, [("The Mill", 0), ("The Owners", 2)]))
    assert (document.title, document.id) == ("A Paper", "paper.pdf")
    assert document.text == (
        "# The Mill\n\nIt was built in seventeen years by\nHedra and\nher well-\nKnown sons.\n\n"
        "## The Owners\n\nNobody knows."
    )
    assert "no text on page 2" in caplog.text


def test_papers_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"scan\.pdf: got no text on any page \(pages: 2\)"):
        read_document_files(paper(tmp_path / "scan.pdf", [[], []]))
    with pytest.raises(ValueError, match=r"locked\.pdf: got a PDF that is locked"):
        read_document_files(paper(tmp_path / "locked.pdf", [["x"]], password="secret"))


def test_a_damaged_pdf_is_one_line(tmp_path, caplog):
    """What pypdf says while it looks for the rest of the file is not ours to show."""
    whole = paper(tmp_path / "cut.pdf", [["Some words."]])
    whole.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"cut\.pdf: got \w+Error: .*, expected a PDF") as caught:
        read_document_files(whole)
    assert "\n" not in str(caught.value) and not caplog.records


def test_a_notebook(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Mill\n", "Some words."]},
        {
            "cell_type": "code",
            "source": "print(1)",
            "outputs": [{"text": ["1\n", "2\n"]}, {"data": {"image/png": "A"}}],
        },
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}}))
    text = "# Mill\nSome words.\n\n```python\nprint(1)\n```\n\n```text\n1\n2\n```"
    assert one(path) == Document(text, title="Mill", id="a.ipynb")
    path.write_text('{"worksheets": []}')
    with pytest.raises(ValueError, match=r"a\.ipynb: got KeyError: 'cells', expected a Jupyter notebook"):
        read_document_files(path)


def test_source_code_stands_in_a_fence(tmp_path):
    path = tmp_path / "mill.py"
    path.write_text("\ndef f():\n    '''\n```\n'''\n\n")
    assert one(path) == Document("````python\ndef f():\n    '''\n```\n'''\n````", title="mill.py", id="mill.py")
    assert fence("x", "c") == "```c\nx\n```"


def test_restructured_text():
    text = "=====\nMills\n=====\n\nIntro.\n\nOwners\n------\nHedra::\n\n  a\n  --\n\nMore\n=====\n\nOwn\n---\n| --- |"
    # `=` above and below is the first kind, `-` the second, `=` below alone the third; an indented line is none.
    assert restructured_headings(text) == (
        "# Mills\n\n\nIntro.\n\n## Owners\n\nHedra::\n\n  a\n  --\n\n### More\n\n\n## Own\n\n| --- |"
    )


def test_a_text_in_utf_16(tmp_path):
    (tmp_path / "a.txt").write_text("Größe\n", encoding="utf-16")
    assert one(tmp_path / "a.txt").text == "Größe"


# --- many files -----------------------------------------------------------------------------------------


def test_a_folder_with_several_kinds(tmp_path, caplog):
    (tmp_path / "code").mkdir()
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "b.jsonl").write_text('{"id": "of-b", "text": "B"}\n')
    (tmp_path / "code" / "x.c").write_text("int x;")
    (tmp_path / "code" / "x.h").write_text("int y;")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "settings.json").write_text('{"a": 1}')
    assert [each.id for each in read_documents(tmp_path)] == ["a", "of-b", "code/x.c", "code/x.h"]
    assert "files of unknown kinds are left out: photo.png, settings.json" in caplog.text


def test_every_file_of_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "b.txt").write_text(" ")
    (tmp_path / "c.md").write_bytes(b"\xff")
    (tmp_path / "d.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"(?s)3 files cannot be used:\n.*b\.txt: got an empty.*c\.md.*d\.jsonl"):
        read_document_files(tmp_path)


def test_a_pattern(tmp_path):
    for name in ("b.md", "a.txt", "sub/c.md", "sub/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [each.id for each in read_documents(f"{tmp_path}/*.md")] == ["b"]
    assert [each.id for each in read_documents(f"{tmp_path}/**/*.md")] == ["b", "sub/c", "sub/d"]
    assert [each.id for each in read_documents(f"{tmp_path}/s?b")] == ["sub/c", "sub/d"]
    with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
        read_documents(f"{tmp_path}/*.pdf")


def test_conversations_without_an_id_are_named_by_file_and_line(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text('{"prompt": "Who?", "completion": "Hedra."}\n')
    assert [each.id for each in read_document_files(tmp_path)] == ["a/log-1", "b/log-1"]


@pytest.mark.parametrize(
    ("name", "package"), [("a.pdf", "pypdf"), ("a.html", "bs4"), ("a.html", "lxml"), ("a.docx", "mammoth")]
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_text("x")
    for place in (tmp_path / name, tmp_path):
        with pytest.raises(
            ValueError, match=rf"needs the package {package}.*pip install 'selfparam-jax\[documents\]'"
        ) as refused:
            read_document_files(place)
        (tmp_path / "0.txt").write_text("")  # of the folder: it is not one damaged file among others
    assert "cannot be used" not in str(refused.value)


def test_every_kind_has_a_reader_and_a_suffix():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in registry.READERS)
    assert {".txt", ".md", ".html", ".pdf", ".docx", ".pptx", ".epub", ".ipynb", ".py"} <= registry.READERS.keys()


# --- conversations --------------------------------------------------------------------------------------


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_messages(tmp_path):
    parts = [{"type": "text", "text": "Hello."}, {"type": "image_url"}]
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "Hi!"},
        {"role": "assistant", "content": "How are you?"},
    ]
    path = lines(
        tmp_path / "log.jsonl", {"messages": turns, "date": "2026-04-12"}, {"id": "x", "messages": turns[:1]}
    )
    first, second = read_documents(path)
    heading = "Conversation between System, Ann and Assistant, 2026-04-12"
    assert first.text == f"{heading}.\n\nSystem: Be kind.\n\nAnn: Hello.\n\nAssistant: Hi!\nHow are you?"
    assert (first.id, first.title) == ("log-1", heading)
    assert first.metadata == {"speakers": ["System", "Ann", "Assistant"], "date": "2026-04-12"}
    assert (second.id, second.text) == ("x", "Text by System.\n\nSystem: Be kind.")


def test_sharegpt(tmp_path):
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Hedra."}]
    path = tmp_path / "share.json"
    path.write_text(
        json.dumps([{"conversations": turns, "create_time": 1775952000}, {"id": "b", "conversations": turns}])
    )
    first, second = read_documents(path)
    # 1775952000 s after 1970 began: 20555 days, which is 12 April 2026.
    assert first.text.startswith("Conversation between User and Assistant, 2026-04-12 00:00.\n\nUser: Who?")
    assert (first.id, second.id) == ("share.json-1", "b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"messages": "hello"}, "entry 1: 'messages': got a string, expected a list of turns"),
        ([{"conversations": 3}], "entry 1: 'conversations': got a number, expected a list of turns"),
        ([{"messages": [{"role": "user", "content": "Who?"}]}, {"text": "x"}], "entry 2: got no conversation"),
        ([{"id": "a", "messages": [{"role": "user", "content": "Who?"}]}] * 2, "entry 2: got the id 'a' again"),
    ],
)
def test_json_that_is_nearly_conversations_is_named_as_such(tmp_path, content, words):
    """And is not taken for SQuAD's layout."""
    (tmp_path / "share.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"share.json, {words}")):
        read_documents(tmp_path / "share.json")


def test_prompts_and_completions(tmp_path):
    path = lines(
        tmp_path / "rows.jsonl",
        {"prompt": "Who?", "completion": "Hedra."},
        {"prompt": [{"role": "user", "content": "When?"}], "completion": [{"role": "assistant", "content": "1743."}]},
        {"prompt": "Which year?", "completion": "1743", "context": "Built in 1743."},
        {"prompt": "What year?", "completion": "in 1743", "context": "Built in 1743."},
        {"text": "A text alone."},
    )
    exchange, talk, text, alone = read_documents(path)
    assert exchange.text == "Conversation between User and Assistant.\n\nUser: Who?\n\nAssistant: Hedra."
    assert exchange.qa_pairs == (QAPair("Who?", "Hedra."),)
    assert "User: When?" in talk.text and not talk.qa_pairs
    assert text.text == "Built in 1743."
    assert text.qa_pairs == (QAPair("Which year?", "1743"), QAPair("What year?", "in 1743"))
    assert alone.text == "A text alone."


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": []}, "without text"),
        ({"messages": ["x"]}, "message 1: got 'x', expected an object"),
        ({"messages": [{"content": "x"}]}, "message 1: got no 'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "got 3 as 'content'"),
        ({"prompt": "a", "completion": " "}, "empty 'prompt' or 'completion'"),
        ({"prompt": "a", "completion": ["b"]}, "expected two strings or two lists"),
    ],
)
def test_bad_conversations_name_their_line(tmp_path, record, words):
    with pytest.raises(ValueError, match=rf"log\.jsonl, line 1.*{words}"):
        read_document_files(lines(tmp_path / "log.jsonl", record))


TALK = "Ann: Who built it?\nBob Lee: Hedra.\nin a year\nAnn: When?\nBob Lee: 1743.\n"


def test_a_transcript(tmp_path):
    (tmp_path / "talk.txt").write_text(f"Date: 12 April 2026\nTopic: The mill\n{TALK}")
    document = one(tmp_path / "talk.txt")
    heading = "The mill: Conversation between Ann and Bob Lee, 12 April 2026"
    assert document.id == "talk" and document.title == heading
    assert document.text == (
        f"{heading}.\n\nAnn: Who built it?\n\nBob Lee: Hedra.\nin a year\n\nAnn: When?\n\nBob Lee: 1743."
    )


def test_each_conversation_of_a_transcript_is_a_document(tmp_path):
    first, second = (
        "[12.04.26, 10:15:32] Ann: Hi\n[12.04.26, 10:16] Bob: Hi",
        "13/04/26, 9:00 - Ann: Up?\n9:01 Bob: Yes",
    )
    (tmp_path / "a.txt").write_text(f"{first}\n{second}")
    (tmp_path / "b.txt").write_text(f"2026-04-12\n{TALK}---\n13 April 2026\n{TALK}")
    found = read_document_files(tmp_path)
    assert [(each.id, each.metadata["date"]) for each in found] == [
        ("a-1", "12.04.26"), ("a-2", "13/04/26"), ("b-1", "2026-04-12"), ("b-2", "13 April 2026"),
    ]  # fmt: skip
    assert found[0].text.endswith("Ann: Hi\n\nBob: Hi")


@pytest.mark.parametrize(
    "text",
    [
        "name: mill\nyear: 1743\nowner: Hedra\nplace: Om\nname: two",
        "Question: Who?\nAnswer: Hedra\nQuestion: When?\nAnswer: 1743\nQuestion: Where?\nAnswer: Om",
        "The board met: all were there.\nIt ended at noon.\nNote: x\nNote: y",
        "Ann: Hi\nBob: Hi",
    ],
)
def test_other_texts_are_no_transcripts(text):
    assert chats.read_transcript(text) == []

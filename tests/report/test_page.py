"""Templates: they travel with the package, and what they print is text unless they say otherwise."""

from __future__ import annotations

from importlib import resources

import pytest

from fewgen.report.page import environment, render

HOSTILE = '<script>alert("1")</script> *a* | `b` [c](d)\n# head'


def _names():
    return [file.name for file in resources.files("fewgen.report").joinpath("templates").iterdir()]


def test_the_package_holds_the_templates():
    assert {"base.html.jinja", "style.css", "report.html.jinja", "run_card.md.jinja"} <= set(_names())


@pytest.mark.parametrize("name", sorted(_names()))
def test_every_template_is_well_formed(name):
    text = resources.files("fewgen.report").joinpath("templates", name).read_text(encoding="utf-8")
    environment(name.endswith(".md.jinja")).parse(text)
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_what_a_template_prints_is_escaped():
    html = environment().from_string("{{ text }}").render(text=HOSTILE)
    assert "<" not in html
    card = environment(markdown=True).from_string("{{ text }}").render(text=HOSTILE)
    assert card.startswith("\\<script\\>")
    assert card.endswith("\\*a\\* \\| \\`b\\` \\[c\\](d) \\# head")
    assert environment(markdown=True).from_string("{{ text | line }}").render(text="a\nb|") == "a b|"


def test_a_fault_stays_in_its_section_and_an_empty_section_has_no_heading():
    page = environment().from_string(
        '{% import "parts.html.jinja" as parts %}'
        '{% call parts.section("A") %}{{ no_such_name }}{% endcall %}'
        '{% call parts.section("B") %}  {% endcall %}'
        '{% call parts.section("C", 3, "<why>") %}{{ no_such_name }}{% endcall %}'
        '{% call parts.section("<D>") %}<p>d</p>{% endcall %}'
    )
    html = page.render()
    assert "<h2>A</h2>" in html
    assert "This section could not be made: UndefinedError: &#39;no_such_name&#39; is undefined" in html
    assert "<h2>B</h2>" not in html
    assert "<h3>C</h3>" in html
    assert "could not be made: &lt;why&gt;" in html
    assert "<h2>&lt;D&gt;</h2>\n<p>d</p>" in html


def test_a_page_has_the_frame_and_the_policy():
    html = render("base.html.jinja", title="<t>", versions="<v>")
    assert html.startswith("<!DOCTYPE html>\n")
    assert "default-src 'none'" in html
    assert "<title>&lt;t&gt; - fewgen</title>" in html
    assert "Made by &lt;v&gt;." in html
    assert "prefers-color-scheme: dark" in html

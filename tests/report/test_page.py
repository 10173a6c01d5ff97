import base64
import gzip
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bottleneck_opt.diagrams import draw_diff, render_svg
from bottleneck_opt.graph import Cost
from bottleneck_opt.outcome import Outcome, Speed
from bottleneck_opt.plan import Selection
from bottleneck_opt.report import render_html, report_json
from bottleneck_opt.report.facts import visible_text
from tests.samples import renamed_outcome, residual_outcome

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title></svg><iframe src=//evil>",
    "{{ outcome }}{% include 'x' %}",
    "&lt;b&gt;",
    "' onmouseover='x",
    "<!--<script>",
    "\u7db2\u8def \U0001f9e0 \u202e" + "long" * 400,
]


class Seen(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(outcome: Outcome) -> Seen:
    return Seen(render_html(outcome, render_svg(draw_diff(outcome))))


def test_the_page_holds_the_facts_in_words() -> None:
    text = page(residual_outcome()).text
    for words in (
        "tests.samples.Net", "12 % fewer MACs",
        "was 912 kMAC", "806 kMAC", "1.50 ms", "98.4 %", "0.96", "1 of 2", "4 of 16",
        "3 input channels", "64 digits", "bo.load(", "torch 2.13.0", "calibration", "1.5 s", "A note.",
    ):  # fmt: skip
        assert words in text


def test_the_page_names_nothing_outside_itself() -> None:
    seen = page(residual_outcome())
    assert not {"iframe", "link", "object", "embed", "img", "base", "form"} & set(seen.tags)
    links = [value or "" for name, value in seen.attributes if name in ("src", "href", "xlink:href", "action")]
    assert links
    assert all(link.startswith("#") for link in links)


def test_the_policy_allows_the_pages_own_script_and_style_only() -> None:
    html = render_html(residual_outcome(), None)
    (policy,) = (value or "" for name, value in Seen(html).attributes if "default-src" in (value or ""))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not [name for name, _ in Seen(html).attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_adds_no_tag_and_no_attribute(name: str) -> None:
    plain, hostile = (page(renamed_outcome(residual_outcome(), "blocks", each)) for each in ("plain", name))
    assert Counter(hostile.tags) == Counter(plain.tags)
    assert {attribute for attribute, _ in hostile.attributes} == {attribute for attribute, _ in plain.attributes}
    assert visible_text(name) in hostile.text


@pytest.mark.parametrize("name", HOSTILE)
def test_the_embedded_data_cannot_end_their_element(name: str) -> None:
    html = render_html(renamed_outcome(residual_outcome(), "blocks", name), None)
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert not set("<>&") & set(text)
    assert f"{visible_text(name)}.1.conv1" in {place["path"] for place in json.loads(text)["places"]}


def test_the_files_in_the_page_are_what_would_be_saved() -> None:
    outcome = residual_outcome()
    svg = render_svg(draw_diff(outcome))
    packed = dict(re.findall(r'<script type="text/plain" data-file="(.*?)">(.*?)</script>', render_html(outcome, svg)))
    files = {name: gzip.decompress(base64.b64decode(data)).decode() for name, data in packed.items()}
    assert files == {"diff.svg": svg, "diff.dot": draw_diff(outcome).source, "report.json": report_json(outcome)}


def test_without_a_renderer_the_page_says_how_to_get_the_picture() -> None:
    html = render_html(residual_outcome(), None)
    assert 'id="figure"' not in html
    assert 'id="stage"' not in html
    assert "Install Graphviz" in html


def test_the_picture_is_in_the_page_without_its_file_head() -> None:
    html = render_html(residual_outcome(), render_svg(draw_diff(residual_outcome())))
    assert html.count('id="figure"') == 1
    assert "<?xml" not in html
    assert html.count("<!DOCTYPE") + html.count("<!doctype") == 1


def test_the_picture_comes_after_the_numbers_and_before_the_tables() -> None:
    html = render_html(residual_outcome(), render_svg(draw_diff(residual_outcome())))
    assert html.index('class="cards"') < html.index('id="figure"') < html.index("A note.") < html.index("<table")


def test_paths_in_tables_stay_on_one_line_in_a_box_that_scrolls() -> None:
    html = render_html(residual_outcome(), None)
    assert ".table { overflow-x: auto; }" in html
    assert ".table th, .table td { white-space: nowrap; }" in html
    assert html.count("<table") == html.count('<div class="table"><table')


def test_the_page_says_what_output_change_and_predicted_loss_mean() -> None:
    meaning = "mean squared change of the output, as a share of the output's variance"
    text = page(residual_outcome()).text
    assert meaning in text[: text.index("layers changed")]
    assert f"Predicted loss: {meaning}" in text


def test_an_output_change_that_was_not_measured_is_said_to_be_so() -> None:
    outcome = residual_outcome()
    seen = page(replace(outcome, verification=replace(outcome.verification, measured_change=None)))
    assert "output change not measured" in seen.text


def test_a_time_from_an_unsteady_machine_is_marked() -> None:
    outcome = residual_outcome()
    speed = Speed(2.0, 1.5, 50, 1, "cpu", spread=0.4)
    assert "unsteady machine" in page(replace(outcome, verification=replace(outcome.verification, speed=speed))).text
    assert "unsteady machine" not in page(outcome).text


def test_a_missed_budget_and_missing_numbers_are_handled() -> None:
    outcome = residual_outcome({}, skipped=())
    verification = replace(outcome.verification, speed=None, metric_before=None, agreement=None, checks=())
    text = page(replace(outcome, verification=verification, budget_met=False, seconds=(), notes=())).text
    assert "NOT met" in text
    assert "No layer was rewritten" in text


def test_the_same_outcome_gives_the_same_page() -> None:
    assert render_html(residual_outcome(), None) == render_html(residual_outcome(), None)


def test_a_page_whose_calibration_was_made_up_says_so_at_the_top() -> None:
    outcome = residual_outcome()
    made_up = replace(outcome, provenance=replace(outcome.provenance, noise=True))
    assert "made-up data" in page(made_up).text[:600]
    assert "made-up data" not in page(outcome).text


def test_losses_of_dropped_channels_are_listed() -> None:
    outcome = residual_outcome()
    dropped = Selection("stem", "blocks.0.conv1", (), 16, tuple(range(12)), "select", Cost(), 0.004)
    text = page(replace(outcome, plan=replace(outcome.plan, selections=(dropped,)))).text
    assert "Channels dropped between layers" in text
    assert "12 of 16 0.40 %" in text
    assert "Channels dropped" not in page(outcome).text

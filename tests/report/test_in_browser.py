"""The report, driven in a real browser. Pictures of what it looks like are left in ``out/report_shots``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from bottleneck_opt.diagrams import renderer
from bottleneck_opt.report import report_json
from tests.report.browser import Opened, find_browser, open_page, running_browser, write_page
from tests.report.outcomes import joined_changes
from tests.samples import renamed_outcome

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="no chromium on PATH (apt-get install chromium)"),
    pytest.mark.skipif(renderer() is None, reason="no renderer: neither dot nor pygraphviz"),
]
SHOTS = Path("out/report_shots")
LAYER = "blocks.4.conv2"
HOSTILE = "</script><img src=x onerror=alert(1)>'\"&"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(joined_changes(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def opened(browser: Browser, file: Path) -> Opened:
    return open_page(browser, file)


@pytest.fixture
def page(opened: Opened) -> Page:
    return opened.reload()


@pytest.fixture(scope="module")
def shoot() -> Callable[..., None]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    print(f"pictures of the report: {SHOTS.resolve()}")

    def shoot(page: Page, name: str, *, whole: bool = False) -> None:
        page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)

    return shoot


def view_box(page: Page, pane: int = 0) -> list[float]:
    text = page.locator(".pane svg").nth(pane).get_attribute("viewBox") or ""
    return [float(number) for number in text.split()]


def selected(page: Page, pane: int = 0) -> list[str]:
    nodes = page.locator(".pane").nth(pane).locator(".node.selected")
    return [node.get_attribute("data-key") or "" for node in nodes.all()]


def find_layer(page: Page, words: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(words)
    page.keyboard.press("Enter")


def test_it_opens_without_a_complaint_and_without_asking_for_anything(
    opened: Opened, page: Page, file: Path, shoot: Callable[..., None]
) -> None:
    assert opened.complaints == []
    assert set(opened.requests) == {file.as_uri()}
    assert page.locator("#stage .node").count() > len(joined_changes().plan.steps)
    shoot(page, "light", whole=True)


def test_search_finds_a_layer_and_shows_all_about_it(opened: Opened, page: Page, shoot: Callable[..., None]) -> None:
    find_layer(page, "4.conv2")
    assert selected(page)
    panel = page.locator("#inspector")
    assert panel.locator("h3").first.inner_text() == LAYER
    for words in ("rank", "predicted loss", "measured error", "of all MACs", "conv 3x3"):
        assert words in panel.inner_text()
    stage, node = (page.locator(each).first.bounding_box() for each in ("#stage", ".node.selected"))
    assert stage is not None
    assert node is not None
    assert stage["y"] <= node["y"] <= stage["y"] + stage["height"] - node["height"]
    shoot(page, "found")
    assert opened.complaints == []


def test_search_goes_by_operation_too_and_says_when_there_is_nothing(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("adaptiveavg")
    assert page.locator("#hits li").first.inner_text().startswith("pool")
    page.locator("#search").fill("no such layer")
    assert "Nothing found" in page.locator("#hits").inner_text()


def test_a_click_in_the_table_selects_the_layer_in_both_panes(page: Page, shoot: Callable[..., None]) -> None:
    page.keyboard.press("4")
    assert [pane.get_attribute("data-shows") for pane in page.locator(".pane").all()] == ["before", "after"]
    page.locator(f'tr[data-path="{LAYER}"] button').click()
    assert selected(page, 0) == selected(page, 1)
    assert selected(page, 0)
    assert "selected" in (page.locator(f'tr[data-path="{LAYER}"]').get_attribute("class") or "")
    shoot(page, "side_by_side")


def test_a_click_in_the_picture_finds_the_row(page: Page) -> None:
    page.keyboard.press("4")
    find_layer(page, LAYER)
    keys = selected(page)
    page.keyboard.press("Escape")
    assert selected(page) == []
    page.locator(".pane").nth(1).locator(f'.node[data-key="{keys[0]}"]').click()
    assert selected(page, 0) == selected(page, 1) == keys
    page.get_by_role("button", name="Show in the table").click()
    row = page.locator(f'table tr.selected[data-path="{LAYER}"]').bounding_box()
    assert row is not None
    assert 0 <= row["y"] <= 900


def test_both_panes_pan_and_zoom_together(page: Page) -> None:
    page.keyboard.press("4")
    before = view_box(page)
    page.locator("#stage").focus()
    for key in ("+", "+", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert view_box(page, 0) == view_box(page, 1)
    assert view_box(page)[2] == pytest.approx(before[2] / 1.25**2, rel=1e-3)
    assert view_box(page)[1] > before[1]


def test_the_wheel_zooms_about_the_pointer_once_the_picture_has_been_clicked(page: Page) -> None:
    stage = page.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    start = view_box(page)
    page.mouse.wheel(0, 40)
    page.wait_for_timeout(100)
    assert view_box(page)[2:] == start[2:]
    assert "Ctrl" in page.locator(".hint").inner_text()
    stage.focus()
    box = stage.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.wheel(0, -200)
    page.wait_for_function("(width) => document.querySelector('.pane svg').viewBox.baseVal.width < width", arg=start[2])
    end = view_box(page)
    share = 60 / box["height"]
    assert end[1] + share * end[3] == pytest.approx(start[1] + share * start[3], abs=1.5)


def test_keys_zoom_fit_and_drag_moves(page: Page) -> None:
    start = view_box(page)
    page.keyboard.press("-")
    assert view_box(page)[2] > start[2]
    page.keyboard.press("f")
    fitted = view_box(page)
    height = float(page.evaluate("document.querySelector('#figure').getBBox().height"))
    assert fitted[3] >= height
    for _ in range(8):
        page.keyboard.press("+")
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    start = view_box(page)
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + 200
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 50, steps=4)
    page.mouse.up()
    assert view_box(page)[1] < start[1]
    assert selected(page) == []


def test_nothing_moves_from_one_view_to_the_next(page: Page) -> None:
    place = "(node) => ['x', 'y', 'width', 'height'].map((side) => Math.round(node.getBoundingClientRect()[side]))"
    places = f"[...document.querySelectorAll('.node')].map({place})"
    shown = []
    for key, view in (("3", "diff"), ("1", "before"), ("2", "after")):
        page.keyboard.press(key)
        assert page.locator(".pane").get_attribute("data-shows") == view
        shown.append(page.evaluate(places))
    assert shown[0] == shown[1] == shown[2]


def test_each_view_hides_what_is_not_in_its_model(page: Page) -> None:
    def visible(css: str) -> bool:
        return page.locator(css).first.is_visible()

    joined = ".node.replaced .in-diff", ".node.replaced .in-before", ".node.replaced .in-after"
    assert [visible(css) for css in joined] == [True, False, False]
    page.keyboard.press("1")
    assert [visible(css) for css in joined] == [False, True, False]
    page.keyboard.press("2")
    assert [visible(css) for css in joined] == [False, False, True]


def test_keys_lead_from_change_to_change_and_round(page: Page) -> None:
    page.keyboard.press("n")
    first = selected(page)
    page.keyboard.press("n")
    second = selected(page)
    assert first
    assert first != second
    page.keyboard.press("p")
    assert selected(page) == first
    page.keyboard.press("p")
    count = int(re.findall(r"(\d+) of \1", page.locator("#change-count").inner_text())[0])
    assert count == len(joined_changes().plan.steps)


def test_a_click_on_the_strip_jumps_to_that_operation(page: Page) -> None:
    box = page.locator("#strip svg").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.999, box["y"] + 20)
    assert page.locator("#inspector h3").first.inner_text() == "output"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#inspector h3").first.inner_text() == "pool"


def test_hovering_tells_about_a_box(page: Page, shoot: Callable[..., None]) -> None:
    page.locator("#stage").scroll_into_view_if_needed()
    page.locator(".node.replaced").first.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "predicted loss" in tip.inner_text()
    shoot(page, "hover")
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_columns_sort_by_their_numbers(page: Page) -> None:
    head = page.locator("#layers th", has_text="MACs")
    head.get_by_role("button").click()
    cells = page.locator("#layers tbody tr td:nth-child(5)")
    saved = [float(number) for number in cells.evaluate_all("(cells) => cells.map((cell) => cell.dataset.value)")]
    assert saved == sorted(saved, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"


def test_dark_follows_the_system_and_the_key(browser: Browser, file: Path, shoot: Callable[..., None]) -> None:
    opened = open_page(browser, file, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened.page.evaluate(background) == "rgb(21, 23, 27)"
    shoot(opened.page, "dark", whole=True)
    opened.page.keyboard.press("d")
    assert opened.page.evaluate(background) == "rgb(255, 255, 255)"
    assert opened.reload().evaluate(background) == "rgb(255, 255, 255)"
    assert opened.complaints == []
    opened.page.context.close()


def test_on_paper_it_is_light_with_numbers_first_and_the_picture_in_parts(
    browser: Browser, file: Path, shoot: Callable[..., None]
) -> None:
    opened = open_page(browser, file, color_scheme="dark")
    page = opened.page
    page.emulate_media(media="print")
    top = {
        name: opened.number(f"document.querySelector('{css}').getBoundingClientRect().top")
        for name, css in (("cards", ".cards"), ("table", "#layers"), ("picture", ".sheet"), ("plots", "#plots"))
    }
    assert sorted(top, key=lambda name: top[name]) == ["cards", "table", "picture", "plots"]
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.locator("#stage").is_hidden()
    shoot(page, "paper", whole=True)
    pdf = page.pdf(path=SHOTS / "report.pdf", prefer_css_page_size=True)
    assert re.search(rb"/MediaBox \[0 0 59[45][\d.]* 84[12][\d.]*\]", pdf)
    assert len(re.findall(rb"/Type /Page\b", pdf)) > page.locator(".sheet").count()
    page.context.close()


def test_without_its_script_the_picture_and_the_tables_are_complete(browser: Browser, file: Path) -> None:
    page = open_page(browser, file, java_script_enabled=False).page
    assert page.locator("#layers tbody tr").count() == len(joined_changes().plan.steps)
    assert page.locator(".node.replaced .in-diff").first.is_visible()
    assert page.locator(".script-only:visible").count() == 0
    page.context.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, file: Path, shoot: Callable[..., None]) -> None:
    opened = open_page(browser, file, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert opened.number("document.documentElement.scrollWidth") == 390
    shoot(opened.page, "phone", whole=True)
    opened.page.context.close()


def test_very_long_names_make_nothing_wider_than_the_screen(browser: Browser, tmp_path: Path) -> None:
    outcome = renamed_outcome(joined_changes(), "blocks", "\u7db2\u8def" + "long" * 500)
    opened = open_page(browser, write_page(outcome, tmp_path / "long.html"), viewport={"width": 390, "height": 844})
    opened.page.keyboard.press("n")
    assert opened.page.locator("#inspector h3").first.inner_text().startswith("\u7db2\u8deflonglong")
    assert opened.number("document.documentElement.scrollWidth") == 390
    opened.page.context.close()


def test_changed_boxes_can_be_reached_and_chosen_by_keyboard(page: Page) -> None:
    boxes = page.locator(".node[tabindex='0']")
    assert boxes.count() == len(joined_changes().plan.steps)
    assert (boxes.first.get_attribute("aria-label") or "").startswith("blocks.0.conv1")
    boxes.first.focus()
    page.keyboard.press("Enter")
    assert selected(page) == [boxes.first.get_attribute("data-key")]


def test_help_lists_the_keys_and_closes(page: Page) -> None:
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert "next and previous change" in page.locator("#help").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


def test_the_files_can_be_taken_out_of_the_page(page: Page, tmp_path: Path) -> None:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="report.json").click()
    waiting.value.save_as(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(report_json(joined_changes()))


def test_hostile_names_do_nothing_and_can_be_found(browser: Browser, tmp_path: Path) -> None:
    file = write_page(renamed_outcome(joined_changes(), "blocks", HOSTILE), tmp_path / "hostile.html")
    opened = open_page(browser, file)
    find_layer(opened.page, f"{HOSTILE}.4.conv2")
    assert opened.page.locator("#inspector h3").first.inner_text() == f"{HOSTILE}.4.conv2"
    assert opened.page.locator("img").count() == 0
    assert (opened.dialogs, opened.complaints) == ([], [])
    assert set(opened.requests) == {file.as_uri()}
    opened.page.context.close()

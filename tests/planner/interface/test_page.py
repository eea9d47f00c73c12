"""The interactive page: what it says for a budget, read in a browser, is what the planner recommends."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
from candidates import renamed

import planner.interface.cli
from costmodel import InfeasibleError, InputError, Way
from planner.choosing.candidates import candidates
from planner.choosing.recommend import choose
from planner.choosing.scale import TIE
from planner.estimates.accuracy import Estimate
from planner.interface.page import page, page_data, text, write_page
from planner.interface.plots import pareto_data

MODEL, OTHER = "torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"
BUDGET = 20_000_000
NO_RECOVERY = Estimate(None, None, None, "unknown", "", "nothing", "none")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no Chromium with chromedriver is here (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def priced():
    return candidates([MODEL, OTHER], resolution=96)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def standard(priced, tmp_path_factory):
    """Path of the page of all candidates."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(priced, path, BUDGET)
    return path


@pytest.fixture
def opened(browser, standard):
    """The browser with the page of all candidates; it is loaded once for tests that follow one another."""
    if browser.current_url != standard.as_uri():
        browser.get(standard.as_uri())
    return browser


def open_page(browser, path, priced):
    write_page(priced, path, BUDGET)
    browser.get(path.as_uri())


def recommendation(browser) -> str:
    return browser.execute_script("return document.getElementById('recommendation').textContent")


def move_slider(browser, ram_bytes: int) -> str:
    """Put the slider on a budget, as dragging it does; return the recommendation."""
    browser.execute_script(
        "const slider = document.getElementById('budget'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input'));",
        ram_bytes,
    )
    return recommendation(browser)


def expected(priced, ram_bytes: int) -> str:
    try:
        return text(choose(priced, ram_bytes).chosen)
    except InfeasibleError:
        return page_data(priced)["levels"][0]["nothing"]


@in_browser
def test_the_slider_recommends_what_the_planner_does(priced, opened):
    assert recommendation(opened) == expected(priced, BUDGET)
    peaks = sorted({candidate.peak_bytes for candidate in priced})
    seen = set()
    for peak in peaks[::4] + peaks[-1:]:
        for ram_bytes in (peak - 1, peak):  # one byte decides
            assert move_slider(opened, ram_bytes) == expected(priced, ram_bytes)
            seen.add(recommendation(opened))
    assert len(seen) > 5
    assert move_slider(opened, 0).startswith("nothing fits")


@in_browser
def test_the_arrow_keys_move_the_slider(priced, opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = opened.find_element(By.ID, "budget")
    before = float(slider.get_property("value"))
    slider.send_keys(Keys.ARROW_RIGHT * 5)
    ram_bytes = int(float(slider.get_property("value")))
    assert ram_bytes > before
    assert recommendation(opened) == expected(priced, ram_bytes)
    assert opened.find_element(By.ID, "amount").text == f"{ram_bytes / 1e6:.2f} MB"


@in_browser
def test_the_budget_line_and_the_ring_follow(priced, opened):
    for ram_bytes in (BUDGET, 3 * BUDGET // 4):
        move_slider(opened, ram_bytes)
        lines, rings = opened.execute_script(
            "const values = (name, key) => [...document.querySelectorAll('.plot')].map("
            "  plot => [...plot.querySelectorAll(name)].map(element => Number(element.dataset[key])));"
            "return [values('.budget', 'bytes'), values('.ring', 'bytes').concat(values('.ring', 'value'))];"
        )
        assert lines == [[ram_bytes]] * 2
        chosen = choose(priced, ram_bytes).chosen
        where = [model == chosen.model for model in (MODEL, OTHER)]
        assert rings == [[value] if here else [] for value in (chosen.peak_bytes, chosen.recovery.value)
                         for here in where]  # fmt: skip


@in_browser
def test_marks_stand_where_their_numbers_say(priced, opened):
    """x is linear in bytes: two marks and the budget's line, at two widths of the window."""
    own = {c.label: c for c in priced if c.model == MODEL and c.recovery.value is not None}
    for width in (500, 1200):
        opened.set_window_size(width, 900)
        marks = opened.execute_script(
            "return [...document.querySelector('.plot').querySelectorAll('.mark')].map(mark =>"
            "  [mark.getAttribute('aria-label').split(' on ')[0],"
            "   ...mark.getAttribute('transform').match(/[0-9.]+/g).map(Number)])"
        )
        places = {label: (x, y) for label, x, y in marks}
        assert places.keys() == own.keys()
        (left, bottom), (right, top) = places["last"], places["full"]
        assert left < right < width and top < bottom
        per_byte = (right - left) / (own["full"].peak_bytes - own["last"].peak_bytes)
        for label, (x, y) in places.items():
            assert x == pytest.approx(left + per_byte * (own[label].peak_bytes - own["last"].peak_bytes), abs=0.01)
            assert y == pytest.approx(bottom + (top - bottom) * own[label].recovery.value, abs=0.01)
        wide = opened.execute_script("return document.documentElement.scrollWidth")
        assert wide <= opened.execute_script("return innerWidth")  # nothing to scroll sideways
    assert {"1", "5", "11"} <= set(
        opened.execute_script("return [...document.querySelectorAll('.k')].map(text => text.textContent)")
    )


@in_browser
def test_the_second_slider_limits_compute(browser, tmp_path):
    space = {"resolution": 96, "methods": ["last", "full", "mobiletl"], "blocks": [3, 8]}
    plain = candidates([MODEL], **space)
    levers = ("cheap", "recompute")
    capped = {cap: candidates([MODEL], **space, schedules=levers, most_flops=cap) for cap in (1.0, 1.33)}
    write_page(plain, tmp_path / "capped.html", BUDGET, capped)
    browser.get((tmp_path / "capped.html").as_uri())
    for place, some in enumerate(capped.values()):
        browser.execute_script(
            "const slider = document.getElementById('flops'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'));",
            place,
        )
        for ram_bytes in (BUDGET, BUDGET // 2):
            assert move_slider(browser, ram_bytes) == expected(some, ram_bytes)
    assert browser.execute_script("return document.getElementById('times').textContent").startswith(
        "at most 1.33 times"
    )
    lines = browser.execute_script(
        "return [...document.querySelectorAll('.plain')].map(line => line.x2.baseVal.value - line.x1.baseVal.value)"
    )
    assert len(lines) == 4 and min(lines) >= 0 and max(lines) > 20  # from the least memory to that of the plain step


def test_accuracy_on_own_data_is_told(priced):
    known = next(candidate for candidate in priced if candidate.label == "mobiletl, k = 5")
    assert "% (85.0 to 90.0)" not in page([known])
    own = {"accuracy_percent": 88.04, "accuracy_low_percent": 85.0, "accuracy_high_percent": 90.0}
    guess = replace(known.recovery, **own, accuracy_kind="measured")
    assert "expected accuracy 88.0 % (85.0 to 90.0), measured" in page([replace(known, recovery=guess)])


@in_browser
def test_hovering_shows_all_of_a_candidate(priced, opened):
    candidate = next(c for c in priced if (c.model, c.label) == (MODEL, "mobiletl, k = 5"))
    shown = opened.execute_script(
        "const mark = [...document.querySelectorAll('.plot .mark')].find("
        "  mark => mark.getAttribute('aria-label').startsWith(arguments[0]));"
        "mark.dispatchEvent(new MouseEvent('mouseenter'));"
        "const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.textContent",
        text(candidate).splitlines()[0],
    )
    for part in (text(candidate), candidate.peak_layer, "prior", candidate.recovery.source):
        assert part in shown


@in_browser
def test_the_page_loads_nothing_and_complains_of_nothing(opened):
    assert opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


@in_browser
def test_ties_and_unknown_recovery_as_in_the_planner(priced, browser, tmp_path):
    some = priced[:8]
    value = some[-1].recovery
    equal = [
        replace(candidate, peak_bytes=1000, total_flops=100 - place // 2, recovery=replace(value, value=0.5 + TIE / 4))
        for place, candidate in enumerate(some)
    ]
    bias = replace(some[0].step, way=Way("bias"))
    least = replace(some[0], step=bias, peak_bytes=500, recovery=NO_RECOVERY)
    made = [*equal, replace(some[1], peak_bytes=999, recovery=replace(value, value=0.5)), least]
    open_page(browser, tmp_path / "made.html", made)
    for ram_bytes in (499, 500, 998, 999, 1000):
        assert move_slider(browser, ram_bytes) == expected(made, ram_bytes)
    assert move_slider(browser, 998) == text(least) and "unknown" in text(least)


@in_browser
def test_a_name_cannot_break_the_page(priced, browser, tmp_path):
    name = """file:</script><script>alert("1")</script>&'$title.py:net"""
    open_page(browser, tmp_path / "named.html", [renamed(candidate, name) for candidate in priced])
    assert name in recommendation(browser)
    assert browser.execute_script("return document.querySelector('h2').textContent") == name


def test_the_page_holds_every_pick(priced, standard):
    html = standard.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    data = json.loads(found)
    assert data["models"] == [MODEL, OTHER] and data["scale"] == "recovery"
    (level,) = data["levels"]
    starts = [row["from"] for row in level["picks"]]
    assert starts == sorted(set(starts)) and starts[0] == min(candidate.peak_bytes for candidate in priced)
    for budget in sorted({candidate.peak_bytes for candidate in priced}):
        row = [row for row in level["picks"] if row["from"] <= budget][-1]
        chosen = choose(priced, budget).chosen
        assert (row["text"], row["bytes"], row["value"]) == (text(chosen), chosen.peak_bytes, chosen.recovery.value)
        assert data["models"][row["model"]] == chosen.model
    frontier = pareto_data(priced)
    for point, candidate in zip(level["points"], [c for c in priced if c.recovery.value is not None], strict=True):
        assert (point["bytes"], point["value"]) == (candidate.peak_bytes, candidate.recovery.value)
        rows = frontier[(frontier["model"] == candidate.model) & (frontier["method"] == candidate.way.method)]
        rows = rows[rows["blocks"].fillna(0) == (candidate.way.blocks or 0)]
        assert point["frontier"] == rows["frontier"].item()


def test_the_page_is_small_and_named_after_what_it_shows(priced, standard):
    """Under 1 MB; with measurements on the user's images its axis is accuracy, and its title says so."""
    html = standard.read_text(encoding="utf-8")
    assert len(html) < 500_000 and "<title>Memory of fine-tuning against expected recovery</title>" in html
    own = {"accuracy_percent": 88.0, "accuracy_low_percent": 85.0, "accuracy_high_percent": 90.0}
    measured = [replace(c, recovery=replace(c.recovery, **own, accuracy_kind="measured")) for c in priced[:3]]
    assert "<title>Memory of fine-tuning against expected accuracy</title>" in page(measured)
    data = page_data(measured)
    assert data["label"] == "expected accuracy, %" and {p["value"] for p in data["levels"][0]["points"]} == {88.0}


def test_the_command_writes_both(monkeypatch, capsys, tmp_path):
    image, html = tmp_path / "p.svg", tmp_path / "p.html"
    arguments = ["pareto", MODEL, "--resolution", "64", "--ram", "9MB", "--out", str(image), "--html", str(html)]
    monkeypatch.setattr(sys, "argv", ["planner", *arguments])
    with pytest.raises(SystemExit) as left:
        planner.interface.cli.main()
    assert not left.value.code and capsys.readouterr().out == f"wrote {image}\nwrote {html}\n"
    assert 'value="9000000"' in html.read_text(encoding="utf-8") and image.read_bytes().startswith(b"<?xml")


def test_an_accounting_without_a_peak_has_no_page(priced):
    with pytest.raises(
        InputError, match=r"'tinytl' leaves .* has no peak to hold against a budget; allowed: lean, eager"
    ):
        page([replace(candidate, step=replace(candidate.step, accounting="tinytl")) for candidate in priced])


def test_a_file_of_another_kind_is_refused(priced, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.html"):
        write_page(priced, tmp_path / "page.htm")

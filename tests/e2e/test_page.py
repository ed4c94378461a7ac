"""The page in a real browser: right figures, switched by click and by key, and no request to anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, headless
from page_runs import BAD, HEADS, HOSTILE, tokens, training, write_critics, write_runs, write_study

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not installed"),
]

from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless() as driver:
        yield driver


def written(runs: list[Path], out: Path) -> Path:
    """The page of these runs."""
    from wmtp.cli import run_command

    assert run_command(["report", *map(str, runs), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return written(write_runs(folder / "runs"), folder / "page.html")


@pytest.fixture(scope="module")
def critics_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("critics")
    return written(write_critics(folder / "runs"), folder / "page.html")


@contextmanager
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The page, freshly loaded on a desktop screen; afterwards nothing has complained and nothing was asked for."""
    size(browser, 1200)
    browser.get_log("performance")
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} <= {page.as_uri()}


@pytest.fixture
def shown(browser: Any, page: Path) -> Iterator[Any]:
    with opened(browser, page) as driver:
        yield driver


@pytest.fixture
def critics(browser: Any, critics_page: Path) -> Iterator[Any]:
    with opened(browser, critics_page) as driver:
        yield driver


@pytest.fixture(params=["page", "critics_page"])
def either(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every section that there is, in two pages."""
    with opened(browser, request.getfixturevalue(request.param)) as driver:
        yield driver


def size(browser: Any, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def find(browser: Any, selector: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, selector)


def texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def pick(browser: Any, area: str, value: str) -> None:
    """Click a choice where it is."""
    button = find(browser, f"{area} input[value='{value}']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    ActionChains(browser).move_to_element(button).click().perform()


def test_every_section_is_there_and_the_contents_lead_to_it(shown: Any) -> None:
    links = [link.get_attribute("href").split("#")[1] for link in shown.find_elements(By.CSS_SELECTOR, "nav a")]
    assert links == ["glance", "curves", "weights", "evaluation", "tokens", "facts", "limits"]
    assert all(find(shown, f"section#{name} h2").text for name in links)


def test_the_table_of_runs_shows_the_last_held_out_figures_of_the_journal(shown: Any) -> None:
    for arm in (0, 1):
        last = [line for line in training(arm) if line["split"] == "validation"][-1]
        cells = texts(shown, f"#glance tbody tr:nth-child({arm + 1}) td")
        for k in range(1, HEADS + 1):
            expected = f"{last[f'loss/nll_head_{k}']:.3f}\n{100 * last[f'acc/head_{k}']:.1f} %"
            assert cells[k - 1] == expected
        assert cells[HEADS:] == [
            f"{1 + 0.1 * arm:.2f} ± {0.2 * arm:.2f}",
            f"{100 - 10 * arm:.1f} %",
            "1,021",
            "1.0 GiB",
            "40",
        ]


def test_the_distribution_of_weights_is_that_of_the_inspected_tokens_and_follows_the_chosen_head(shown: Any) -> None:
    """Head k of token j weighs (10 k + j + arm) / 10; the two solutions of page_runs have 9 and 10 tokens."""
    head_1 = texts(shown, "#spread .scroll:nth-of-type(1) tbody tr:nth-child(1) td")
    assert head_1 == ["19", "0.0 %", "0.0 %", "0.0 %", "0.0 %", "31.6 %", "68.4 %", "0.0 %", "0.0 %"]
    pick(shown, "#weights .part", "3")
    head_3 = texts(shown, "#spread .scroll:nth-of-type(1) tbody tr:nth-child(1) td")
    assert head_3 == ["19", "0.0 %", "0.0 %", "0.0 %", "0.0 %", "0.0 %", "0.0 %", "10.5 %", "89.5 %"]
    by_class = texts(shown, "#spread .scroll:nth-of-type(2) tbody tr:nth-child(1) td")
    assert by_class == ["–", "0.250\n15 tokens"]


def test_what_a_broken_run_lacks_is_shown_as_missing_and_told(shown: Any) -> None:
    assert set(texts(shown, "#glance tbody tr:nth-child(3) td")) == {"–"}
    assert "broken: metrics.jsonl: 1 line left out: no log point" in find(shown, "aside.note").text


def test_text_from_files_stays_text(shown: Any) -> None:
    assert HOSTILE in find(shown, "#tokens .prompt").text
    assert HOSTILE in find(shown, "#facts").text
    assert HOSTILE in find(shown, "#evaluation").text
    assert not shown.find_elements(By.CSS_SELECTOR, "main img")


def test_evaluations_are_shown_with_the_intervals_of_their_files(shown: Any) -> None:
    text = find(shown, "#evaluation").text
    for figure in ("25.0 %", "12.5 % to 50.0 %", "3.50", "3.00 to 4.00", "1.50", "1.25 to 1.75", "75 % · –"):
        assert figure in text


def test_the_theme_switches_by_click_and_by_arrow_key(shown: Any) -> None:
    def paper() -> str:
        return str(shown.execute_script("return getComputedStyle(document.body).backgroundColor"))

    pick(shown, "#theme", "dark")
    dark = paper()
    shown.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    light = paper()
    assert dark == "rgb(22, 23, 26)"
    assert light == "rgb(253, 252, 249)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_without_a_choice_the_page_follows_the_system(shown: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    paper = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert paper == {"light": "rgb(253, 252, 249)", "dark": "rgb(22, 23, 26)"}[scheme]


def test_a_curve_read_by_key_gives_the_figures_of_that_step(shown: Any) -> None:
    pick(shown, "#curves", "2")
    find(shown, "#curve svg[role=img]").send_keys(Keys.END)
    readout = find(shown, "#curve .readout").text
    assert readout.startswith("step 40")
    for arm in (0, 1):
        assert f"{training(arm)[-1]['loss/nll_head_2']:.4f}" in readout


def test_a_curve_has_a_table_of_the_same_figures(shown: Any) -> None:
    find(shown, "#curve summary").click()
    rows = texts(shown, "#curve tbody tr")
    assert len(rows) == 20
    first = training(0)[0]
    assert rows[0].split()[:2] == ["2", f"{first['loss/nll']:.4f}"]


def test_what_critics_foresaw_is_drawn_beside_what_happened_for_those_whose_values_are_probabilities(
    critics: Any,
) -> None:
    picture = find(critics, "#values .square svg[role=img]")
    marks = [len(one.find_elements(By.CSS_SELECTOR, "path.line ~ path")) for one in curves_of(picture)]
    assert marks == [3, 10]
    assert "combined: 0.050, 0.3 % passed, 1,000 tokens; 0.450, 20.3 % passed" in picture.get_attribute("aria-label")
    cells = texts(critics, "#values .pair tbody td")
    assert cells == ["0.125", "16,000", "held out", "0.375", "55,000", "one training step"]


def curves_of(picture: Any) -> list[Any]:
    return [
        one for one in picture.find_elements(By.CSS_SELECTOR, "g") if one.find_elements(By.CSS_SELECTOR, "path.line")
    ]


def test_the_marks_bars_and_diagonal_of_a_reliability_curve_are_where_their_figures_are(critics: Any) -> None:
    """Against the diagonal's own ends; the highest bar is that of the largest share: 10 of 16 parts."""
    left, bottom, right, top, *drawn = critics.execute_script(
        "const svg = document.querySelector('#values .square svg');"
        "const line = svg.querySelector('.diagonal');"
        "const ends = ['x1', 'y1', 'x2', 'y2'].map((name) => Number(line.getAttribute(name)));"
        "const marks = [...svg.querySelectorAll('path.line')[1].parentNode.querySelectorAll('path[transform]')];"
        "const bars = [...svg.querySelectorAll('.bar')].map((bar) => Number(bar.getAttribute('height')));"
        "return [...ends, marks.map((m) => m.getAttribute('transform').match(/[-\\d.]+/g).map(Number)), bars]"
    )
    places, bars = drawn
    assert right - left == pytest.approx(bottom - top)
    for place, (x, y) in enumerate(places, 1):
        value = (place - 0.5) / 10
        assert (x - left) / (right - left) == pytest.approx(value, abs=1e-3)
        assert (bottom - y) / (bottom - top) == pytest.approx(value**2, abs=1e-3)
    shares = [*(place / 16 if place in (1, 5, 10) else 0 for place in range(1, 11)), *(p / 55 for p in range(1, 11))]
    assert [bar / max(bars) for bar in bars] == pytest.approx([part / (10 / 16) for part in shares])


def test_a_tenth_of_a_reliability_curve_is_read_by_key_and_all_of_them_stand_in_a_table(critics: Any) -> None:
    picture = find(critics, "#values .square svg[role=img]")
    picture.send_keys(Keys.END)
    picture.send_keys(Keys.ARROW_LEFT)
    readout = find(critics, "#values .square .readout").text
    assert "values 0.8 to 0.9" in readout
    assert "no tokens" in readout
    assert "0.850 · 72.3 % · 9,000" in readout
    find(critics, "#values .square summary").click()
    rows = texts(critics, "#values .square tbody tr")
    assert len(rows) == 20
    assert rows[4].endswith("0.4 to 0.5 0.450 20.3 % 5,000")


def test_a_run_can_be_taken_out_of_the_curves_by_key(shown: Any) -> None:
    box = find(shown, "#curves input[value=run-1]")
    box.send_keys(Keys.SPACE)
    find(shown, "#curve svg[role=img]").send_keys(Keys.END)
    readout = find(shown, "#curve .readout").text
    assert "baseline" in readout
    assert "verifiable" not in readout


def chosen_weights(browser: Any, variant: int) -> list[str]:
    cells = browser.find_elements(
        By.CSS_SELECTOR, f".solution:nth-child({variant}) .token-readout tbody tr:first-child td"
    )
    return [cell.text for cell in cells]


def test_a_token_read_by_key_gives_the_weights_of_every_head_of_the_chosen_arm(shown: Any) -> None:
    code = find(shown, "#tokens .solution:nth-child(2) pre")
    code.send_keys(Keys.HOME)
    for _ in range(3):
        code.send_keys(Keys.ARROW_RIGHT)
    assert "token 4 of 10" in find(shown, ".solution:nth-child(2) .token-readout").text
    for arm in (1, 0):
        pick(shown, "#tokens", str(arm))
        code = find(shown, "#tokens .solution:nth-child(2) pre")
        code.send_keys(Keys.HOME)
        for _ in range(3):
            code.send_keys(Keys.ARROW_RIGHT)
        expected = [f"{head[3]:.3f}" for head in tokens(arm)["problems"][0]["variants"][1]["weight"]]
        assert chosen_weights(shown, 2) == expected


def test_what_differs_is_read_at_first_and_a_chosen_token_stays_when_the_arm_changes(shown: Any) -> None:
    readout = ".solution:nth-child(2) .token-readout"
    assert "token 8 of 10, changed" in find(shown, readout).text
    find(shown, "#tokens .solution:nth-child(2) pre").send_keys(Keys.END)
    pick(shown, "#tokens", "0")
    assert "token 10 of 10" in find(shown, readout).text
    assert chosen_weights(shown, 2) == [f"{head[9]:.3f}" for head in tokens(0)["problems"][0]["variants"][1]["weight"]]


def test_one_solution_is_shown_in_every_arm_that_has_the_figure_and_all_read_the_same_token(shown: Any) -> None:
    pick(shown, "#tokens", "incorrect")
    assert texts(shown, "#tokens .solution h3") == ["baseline: ✗ incorrect", "verifiable: ✗ incorrect"]
    find(shown, "#tokens .solution:nth-child(1) pre").send_keys(Keys.HOME)
    for arm in (0, 1):
        weights = tokens(arm)["problems"][0]["variants"][1]["weight"]
        assert chosen_weights(shown, arm + 1) == [f"{head[0]:.3f}" for head in weights]
    pick(shown, "#tokens", "advantage")
    assert texts(shown, "#tokens .solution h3") == ["verifiable: ✗ incorrect"]


def test_the_contents_stay_in_sight_and_mark_the_section_that_is_read(shown: Any) -> None:
    for name in ("tokens", "curves"):
        link = find(shown, f"nav a[href='#{name}']")
        link.click()
        WebDriverWait(shown, 5).until(lambda _, link=link: link.get_attribute("aria-current") == "true")
        assert shown.execute_script("return document.querySelector('nav').getBoundingClientRect().top") == 0
        assert len(shown.find_elements(By.CSS_SELECTOR, "nav a[aria-current=true]")) == 1


def test_pointing_at_a_token_reads_it(shown: Any) -> None:
    token = find(shown, "#tokens .solution:nth-child(1) .token[data-place='6']")
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    ActionChains(shown).move_to_element(token).perform()
    assert chosen_weights(shown, 1) == [f"{head[6]:.3f}" for head in tokens(1)["problems"][0]["variants"][0]["weight"]]


def test_head_and_quantity_change_the_colours_and_the_head_moves_by_arrow_key(shown: Any) -> None:
    def colours() -> list[str]:
        script = "return [...document.querySelectorAll('#tokens .token')].map((t) => t.style.backgroundColor)"
        return list(shown.execute_script(script))

    first = colours()
    group = "#tokens fieldset:nth-of-type(3)"
    pick(shown, group, "1")
    shown.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert find(shown, f"{group} input:checked").get_attribute("value") == "2"
    assert shown.switch_to.active_element.get_attribute("value") == "2"
    second = colours()
    pick(shown, "#tokens", "advantage")
    assert len({tuple(first), tuple(second), tuple(colours())}) == 3


def test_changed_tokens_are_underlined_and_no_others(shown: Any) -> None:
    changed = texts(shown, "#tokens .solution:nth-child(2) .token.changed")
    assert [text.strip() for text in changed] == ["-"]
    assert len(BAD) == len(texts(shown, "#tokens .solution:nth-child(2) .token"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_it_stands_on(either: Any, theme: str) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) for text, chosen controls and every coloured token."""
    pick(either, "#theme", theme)
    poor = either.execute_script(CONTRAST)
    assert poor == []


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
canvas.canvas.width = canvas.canvas.height = 1;
const paint = (layers) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const poor = [];
for (const element of document.querySelectorAll('main *, header *')) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility({visibilityProperty: true})) continue;
  if (element.closest('svg, label:has(:disabled)')) continue;
  const under = [];
  for (let at = element; at; at = at.parentElement) under.unshift(getComputedStyle(at).backgroundColor);
  const [text, ground] = [paint([...under, getComputedStyle(element).color]), paint(under)];
  const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  if (ratio < 4.5) poor.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
}
return poor;
"""


def test_on_a_phone_nothing_is_wider_than_the_screen(either: Any) -> None:
    size(either, 360)
    either.refresh()
    widths = "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert max(either.execute_script(widths)) <= 360
    over = (
        "return [...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 361 && "
        "!e.closest('.scroll, pre')).map((e) => e.tagName + '.' + e.getAttribute('class'))"
    )
    assert either.execute_script(over) == []


def test_a_section_whose_file_is_not_as_expected_says_so_and_the_others_stand(browser: Any, tmp_path: Path) -> None:
    from wmtp.cli import run_command

    runs = write_runs(tmp_path)
    problem = {"problem": "p", "prompt": "", "variants": None}
    (runs[0] / "eval" / "tokens.json").write_text(json.dumps({"suite": "tokens", "problems": [problem]}))
    assert run_command(["report", str(runs[0]), "--out", str(tmp_path / "page.html")]) == 0
    browser.get((tmp_path / "page.html").as_uri())
    assert "Not drawn" in find(browser, "#tokens").text
    assert "3.008" in find(browser, "#glance").text
    assert find(browser, "#facts").text
    assert browser.get_log("browser") == []


def test_everything_that_can_be_used_has_a_name_and_every_table_a_caption_or_headers(either: Any) -> None:
    nameless = (
        "return [...document.querySelectorAll('svg[role=img], pre[role=group], [role=region]')]"
        ".filter((e) => !e.getAttribute('aria-label')).length + [...document.querySelectorAll('input, select')]"
        ".filter((e) => !e.labels.length || !e.labels[0].textContent.trim()).length + "
        "[...document.querySelectorAll('main .scroll table')].filter((e) => !e.caption || !e.tHead).length"
    )
    assert either.execute_script(nameless) == 0


def test_a_study_is_shown_over_its_seeds_with_the_runs_of_the_first(browser: Any, tmp_path: Path) -> None:
    from wmtp.cli import run_command

    out = tmp_path / "page.html"
    assert run_command(["report", str(write_study(tmp_path / "study")), "--out", str(out)]) == 0
    browser.get(out.as_uri())
    assert browser.get_log("browser") == []
    text = find(browser, "#study").text
    for figure in ("3.2500 to 3.7500", "-0.5000", "-0.7500 to -0.2500", "1.50e+12", "two seeds are few", HOSTILE):
        assert figure in text
    assert "verifiable-seed4: failed" in text
    assert texts(browser, "#glance tbody th") == ["baseline-seed3", "verifiable-seed3"]

"""The page in a real browser: slider, sorting, video, sound, no errors, readable on a desk and on a telephone."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.calibrate.report.made_up import report

from cachesmith.calibrate.report.html import write_html

pytestmark = pytest.mark.browser
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if DRIVER is None:
        pytest.skip("there is no chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--autoplay-policy=no-user-gesture-required",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {kind: write_html(folder / kind, report(kind)) for kind in ("picture", "video", "audio")}


def opened(browser: Any, page: Path, width: int = 1280, dark: bool = False) -> Any:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def column(browser: Any, heading: str, table: int = 0) -> list[str]:
    """What a column of a table shows, from top to bottom."""
    return list(
        browser.execute_script(
            """const table = document.querySelectorAll("table")[arguments[0]];
            const cells = [...table.tHead.rows[0].cells];
            const index = cells.findIndex((cell) => cell.textContent.trim() === arguments[1]);
            return [...table.tBodies[0].rows].map((row) => row.cells[index].textContent.trim());""",
            table,
            heading,
        )
    )


def click(browser: Any, heading: str) -> None:
    browser.find_element("xpath", f"(//table)[1]//th/button[normalize-space()='{heading}']").click()


@pytest.mark.parametrize("kind", ["picture", "video", "audio"])
def test_no_errors_and_no_network(browser: Any, pages: dict[str, Path], kind: str) -> None:
    opened(browser, pages[kind])
    assert browser.get_log("browser") == []
    asked = [
        entry["message"]
        for entry in browser.get_log("performance")
        if 'requestWillBeSent"' in entry["message"]
    ]
    assert asked and not any('"url":"http' in message for message in asked)
    assert browser.title == "demo: calibration report", "a prompt was run as a script"


def test_every_picture_is_shown(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["picture"])
    sizes = browser.execute_script(
        """document.querySelectorAll("details").forEach((part) => { part.open = true; });
        return Promise.all([...document.images].map((image) => {
          image.loading = "eager";
          return image.decode().then(() => [image.naturalWidth, image.getBoundingClientRect().width]);
        }));"""
    )
    assert len(sizes) == 3 * 3 * 3 + 1 and all(natural == 48 and shown > 40 for natural, shown in sizes)


def test_the_slider_uncovers(browser: Any, pages: dict[str, Path]) -> None:
    """By the screen's own pixels: left of the seam is the uncached picture, right of it the cached one."""
    opened(browser, pages["picture"])
    cut = browser.find_element("css selector", ".cut")
    cached, both, uncached = (at(browser, cut, value) for value in (0, 50, 100))
    assert not np.array_equal(cached, uncached)
    middle, height = both.shape[1] // 2, both.shape[0] * 3 // 4  # the labels stand below
    assert np.array_equal(both[:height, : middle - 8], uncached[:height, : middle - 8])
    assert np.array_equal(both[:height, middle + 8 :], cached[:height, middle + 8 :])


def at(browser: Any, cut: Any, value: int) -> Any:
    """The comparison's pixels with the slider at `value`."""
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, cut, value)
    shot = cut.find_element("xpath", "..").screenshot_as_png
    # the seam is hidden at the borders, its shadow is not
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[:, 8:-8]


def test_the_slider_is_operated_by_keys_and_named(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["picture"])
    cut = browser.find_element("css selector", ".cut")
    for key, value in (("ARROW_RIGHT", "51"), ("END", "100"), ("HOME", "0")):
        cut.send_keys(getattr(pytest.importorskip("selenium.webdriver").Keys, key))
        assert cut.get_attribute("value") == value
    assert cut.accessible_name.startswith("quality, worst sample: share")


def test_tables_are_sorted_by_number_and_word(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["picture"])
    click(browser, "NFC")
    assert column(browser, "NFC") == ["2.00", "4.00", "9.00"]
    click(browser, "NFC")
    assert column(browser, "profile") == ["slow", "quality", "fast"]
    click(browser, "profile")
    assert column(browser, "profile") == ["fast", "quality", "slow"]
    click(browser, "break-even, samples")
    assert column(browser, "break-even, samples") == ["9,000", "12,000", "never"]
    headings = browser.find_elements("css selector", "th[aria-sort]")
    assert [h.get_attribute("aria-sort") for h in headings] == ["ascending"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["picture", "video", "audio"])
def test_the_page_is_no_wider_than_the_screen(
    browser: Any, pages: dict[str, Path], kind: str, width: int
) -> None:
    opened(browser, pages[kind], width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_fronts_table_fits_a_telephone(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["picture"], 390)
    wide, shown = browser.execute_script(
        "const part = document.querySelector('#front .scroll'); return [part.scrollWidth, part.clientWidth]"
    )
    assert wide <= shown


@pytest.mark.parametrize("width", [1280, 390])
def test_letters_can_be_read(browser: Any, pages: dict[str, Path], width: int) -> None:
    """Of charts too, which shrink with the page."""
    opened(browser, pages["picture"], width)
    smallest = browser.execute_script(
        """return Math.min(...[...document.querySelectorAll(".chart text")].map((text) => {
          const place = text.getScreenCTM();
          return Math.hypot(place.a, place.b) * parseFloat(getComputedStyle(text).fontSize);
        }))"""
    )
    shown = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('p, td, th, h4, dd, figcaption')].map("
        "(e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 7 and shown >= 13


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_modes(browser: Any, pages: dict[str, Path], dark: bool) -> None:
    """WCAG's ratio of 4.5 for text, and the charts take the page's ink."""
    opened(browser, pages["picture"], dark=dark)
    ratios = browser.execute_script(
        """const light = (colour) => {
          const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255).map(
            (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ratio = (colour) => (Math.max(light(colour), paper) + 0.05) / (Math.min(light(colour), paper) + 0.05);
        return ["p", ".quiet", "a", "td", "thead th"]
          .map((name) => ratio(getComputedStyle(document.querySelector(name)).color))
          .concat(ratio(getComputedStyle(document.querySelector(".chart text")).fill));"""
    )
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert min(ratios) >= 4.5 and (paper == "rgb(255, 255, 255)") is not dark


def test_videos_play_together(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["video"])
    browser.find_element("css selector", ".play").click()
    times = browser.execute_async_script(
        """const done = arguments[0], videos = [...document.querySelector(".sample").querySelectorAll("video")];
        setTimeout(() => done(videos.map((video) => [video.currentTime, video.paused, video.videoWidth])), 400);"""
    )
    assert len(times) == 3 and all(time > 0.05 and not paused and width for time, paused, width in times)
    assert max(t for t, *_ in times) - min(t for t, *_ in times) < 0.2
    play = browser.find_element("css selector", ".play")
    assert play.text == "Pause"
    play.click()
    assert browser.execute_script("return document.querySelector('video').paused")


def test_sound_plays(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["audio"])
    states = browser.execute_async_script(
        """const done = arguments[0], all = [...document.querySelectorAll("audio")];
        Promise.all(all.map((a) => new Promise((ready) => a.readyState ? ready() : (a.onloadedmetadata = ready))))
          .then(() => done(all.map((a) => a.duration)));"""
    )
    assert len(states) == 27 and all(
        duration == pytest.approx(4000 / 44_100, abs=1e-3) for duration in states
    )


def test_only_one_thing_has_each_id(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["picture"])
    ids = browser.execute_script(
        "return [...document.querySelectorAll('[id]:not(svg *)')].map((element) => element.id)"
    )
    assert len(ids) == len(set(ids))

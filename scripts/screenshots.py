"""Pictures of the page for the docs: `python scripts/screenshots.py RUN [RUN ...] --out FOLDER`.

Makes the page of these runs, opens it in headless Chromium and writes overview.png, weights.png, tokens.png,
arms.png, dark.png and phone.png.
Needs selenium (in the dev extra), chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import wmtp
from wmtp.report import write_page

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-prefers-reduced-motion")
OFFLINE = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")

SETTLE = "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PLACE = """
const box = document.querySelector(arguments[0]).getBoundingClientRect();
return [box.top + scrollY, box.height];
"""
IN_ALL_ARMS = "document.querySelector('#tokens input[value=incorrect]')?.click()"


def main() -> None:
    """Parse, make the page, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        write_page(options.runs, page, wmtp.__version__)
        browser = open_browser()
        try:
            take_all(browser, page, options.out)
        finally:
            browser.quit()


def open_browser() -> Any:
    """Headless Chromium that asks nobody for anything."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        sys.exit("chromium and chromedriver are needed; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, *OFFLINE):
        options.add_argument(flag)
    options.binary_location = chromium
    return webdriver.Chrome(options=options, service=Service(driver))


def take_all(browser: Any, page: Path, out: Path) -> None:
    """The top of the page in both themes and on a phone, where the weight goes, and the token view."""
    show(browser, page, 1100, "light")
    take(browser, out / "overview.png", 0, 740)
    if browser.find_elements("css selector", "#weights .part"):
        take(browser, out / "weights.png", *browser.execute_script(PLACE, "#weights .part"))
    if browser.find_elements("css selector", "#tokens"):
        take(browser, out / "tokens.png", *browser.execute_script(PLACE, "#tokens"))
        browser.execute_script(IN_ALL_ARMS)
        take(browser, out / "arms.png", *browser.execute_script(PLACE, "#tokens"))
    show(browser, page, 1100, "dark")
    take(browser, out / "dark.png", 0, 740)
    show(browser, page, 360, "light")
    take(browser, out / "phone.png", 0, 780)


def show(browser: Any, page: Path, width: int, theme: str) -> None:
    """Load the page on a screen of this width."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.as_uri())
    browser.execute_script(f"document.querySelector('#theme input[value={theme}]').click()")
    browser.execute_script(SETTLE)


def take(browser: Any, path: Path, top: float, height: float) -> None:
    """Write a picture of the page from `top` on."""
    browser.execute_script(SETTLE)
    width = browser.execute_script("return document.documentElement.clientWidth")
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))
    print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()

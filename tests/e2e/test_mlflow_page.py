"""A run of ours on the page of a real MLflow server, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, headless
from mlflow_server import NO_PYTHON, PYTHON, serving
from tests_recipe import with_few_rows

from wmtp.config import load
from wmtp.tracking.mlflow_store import MlflowStore
from wmtp.trainer import RunResult, run

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason=NO_PYTHON),
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not installed"),
]

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

LIMIT_S = 60


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunResult]]:
    """Where a server is, and a run that it has."""
    folder = tmp_path_factory.mktemp("mlflow")
    recipe = with_few_rows(folder, train=40, validation=20)
    with serving(folder) as server:
        tracking = f"tracking={{uri: '{server.uri}', flush_s: 0.05, timeout_s: 20}}"
        config = load([recipe], ["train.steps=6", "run_name=seen-on-the-page", tracking])
        yield server.uri, run(config, out=folder / "run")


def shows(browser: Any, *wanted: str) -> str:
    """The text of the page, when all of that is in it."""

    def text(driver: Any) -> str | None:
        found: str = driver.find_element(By.TAG_NAME, "body").text
        return found if all(words in found for words in wanted) else None

    return str(WebDriverWait(browser, LIMIT_S).until(text, f"the page does not show {wanted}"))


def test_the_page_shows_the_run_how_it_ended_its_figures_and_its_model(
    tracked: tuple[str, RunResult], tmp_path: Path
) -> None:
    uri, result = tracked
    assert result.tracked is not None
    assert result.tracked.problem is None
    store = MlflowStore(uri, "wmtp", artifacts="", timeout_s=30, upload_timeout_s=30)
    experiment, run_id = store._experiment_id(), result.tracked.run_id
    with headless() as browser:
        browser.set_window_size(1400, 1000)
        browser.get(f"{uri}/#/experiments/{experiment}/runs/{run_id}")
        shows(browser, "seen-on-the-page", "Finished", "train/loss/nll", "wmtp_baseline", "train.batch_size")
        browser.save_screenshot(str(tmp_path / "run.png"))
        browser.get(f"{uri}/#/experiments/{experiment}/runs/{run_id}/artifacts")
        shows(browser, "config.yaml", "provenance.json", "model")
        browser.get(f"{uri}/#/models/wmtp_baseline")
        shows(browser, "wmtp_baseline", "Version 1")
        browser.save_screenshot(str(tmp_path / "model.png"))

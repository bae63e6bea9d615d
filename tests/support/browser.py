"""
A real browser, which looks at the pages of a real service.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["Browser", "browserFor"]

# Seconds that any step may take; a busy machine needs long.
_PATIENCE = 30
# These keep the browser from asking other machines, and let it run without a screen.
_OPTIONS = (
    *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--no-default-browser-check",
)


class Browser:
    """
    Chromium, by selenium.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.base = ""

    def go(self, path: str) -> None:
        """
        Load a page.
        """
        self.driver.get(self.base + path)

    def find(self, css: str) -> Any:
        """
        @return: the element, as soon as it is there.
        """
        return self.until(lambda: next(iter(self.all(css)), None), css)

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def until(self, call: Callable[[], Any], what: str) -> Any:
        """
        @return: what C{call} returns, as soon as that is true.
        """
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, _PATIENCE, 0.05, [StaleElementReferenceException])
        try:
            return wait.until(lambda _: call())
        except TimeoutException:
            raise AssertionError(f"{what} is not in the page: {self.text}")

    def see(self, text: str, css: str = "body") -> None:
        """
        Wait until a part of the page contains a text.
        """
        self.until(lambda: any(text in each.text for each in self.all(css)), text)

    def seeNot(self, text: str, css: str = "body") -> None:
        """
        Wait until no part of the page contains a text.
        """
        self.until(lambda: not any(text in each.text for each in self.all(css)), f"not {text}")

    @property
    def text(self) -> str:
        return str(self.driver.find_element("css selector", "body").text)

    def click(self, css: str) -> None:
        """
        Click an element as soon as it is there.
        """
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(css))
        self.find(css).click()

    def press(self, *keys: str) -> None:
        """
        Press keys, wherever the focus is.
        """
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self, name: str = "id") -> str:
        """
        @return: an attribute of the element that has the focus.
        """
        return str(self.driver.switch_to.active_element.get_attribute(name))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def use(self, width: int = 1280, scheme: str = "light", hasScripts: bool = True) -> None:
        """
        Choose the width of the screen in pixels, light or dark, and whether scripts run.
        """
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self._do("Emulation.setDeviceMetricsOverride", **screen)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._do("Emulation.setEmulatedMedia", features=[feature])
        self._do("Emulation.setScriptExecutionDisabled", value=not hasScripts)

    def _do(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def shoot(self, name: str) -> None:
        """
        Save a picture of the whole page in the directory that the environment variable
        C{POP3SVC_SCREENSHOTS} names, if it is set.
        """
        directory = os.environ.get("POP3SVC_SCREENSHOTS")
        if directory is None:
            return
        picture = self._do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        with open(os.path.join(directory, f"{name}.png"), "wb") as file:
            file.write(base64.b64decode(picture["data"]))

    def complaints(self) -> list[str]:
        """
        @return: what the browser has complained about since the last call: errors of scripts, and
            violations of the policy of the page.
        """
        return [each["message"] for each in self.driver.get_log("browser")]


@contextmanager
def browserFor() -> Iterator[Browser]:
    """
    Start a browser.  Skip the test if there is none.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium or chromedriver is not installed")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = chromium
    for each in _OPTIONS:
        options.add_argument(each)
    if os.geteuid() == 0:
        # Its sandbox does not work for root.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()

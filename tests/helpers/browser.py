"""Pages in headless Chromium, and scripts evaluated in them."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import playwright.sync_api as playwright

# true when the fonts are loaded and two frames have been drawn
SETTLED = """(async () => { await document.fonts.ready;
    for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame); })()"""


class Browser:
    """One page at a time, with its requests and errors since it was opened."""

    def __init__(self, browser: playwright.Browser) -> None:
        self.browser = browser
        self.context: playwright.BrowserContext | None = None
        self.size = playwright.ViewportSize(width=1280, height=900)

    def open(self, url: str, scheme: Literal["light", "dark"]) -> None:
        """Load a page with an empty profile, under a color scheme, and wait until it is drawn."""
        if self.context is not None:
            self.context.close()
        self.context = self.browser.new_context(color_scheme=scheme, viewport=self.size)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.goto(url)
        self.run(SETTLED)

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the window."""
        self.size = playwright.ViewportSize(width=width, height=height)
        if self.context is not None:
            self.page.set_viewport_size(self.size)
            self.run(SETTLED)

    def press(self, key: str) -> None:
        """Press a key, such as "Tab"."""
        self.page.keyboard.press(key)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.page.evaluate(script)

    def _note(self, message: playwright.ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)


@contextlib.contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Run an installed Chromium while the context is entered."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield Browser(browser)
        browser.close()

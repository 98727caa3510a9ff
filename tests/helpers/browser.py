"""Headless Chromium over a pair of pipes: open a page at a size and in a theme, ask it things."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
]
# done when fonts are there and nothing has been drawn anew for two frames
SETTLED = """(async () => { await document.fonts.ready;
    for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame); })()"""


class Browser:
    """One tab, and what it asked the network for and complained of since it was last opened."""

    def __init__(self, to_chromium: int, from_chromium: int) -> None:
        self.to_chromium, self.from_chromium = to_chromium, from_chromium
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Answer to a command of the DevTools protocol."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.to_chromium, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str, scheme: str) -> None:
        """Load a page under a color scheme, as for the first time, and wait until it is drawn."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.run(SETTLED)  # the page before keeps the theme it has switched to
        origin = "/".join(url.split("/")[:3])
        self.call("Storage.clearDataForOrigin", origin=origin, storageTypes="local_storage")
        self.events = []
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()
        self.run(SETTLED)

    def resize(self, width: int, height: int = 900) -> None:
        """Change the window, as that of a telephone or a desk."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.run(SETTLED)

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def asked_for(self) -> list[str]:
        """Addresses of all requests since the page was opened."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def complaints(self) -> list[str]:
        """Errors in the console since the page was opened."""
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("exception", params)))
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
            if event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(str(params["args"]))
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            piece = os.read(self.from_chromium, 1 << 16)
            assert piece, "chromium has ended"
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


@contextlib.contextmanager
def chromium(program: str, folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile, ended afterwards."""
    read_there, write_here = os.pipe()
    read_here, write_there = os.pipe()
    # chromium reads file 3 and writes file 4
    link = f'exec "$@" 3<&{read_there} 4>&{write_there}'
    command = ["bash", "-c", link, "bash", program, *FLAGS, f"--user-data-dir={folder}"]
    with open(os.devnull, "wb") as nothing:
        process = subprocess.Popen(command, pass_fds=(read_there, write_there), stderr=nothing)
    os.close(read_there)
    os.close(write_there)
    try:
        yield Browser(write_here, read_here)
    finally:
        process.terminate()
        process.wait()
        os.close(write_here)
        os.close(read_here)

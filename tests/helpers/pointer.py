"""A pointer in a headless browser: Chromium driven through its debugging protocol."""

import itertools
import json
import subprocess
import time
from pathlib import Path

import websocket
from browser import CHROMIUM


class Page:
    """A page with a pointer on it.

    Args:
      path: the document.
      folder: for the browser's profile.
    """

    def __init__(self, path: Path, folder: Path):
        profile = folder / "pointer"
        headless = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1500")
        remote = ("--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}")
        command = [str(CHROMIUM), *headless, *remote, path.as_uri()]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._numbers = itertools.count(1)
        self._socket = websocket.create_connection(_page_address(profile), timeout=60)
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            time.sleep(0.1)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"]["value"]

    def rest_on(self, x: float, y: float) -> None:
        """Moves the pointer."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _ask(self, method: str, **params) -> dict:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                return answer["result"]


def _page_address(profile: Path) -> str:
    """Where the browser listens for its first page."""
    import urllib.request

    file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().split()):
            pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=60))
            found = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
            if found:
                return found[0]
        time.sleep(0.2)
    raise TimeoutError("the browser opened no page")

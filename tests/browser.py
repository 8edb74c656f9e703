"""Headless Chromium for tests of pages: offline, and with a record of all that it complains of."""

import contextlib
import shutil

import pytest

SWITCHES = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextlib.contextmanager
def chromium():
    """A browser; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'skullgen[dev]'")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, path, width=1280, height=900):
    """(page, complaints, requests) of the file at `path`, without a network, all figures drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    page, complaints, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    # What a page holds itself, data: and blob:, is no request.
    page.on(
        "request", lambda asked: asked.url[:5] in ("data:", "blob:") or requests.append(asked.url)
    )
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri(), timeout=180_000)  # a busy machine
    page.wait_for_selector("body[data-drawn]", timeout=180_000)
    yield page, complaints, requests
    context.close()

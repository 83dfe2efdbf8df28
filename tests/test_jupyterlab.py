"""Notebook 07 in a real JupyterLab, driven in headless Chromium: run, tick, slide, look. On a tiny model.

MACELIB_SCREENSHOTS names a folder for the screenshots (default: the test's own temporary folder).
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from tiny_data import tiny_data

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "07_studio.ipynb"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
WAIT = 240_000  # milliseconds
CONFIG = {
    "images": {"count": 1, "steps": 1, "masks": "full"},
    "train": {"steps": 2, "lr": 0.1},
    "prior": {"use": False},
}
SMALL = {"images": 2, "steps": 2, "strict": False, "config": CONFIG, "run_folder": "run"}
SETTINGS = {  # of Lab: no questions to the network, nothing left unrendered below the edge of the window
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def playwright():
    found = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"{CHROMIUM} is not there: install Debian's chromium, or name a browser in $CHROMIUM")
    with found.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def lab(playwright, tmp_path_factory):
    """Address and token of a JupyterLab on a free port, in a temporary folder that holds the notebook."""
    place = tmp_path_factory.mktemp("lab")
    (place / "work").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    given = "\n".join(f"{name} = {value!r}" for name, value in SMALL.items())
    cell = nbformat.v4.new_code_cell(given, id="given", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(2, cell)
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    nbformat.write(notebook, place / "work" / NOTEBOOK.name)
    for name, values in SETTINGS.items():
        path = place / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "share"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    folders |= {"IPYTHONDIR": "ipython", "MACELIB_CACHE": "cache"}
    environment = {k: v for k, v in os.environ.items() if k != "MACELIB_RUN_FOLDER"}
    environment |= {name: str(place / folder) for name, folder in folders.items()} | {"HF_HUB_OFFLINE": "1"}
    environment |= {"MACELIB_DATA": str(tiny_data(place / "data")), "PYTHONPATH": str(NOTEBOOK.parent.parent)}
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={place / 'work'}"]
    with (place / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=place)
        try:
            yield address(place, server), token
        finally:
            server.terminate()
            server.wait(60)


def address(place: Path, server: subprocess.Popen, seconds: int = 300) -> str:
    """What the server wrote down about itself once it listened."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        for path in (place / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(path.read_text())["url"]
            except (json.JSONDecodeError, KeyError):
                pass  # being written
        time.sleep(0.2)
    raise AssertionError("JupyterLab did not start:\n" + (place / "log.txt").read_text()[-3000:])


@pytest.fixture
def page(playwright, lab, tmp_path):
    """The notebook, open in a browser with an empty profile, and everything that went wrong in the page."""
    url, token = lab
    context = playwright.chromium.launch_persistent_context(
        tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1280, "height": 1400}
    )
    opened = context.pages[0]
    opened.set_default_timeout(WAIT)
    opened.goto(f"{url}lab/tree/{NOTEBOOK.name}?token={token}&reset")
    opened.locator(".jp-Notebook").wait_for()
    opened.locator(".jp-StatusBar-TextItem", has_text="| Idle").wait_for()  # what is run earlier is lost
    yield opened
    opened.screenshot(path=folder(tmp_path) / "last.png")
    context.close()


def menu(page, *names: str) -> None:
    """Choose an entry of Lab's menu."""
    page.locator(".lm-MenuBar-item", has_text=names[0]).first.click()
    for name in names[1:]:
        entry = page.locator(".lm-Menu-item").filter(has=page.get_by_text(name, exact=True)).last
        entry.hover()
    entry.click()


def ready(page) -> None:
    """Wait until the studio is neither busy nor about to be."""
    page.wait_for_timeout(500)
    page.locator(".macelib-studio .status", has_text="ready in").wait_for()
    assert page.locator(".macelib-busy").count() == 0


def sources(page, row: str) -> list[str]:
    return [image.get_attribute("src") for image in page.locator(f'.macelib-studio img[alt^="{row}, seed"]').all()]


def folder(tmp_path: Path) -> Path:
    """Where screenshots go."""
    found = Path(os.environ.get("MACELIB_SCREENSHOTS") or tmp_path)
    found.mkdir(parents=True, exist_ok=True)
    return found


def screenshot(page, name: str, tmp_path: Path) -> None:
    page.locator(".macelib-studio").scroll_into_view_if_needed()
    page.screenshot(path=folder(tmp_path) / f"{name}.png")


def run_all(page) -> None:
    """Run the notebook to its end, without an error."""
    menu(page, "Run", "Run All Cells")
    done = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]"))
    error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    done.or_(error).first.wait_for()
    assert not error.count(), error.first.inner_text()
    ready(page)


def test_studio_in_the_browser(page, tmp_path):
    studio = page.locator(".macelib-studio")
    run_all(page)
    before, after = sources(page, "before"), sources(page, "after")
    assert len(before) == len(after) == 2 and before != after
    screenshot(page, "light", tmp_path)

    # a tick, with the keyboard
    frog = studio.get_by_role("checkbox", name="frog")
    frog.focus()
    page.keyboard.press("Space")
    page.locator(".macelib-studio .status", has_text="erased: ship × 1, horse × 1").wait_for()
    ready(page)
    unticked = sources(page, "after")
    assert not frog.is_checked() and unticked != after and sources(page, "before") == before
    page.keyboard.press("Space")
    page.locator(".macelib-studio .status", has_text="frog").wait_for()
    ready(page)
    assert sources(page, "after") == after

    # a slider: three presses, drawn once the hand rests
    assert len(studio.get_by_role("slider").all()) == 3
    studio.get_by_role("slider", name="strength of frog").focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    page.locator(".macelib-studio .status", has_text="frog × 0.7").wait_for()
    ready(page)
    assert sources(page, "after") not in (after, unticked)

    # the keys of a list and of a handle are theirs, not the notebook's
    sizes, wipe = studio.get_by_label("pictures"), studio.get_by_role("checkbox", name="wipe")
    before_keys = sizes.input_value()
    sizes.focus()
    page.keyboard.press("ArrowDown")
    ready(page)
    assert sizes.input_value() != before_keys and sizes.evaluate("e => e === document.activeElement")
    page.keyboard.press("ArrowUp")
    wipe.focus()
    page.keyboard.press("x")
    page.keyboard.press("Space")
    ready(page)
    assert wipe.is_checked() and studio.count() == 1, "an x cuts no cell"
    handle = studio.get_by_role("slider", name="before to after, seed 1")
    handle.focus()
    page.keyboard.press("ArrowRight")
    assert handle.evaluate("e => e.previousElementSibling.style.clipPath").endswith("51%)")
    wipe.uncheck()
    ready(page)

    # another prompt, another word, an error and the way back
    prompt = studio.get_by_label("prompt")
    prompt.fill("frog " * 90)
    prompt.press("Enter")
    studio.get_by_role("alert").filter(has_text="tokens").wait_for()
    assert opacity(page) < 0.5, "the pictures are of another prompt"
    screenshot(page, "error", tmp_path)
    prompt.fill("a ship on grass")
    prompt.press("Enter")
    ready(page)
    assert sources(page, "before") != before
    row = "“ship”, before"
    assert len(sources(page, row)) == 2
    studio.get_by_label("attention of").select_option("grass")
    ready(page)
    assert len(sources(page, "“grass”, before")) == 2 and not sources(page, row)

    # the cell once more: one page, whose controls act once
    page.locator(".jp-CodeCell", has=studio).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(1000)
    ready(page)
    assert studio.count() == 1 and sources(page, "before") == before
    studio.get_by_role("button", name="erase none").click()
    page.locator(".macelib-studio .status", has_text="erased: nothing").wait_for()
    assert sources(page, "after") == before

    menu(page, "Settings", "Theme", "JupyterLab Dark")
    page.locator('body[data-jp-theme-light="false"]').wait_for(state="attached")
    studio.get_by_role("button", name="erase all").click()
    ready(page)
    prompt.fill("frog " * 90)
    prompt.press("Enter")
    studio.get_by_role("alert").wait_for()
    assert contrast(page, '.macelib-studio [role="alert"]') >= 4.5
    screenshot(page, "dark-error", tmp_path)
    prompt.fill("a photo of the frog")
    prompt.press("Enter")
    ready(page)
    assert contrast(page, ".macelib-studio .pictures") >= 4.5 and contrast(page, ".macelib-studio .status") >= 4.5
    screenshot(page, "dark", tmp_path)


def unfit(page) -> list[str]:
    """Controls that lie on one another or reach out of the page, and labels that are cut."""
    return page.locator(".macelib-studio").evaluate(
        """studio => {
            const shown = [...studio.querySelectorAll("input, select, button, .slider-container")]
                .filter(e => e.offsetParent && !e.closest(".pictures")).map(e => [e, e.getBoundingClientRect()]);
            const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
            const name = e => e.outerHTML.slice(0, 80), found = [], edge = studio.getBoundingClientRect().right;
            shown.forEach(([e, box], i) => {
                if (box.right > edge + 1) found.push("out: " + name(e));
                shown.slice(i + 1).forEach(([f, other]) => apart(box, other) || found.push(name(e) + " on " + name(f)));
            });
            studio.querySelectorAll("label, button").forEach(e => e.offsetParent
                && e.scrollWidth > e.clientWidth + 1 && found.push("cut: " + name(e)));
            return found;
        }"""
    )


def unnamed(page) -> list[str]:
    """What can be used, or tells something, and has no name for those who cannot see it (its role)."""
    session = page.context.new_cdp_session(page)
    root = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    node = session.send("DOM.querySelector", {"nodeId": root, "selector": ".macelib-studio"})["nodeId"]
    found = session.send("Accessibility.queryAXTree", {"nodeId": node})["nodes"]
    roles = {"textbox", "spinbutton", "combobox", "checkbox", "slider", "button", "image", "progressbar", "region"}
    seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in found if not n["ignored"]]
    assert roles - {"progressbar"} <= {role for role, _ in seen} and ("region", "studio") in seen
    return [role for role, name in seen if role in roles and name.strip() in ("", "null")]


def opacity(page) -> float:
    """Of the pictures."""
    shown = page.locator(".macelib-studio .pictures")
    return float(shown.evaluate("e => getComputedStyle(e.closest('.widget-html')).opacity"))


def test_stop_sizes_hints_a_concept_more_and_saving(page, lab, tmp_path):
    studio, status = page.locator(".macelib-studio"), page.locator(".macelib-studio [role=status]")
    run_all(page)
    verdicts = studio.locator("figcaption").all_inner_texts()
    assert len(verdicts) == 4 and all(re.search(r"\w 0\.\d\d\nfrog 0\.\d\d|^frog 0\.\d\d$", text) for text in verdicts)

    # thousands of steps, stopped while they go on: the click is heard, the pictures are dimmed
    before, steps = sources(page, "before"), studio.get_by_label("steps")
    steps.fill("900")
    steps.press("Enter")
    status.filter(has_text="drawing").wait_for()
    page.locator(".macelib-studio .progress-bar").wait_for()
    assert opacity(page) == 0.5 and not unnamed(page) and not unfit(page)
    assert page.locator(".macelib-studio .progress").bounding_box()["height"] >= 4
    screenshot(page, "drawing", tmp_path)
    studio.get_by_role("button", name="stop").click()
    status.filter(has_text="stopped").wait_for()
    assert opacity(page) < 0.5 and sources(page, "before") == before
    steps.fill("2")
    steps.press("Enter")
    ready(page)
    assert opacity(page) == 1 and sources(page, "before") == before

    studio.get_by_label("pictures").select_option("large")
    ready(page)
    assert studio.locator(".pictures img").first.bounding_box()["width"] > 300
    screenshot(page, "large", tmp_path)
    studio.get_by_label("pictures").select_option("small")

    prompt = studio.get_by_label("prompt")
    prompt.fill("a photo of the quxfoo")
    prompt.press("Enter")
    studio.get_by_role("note").filter(has_text="no “quxfoo”").wait_for()
    ready(page)
    screenshot(page, "hint", tmp_path)

    more = studio.get_by_label("erase also")
    more.fill("catt")
    studio.get_by_role("button", name="learn it").click()
    studio.get_by_role("alert").filter(has_text="No anchor is known").wait_for()
    more.fill("cat")
    studio.get_by_role("button", name="learn it").click()
    studio.get_by_role("slider", name="strength of cat").wait_for()
    page.locator(".macelib-studio .status", has_text="cat × 1").wait_for()
    ready(page)
    assert studio.get_by_role("checkbox", name="cat").is_checked()
    studio.get_by_role("button", name="save").click()
    page.locator(".macelib-studio .status", has_text="saved in run/kept/001").wait_for()
    screenshot(page, "learned", tmp_path)
    menu(page, "Settings", "Theme", "JupyterLab Dark")
    page.locator('body[data-jp-theme-light="false"]').wait_for(state="attached")
    assert contrast(page, ".macelib-studio figcaption") >= 4.5
    screenshot(page, "learned-dark", tmp_path)
    for width in (900, 700):
        page.set_viewport_size({"width": width, "height": 1400})
        page.wait_for_timeout(500)
        screenshot(page, f"narrow-{width}", tmp_path)
        assert not unfit(page), width


def contrast(page, selector: str) -> float:
    """Contrast ratio (WCAG) of an element's text against the page behind it; 4.5 reads well."""
    colours = page.locator(selector).first.evaluate(
        """element => {
            const background = e => { for (; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
            } return "rgb(255, 255, 255)"; };
            return [getComputedStyle(element).color, background(element)].map(c => c.match(/[\\d.]+/g).map(Number));
        }"""
    )
    linear = lambda v: v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4  # noqa: E731
    light = [sum(f * linear(v / 255) for f, v in zip((0.2126, 0.7152, 0.0722), rgb, strict=False)) for rgb in colours]
    return (max(light) + 0.05) / (min(light) + 0.05)

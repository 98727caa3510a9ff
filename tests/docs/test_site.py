"""The built site in headless Chromium: every page, wide and narrow, light and dark."""

import http.server
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from browser import Browser, chromium

SITE = Path(__file__).parents[2] / "site"
PROGRAM = shutil.which("chromium")
PAGES = sorted(str(page.relative_to(SITE).parent) for page in SITE.glob("**/index.html"))
WIDTHS = [1280, 390]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs chromium: apt-get install chromium"),
    pytest.mark.skipif(not PAGES, reason="needs the built site: make docs"),
]

# text on its own background, both blended with what lies below; the ratio is that of WCAG 2
CONTRAST = """(() => {
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const over = (a, b) => [0, 1, 2].map(i => a[3] * a[i] + (1 - a[3]) * b[i]).concat(1);
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
    const v = c[i] / 255;
    return sum + w * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4) }, 0);
  const below = e => { const layers = [];
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
      layers.push(c); if (c[3] === 1) break; }
    return layers.reverse().reduce((b, a) => over(a, b), [255, 255, 255, 1]); };
  const found = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    const shown = e.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!text || !shown || box.width < 2) continue;
    if (e.closest('script, style, noscript, .headerlink, .md-clipboard, .katex-mathml')) continue;
    const back = below(e);
    const ink = parse(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(over(ink, back)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5))
      found[`${e.tagName}.${e.className}`] = `${ratio.toFixed(2)} ${text.slice(0, 30)}`;
  }
  return found;
})()"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# names in tables that are broken inside, and tables that reach out of the page and do not scroll
TABLES = """[...document.querySelectorAll('.md-content table code')]
  .filter(e => !/[\\s\\-]/.test(e.textContent) && e.getClientRects().length > 1)
  .map(e => 'broken: ' + e.textContent).concat(
  [...document.querySelectorAll('.md-content table')].filter(e => e.getBoundingClientRect().width)
  .filter(e => { const wrap = e.closest('.md-typeset__scrollwrap') || e.parentElement;
    return e.getBoundingClientRect().right > innerWidth && getComputedStyle(wrap).overflowX !== 'auto' })
  .map(e => 'cut off: ' + e.textContent.trim().slice(0, 40)))"""
RAW = """[...document.querySelectorAll('.md-content p, .md-content li, .md-content td')]
    .map(e => { const c = e.cloneNode(true);
        c.querySelectorAll('code, pre, .katex').forEach(k => k.remove()); return c.textContent })
    .filter(t => /\\\\[(\\[]|\\\\frac|\\\\sum/.test(t)).concat(
    [...document.querySelectorAll('pre.mermaid')].map(e => e.textContent))"""
# what the search answers, best first
SEARCH = """(async words => {
  const input = document.querySelector('.md-search__input');
  input.focus(); input.value = words;
  input.dispatchEvent(new Event('keyup')); input.dispatchEvent(new Event('input', {bubbles: true}));
  const found = () => [...document.querySelectorAll('.md-search-result__link')]
    .map(a => a.getAttribute('href').replace(/\\?h=[^#]*/, ''));
  for (let i = 0; i < 200 && !found().length; i++) await new Promise(r => setTimeout(r, 50));
  return found();
})"""
# text of drawings that sticks out of its box, or of the drawing
STICKS_OUT = """[...document.querySelectorAll('figure.drawn svg')].flatMap(svg => {
  const inside = (a, b) => a.left >= b.left && a.right <= b.right
    && a.top >= b.top && a.bottom <= b.bottom;
  const boxes = [...svg.querySelectorAll('rect')].map(e => e.getBoundingClientRect());
  return [...svg.querySelectorAll('text')]
    .filter(e => !boxes.some(box => inside(e.getBoundingClientRect(), box)))
    .map(e => e.textContent).concat(
      [...svg.querySelectorAll('text')].filter(e => e.getBoundingClientRect().height < 10)
      .map(e => 'too small: ' + e.textContent));
})"""
# boxes for the result of code that printed nothing
EMPTY = """[...document.querySelectorAll('.md-content pre code')]
  .filter(e => !e.textContent.trim())
  .map(e => 'after ' + e.closest('.highlight').previousElementSibling.textContent.slice(0, 60))"""
UNNAMED = """[...document.querySelectorAll('img')].filter(e => !e.alt).map(e => e.src.slice(0, 80))
    .concat(
    [...document.querySelectorAll('.md-content svg[viewBox][role=img]')]
    .filter(e => !e.getAttribute('aria-label')).map(e => e.outerHTML.slice(0, 80)))"""

# tables of the content, but not the line numbers of sources, without a caption or label
UNLABELLED = """[...document.querySelectorAll('.md-content table:not([class])')].filter(e => {
    const by = e.getAttribute('aria-labelledby');
    const words = by ? document.getElementById(by)?.textContent : e.getAttribute('aria-label');
    return !(words || '').trim() }).map(e => e.textContent.trim().slice(0, 60))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with chromium(str(PROGRAM)) as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page(page: str, scheme: str, browser: Browser, address: str):
    browser.resize(WIDTHS[0])  # before it is opened, as the search bar takes its time to widen
    browser.open(f"{address}/{page}/", scheme)
    shown = browser.run("document.body.getAttribute('data-md-color-scheme')")
    assert shown == {"light": "default", "dark": "slate"}[scheme]
    problems = {"raw": browser.run(RAW), "no alt text": browser.run(UNNAMED)}
    problems["table without a label"] = browser.run(UNLABELLED)
    problems["no result"] = browser.run(EMPTY)
    for width in WIDTHS:
        browser.resize(width)
        problems[f"wider than {width}"] = browser.run(WIDER)
        problems[f"contrast at {width}"] = browser.run(CONTRAST)
        problems[f"drawn outside at {width}"] = browser.run(STICKS_OUT)
        problems[f"tables at {width}"] = browser.run(TABLES)
    outside = [url for url in browser.requests if not url.startswith((address, "data:"))]
    problems |= {"asked for": outside, "console": browser.errors}
    assert {what: found for what, found in problems.items() if found} == {}


def test_the_keyboard_reaches_content_search_and_navigation(browser: Browser, address: str):
    browser.open(f"{address}/", "light")
    browser.resize(1280)
    reached = []
    for _ in range(12):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.className"))
    for wanted in ("md-skip", "md-search__input", "md-tabs__link"):
        assert any(wanted in name for name in reached), (wanted, reached)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("PyramidPooling", "api/pooling/#neurenix_ms.multiscale.PyramidPooling"),
        ("HierarchicalTimeStepper", "#neurenix_ms.timestepping.HierarchicalTimeStepper"),
        ("accumulate_gradients", "#neurenix_ms.execution.accumulate_gradients"),
        ("UNet", "api/models/#neurenix_ms.multiscale.UNet"),
        ("expected (B, C) and 2 spatial axes", "#expected-b-c-and-spatial-axes-got-shape"),
        (
            "expected (B, C) and 2 spatial axes, got shape (3, 64, 64)",
            "#expected-b-c-and-spatial-axes-got-shape",
        ),
        (
            "the input must have 3 channels, got shape (1, 64, 64, 3)",
            "#the-input-must-have-channels-got-shape",
        ),
        (
            "every grid needs one bin or more, got bins [0]",
            "#every-grid-needs-one-bin-or-more-got-bins",
        ),
        ("reduce GPU memory", "howto/#reduce-gpu-memory-in-training"),
    ],
)
def test_the_search_finds_names_and_messages(
    words: str, place: str, browser: Browser, address: str
):
    browser.resize(1280)
    browser.open(f"{address}/", "light")
    found = browser.run(f"{SEARCH}({json.dumps(words)})")
    assert any(url.endswith(place) for url in found[:4]), found

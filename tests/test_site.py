"""The web site: built once, its links followed, its pages opened in a browser."""

import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from alignkit import claims
from alignkit.course import guide
from alignkit.course.map_figure import course_map
from alignkit.course.site import card_text, linked, repository, site
from alignkit.course.tour import NOTEBOOKS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning"),
              pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")]


class Page(HTMLParser):
    """A page's links, anchors, and what a browser would load with it."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.loads, self.no_alt = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        here = dict(attrs)
        self.ids.add(here.get("id"))
        if tag == "a":
            self.links += [here[k] for k in ("href", "xlink:href") if here.get(k)]
        elif tag in ("script", "img", "iframe", "source"):
            self.loads.append(here.get("src") or "")
        elif tag == "link" and here.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(here.get("href") or "")
        if tag == "img" and not here.get("alt"):
            self.no_alt.append(here.get("src"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, started = tmp_path_factory.mktemp("site"), time.process_time()
    site(out)  # raises if Sphinx has warnings: an unknown document, an unread formula
    assert time.process_time() - started < 60, "the site takes more than a minute to build"
    return out


@pytest.fixture(scope="module")
def pages(folder):
    return {path: Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}


def test_every_link_and_anchor_leads_somewhere(folder, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            there = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not there.is_file() or (
                    anchor and there in pages and anchor not in pages[there].ids):
                dead.append((path.relative_to(folder).as_posix(), link))
    assert not dead


def test_nothing_comes_from_elsewhere_and_every_picture_has_words(pages):
    for path, page in pages.items():
        assert not [url for url in page.loads if "//" in url], path
        assert not page.no_alt, path
        assert str(NOTEBOOKS.parent) not in path.read_text("utf-8"), path  # of this machine


def test_pages_of_notebooks_say_with_what_they_ran_and_link_what_stands_before(folder):
    for card in guide.cards():
        text = (folder / f"{card.name}.html").read_text("utf-8")
        assert re.search(r"Last executed with\.</strong> Python 3\S+, alignkit \S+, torch", text)
        for need in card.needs:
            assert f'href="../{need}.html"' in text or Path(need).parent == Path(
                card.name).parent and f'href="{Path(need).name}.html"' in text, need
        assert 'href="../GLOSSARY.html#term-' in text


def test_the_button_downloads_the_notebook_as_it_stands_in_the_repository(folder):
    for card in guide.cards():
        made = folder / "_sources" / f"{card.name}.ipynb"
        assert made.read_bytes() == (NOTEBOOKS / f"{card.name}.ipynb").read_bytes()


def test_every_paper_with_a_method_has_its_card_with_all_its_claims(folder):
    for slug in claims.slugs():
        results = claims.stored(slug)
        path = folder / "cards" / f"{slug}.html"
        if not results or not path.is_file():
            continue
        text = " ".join(re.sub(r"<[^>]+>", "", path.read_text("utf-8")).split())
        for r in results:
            assert r.says().capitalize() in text and f"{r.interval['mean']:+.3f}" in text
    methods = Path(claims.__file__).parents[1] / "methods"
    shown = {card.name.split("-", 2)[2] for card in guide.cards()}  # a draft has no notebook yet
    assert {path.stem for path in (folder / "cards").glob("*.html")} == {
        slug for slug in shown if (methods / f"{slug.replace('-', '_')}.py").is_file()}


def misfolded(page) -> list[str]:
    """Answers that do not fold out, or show a formula as it was written."""
    wrong = []
    for answer in page.locator("details", has=page.locator("summary", has_text="Answer")).all():
        closed = answer.bounding_box()["height"]
        answer.locator("summary").click()
        if answer.bounding_box()["height"] <= closed or "$" in answer.inner_text():
            wrong.append(f"{page.url}: {answer.inner_text()[:60]!r}")
    return wrong


def test_pages_in_a_browser(folder, pages):
    """At 1280 and 400 pixels: no error, nothing to scroll sideways; answers fold out; filters
    and search work."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs the program chromium (Debian: apt-get install chromium)")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page, wrong = browser.new_page(), []
        page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            for path in (p for p in pages if "_static" not in p.parts):  # the theme's
                page.goto(path.as_uri())
                wrong += misfolded(page) if width == 400 else []
                wide = page.evaluate("document.documentElement.scrollWidth")
                if wide > width:
                    wrong.append(f"{path}: {wide} pixels at {width}")
        assert not wrong, wrong
        page.goto((folder / "SCOREBOARD.html").as_uri())
        table = page.locator("table").nth(1)
        seen = table.locator("tbody tr:visible")
        all_rows = seen.count()
        page.locator(".filters").first.locator("select").first.select_option("holds")
        assert 0 < seen.count() < all_rows
        assert all("holds" in text for text in seen.locator("td:nth-child(3)").all_inner_texts())
        page.locator(".filters").first.locator("select").first.select_option("")
        table.locator("th", has_text="difference").click()
        values = [float(t.split()[0].replace("−", "-"))
                  for t in seen.locator("td:nth-child(4)").all_inner_texts()]
        assert values == sorted(values) and len(values) == all_rows
        page.goto((folder / "search.html").as_uri() + "?q=temperature")
        found = page.locator("#search-results li a")
        found.first.wait_for()
        assert any("02-contrastive-losses" in a.get_attribute("href") for a in found.all())
        browser.close()


def test_first_uses_are_linked_and_nothing_else():
    left = ["CKA", "Head", "Linear probe"]
    text = linked("# A head\nThe `head` and $CKA$, [a head](x.md): two heads, a head.\n"
                  "```\nCKA\n```\nThen cka.", left)
    assert text == ("# A head\nThe `head` and $CKA$, [a head](x.md): two {term}`heads <Head>`, "
                    "a head.\n```\nCKA\n```\nThen {term}`cka <CKA>`.")
    assert left == ["Linear probe"]


def test_a_card_keeps_equations_and_escapes_what_markdown_would_read():
    text = card_text("Paper: A * B_c.\n\nEquations:\n    x = *y*\nFrozen: all `a_b`.")
    assert text == ["**Paper.** A \\* B\\_c.", "**Equations.** ", "```text\n\n    x = *y*\n```"
                    .replace("\n\n", "\n"), "**Frozen.** All `a_b`."]


def test_the_map_links_each_notebook_and_draws_no_line_that_another_implies():
    def card(name, *needs):
        return guide.Card(name, name, 1, list(needs))

    found = [card("0-start/01-a"), card("0-start/02-b", "0-start/01-a"),
             card("1-next/01-c", "0-start/01-a", "0-start/02-b")]
    svg = course_map(found)
    assert {f"{c.name}.html" for c in found} == set(re.findall(r'xlink:href="(\S+?html)"', svg))
    assert len(re.findall(r"\nC ", svg)) == 2  # a curve a line: b after a, c after b


def test_one_place_holds_the_repositorys_address():
    root = NOTEBOOKS.parent
    owner = repository().removeprefix("https://github.com/")
    files = [*NOTEBOOKS.rglob("*.ipynb"), *root.glob("*.md"), root / "CITATION.cff",
             *(root / "alignkit" / "course" / "new").glob("*.txt")]
    for path in files:
        text = path.read_text("utf-8")
        found = set(re.findall(r"colab\.research\.google\.com/github/([\w-]+/[\w-]+)/", text))
        found |= set(re.findall(r"git\+https://github\.com/([\w-]+/[\w-]+)", text))
        assert found <= {owner}, path

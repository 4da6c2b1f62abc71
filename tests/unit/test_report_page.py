"""The HTML report: one file, nothing from outside, readable by keyboard, in the dark and on a phone."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from simulated import reported_study
from study import document
from study.plots import Picture

VOID = {"meta", "link", "img", "source", "br"}
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Page(HTMLParser):
    """Tags with their attributes, checked for nesting."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.styles = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's file, its text and its tags."""
    path = reported_study(tmp_path_factory)[1]["html"]
    text = path.read_text(encoding="utf-8")
    return path, text, Page(text)


def test_nothing_is_loaded_from_outside(page):
    _, text, tags = page
    assert not tags.all("script", "iframe", "object", "embed", "base", "form", "video", "audio")
    for _, attributes in tags.tags:
        for name, value in attributes.items():
            if name in ("src", "srcset", "href", "data", "action", "poster", "background", "xlink:href"):
                assert value.startswith(("data:", "#")), (name, value[:60])
            assert not name.startswith("on")
            assert name != "style" or "url(" not in value
    assert "url(" not in tags.styles
    assert "@import" not in tags.styles
    for picture in re.findall(r"base64,([A-Za-z0-9+/=]+)", text):
        svg = base64.b64decode(picture).decode()
        # Names of namespaces and licences are no addresses that a browser asks for.
        loaded = re.findall(r'(?:href|src)="(?!#|data:)([^"]*)"', svg)
        assert not loaded
        assert "<script" not in svg
        assert "@import" not in svg


def test_links_and_names_are_right(page):
    _, _, tags = page
    names = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    for attributes in tags.all("a"):
        assert attributes["href"].removeprefix("#") in names
    for _, attributes in tags.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in names


def test_readers_of_all_kinds_are_served(page):
    _, _, tags = page
    assert tags.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tags.all("meta")
    assert len(tags.all("h1")) == 1
    assert "prefers-color-scheme: dark" in tags.styles
    assert ":focus-visible" in tags.styles
    pictures = tags.all("img")
    assert len(pictures) > 10
    for attributes in pictures:
        assert len(attributes["alt"]) > 30
    assert len(tags.all("source")) == len(pictures)
    regions = [attributes for attributes in tags.all("div") if attributes.get("class") == "scroll"]
    assert len(regions) == len(tags.all("table"))
    assert all(attributes["tabindex"] == "0" for attributes in regions)
    assert all("scope" in attributes for attributes in tags.all("th"))
    assert len(tags.all("details")) == len(tags.all("figure")) + 1


def test_each_figure_is_embedded_once_and_pointed_to_where_it_comes_again(page, tmp_path):
    path, text, tags = page
    embedded = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    assert len(embedded) == 2 * len(tags.all("img"))  # for bright pages and for dark ones
    assert len(set(embedded)) == len(embedded)
    again = [each for each in tags.all("a") if each["href"].startswith("#figure-")]
    assert len(again) == len(tags.all("figure")) - len(tags.all("img"))
    picture, other = Picture(b"<svg/>", b"<svg />", b"png"), Picture(b"<svg></svg>", b"<svg ></svg>", b"png")
    parts = [("a", picture), ("b", other), ("c", picture)]
    blocks = document.shown_once([document.Figure(n, f"Of {n}.", "x", p, document.Provenance(())) for n, p in parts])
    assert [block.first for block in blocks] == ["", "", "a"]
    made = Page(document.render("report.html", blocks))
    assert len(made.all("img")) == 2
    assert made.all("a")[-1] == {"href": "#figure-a"}
    assert document.render("report.md", blocks).count("](figures/a.png)") == 2
    assert path.parent.joinpath("figures").is_dir()


def test_text_is_escaped(page):
    _, text, _ = page
    assert "out of_memory &amp; more | 50 %" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_shows_the_page_without_errors(page, tmp_path, width):
    path, _, _ = page
    picture = tmp_path / "page.png"
    # A copy that says what it found: the size of the pictures as they are drawn, and how wide the page is.
    probe = (
        "<script>addEventListener('load',()=>{const i=[...document.images];"
        "console.log('PROBE',i.length,i.filter(e=>e.complete&&e.naturalWidth>100&&e.clientHeight>50).length,"
        "document.documentElement.scrollWidth<=innerWidth)})</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(path.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
            ),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"),
            *(f"--screenshot={picture}", copy.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert picture.stat().st_size > 20_000
    assert len(console) == 1, console
    found = re.search(r"PROBE (\d+) (\d+) (\w+)", console[0])
    assert found[1] == found[2] != "0"
    assert found[3] == "true"

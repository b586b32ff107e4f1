"""The page: what it shows of a query, that it needs nothing from outside, and that text can't become markup."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from lib.evaluation.queries import Items, answer
from lib.tools.gallery.page import Gallery, Model, page, shown_images
from lib.tools.gallery.selection import sections

NASTY = '<script>alert("1")</script> & "quotes"'
ITEMS = Items(np.array([7, 9]), ["val/a.jpg", None], ["a ball", NASTY, "a cat", "two"], np.array([0, 0, 1, 1]))
SCORES = np.array([[0.9, 0.1, 0.5, 0.7], [0.2, 0.3, 0.6, 0.8]])


class Reader(HTMLParser):
    """Tags with their attributes, and the text of each article."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.articles, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "article":
            self.articles.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # what is opened is closed, in order

    def handle_data(self, data):
        if "article" in self.open:
            self.articles[-1] += data


@pytest.fixture
def gallery() -> Gallery:
    models = [Model("a", "ESL-A", answer(SCORES)), Model("b", "other", answer(SCORES[::-1].copy()))]
    found = {way: sections([m.answers[way] for m in models], ["a", "b"], 9) for way in ("i2t", "t2i")}
    return Gallery(NASTY, models, ITEMS, found, 2, {0: "images/0.jpg"}, {("t2i", 1): [("pictures/p.png", NASTY)]})


def test_every_query_has_a_card_with_both_ranks_and_its_items_marked(gallery):
    reader = Reader(page(gallery))
    assert not reader.open
    shown = sum(len(section.queries) for sections in gallery.sections.values() for section in sections)
    assert len(reader.articles) == shown
    card = next(text for text in reader.articles if text.startswith("caption 1 "))
    assert "a: rank 2, margin -0.2" in card and "b: rank 1, margin +0.2" in card
    assert NASTY in card and "✗ 0.300" in card and "✓ 0.100" in card
    image = next(text for text in reader.articles if text.startswith("image 0 "))
    assert "a ball" in image and "✓ a ball 0.900" in image and "✗ two 0.700" in image
    classes = {attributes.get("class") for tag, attributes in reader.tags if tag == "li"}
    assert classes <= {"right", "wrong", None}


def test_the_page_asks_for_nothing_from_outside_and_runs_nothing(gallery):
    reader = Reader(page(gallery))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    targets = {a[key] for _, a in reader.tags for key in ("src", "href") if key in a}
    assert {target for target in targets if not target.startswith("#")} == {"images/0.jpg", "pictures/p.png"}
    assert "url(" not in page(gallery) and "@import" not in page(gallery)
    anchors = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {target[1:] for target in targets if target.startswith("#")} <= anchors


def test_an_image_without_a_file_is_named_in_its_place(gallery):
    assert '<div class="none">image 9</div>' in page(gallery)


def test_images_that_need_a_thumbnail_are_those_of_queries_and_of_shown_items(gallery):
    assert shown_images(gallery) == [0, 1]
    few = gallery._replace(sections={"i2t": [gallery.sections["i2t"][0]._replace(queries=np.array([1]))]})
    assert shown_images(few) == [1]

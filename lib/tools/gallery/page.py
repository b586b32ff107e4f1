"""The page of a gallery: one HTML file without scripts, with its style inside and thumbnails beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from lib.evaluation.metrics import RECALLS_AT
from lib.evaluation.queries import DIRECTIONS, Answers, Items
from lib.tools.gallery.selection import Section

STYLE = """
:root { color-scheme: light; --ink: #1c1e22; --quiet: #62666d; --line: #d6d9de; --right: #1a7f37; --wrong: #b2182b; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; color: var(--ink); background: #fff;
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; } h2 { margin: 2.5rem 0 .5rem; border-bottom: 2px solid var(--ink); }
h3 { margin: 1.5rem 0 .5rem; } h3 small { color: var(--quiet); font-weight: normal; }
nav a { display: inline-block; margin: 0 1rem .4rem 0; padding: .2rem 0; } a { color: #1257a0; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; }
tr { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } .scroll { overflow-x: auto; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); }
article { border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; min-width: 0; overflow-wrap: anywhere; }
article > header { color: var(--quiet); font-size: .9rem; margin-bottom: .5rem; }
.ask { display: flex; gap: .8rem; align-items: flex-start; } .ask > * { min-width: 0; flex: 1 1 0; }
.ask p { margin: 0; font-weight: 600; }
figure { margin: 0; font-size: .8rem; color: var(--quiet); line-height: 1.3; }
img { max-width: 100%; height: auto; display: block; border-radius: .2rem; }
.none { background: #eceef1; padding: 1.5rem .5rem; text-align: center; border-radius: .2rem; }
h4 { margin: .8rem 0 .3rem; font-size: .9rem; } ol, ul { margin: 0; padding: 0; list-style: none; }
.own { font-size: .85rem; } .own li { margin-bottom: .15rem; }
.texts li { padding: .15rem .4rem; margin-bottom: .15rem; border-left: .3rem solid; }
.images { display: grid; grid-template-columns: repeat(5, 1fr); gap: .4rem; }
.images li { border-top: .3rem solid; padding-top: .2rem; min-width: 0; font-size: .8rem; }
.right { border-color: var(--right) !important; } .wrong { border-color: var(--wrong) !important; }
.right b { color: var(--right); } .wrong b { color: var(--wrong); } .score { color: var(--quiet); white-space: nowrap; }
.picture { margin-top: .8rem; } .picture img { width: 100%; border: 1px solid var(--line); }
@media (max-width: 30rem) { body { padding: .6rem; } table { font-size: .8rem; } th, td { padding: .2rem .3rem; }
  .images { grid-template-columns: repeat(3, 1fr); } }
@media print { html { font-size: 7.5pt; } body { max-width: none; padding: 0; } nav { display: none; }
  .cards { display: block; columns: 2; } article { break-inside: avoid; margin-bottom: 1rem; }
  h2, h3 { break-after: avoid; } * { print-color-adjust: exact; } }
"""


class Model(NamedTuple):
    """A matrix in the gallery: its name, what made it, and what its queries got."""

    name: str
    about: str
    answers: dict[str, Answers]


class Gallery(NamedTuple):
    """All that a page shows; `thumbnails` and `pictures` are paths beside the page, by image, and by (direction, query)
    with a line about each."""

    title: str
    models: Sequence[Model]
    items: Items
    sections: dict[str, list[Section]]
    best: int  # items shown of each query
    thumbnails: Mapping[int, str]
    pictures: Mapping[tuple[str, int], list[tuple[str, str]]]


def page(gallery: Gallery) -> str:
    """The HTML text."""
    parts = [
        f"<h1>{escape(gallery.title)}</h1>",
        *(f"<p><strong>{escape(model.name)}</strong> {escape(model.about)}</p>" for model in gallery.models),
        _figures(gallery),
        "<p><b>✓</b> right, <b>✗</b> wrong. Rank 1 means that a right item stands at the top; the margin is the score "
        "of the best right item above that of the best wrong one.</p>",
        _contents(gallery),
    ]
    for direction, sections in gallery.sections.items():
        parts.append(f'<h2 id="{direction}">{DIRECTIONS[direction].capitalize()}</h2>')
        for number, section in enumerate(sections):
            count = f"{len(section.queries)} of {section.total}"
            parts.append(
                f'<section><h3 id="{direction}-{number}">{escape(section.title)} <small>{escape(section.says)}, {count}'
                f'</small></h3><div class="cards">'
            )
            parts += [_card(gallery, direction, query) for query in section.queries.tolist()]
            parts.append("</div></section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(gallery.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def shown_images(gallery: Gallery) -> list[int]:
    """The numbers of all images that the page shows."""
    found = set()
    for direction, sections in gallery.sections.items():
        for query in {query for section in sections for query in section.queries.tolist()}:
            found.add(query if direction == "i2t" else int(gallery.items.image_of_caption[query]))
            if direction == "t2i":
                for model in gallery.models:
                    found |= set(model.answers[direction].items[query, : gallery.best].tolist())
    return sorted(found)


def _figures(gallery: Gallery) -> str:
    """Recalls of every model in both directions."""
    head = "".join(f"<th>{direction} R@{k}</th>" for direction in DIRECTIONS for k in RECALLS_AT)
    rows = []
    for model in gallery.models:
        ranks = [(answers.rank < k).mean() * 100 for answers in model.answers.values() for k in RECALLS_AT]
        rows.append(f"<tr><td>{escape(model.name)}</td>{''.join(f'<td>{value:.1f}</td>' for value in ranks)}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _contents(gallery: Gallery) -> str:
    links = [
        f'<a href="#{direction}-{number}">{direction}: {escape(section.title.lower())}</a>'
        for direction, sections in gallery.sections.items()
        for number, section in enumerate(sections)
    ]
    return f"<nav>{''.join(links)}</nav>"


def _card(gallery: Gallery, direction: str, query: int) -> str:
    """A query, and for each model its rank, its margin and its best items."""
    items, ask = gallery.items, []
    image = query if direction == "i2t" else int(items.image_of_caption[query])
    if direction == "t2i":
        ask.append(f"<p>{escape(items.captions[query])}</p>")
    ask.append(f"<figure>{_image(gallery, image)}<figcaption>{_named(items, image)}</figcaption></figure>")
    if direction == "i2t":
        listed = "".join(f"<li>{escape(items.captions[number])}</li>" for number in _captions_of(items, image))
        ask.append(f'<ul class="own">{listed}</ul>')
    parts = [f'<div class="ask">{"".join(ask)}</div>']
    for model in gallery.models:
        answers = model.answers[direction]
        name = f"{escape(model.name)}: " if len(gallery.models) > 1 else ""
        parts.append(f"<h4>{name}rank {answers.rank[query] + 1}, margin {answers.margin[query]:+.3g}</h4>")
        parts.append(_best(gallery, direction, model.answers[direction], query))
    for path, line in gallery.pictures.get((direction, query), ()):
        picture = f'<img loading="lazy" src="{escape(path)}" alt="{escape(line)}">'
        link = f'<a href="{escape(path)}">{picture}</a>'
        parts.append(f'<figure class="picture">{link}<figcaption>{escape(line)}</figcaption></figure>')
    what = f"image {query} and its captions" if direction == "i2t" else f"caption {query} and its image"
    return f"<article><header>{what}</header>{''.join(parts)}</article>"


def _best(gallery: Gallery, direction: str, answers: Answers, query: int) -> str:
    lines = []
    for item, score, right in zip(*(part[query, : gallery.best].tolist() for part in answers[2:]), strict=True):
        kind, mark = ("right", "✓") if right else ("wrong", "✗")
        score = f'<span class="score">{score:.3f}</span>'
        if direction == "i2t":
            lines.append(f'<li class="{kind}"><b>{mark}</b> {escape(gallery.items.captions[item])} {score}</li>')
        else:
            caption = escape(gallery.items.captions[_captions_of(gallery.items, item)[0]])
            shown = f"<figure>{_image(gallery, item)}<figcaption>{caption}</figcaption></figure>"
            lines.append(f'<li class="{kind}"><b>{mark}</b> {score}{shown}</li>')
    return f'<ol class="{"texts" if direction == "i2t" else "images"}">{"".join(lines)}</ol>'


def _image(gallery: Gallery, image: int) -> str:
    path, name = gallery.thumbnails.get(image), _named(gallery.items, image)
    return f'<img loading="lazy" src="{path}" alt="{name}">' if path else f'<div class="none">{name}</div>'


def _named(items: Items, image: int) -> str:
    return escape((items.files[image] or f"image {items.image_ids[image]}").rpartition("/")[2])


def _captions_of(items: Items, image: int) -> list[int]:
    start, stop = items.image_of_caption.searchsorted([image, image + 1]).tolist()
    return list(range(start, stop))

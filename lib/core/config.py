"""ModelConfig, the plain values that rebuild a network, and the rows of the tables that it names."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

from lib.core.errors import InputError, shown
from lib.core.values import Choice, Number, Switch, problem

EMBED_SIZE = Number(int, 2, 1 << 16)
PRECISIONS = ("float32", "tf32", "bf16")  # see lib.core.precision
KERNELS = ("auto", "torch", "plain")  # backends of ESL's scores: lib.similarity.alignment
Paths = dict[str, Any]  # files and folders of this machine by the flags that name them: bert_path, backbone_path, ...


def lazy(name: str) -> Callable[..., Any]:
    """The function "module:function", imported when it is called, so that reading a table imports none of its rows."""
    return lambda *args, **kwargs: pkgutil.resolve_name(name)(*args, **kwargs)


class Option(NamedTuple):
    """A setting of a table row, and the flag of the same name.

    A default of False makes the flag a switch. A `type` of lib.core.values checks the flag's text and a checkpoint's
    value alike. Without a type and without choices, a value is any number of the default's kind. None is allowed if it
    is the default.
    """

    default: Any
    help: str
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None

    def holds(self, value: Any) -> bool:
        return value is self.default is None or self._values().holds(value)

    def _values(self) -> Any:
        if self.choices:
            return Choice(self.choices)
        if type(self.default) is bool:
            return Switch()
        return self.type if hasattr(self.type, "holds") else Number(type(self.default), -(2**53))

    def __str__(self) -> str:
        return str(self._values())


@dataclasses.dataclass(frozen=True)
class Part:
    """A row of a table: how a part is built.

    `fields` are further values, which come from files and not from flags, and what each may be.
    """

    label: str  # its name in tables
    build: Callable[..., Any]  # (embed_size, options) -> module
    options: dict[str, Option] = dataclasses.field(default_factory=dict)
    check: Callable[[int, dict], None] = lambda embed_size, options: None  # InputError for sizes that it can't have
    training_only: tuple[str, ...] = ()  # options that a run may change without another network
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def complete(self, embed_size: int, given: dict[str, Any]) -> dict[str, Any]:
        """`given` with the defaults of the options that it lacks; InputError for values that the part can't have."""
        options = {name: option.default for name, option in self.options.items()} | given
        if wrong := problem(options, self.options | self.fields):
            raise InputError(f"{'--' if wrong.split()[0] in self.options else f'{self.label}: '}{wrong}")
        self.check(embed_size, options)
        return options

    def make(self, embed_size: int, **given: Any) -> Any:
        """The part with the options that are given and the defaults of the others."""
        return self.build(embed_size, self.complete(embed_size, given))


@dataclasses.dataclass(frozen=True)
class EncoderPart(Part):
    """A row of a table of encoders: build(embed_size, options, paths), where paths None means random weights.

    With `paths` the pre-trained parts are loaded from there.
    """

    read_options: Callable[[dict, Paths], dict] = lambda options, paths: options  # adds what only the files tell

    def make(self, embed_size: int, paths: Paths | None = None, **given: Any) -> Any:
        return self.build(embed_size, self.complete(embed_size, given), paths)


@dataclasses.dataclass(frozen=True)
class ImageEncoderPart(EncoderPart):
    """`transform(options)` gives the function from a decoded image, uint8 (H, W, 3), and a random generator (None: no
    augmentation) to the encoder's input (3, H, W); None: the input is region features of size options["img_dim"]. A
    method `decode` of that function, from an opened file to uint8 (H, W, 3), replaces plain decoding to RGB."""

    transform: Callable[[dict], Callable[..., Any]] | None = None
    describe: Callable[[dict], str] | None = None  # its label where that depends on the options


@dataclasses.dataclass(frozen=True)
class TextEncoderPart(EncoderPart):
    """`tokeniser` names a row of lib.datasets.tokenisers.TOKENISERS."""

    tokeniser: str = ""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The plain values that rebuild a network: a row of each table, its options, and the size of the joint space."""

    similarity: str = "esl_a"
    image_encoder: str = "regions"
    text_encoder: str = "bert"
    embed_size: int = 512
    similarity_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_options: dict[str, Any] = dataclasses.field(default_factory=dict)


def row(table: dict[str, Part], name: str, flag: str) -> Part:
    """The row `name` of a table. Raises InputError that lists the rows if there is no such row."""
    if name not in table:
        raise InputError(f"{flag} is '{shown(name)}', expected one of {', '.join(table)}")
    return table[name]

"""Models in Hugging Face form, loaded from a folder or the hub, whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lib.core.errors import InputError, listed, shown
from lib.core.values import problem


def load_pretrained(flag: str, path: str | Path, load: Callable[[str], Any], what: str = "BERT") -> Any:
    """`load(path)`, with one line for whatever goes wrong: a model in Hugging Face form, which `flag` names."""
    try:
        with quiet_transformers():
            return load(str(path))
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    problem = f"not a {what} model in Hugging Face form"
    if not os.path.isdir(path):
        problem = "no such folder, and a hub model of that name could not be loaded"
    raise InputError(
        f"{flag} {path}: {problem} ({reason}); give a folder with config.json, model.safetensors and the vocabulary"
    )


def own_values(kind: type[PretrainedConfig], path: str) -> dict[str, Any]:
    """What config.json of a folder or hub name says; ValueError where that is of another kind of model."""
    values = kind.get_config_dict(path)[0]
    found = values.get("model_type", kind.model_type)
    if found != kind.model_type:
        raise ValueError(f"its model_type is {shown(found)}, expected {kind.model_type}")
    return values


def known_values(values: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Those of `fields` among values; ValueError for one that is none of what its field holds."""
    if not isinstance(values, dict):
        raise ValueError(f"its values are a {type(values).__name__}, expected an object")
    known = {name: values[name] for name in fields if name in values}
    if wrong := problem(known, fields):
        raise ValueError(wrong)
    return known


def own_config(kind: type[PretrainedConfig], fields: dict[str, Any], path: str) -> PretrainedConfig:
    """The configuration of a folder or hub name, with its values of `fields` alone; ValueError as above."""
    values = known_values(own_values(kind, path), fields)
    if not values:
        raise ValueError(f"its config.json says nothing of {', '.join(fields)}")
    return kind(**values)


def whole_model(
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    path: str,
    unused: tuple[str, ...] = (),
    **settings: Any,
) -> PreTrainedModel:
    """The model of a folder or hub name in float32; ValueError where weights are missing or of another shape.

    Those whose names begin with one of `unused` may be missing: no score depends on them.
    """
    # Ignored, they are told by name; else the library only says that there are some.
    model, info = kind.from_pretrained(
        path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    if misshapen := sorted(name for name, *_ in info["mismatched_keys"]):
        raise ValueError(f"of another shape than its configuration says: {listed(misshapen)}")
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(unused)):
        raise ValueError(f"it lacks {listed(missing)}")
    return model.float()


@contextlib.contextmanager
def quiet_transformers():
    """Keep transformers' and the hub's warnings and progress bars off the console while a part loads."""
    before = transformers_logging.get_verbosity()
    hub = logging.getLogger("huggingface_hub")
    hub_before = hub.level
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        hub.setLevel(hub_before)

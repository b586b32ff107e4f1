"""The input specification of a model's encoders."""

from __future__ import annotations

from lib.core.config import ModelConfig, Paths
from lib.datasets.inputs import InputSpec
from lib.datasets.tokenisers import TOKENISERS
from lib.model import image_part, text_part


def input_spec(config: ModelConfig, paths: Paths) -> InputSpec:
    """What the encoders of a complete configuration read; InputError for a tokeniser that isn't the model's."""
    transform, tokeniser = image_part(config).transform, TOKENISERS[text_part(config).tokeniser]
    return InputSpec(
        tokeniser(config.text_options, paths),
        config.image_options.get("img_dim"),
        transform and transform(config.image_options),
    )

"""Files of earlier versions of our format, brought to the present one."""

from __future__ import annotations

from typing import Any

from lib.core.errors import InputError, shown

VERSION, DIGESTS_SINCE = 4, 4


def upgrade(content: dict[str, Any], version: int) -> dict[str, Any]:
    """The content of a file of `version` (1 or later) as the present version would have written it.

    Raises InputError for image features that version 1 had not.
    """
    if version < 2 and isinstance(content.get("config"), dict):
        content = _from_version_1(content)
    if version < 3:  # which was written at the end of an epoch alone
        content = {"best_step": 0, "position": {}} | content
    if version < 4:  # in which the best epoch's file had no optimizer, and the latest's had one
        settings = content.get("settings")
        best = isinstance(settings, dict) and not content.get("optimizer")
        content = {"chosen_on": settings.get("val_split") if best else None} | content
    return content


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one flat configuration, `released_extras` for `extras`, no parameters of a loss, a group "bert"."""
    config = dict(content["config"])
    head = {name: config.pop(name) for name in ("kernel_size", "no_imgnorm", "no_txtnorm") if name in config}
    if config.get("similarity") == "vse_infty":
        head.pop("kernel_size", None)
    regions = {name: config.pop(name) for name in ("img_dim",) if name in config}
    grid = {name: config.pop(name) for name in ("backbone_source", "input_scale_factor") if name in config}
    if (images := config.pop("precomp_enc_type", "basic")) not in ("basic", "backbone"):
        raise InputError(f"its precomp_enc_type is {shown(images)}, expected basic or backbone; the file was altered")
    is_grid = images == "backbone"
    config |= {
        "image_encoder": "grid" if is_grid else "regions",
        "text_encoder": "bert",
        "similarity_options": head,
        "image_options": grid if is_grid else regions,
        "text_options": config.pop("bert", {}),
    }
    rest = {name: value for name, value in content.items() if name != "released_extras"}
    return rest | {
        "config": config,
        "optimizer": _renamed_group(content.get("optimizer")),
        "criterion": {},
        "extras": content.get("released_extras", {}),
    }


def _renamed_group(optimizer: Any) -> Any:
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("param_groups"), list):
        return optimizer
    groups = [
        group | {"name": "text"} if isinstance(group, dict) and group.get("name") == "bert" else group
        for group in optimizer["param_groups"]
    ]
    return optimizer | {"param_groups": groups}

"""What works on a model, from its config alone: nothing is downloaded but that, nothing is loaded.

The model is built on the meta device, where weights take no memory and no time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.model.anatomy import Anatomy, anatomy
from prunebench.model.config_check import check_plain
from prunebench.model.depth import keep_layers
from prunebench.model.experts import find_experts
from prunebench.model.folder import read_config
from prunebench.model.hub_access import Wanted
from prunebench.model.hub_files import hub_file
from prunebench.model.meta_forward import first_line
from prunebench.model.quiet import quiet
from prunebench.model.supported import causal_types, check_family
from prunebench.schema import Part

LEVELS = ("layers", "weights", "depth", "blocks", "width", "experts")
"""What can be asked of a model, in the order of what it takes."""
_OFFLINE = "without a network name a folder that has a config.json"


class LevelAnswer(Part):
    """Whether one level works on a model."""

    works: bool
    text: str = Field(description="what was found, or in one sentence why it does not work")


class ModelLevels(Part):
    """What works on one model."""

    model: str
    model_type: str
    parameters: int | None = Field(None, description="null if the model cannot be built")
    levels: dict[str, LevelAnswer] = Field(description="by the names in LEVELS")


def model_levels(model: str, *, trust_remote_code: bool = False) -> ModelLevels:
    """What works on ``model``: a folder with a config.json, a Hub id, or a `model_type`.

    Of a `model_type` the default config is taken. Raises PrunebenchError if there is no config to
    look at. What it describes never raises: every level that does not work says why.
    """
    config, source = _config(model)
    model_type = str(config.get("model_type"))
    try:
        check_family(config, model)
        check_plain(config, model)
        built = _build(config, source, trust_remote_code=trust_remote_code)
        parts = anatomy(built)
    except PrunebenchError as error:
        levels = {level: LevelAnswer(works=False, text=error.message) for level in LEVELS}
        return ModelLevels(model=model, model_type=model_type, levels=levels)
    asked: Mapping[str, Callable[[Anatomy], str]] = {
        "layers": _layers,
        "weights": _weights,
        "depth": _depth,
        "blocks": _blocks,
        "width": _width,
        "experts": _experts,
    }
    return ModelLevels(
        model=model,
        model_type=model_type,
        parameters=sum(each.numel() for each in built.parameters()),
        levels={level: _answer(asked[level], parts) for level in LEVELS},
    )


def all_levels() -> dict[str, dict[str, str]]:
    """What works on every type of transformers: '' or the sentence that a user gets, by level.

    As `tox run -e families` found it with a small random model of each type.
    """
    found: dict[str, dict[str, str]] = json.loads(
        (files("prunebench.app") / "families.json").read_text("utf-8")
    )
    return found


def _answer(ask: Callable[[Anatomy], str], parts: Anatomy) -> LevelAnswer:
    try:
        return LevelAnswer(works=True, text=ask(parts))
    except PrunebenchError as error:
        return LevelAnswer(works=False, text=error.message)


def _layers(parts: Anatomy) -> str:
    return f"{len(parts.layers)} in {parts.layers_path}"


def _weights(parts: Anatomy) -> str:
    linears = [parts.linears(layer) for layer in parts.layers]
    count = sum(map(len, linears))
    if not count:
        raise PrunebenchError("no linear of the layers is run by a text")
    size = sum(each.weight.numel() for found in linears for each in found.values())
    whole = sum(each.numel() for each in parts.model.parameters())
    return f"{count} matrices with {size / whole:.0%} of the parameters"


def _depth(parts: Anatomy) -> str:
    count = len(parts.layers)
    if count < 2:
        raise PrunebenchError("the model has one layer, and one has to stay")
    refusal: PrunebenchError | None = None
    # The middle, then the end: at the start many mixtures have dense layers that the config counts.
    for index in dict.fromkeys((count // 2, count - 2, count - 1)):
        shorter = anatomy(copy.deepcopy(parts.model))
        try:
            keep_layers(shorter, [each for each in range(count) if each != index])
        except PrunebenchError as error:
            refusal = refusal or error
        else:
            some = "" if refusal is None else f", but not all: {refusal.message}"
            return f"layers can be removed{some}"
    assert refusal is not None
    raise refusal


def _blocks(parts: Anatomy) -> str:
    found = [(parts.sub_block(parts.layers[layer], kind), kind) for layer, kind in parts.blocks]
    refused = [block.no_removal for block, _ in found if block is not None and block.no_removal]
    if len(refused) == len(found):
        raise _unknown(parts, refused)
    return f"{len(found) - len(refused)} attentions and MLPs can be removed{_but(refused)}"


def _width(parts: Anatomy) -> str:
    found = [parts.sub_block(parts.layers[layer], kind) for layer, kind in parts.blocks]
    refused = [block.no_cut for block in found if block is not None and block.no_cut]
    if len(refused) == len(found):
        raise _unknown(parts, refused)
    count = len(found) - len(refused)
    return f"KV groups or channels of {count} attentions and MLPs can be removed{_but(refused)}"


def _but(refused: Sequence[str]) -> str:
    return f", but not all: {refused[0]}" if refused else ""


def _unknown(parts: Anatomy, refused: Sequence[str]) -> PrunebenchError:
    """Why nothing can be removed."""
    if refused:
        return PrunebenchError(refused[0])
    _ = parts.coupling  # raises if no small model of this class runs
    name = type(parts.layers[0]).__name__
    return PrunebenchError(f"nobody can tell the attention and the MLP of a {name} apart")


def _experts(parts: Anatomy) -> str:
    found = [each for layer in parts.layers for each in find_experts(layer).values()]
    if not found:
        raise PrunebenchError("the layers have no routed experts in fused parameters")
    return f"{sum(map(len, found))} in {len(found)} layers"


def _config(model: str) -> tuple[dict[str, Any], Path | None]:
    """A model's config, and its folder; no folder if ``model`` is a type."""
    path = Path(model).expanduser()
    if path.is_dir():
        return read_config(path), path
    if model in causal_types():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        try:
            return {**CONFIG_MAPPING[model]().to_dict(), "model_type": model}, None
        except Exception as error:
            raise PrunebenchError(
                f"the type {model} has no default config ({first_line(error)})",
                hint="name a folder or a Hub id with a config.json",
            ) from error
    repository, _, revision = model.partition("@")
    if repository.count("/") != 1 or path.is_absolute():
        raise PrunebenchError(
            f"'{model}' is neither a folder, a Hub id 'org/name' nor a model_type of transformers",
            hint=did_you_mean(model, causal_types()),
        )
    folder = hub_file(Wanted("model", repository, revision or None, _OFFLINE), "config.json").parent
    return read_config(folder), folder


def _build(config: Mapping[str, Any], source: Path | None, *, trust_remote_code: bool) -> Any:
    """The model on the meta device. Raises PrunebenchError if transformers cannot build it."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        with quiet(), torch.device("meta"):
            made = (
                CONFIG_MAPPING[config["model_type"]]()
                if source is None
                else AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            )
            return AutoModelForCausalLM.from_config(
                made, trust_remote_code=trust_remote_code
            ).eval()
    except Exception as error:
        raise PrunebenchError(
            f"transformers cannot build a {config['model_type']} model from this config"
            f" ({first_line(error)})",
            hint="its code may need --trust-remote-code or another package",
        ) from error

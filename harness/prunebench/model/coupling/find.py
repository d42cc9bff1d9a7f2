"""What belongs together in a model: found and proved once for each class, and remembered.

The proof runs on a small random model built from the same config with small sizes. Its result is
kept in memory and in the user's cache folder, under a key of the class, the version of
transformers, the small config and the rules themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir
from prunebench.model.coupling.alike import few_layers
from prunebench.model.coupling.proof import ProofModel, confirm, failure, is_parallel, prove
from prunebench.model.coupling.rules import heads_of
from prunebench.model.coupling.shrink import small_configs
from prunebench.model.coupling.sub_block import Coupling, Kind, LayerCoupling, SubBlock
from prunebench.model.coupling.whole import whole
from prunebench.model.files import atomic_replace
from prunebench.model.layers import decoder_layers

_FOUND = "_coupling"
"""The attribute of a layer, and of a model, that holds what was found. Surgery does not lose it."""
_SEED = 20
_STORED: TypeAdapter[Coupling | str] = TypeAdapter(Coupling | str)
_known: dict[tuple[type, str], Coupling] = {}
"""By class and config as it is."""
_memory: dict[str, Coupling | str] = {}
"""By the key of the small config."""


def layer_coupling(model: Any, layer: torch.nn.Module) -> LayerCoupling:
    """What is known of one layer of ``model``.

    Raises PrunebenchError if no small model of this class runs.
    """
    if _FOUND not in vars(layer):
        _attach(model)
    found: LayerCoupling = vars(layer)[_FOUND]
    return found


def model_coupling(model: Any) -> Coupling:
    """What is known of the whole model, in particular what its config can hold.

    Raises PrunebenchError if no small model of this class runs.
    """
    if _FOUND not in vars(model):
        _attach(model)
    found: Coupling = vars(model)[_FOUND]
    return found


def inherit(new: torch.nn.Module, old: torch.nn.Module) -> None:
    """Let ``new``, which takes the place of the layer ``old``, know the same."""
    if _FOUND in vars(old):
        vars(new)[_FOUND] = vars(old)[_FOUND]


def _attach(model: Any) -> None:
    attach(model, coupling_of(type(model), model.config))


def attach(model: Any, coupling: Coupling) -> None:
    """Write what is known into the model and its layers, which must still be as the config says."""
    layers = decoder_layers(model)
    if len(coupling.layers) != len(layers):
        raise PrunebenchError(
            f"{type(model).__name__} has {len(layers)} layers, "
            f"its config says {len(coupling.layers)}",
            hint="the checkpoint's weights do not fit its config",
        )
    # On the layers and not in a table by model: copies of a model, and models that lost layers,
    # keep what is known of each layer.
    config = model.config.get_text_config(decoder=True)
    for layer, found in zip(layers, coupling.layers, strict=True):
        blocks = {kind: _sized(block, layer, config) for kind, block in found.blocks.items()}
        vars(layer)[_FOUND] = replace(found, blocks=blocks)
    vars(model)[_FOUND] = coupling


def _sized(block: SubBlock, layer: torch.nn.Module, config: Any) -> SubBlock:
    """The sub-block with the heads of this layer instead of those of the small model."""
    if block.heads is None:
        return block
    try:
        heads = heads_of(block, layer, config)
    except AttributeError:  # removed before anybody asked
        return block
    if heads is None:
        return replace(block, no_cut=f"the heads of {block.modules[-1]} do not fit its linears")
    if block.heads.keys == block.heads.query:  # such as latent attention: one key head for each
        heads = heads._replace(keys=heads.query)
    return replace(block, heads=heads)


def coupling_of(kind: type, config: Any) -> Coupling:
    """What belongs together in models of class ``kind``, one entry for each layer of ``config``.

    Raises PrunebenchError if no small model of this class runs.
    """
    said = (kind, json.dumps(_told(config), sort_keys=True, default=repr))
    if said not in _known:
        # Small models and linears are made for it: what the caller draws next must not depend on
        # whether that was done before.
        with torch.random.fork_rng(devices=[]):
            _known[said] = _found(kind, config)
    return _known[said]


def _found(kind: type, config: Any) -> Coupling:
    reason = "its config cannot be made small"
    # A small config that does not run is remembered too, with the reason, and the next one tried.
    for small in small_configs(config, _parameters(kind, config)):
        key = _key(kind, small)
        found = _memory.get(key) or _read(key)
        if found is None:
            found = _proved(kind, small)
            _write(key, found)
        _memory[key] = found
        if isinstance(found, Coupling):
            return found
        reason = found
    raise PrunebenchError(
        f"no small model of the class {kind.__name__} runs: {reason}",
        hint="attentions and MLPs of this model can be neither removed nor made narrower",
    )


def _parameters(kind: type, config: Any) -> int:
    try:
        with torch.device("meta"):
            built = kind(config)
    except Exception:
        return 1 << 62  # make it small: that may help
    return sum(parameter.numel() for parameter in built.parameters())


def _proved(kind: type, config: Any) -> Coupling | str:
    """The coupling of models with this small config, or why none of them runs."""
    try:
        with torch.device("cpu"):
            torch.manual_seed(_SEED)
            model, groups = few_layers(kind, config)
            _randomise(model.to(torch.float32).eval())
        proof = ProofModel(model, decoder_layers(model))
    except Exception as error:
        return failure(error)
    text = model.config.get_text_config(decoder=True)
    with torch.no_grad():
        blocks: list[dict[Kind, SubBlock]] = [{} for _ in proof.layers]
        parallel: dict[int, bool] = {}
        for group in groups:
            first, last = group.built[0], group.built[-1]
            own = prove(proof, first, text)
            if last != first:  # whether it is the first layer may matter
                own = confirm(proof, last, own)
            for index in group.built:
                blocks[index] = own
            parallel[first] = is_parallel(proof, first, own)
        found = whole(proof, blocks)
    layers: dict[int, LayerCoupling] = {}
    for group in groups:
        first = group.built[0]
        known = replace(found.layers[first], parallel=parallel[first])
        layers |= dict.fromkeys(group.meant, known)
    return replace(found, layers=tuple(layers[index] for index in sorted(layers)))


def _randomise(model: torch.nn.Module) -> None:
    """Random weights, norms and biases: what one of them does must show in the logits."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = False
        if not parameter.is_floating_point():
            continue
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.08)
        elif name.endswith(("weight", "bias", "sinks")):
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.1)


def _told(config: Any) -> dict[str, Any]:
    """What a config says about the parts of a model."""
    names = ("dtype", "torch_dtype", "transformers_version", "architectures", "_name_or_path")
    return {name: value for name, value in config.to_dict().items() if name not in names}


def _key(kind: type, config: Any) -> str:
    import transformers

    said = json.dumps(
        [
            f"{kind.__module__}.{kind.__qualname__}",
            transformers.__version__,
            _told(config),
            _sources(kind),
            _rules(),
        ],
        sort_keys=True,
        default=repr,
    )
    return hashlib.sha256(said.encode()).hexdigest()


@cache
def _sources(kind: type) -> str:
    """A hash of the code of a class that is not transformers' own; '' for one that is."""
    if kind.__module__.startswith("transformers.models."):
        return ""
    with contextlib.suppress(OSError, TypeError):
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    return ""


@cache
def _rules() -> str:
    """A hash of the rules: what older ones found is found again."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _file(key: str) -> Path:
    return cache_dir() / "coupling" / f"{key}.json"


def _read(key: str) -> Coupling | str | None:
    try:
        return _STORED.validate_json(_file(key).read_bytes())
    except (OSError, ValueError, PrunebenchError):
        return None


def _write(key: str, found: Coupling | str) -> None:
    # Without a cache that can be written the proof runs again next time; that is no error.
    with contextlib.suppress(OSError, PrunebenchError), atomic_replace(_file(key)) as aside:
        aside.write_bytes(_STORED.dump_json(found))

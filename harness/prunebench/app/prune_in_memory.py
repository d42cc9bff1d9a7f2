"""Prune a transformers model that is already in memory, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from prunebench.cell.setup import vocabulary_size
from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.measure.audit import audit, dense_facts
from prunebench.model.anatomy import anatomy
from prunebench.model.positions import check_positions
from prunebench.plugin.api.context import Context
from prunebench.plugin.api.sparsity import pattern_of
from prunebench.plugin.asked import missed
from prunebench.plugin.option_values import first_fault, read_options
from prunebench.plugin.plugin_code import plugin_code
from prunebench.text.windows import check_ids

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.record.audit import Audit


def prune_in_memory(
    model: Any,
    method: str,
    options: Mapping[str, Any],
    tokens: torch.Tensor | Mapping[str, Any] | None,
    seed: int,
    registry: Registry,
) -> tuple[Audit, dict[str, Any], dict[str, Any]]:
    """Prune ``model``; returns its audit, the method's notes, and its origin for pruning.json.

    ``tokens`` are calibration token ids, int64 [windows, length]. Raises PrunebenchError for
    anything that the user can mend.
    """
    if isinstance(tokens, Mapping) or {"recovery", "allocation"} & set(options):
        raise PrunebenchError(
            "a model in memory takes its calibration tokens as a tensor, "
            "and neither allocation nor recovery",
            hint="give int64 ids [windows, length], or name the model's folder instead",
        )
    kind = _checked_method(method, registry)
    chosen = _checked_options(method, kind, options)
    if kind.needs_calibration_for(chosen) and tokens is None:
        raise PrunebenchError(
            f"'{method}' needs calibration",
            hint="give token ids as an int64 tensor [windows, length]",
        )
    if tokens is not None:
        _check_tokens(model, tokens)
    dense = dense_facts(model)
    context = Context(tokens, seed, list(range(len(anatomy(model).layers))))
    # Dropout would make calibration random; afterwards the model is in its own mode again.
    training = model.training
    model.eval()
    pruner = kind(chosen)
    with torch.no_grad(), plugin_code(pruner):
        pruner.prune(model, context)
    model.train(training)
    # 2:4 is always counted: it is the pattern that GPUs accelerate.
    pattern = pattern_of(getattr(chosen, "sparsity", 0.0))
    patterns = sorted({(2, 4), (pattern.keep, pattern.of)} if pattern else {(2, 4)})
    made_by = {
        "method": method,
        "options": chosen.model_dump(mode="json"),
        "kept_layers": context.kept_layers,
    }
    audited = audit(model, dense, context.dense_indices, patterns)
    audited = audited.model_copy(update={"missed": missed(chosen, audited)})
    return audited, context.notes, made_by


def _check_tokens(model: Any, tokens: torch.Tensor) -> None:
    """Raise PrunebenchError if the model cannot take these calibration tokens."""
    if not isinstance(tokens, torch.Tensor) or tokens.dtype != torch.int64 or tokens.ndim != 2:
        raise PrunebenchError(
            "calibration tokens are an int64 tensor [windows, length]",
            hint="for example tokenizer(texts, return_tensors='pt').input_ids",
        )
    check_positions(model, tokens.shape[1], "a calibration window")
    check_ids(tokens.numpy(force=True), vocabulary_size(model), "the calibration")


def _checked_method(name: str, registry: Registry) -> Any:
    if name not in registry["method"]:
        raise PrunebenchError(
            f"unknown method '{name}'", hint=did_you_mean(name, registry["method"])
        )
    return registry["method"][name].value


def _checked_options(method: str, kind: Any, options: Mapping[str, Any]) -> Any:
    try:
        chosen = read_options(kind.Options, options)
    except ValidationError as error:
        key, message = first_fault(error)
        raise PrunebenchError(
            f"{method}: {key}: {message}", hint=f"`prunebench plugins show {method}` lists them"
        ) from error
    except (TypeError, ValueError) as error:  # of what JSON cannot express
        raise PrunebenchError(f"{method}: {error}", hint="give numbers, texts and lists") from error
    defaults = kind.Options.model_construct()
    for key, reason in chosen.without_effect().items():
        if key in options and options[key] != getattr(defaults, key, None):
            raise PrunebenchError(
                f"{method}: {key}: has no effect with {reason.because}", hint="leave it out"
            )
    return chosen

"""Level 3 on one type: a layer less, with a cache as without one, saved and loaded again."""

from __future__ import annotations

from typing import Any

import torch

from families.levels import WORKS, level
from families.weights import TOKENS, check_saved, logits, planned, refused
from prunebench import PrunebenchError, anatomy
from prunebench.model.surgery import remove_layers
from prunebench.testing.any_type import tiny_model


@torch.no_grad()
def generated(model: Any, *, use_cache: bool) -> Any:
    return model.generate(
        TOKENS[:1], max_new_tokens=5, do_sample=False, use_cache=use_cache, pad_token_id=0,
        eos_token_id=None, bos_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip


def has_a_sound_cache(model: Any) -> bool:
    """Whether logits are the same with a cache, as far as the tokens before them are."""
    try:
        one, other = generated(model, use_cache=True), generated(model, use_cache=False)
    except Exception:  # the caller asks the same of the dense model
        return False
    same = True
    for a, b in zip(one.logits, other.logits, strict=True):
        same = same and torch.allclose(a, b, atol=1e-3, rtol=1e-3)
        if not torch.equal(a.argmax(-1), b.argmax(-1)):
            break
    return same


@level("depth")
def depth(model_type: str) -> str:
    works, sentence = 0, ""
    for index in (1, 2):
        model = planned_or(model_type)
        if isinstance(model, str):
            return model
        dense = logits(model)
        try:
            remove_layers(model, [index])
        except PrunebenchError as error:
            sentence = refused(error)
            assert torch.equal(logits(model), dense), "refused, and yet another model"
            continue
        check(model, dense)
        if not has_a_sound_cache(model):
            # The cache of some types is wrong before anything is removed; nobody can tell more.
            assert not has_a_sound_cache(tiny_model(model_type)), "other logits with a cache"
        works += 1
    return WORKS if works else sentence


def planned_or(model_type: str) -> Any:
    try:
        model = planned(model_type)
        anatomy(model)
    except PrunebenchError as error:
        return refused(error)
    return model


def check(model: Any, dense: torch.Tensor) -> None:
    found = logits(model)
    assert len(anatomy(model).layers) == 3
    assert not torch.equal(found, dense), "the layer does nothing"
    check_saved(model, found)

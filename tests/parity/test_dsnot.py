"""DSnoT's masks against those of its released code, on fixed tokens.

Layer 0 is equal bit by bit, and every row of every layer has its number of zeros. Deeper masks are
chaotic: each exchange decides the next, so that one near-tie changes the rest of a row, and the
inputs of all layers behind it. How much that is, two runs of our own say that differ only in
rounding: one has the embeddings of the checkpoint, the other one their next higher neighbours in
float32. As for the other methods, the released code may differ from each by twice that. (On equal
inputs a restatement of that code gave our masks of layer 14 bit by bit.)
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from smollm2 import reference_file, reference_tokens, smollm2

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]

LAYERS = (0, 14)
"""The official run ended after layer 14."""
RUN = "skip_mlp_default"

Masks = dict[tuple[int, str], np.ndarray]


def pruned(*, nudged: bool) -> Masks:
    """The masks [out, in] of both layers, by layer and linear; True for pruned weights.

    ``nudged``: every embedding is one float32 higher.
    """
    model = smollm2().model
    if nudged:
        embeddings = model.get_input_embeddings().weight
        embeddings.data = embeddings.data.nextafter(torch.tensor(torch.inf))
    parts = anatomy(model)
    cls = load_plugins()["method"]["dsnot"].value
    context = Context(reference_tokens("calib")[:2], 0, list(range(30)))
    with torch.no_grad():
        cls(cls.Options(sparsity=0.6, layers=(None, 15))).prune(model, context)
    print(f"\ndsnot from wanda 60 %, {nudged=}: {context.notes}")
    return {
        (index, name): (linear.weight == 0).numpy()
        for index in LAYERS
        for name, linear in parts.linears(parts.layers[index]).items()
    }


def differing(one: Masks, other: Masks, layer: int) -> float:
    """The share of a layer's mask bits that differ."""
    of_layer = [key for key in one if key[0] == layer]
    wrong = sum(int((one[key] != other[key]).sum()) for key in of_layer)
    return wrong / sum(one[key].size for key in of_layer)


def test_masks_agree_with_the_released_code() -> None:
    arrays = np.load(reference_file("related/dsnot.npz"))
    run = json.loads(reference_file("related/dsnot.json").read_text())["runs"][RUN]
    exact, near = pruned(nudged=False), pruned(nudged=True)
    official = {
        (index, name): np.unpackbits(arrays[f"{RUN}.{index}.{name}"])[: mask.size]
        .astype(bool)
        .reshape(mask.shape)
        for (index, name), mask in exact.items()
    }
    for (index, name), mask in [*exact.items(), *near.items()]:
        total, least, most = run["zeros"][f"{index}.{name}"]
        by_row = mask.sum(axis=1)
        assert (int(mask.sum()), by_row.min(), by_row.max()) == (total, least, most), name
    for index in LAYERS:
        own = differing(exact, near, index)
        found = {
            what: differing(ours, official, index)
            for what, ours in (("exact", exact), ("near", near))
        }
        print(f"dsnot layer {index}: bits that differ: ours {own:.2e}, from official {found}")
        assert max(found.values()) <= max(1e-5, 2 * own)
        if index == 0:
            assert own <= 1e-5

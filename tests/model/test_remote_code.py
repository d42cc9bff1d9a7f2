"""Models that bring their own code are pruned at all levels, as those of transformers are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunebench.model.anatomy import Block, anatomy
from prunebench.model.checkpoint import save
from prunebench.model.load import load
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups
from remote_code import write_folder
from tiny import tiny_tokenizer

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300
CUTS = {
    "baichuan": ({"W_pack": 3, "o_proj": 1}, {"gate_proj": 1, "up_proj": 1, "down_proj": 1}),
    "chatglm": ({"query_key_value": 3, "dense": 1}, {"dense_h_to_4h": 2, "dense_4h_to_h": 1}),
}


@pytest.mark.parametrize("style", CUTS)
def test_own_code_is_pruned_at_all_levels_and_loads_again(style: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "dense", style)
    model = load(tmp_path / "dense", dtype="float32", device="cpu", trust_remote_code=True).model
    parts = anatomy(model)
    layer = parts.layers[1]
    for kind, expected in zip(("attention", "mlp"), CUTS[style], strict=True):
        cuts = parts.cuts(layer, kind)
        assert {cut.linear.split(".")[-1]: cut.parts for cut in cuts} == expected
    for kind, reader in (
        ("attention", parts.head_reader(layer)),
        ("mlp", parts.channel_reader(layer)),
    ):
        groups = parts.groups(layer, kind)
        layer.get_submodule(reader).weight.data.unflatten(1, (groups, -1))[:, ::2] = 0
    wanted = model(IDS).logits
    for kind in ("attention", "mlp"):
        keep_groups(model, {Block(1, kind): range(1, parts.groups(layer, kind), 2)})
    torch.testing.assert_close(model(IDS).logits, wanted, atol=1e-5, rtol=1e-5)
    remove_blocks(model, [Block(0, "attention")])
    remove_layers(model, [2])
    for linear in parts.linears(parts.layers[0]).values():
        linear.weight.data[:, ::2] = 0
    found = model(IDS).logits
    text = [
        model.generate(IDS[:1], max_new_tokens=4, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*text)
    save(model, tiny_tokenizer(), tmp_path / "pruned", made_by={})
    again = load(tmp_path / "pruned", dtype="float32", device="cpu", trust_remote_code=True).model
    assert torch.equal(again(IDS).logits, found)

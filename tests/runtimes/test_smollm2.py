"""SmolLM2 as methods leave it: the engines give the tokens of its own code, or say why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from prunebench import PrunebenchError, prune
from prunebench.measure.speed.runtime_tokens import agreement, greedy_logits
from prunebench.model.checkpoint import save
from prunebench_plugins.llama_cpp import LlamaCpp
from prunebench_plugins.onnxruntime import OnnxRuntime
from smollm2 import smollm2

pytestmark = pytest.mark.runtimes

NEW = 32
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "shortgpt": ("shortgpt", {"count": 8}),
    "blockpruner": ("blockpruner", {"count": 4}),
    "llm-pruner 25 %": ("llm-pruner", {"ratio": 0.25}),  # of 3 KV groups all stay
    "llm-pruner 40 %": ("llm-pruner", {"ratio": 0.4}),
    "wanda 70 %": ("wanda", {"sparsity": 0.7}),
    "wanda 2:4": ("wanda", {"sparsity": "2:4"}),
}
REFUSED = {("onnxruntime", "llm-pruner 40 %"): "KV heads differ between layers"}
PROMPT = torch.randint(0, 49152, (1, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense() -> Any:
    return smollm2()


@pytest.fixture(scope="module", params=METHODS)
def pruned(request, dense, tmp_path_factory) -> Any:
    """(name, model, folder) of one method."""
    method, options = METHODS[request.param]
    model = copy.deepcopy(dense.model)
    text = torch.randint(0, 49152, (2, 64), generator=torch.Generator().manual_seed(1))
    prune(model, method, options=options, calibration=None if method == "dense" else text)
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    save(model, dense.tokenizer, folder, made_by={"method": method})
    return request.param, model, folder


@pytest.mark.parametrize("kind", [LlamaCpp, OnnxRuntime])
def test_greedy_tokens_are_the_models_own(kind, pruned, tmp_path):
    name, model, folder = pruned
    runtime = kind(kind.Options())
    out = tmp_path / "converted"
    out.mkdir()
    if reason := REFUSED.get((kind.name, name)):
        with pytest.raises(PrunebenchError, match=reason):
            runtime.convert(folder, out, "fp32")
        return
    assert runtime.refuses(folder) is None
    session = runtime.open(runtime.convert(folder, out, "fp32"), 2, PROMPT.shape[1] + NEW)
    found = list(session.tokens(PROMPT[0].tolist()))
    session.close()
    judged = agreement(greedy_logits(model, PROMPT, NEW), found)
    print(f"{kind.name}, {name}: {judged}")
    assert judged.same

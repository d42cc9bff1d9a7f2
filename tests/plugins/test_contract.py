"""The built-in methods, allocations and recoveries keep the contract for plugins."""

from __future__ import annotations

from prunebench.plugin.host import load_plugins
from prunebench.testing import AllocationContract, MethodContract, RecoveryContract

REGISTRY = load_plugins()
METHODS = {
    name: entry.value
    for name, entry in REGISTRY["method"].items()
    if entry.distribution == "prunebench"
}
SHORT = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}
TRIED = {
    "dense": {},
    "random": {"sparsity": 0.5},
    "magnitude": {"sparsity": 0.3},
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5, "block_size": 16},
    "ria": {"sparsity": 0.5},
    "besa": {"sparsity": 0.5},
    "dsnot": {"sparsity": 0.5, "skip_layer": "no_skip"},
    "imp": {"sparsity": 0.5, "rounds": 2, **SHORT},
    "llm-pruner": {"ratio": 0.5, "protect_first": 1, "protect_last": 0},
    "hywia": {"ratio": 0.5, "protect_first": 1, "protect_last": 0},
    "flap": {"ratio": 0.5},
    "disp-llm": {"ratio": 0.5, "total_n_step": 3, "hidden_size": 4, "hn_lr": 0.1},
    "minitron": {"ratio": 0.3, "multiple_of": 1},
    "blockpruner": {"count": 2},
    "budget-search": {"target_parameters": 0.3, "rounds": 1, "mlp": [0.5], "multiple_of": 8},
    "slicegpt": {"ratio": 0.25, "round_interval": 4},
    "shortgpt": {"count": 1},
    "llm-streamline": {"ratio": 0.25},
    "reap": {"ratio": 0.5},
    "shortened-llama": {"count": 1, "criterion": "taylor", "plus_heuristic": False},
    "sleb": {"count": 1},
    "laco": {"C": 2, "target": 0.25},
    "layer-similarity": {"count": 1},
    "apply": {"units": {"layers": [2], "attention": [0], "mlp_channels": {"1": "0-9"}}},
}


class _Ours(MethodContract):
    families = ("llama",)  # tests/plugins/test_families.py has them all


class _OnOPT(MethodContract):
    families = ("opt",)  # biases, tied embeddings, ReLU


def test_every_method_is_tried() -> None:
    assert set(TRIED) == set(METHODS)


class TestDense(_Ours):
    method = METHODS["dense"]


class TestRandom(_OnOPT):
    method, options = METHODS["random"], TRIED["random"]


class TestMagnitude(_Ours):
    method, options = METHODS["magnitude"], TRIED["magnitude"]


class TestMagnitudeGlobal(_OnOPT):
    method, options = METHODS["magnitude"], {"sparsity": 0.5, "scope": "global"}


class TestWanda(_Ours):
    method, options = METHODS["wanda"], TRIED["wanda"]


class TestSparseGPT(_OnOPT):
    method, options = METHODS["sparsegpt"], TRIED["sparsegpt"]


class TestRIA(_OnOPT):
    method, options = METHODS["ria"], TRIED["ria"]


class TestBESA(_OnOPT):
    method, options = METHODS["besa"], TRIED["besa"]


class TestDSnoT(_Ours):
    method, options = METHODS["dsnot"], TRIED["dsnot"]


class TestMinitron(_Ours):
    method, options = METHODS["minitron"], TRIED["minitron"]


class TestIMP(_OnOPT):
    method, options = METHODS["imp"], TRIED["imp"]


class TestLLMPruner(_Ours):
    method, options = METHODS["llm-pruner"], TRIED["llm-pruner"]


class TestHyWIA(_OnOPT):
    method, options = METHODS["hywia"], TRIED["hywia"]


class TestFLAP(_Ours):
    method, options = METHODS["flap"], TRIED["flap"]


class TestDISPLLM(_Ours):
    method, options = METHODS["disp-llm"], TRIED["disp-llm"]


class TestBlockPruner(_OnOPT):
    method, options = METHODS["blockpruner"], TRIED["blockpruner"]


class TestBudgetSearch(_OnOPT):
    method, options = METHODS["budget-search"], TRIED["budget-search"]


class TestSliceGPT(_Ours):
    method, options = METHODS["slicegpt"], TRIED["slicegpt"]
    # It rotates at ratio 0 too, which rounds the logits, and its rotations are parameters, more on
    # a small model than what a small ratio removes: tests/plugins/test_slicegpt.py has both.
    promises = tuple(one for one in MethodContract.promises if one.name not in {"zero", "more"})


class TestShortGPT(_Ours):
    method, options = METHODS["shortgpt"], TRIED["shortgpt"]


class TestLLMStreamline(_Ours):
    method, options = METHODS["llm-streamline"], TRIED["llm-streamline"]


class TestShortenedLLaMA(_Ours):
    method, options = METHODS["shortened-llama"], TRIED["shortened-llama"]


class TestSLEB(_OnOPT):
    method, options = METHODS["sleb"], TRIED["sleb"]


class TestLaCo(_OnOPT):
    method, options = METHODS["laco"], TRIED["laco"]


class TestLayerSimilarity(_Ours):
    method, options = METHODS["layer-similarity"], TRIED["layer-similarity"]


class TestReap(MethodContract):
    method, options, families = METHODS["reap"], TRIED["reap"], ("qwen3_moe", "mixtral")


class TestWandaOnExperts(MethodContract):
    method, options, families = METHODS["wanda"], TRIED["wanda"], ("qwen3_moe",)


class TestApply(_Ours):
    method, options = METHODS["apply"], TRIED["apply"]


class TestUniform(AllocationContract):
    allocation, families = REGISTRY["allocation"]["uniform"].value, ("llama",)


class TestOWL(AllocationContract):
    allocation, families, options = (
        REGISTRY["allocation"]["owl"].value,
        ("llama", "gpt_neox"),
        {"threshold": 3.0},
    )


class TestAlphaPruning(AllocationContract):
    allocation, families = REGISTRY["allocation"]["alphapruning"].value, ("llama", "gpt_neox")


class TestECoFLaP(AllocationContract):
    allocation, families = REGISTRY["allocation"]["ecoflap"].value, ("opt",)


class TestECoFLaPFirstOrder(AllocationContract):
    allocation, families, options = (
        REGISTRY["allocation"]["ecoflap"].value,
        ("llama",),
        {"use_mezo": False, "approach_for_sparsity": "layer"},
    )


class TestBESAAllocation(AllocationContract):
    allocation, families = REGISTRY["allocation"]["besa"].value, ("llama",)


class TestLoRA(RecoveryContract):
    recovery, families, options = REGISTRY["recovery"]["lora"].value, ("llama",), SHORT


class TestFineTune(RecoveryContract):
    recovery, families, options = REGISTRY["recovery"]["finetune"].value, ("opt",), SHORT


class TestDistill(RecoveryContract):
    recovery, families, options = REGISTRY["recovery"]["distill"].value, ("llama",), SHORT


class TestStreamline(RecoveryContract):
    recovery, families, options = (
        REGISTRY["recovery"]["streamline"].value,
        ("llama",),
        {"batch_size": 2, "gradient_accumulation_step": 1, "replacement": "swiglu"},
    )

"""Constants that only decide how long a computation takes: other values give the same result.

Bit for bit where the order of additions stays the same, otherwise within the rounding of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from targets import SPEED_ONLY

from evaluation import SPEC, windows_of
from prunebench import Block, Context, anatomy
from prunebench.layerwise.masks import lowest
from prunebench.layerwise.partial_forward import PartialForward
from prunebench.layerwise.statistics import Hessian, InputNorm
from prunebench.measure.quality.perplexity import perplexity
from prunebench.model import batches
from prunebench.plugin.host import load_plugins
from prunebench.text.samplers import TextSource, sample
from prunebench.training.loss import next_token_backward
from prunebench.training.windows import TrainingWindows
from prunebench_plugins import sparsegpt_kernel
from prunebench_plugins.distill import Distill
from prunebench_plugins.distill_objective import Distillation
from prunebench_plugins.kl_divergence import divergence
from prunebench_plugins.llm_pruner_groups import local_counts, members, pool_of, ratio_for
from prunebench_plugins.llm_pruner_scores import taylor_vectors
from prunebench_plugins.sparsegpt import Rows, inverse_factor, sweep
from prunebench_plugins.sparsegpt_kernel import Kernel
from tiny import tiny_model

Result = list[torch.Tensor]


class Case(NamedTuple):
    """How to see that a constant changes no result."""

    compute: Callable[[], Result]
    others: Sequence[Any]
    """Other values of the constant; some take other paths."""
    rounding: float = 0.0
    """The largest relative difference; 0 if the result is the same bit for bit."""
    beside: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """Constants of the same module that must have this value for this one to play a part."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(windows: int = 5, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 320, (windows, length), generator=torch.Generator().manual_seed(3))


def swept(kernel: Kernel | None = None) -> Result:
    inputs = drawn(72, 200, seed=1).double() * torch.arange(1, 73).double()[:, None].sqrt()
    found: Result = []
    for sparsity in (0.5, "2:4"):
        columns = drawn(72, 9).double()
        factor = inverse_factor(inputs @ inputs.t(), 0.01)
        assert factor is not None
        loss = sweep(columns, factor, [Rows(9, sparsity)], block_size=36, kernel=kernel)
        found += [columns, torch.tensor(loss)]
    return found


def sparsegpt_weights() -> Result:
    model = tiny_model("llama")
    method = load_plugins()["method"]["sparsegpt"].value
    with torch.no_grad():
        method(method.Options(sparsity=0.5)).prune(model, Context(ids(), 0, list(range(4))))
    return list(model.parameters())


def divergences() -> Result:
    return [divergence(drawn(40, 320, seed=1), drawn(40, 320, seed=2))]


def swept_by_kernel() -> Result:
    """Without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsegpt_kernel, "_compiled", lambda: sparsegpt_kernel.swept)
        return swept(Kernel())


def removed_blocks() -> Result:
    """The order of removal as numbers, and the losses."""
    model = tiny_model("llama")
    method = load_plugins()["method"]["blockpruner"].value
    context = Context(ids(3, 12), 0, list(range(4)))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches.BATCH_TOKENS, "cpu", 12)  # a window a batch
        method(method.Options(count=5)).prune(model, context)
    order = [unit.split(".") for unit in context.notes["removed_in_order"]]
    return [
        torch.tensor([10 * int(layer) + (kind == "mlp") for layer, kind in order]),
        torch.tensor(context.notes["perplexity_after_each"]),
    ]


def scores() -> Result:
    model = tiny_model("llama")
    wanted = [
        member
        for block in (Block(1, "attention"), Block(2, "mlp"))
        for member in members(anatomy(model), block)
    ]
    found = taylor_vectors(model, wanted, ids(), "param_first", lambda _done: None)
    return found + taylor_vectors(model, wanted, ids(), "param_mix", lambda _done: None)


def counts() -> Result:
    parts = anatomy(tiny_model("opt"))
    pools = [pool_of(parts, block, {}) for block in parts.blocks]
    take = local_counts(pools)
    return [torch.tensor(take(ratio_for(share, pools, take))) for share in range(0, 90_000, 5000)]


def ranked() -> Result:
    found = []
    for of in (2, 3, 4, 8, 14, 15, 16, 17, 18, 24):
        score = torch.randint(5, (6, 2 * of), generator=torch.Generator().manual_seed(of)).float()
        found += [lowest(score, f"{keep}:{of}", group="row") for keep in range(1, of)]
    return found


def hessian(dtype: torch.dtype) -> Callable[[], Result]:
    def compute() -> Result:
        found = Hessian(200, torch.device("cpu"))
        for seed in range(2):
            found.add(drawn(64, 200, seed=seed).to(dtype), 2)
        return [found.result()]

    return compute


def norms() -> Result:
    found = InputNorm(200, torch.device("cpu"))
    for seed in range(2):
        found.add(drawn(64, 200, seed=seed), 2)
    return [found.result()]


def losses() -> Result:
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunebench.layerwise.partial_forward.SUBSET", 8)
        patch.setitem(batches.BATCH_TOKENS, "cpu", 24)  # a window a batch
        forward = PartialForward(tiny_model("llama"), ids())
        states = forward.start()
        for layer in range(forward.layers):
            states = [forward.run(layer, batch, state) for batch, state in enumerate(states)]
        found = [torch.tensor(forward.nll(batch, end)) for batch, end in enumerate(states)]
        bounds = [forward.lower_bound(batch, end) for batch, end in enumerate(states)]
        assert None not in bounds
        found += [
            torch.tensor(bound(end)) for bound, end in zip(bounds, states, strict=True) if bound
        ]
    return found


def gradients() -> Result:
    model = tiny_model("llama").requires_grad_(requires_grad=True)
    with torch.enable_grad():
        loss = next_token_backward(model, ids(), 1 / 115)
    return [torch.tensor(loss), *(each.grad for each in model.parameters())]


def windows() -> Result:
    # Ids of which a longer text changes only the last one: the stable prefix leaves it out.
    documents = [chr(97 + index % 26) * (1 + index % 7) for index in range(300)]

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    found = []
    for count in (1, 5, 20, 40):
        source = TextSource(documents, encode, "\n\n", lambda text: encode(text)[:-1])
        found.append(torch.from_numpy(sample("consecutive", source, count, 20, 0).tokens))
        found.append(torch.from_numpy(sample("joined-rows", source, count, 20, 0).tokens))
    return found


def distilled() -> Result:
    model = tiny_model("llama").requires_grad_(True)
    options = Distill.Options(next_token_weight=0.5)
    Distillation(model, tiny_model("mistral"), options).backward(TrainingWindows(ids()), 1.0)
    return [parameter.grad for parameter in model.parameters()]


def negative_log_likelihood() -> Result:
    found = perplexity(tiny_model("llama"), windows_of(ids()), SPEC)
    return [torch.tensor([found.nll, found.nll_stderr])]


P, H = "plugins/prunebench_plugins", "harness/prunebench"
CASES: dict[tuple[str, str], Case] = {
    (f"{P}/sparsegpt.py", "STRIDE"): Case(swept, [1, 15, 17, 1000], 1e-10),
    (f"{P}/sparsegpt.py", "PANEL"): Case(swept, [1, 31, 71, 73], 1e-10),
    (f"{P}/sparsegpt.py", "PANELS"): Case(swept, [1, 2, 7, 100], 1e-10, {"PANEL": 1}),
    (f"{P}/sparsegpt.py", "TURNED"): Case(sparsegpt_weights, [1, 7, 1000]),
    (f"{P}/kl_divergence.py", "CACHE_BYTES"): Case(divergences, [1, 7 * 4 * 320, 33 << 20]),
    (f"{P}/sparsegpt_kernel.py", "STRIDE"): Case(swept_by_kernel, [3, 4, 15, 36], 1e-10),
    (f"{P}/removal_search.py", "PENDING"): Case(removed_blocks, [0, 1, 3, 5, 100], 1e-6),
    (f"{P}/removal_search.py", "FIRST_GUESS"): Case(removed_blocks, [0.0, 0.4, 1.0], 1e-6),
    (f"{P}/llm_pruner_scores.py", "BATCH_TOKENS"): Case(
        scores, [{"cpu": 1}, {"cpu": 48}, {"cpu": 513}], 1e-4
    ),
    (f"{P}/llm_pruner_scores.py", "BATCH_TOKENS_ELSEWHERE"): Case(
        scores, [1, 48, 2049], 1e-4, {"BATCH_TOKENS": {}}
    ),
    (f"{P}/llm_pruner_scores.py", "CHUNK"): Case(scores, [1, 100, 1 << 17], 1e-5),
    (f"{P}/llm_pruner_groups.py", "BISECTIONS"): Case(counts, [30, 39, 41, 50]),
    (f"{H}/layerwise/masks.py", "_SMALL_GROUP"): Case(ranked, [1, 15, 17, 100]),
    (f"{H}/layerwise/statistics.py", "PANEL"): Case(hessian(torch.float32), [1, 191, 193], 1e-4),
    (f"{H}/layerwise/statistics.py", "NUMPY_THREADS"): Case(norms, [0, 1]),
    (f"{H}/layerwise/statistics.py", "NUMPY_ROWS"): Case(norms, [1, 7, 63, 65, 1000]),
    (f"{H}/layerwise/statistics.py", "WIDE_PANEL"): Case(
        hessian(torch.bfloat16), [64, 199, 2049], 1e-4
    ),
    (f"{H}/layerwise/partial_forward.py", "LOGITS_AT_ONCE"): Case(
        losses, [{"cpu": 1}, {"cpu": 7 * 320}], 1e-6
    ),
    (f"{H}/layerwise/partial_forward.py", "LOGITS_ELSEWHERE"): Case(
        losses, [1, 7 * 320], 1e-6, {"LOGITS_AT_ONCE": {}}
    ),
    (f"{H}/layerwise/partial_forward.py", "SUBSET"): Case(removed_blocks, [0, 1, 8, 9, 40], 1e-6),
    (f"{H}/layerwise/partial_forward.py", "SUBSETS_THAT_PAY"): Case(
        removed_blocks, [1, 5, 1000], 1e-6, {"SUBSET": 8}
    ),
    (f"{P}/distill_objective.py", "LOGITS_BYTES"): Case(
        distilled, [1, 7 * 4 * 320, 33 << 20], 1e-4
    ),
    (f"{H}/training/loss.py", "LOGITS_BYTES"): Case(gradients, [1, 7 * 4 * 320, 33 << 20], 1e-4),
    (f"{H}/text/samplers.py", "_CHARACTERS_PER_TOKEN"): Case(windows, [0, 1, 4, 6, 100]),
    (f"{H}/text/samplers.py", "_SPARE"): Case(windows, [1.01, 1.5, 3.0]),
    (f"{H}/measure/quality/split_model.py", "LOGITS_BYTES"): Case(
        negative_log_likelihood, [1, 7 * 4 * 320, 33 << 20], 1e-6
    ),
    (f"{H}/measure/quality/perplexity.py", "CACHE_BYTES"): Case(
        negative_log_likelihood, [1, 7 * 4 * 320, 33 << 20]
    ),
    (f"{H}/measure/quality/perplexity.py", "LEAST_SUM"): Case(
        negative_log_likelihood, [0.0, 1e-30, 1e3, 1e30], 1e-6
    ),
    (f"{H}/measure/quality/perplexity.py", "PROBE_TOKENS"): Case(
        negative_log_likelihood, [2, 3, 5, 24], 1e-6
    ),
}


def test_every_constant_is_shown() -> None:
    assert CASES.keys() == {(path, name) for path, names in SPEED_ONLY.items() for name in names}


@pytest.mark.parametrize(("path", "name"), CASES)
def test_another_value_gives_the_same_result(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[path, name]
    module = importlib.import_module(path.partition("/")[2].removesuffix(".py").replace("/", "."))
    for other, value in case.beside.items():
        monkeypatch.setattr(module, other, value)
    usual = case.compute()
    for value in case.others:
        assert value != getattr(module, name)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            found = case.compute()
        for ours, theirs in zip(found, usual, strict=True):
            if case.rounding:
                largest = float(theirs.abs().max())
                torch.testing.assert_close(
                    ours, theirs, rtol=case.rounding, atol=case.rounding * largest
                )
            else:
                assert torch.equal(ours, theirs), value

"""The experts of a mixture: what is one parameter in memory is many matrices, and many inputs.

transformers keeps the routed experts of a layer in one module, with all their weights in 3-D
parameters. Such a module hides what each expert reads and writes. Here its weights are matrices,
one by one, and `observed_experts` shows its rows while the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from prunebench.model.matrices import Matrix

IMPLEMENTATION = "prunebench_observed"
"""The name of `observed_experts`' function among transformers' experts implementations."""

Reads = Literal["inputs", "intermediate"]
"""What a matrix of an expert reads: the expert's input, or what is between its two projections."""

UNROUTED = ("Llama4TextExperts",)
"""Classes whose `forward` gets the tokens of all experts in one tensor, already multiplied by the
gates."""
UNDECORATED = ("LongcatFlashExperts", *UNROUTED)
"""Classes of transformers with fused experts that its experts implementations do not reach."""
SUMS: Mapping[str, Callable[[torch.Tensor], torch.dtype]] = {
    "NemotronHExperts": lambda gates: gates.dtype,
    "Inkling2Experts": lambda _: torch.float32,
}
"""The type in which a class adds the outputs of a token's experts, if it is not the input's."""


class ExpertRows(NamedTuple):
    """What one expert did with the tokens of one forward that were routed to it."""

    expert: int
    inputs: torch.Tensor
    """[tokens, in]."""
    intermediate: torch.Tensor
    """What the down projection reads, [tokens, intermediate]."""
    outputs: torch.Tensor
    """What the expert adds to the layer's output, before it is multiplied by the gate, [tokens,
    out]."""
    gates: torch.Tensor
    """What the model multiplies the outputs by, [tokens]; ones if it multiplies the inputs."""
    tokens: torch.Tensor
    """Which of all tokens of the forward these are, int64 [tokens]."""
    chosen: torch.Tensor
    """All experts of each of these tokens, int64 [tokens, top k]."""
    logits: torch.Tensor | None = None
    """The router's logits for these tokens, [tokens, experts and more], if they were asked for."""


Observer = Callable[[ExpertRows], None]


@dataclass(frozen=True)
class Experts:
    """The routed experts of one layer, in one module with 3-D parameters."""

    path: str
    """Path of the module in the layer."""
    module: Any
    gated: bool
    """Whether there are two input projections, joined in ``gate_up_proj``; otherwise ``up_proj``."""
    transposed: bool
    """Whether matrices are stored as [in, out]."""
    interleaved: bool
    """Whether rows of gate and up alternate, instead of one after the other."""

    @property
    def count(self) -> int:
        """How many experts there are. Experts without weights are not among them."""
        return len(self.module.down_proj)

    def __len__(self) -> int:
        return self.count

    def matrices(self) -> dict[str, Matrix]:
        """The weights by name, expert by expert: '3.gate_proj', '3.up_proj', '3.down_proj'."""
        return {
            f"{expert}.{name}": self._matrix(expert, name)
            for expert in range(self.count)
            for name in self._names
        }

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The names of `matrices`, grouped by the input that they share, in forward order."""
        *inner, last = self._names
        return tuple(
            group
            for expert in range(self.count)
            for group in (tuple(f"{expert}.{name}" for name in inner), (f"{expert}.{last}",))
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return ("gate_proj", "up_proj", "down_proj") if self.gated else ("up_proj", "down_proj")

    def _matrix(self, expert: int, name: str) -> Matrix:
        joined = self.gated and name != "down_proj"
        parameter = "gate_up_proj" if joined else name
        part = slice(None)
        if joined:
            half = self.module.gate_up_proj.shape[2 if self.transposed else 1] // 2
            first = name == "gate_proj"
            if self.interleaved:
                part = slice(0 if first else 1, None, 2)
            else:
                part = slice(0, half) if first else slice(half, None)
        return Matrix(
            self.module,
            parameter,
            index=expert,
            part=part,
            turned=self.transposed,
            bias=f"{parameter}_bias",
        )


def reads(matrix: Matrix) -> Reads:
    """What a matrix of `Experts.matrices` reads."""
    return "intermediate" if matrix.parameter == "down_proj" else "inputs"


def find_experts(layer: torch.nn.Module) -> dict[str, Experts]:
    """The modules with fused experts inside ``layer``, by path.

    They are known by their parameters: ``down_proj`` [experts, out, in], and ``gate_up_proj`` with
    twice as many rows as that has inputs, or ``up_proj``. Modules that are laid out like that but
    cannot be observed are left out: `unknown_experts` names them.
    """
    found = {}
    for path, module in layer.named_modules():
        experts = _experts(path, module)
        if experts is not None and _observable(module):
            found[path] = experts
    return found


def routed_experts(model: Any) -> Iterator[tuple[int, list[torch.nn.Parameter]]]:
    """(number of experts, their parameters) of every layer that has some, fused or one by one."""
    for each in find_experts(model).values():
        owned = each.module.parameters(recurse=False)
        yield each.count, [parameter for parameter in owned if len(parameter) >= each.count]
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" and isinstance(module, torch.nn.ModuleList):
            yield len(module), list(module.parameters())


def unknown_experts(layer: torch.nn.Module) -> list[str]:
    """Paths of the modules in ``layer`` with 3-D parameters that `find_experts` does not know."""
    known = find_experts(layer)
    return [
        path
        for path, module in layer.named_modules()
        if path not in known
        and any(tensor.ndim == 3 for tensor in module.parameters(recurse=False))
        and "expert" in f"{path} {type(module).__name__}".lower()
    ]


def _experts(path: str, module: Any) -> Experts | None:
    tensors = module._parameters
    down = tensors.get("down_proj")
    gate_up, up = tensors.get("gate_up_proj"), tensors.get("up_proj")
    inner = gate_up if gate_up is not None else up
    if down is None or inner is None or tensors.get("gate_proj") is not None:
        return None
    if down.ndim != 3 or inner.ndim != 3 or len(inner) < len(down):
        return None
    gated = gate_up is not None
    rows = (2 if gated else 1) * down.shape[2]
    transposed = bool(getattr(module, "is_transposed", inner.shape[1] != rows))
    if transposed:
        rows = (2 if gated else 1) * down.shape[1]
    if inner.shape[2 if transposed else 1] != rows:
        return None
    interleaved = not getattr(module, "is_concatenated", True)
    return Experts(path, module, gated, transposed, interleaved)


def _observable(module: Any) -> bool:
    """Whether `observed_experts` can see the rows of a module."""
    return _decorated(module) or type(module).__name__ in UNDECORATED


def _decorated(module: Any) -> bool:
    # `use_experts_implementation` sets these on every instance.
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))


@contextmanager
def observed_experts(observers: Mapping[Experts, Observer]) -> Iterator[None]:
    """Call the observer of each module for each expert that gets tokens, while the block runs.

    ``observers``: by `Experts`. The modules compute as their own `forward` does, to the last bit,
    whatever implementation the model is set to. After the block that setting is back. Experts that
    get no token are not reported.
    """
    by_module = {id(experts.module): observer for experts, observer in observers.items()}
    decorated = [each.module for each in observers if _decorated(each.module)]
    configs = {id(module.config): module.config for module in decorated}
    before = {key: config._experts_implementation for key, config in configs.items()}
    own = [each.module for each in observers if not _decorated(each.module)]

    def observed(module: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        see = by_module.get(id(module), _ignore)
        run = _run_sorted if type(module).__name__ in UNROUTED else _run
        return run(module, see, *args, **kwargs)

    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    had = [module.__dict__.get("forward") for module in own]
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, observed)
    try:
        for config in configs.values():
            config._experts_implementation_internal = IMPLEMENTATION
        for module in own:
            module.forward = observed.__get__(module)
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation_internal = before[key]
        for module, forward in zip(own, had, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        ALL_EXPERTS_FUNCTIONS._global_mapping.pop(IMPLEMENTATION, None)


def _ignore(_: ExpertRows) -> None:
    """Observe nothing."""


def _run(
    module: Any, see: Observer, hidden: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor
) -> torch.Tensor:
    """The output of the experts, [tokens, hidden], in the operations of transformers' eager code.

    hidden [tokens, hidden]; chosen [tokens, top k], expert indices; gates [tokens, top k].
    """
    sums_in = SUMS.get(type(module).__name__)
    total = torch.zeros_like(hidden, dtype=sums_in(gates) if sums_in else None)
    with torch.no_grad():
        # Ascending, as in the eager code: the order of additions decides the rounding.
        used = torch.unique(chosen).tolist()
    for expert in used:
        # By place among a token's experts, then by token: the order of the eager code.
        place, token = torch.where(chosen.t() == expert)
        inputs, gate = hidden[token], gates[token, place, None]
        if expert < len(module.down_proj):
            intermediate = _intermediate(module, expert, inputs)
            outputs = _project(module, "down_proj", expert, intermediate)
            if getattr(module, "has_post_expert_norm", False):
                outputs = module.post_expert_norm(outputs)
            if see is not _ignore:
                rows = ExpertRows(
                    expert, inputs, intermediate, outputs, gate[:, 0], token, chosen[token]
                )
                see(_routed(rows))
        elif hasattr(module, "identity_expert"):
            outputs = inputs
        else:  # transformers marks tokens that another device computes by an index too high
            continue
        total.index_add_(0, token, (outputs * gate).to(total.dtype))
    return total.to(hidden.dtype)


def _routed(rows: ExpertRows) -> ExpertRows:
    """The rows whose gate is not 0.

    Some routers send tokens that no expert is to see to the first one, with a gate of 0.
    """
    kept = rows.gates != 0
    if bool(kept.all()):
        return rows
    return ExpertRows(rows.expert, *(each[kept] for each in rows[1:] if each is not None))


def _run_sorted(module: Any, see: Observer, hidden: torch.Tensor) -> torch.Tensor:
    """The output of experts that each get all tokens, multiplied by the gates; Llama 4.

    hidden [experts * tokens, hidden]; zero rows for tokens that are not routed to the expert.
    """
    inputs = hidden.view(len(module.gate_up_proj), -1, module.hidden_size)
    gate, up = torch.bmm(inputs, module.gate_up_proj).chunk(2, dim=-1)
    intermediate = up * module.act_fn(gate)
    outputs = torch.bmm(intermediate, module.down_proj)
    if see is not _ignore:
        routed = inputs.any(dim=2)  # [experts, tokens]
        most = int(routed.sum(dim=0).max())
        chosen = routed.t().int().topk(most, dim=1).indices  # [tokens, top k]
        for expert in range(len(inputs)):
            [token] = torch.where(routed[expert])
            if len(token):
                read, between, wrote = (
                    each[expert, token] for each in (inputs, intermediate, outputs)
                )
                gates = read.new_ones(len(token))
                see(ExpertRows(expert, read, between, wrote, gates, token, chosen[token]))
    return outputs.view(-1, module.hidden_size)


def _intermediate(module: Any, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    if getattr(module, "has_gate", True):
        joined = _project(module, "gate_up_proj", expert, inputs)
        if hasattr(module, "_apply_gate"):
            return module._apply_gate(joined)  # type: ignore[no-any-return]
        gate, up = joined.chunk(2, dim=-1)
        return module.act_fn(gate) * up  # type: ignore[no-any-return]
    return module.act_fn(_project(module, "up_proj", expert, inputs))  # type: ignore[no-any-return]


def _project(module: Any, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs [tokens, in] times the matrix of one expert, with its bias: [tokens, out]."""
    weight: torch.Tensor = getattr(module, name)[expert]
    if getattr(module, "is_transposed", False):
        product = inputs @ weight
    else:
        product = torch.nn.functional.linear(inputs, weight)
    bias: torch.Tensor | None = getattr(module, f"{name}_bias", None)
    return product if bias is None else product + bias[expert]

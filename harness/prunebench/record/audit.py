"""What was pruned, counted on the model itself; nothing here is what a method says of itself."""

from __future__ import annotations

from pydantic import Field

from prunebench.record.kept_units import KeptUnits
from prunebench.schema import Part


class LinearAudit(Part):
    """One prunable weight matrix, counted on the pruned model."""

    layer: int = Field(description="index of the decoder layer in the dense model")
    name: str = Field(description="path inside the layer, e.g. 'mlp.down_proj'")
    rows: int = Field(description="output features")
    columns: int = Field(description="input features")
    zeros: int
    dense: int | None = Field(None, description="weights of the same matrix in the dense model")


class WidthAudit(Part):
    """An attention or MLP that is narrower than in the dense model."""

    layer: int = Field(description="index of the decoder layer in the dense model")
    kind: str = Field(
        description="'attention', counted in KV groups, or 'mlp', counted in channels"
    )
    groups: int
    groups_dense: int


class ExpertsAudit(Part):
    """The routed experts of a mixture, and the zeros in their weights and in the others."""

    per_layer: int = Field(description="experts of each layer that has some; the fewest of all")
    per_layer_dense: int
    prunable: int = Field(description="weights of routed experts among all `prunable`")
    zeros: int = Field(description="zeros among them")
    sparsity: float = Field(description="zeros / prunable")
    sparsity_without: float = Field(
        description="the same of the linears that belong to no routed expert: attentions, shared"
        " experts, dense layers"
    )

    @property
    def fewer(self) -> bool:
        """Whether experts were removed."""
        return self.per_layer < self.per_layer_dense


class PatternAudit(Part):
    """How many aligned groups along the input dimension break an N:M pattern.

    N:M keeps at most N of every M consecutive weights.
    """

    pattern: str
    groups: int
    violations: int


class Audit(Part):
    """The size and the sparsity of the pruned model, beside those of the dense one."""

    parameters: int
    parameters_dense: int
    prunable: int = Field(
        description="weights of the linears inside the decoder layers that remain"
    )
    prunable_dense: int
    zeros: int = Field(description="zeros among `prunable`")
    sparsity: float = Field(description="zeros / prunable")
    zeros_dense: int = Field(description="zeros that the dense model already had")
    removed_share: float = Field(description="1 - parameters / parameters_dense")
    memory_bytes: int = Field(description="weights and buffers in memory, shared tensors once")
    disk_bytes: int = Field(description="size as safetensors, shared tensors once")
    layers_dense: int
    kept_layers: list[int] = Field(description="indices in the dense model")
    removed_layers: list[int]
    removed_blocks: list[str] = Field(
        default_factory=list,
        description="attentions and MLPs removed from layers that remain, e.g. '12.mlp'",
    )
    widths: list[WidthAudit] = Field(
        default_factory=list, description="the attentions and MLPs that are narrower"
    )
    kept: KeptUnits | None = Field(
        None, description="which units stayed; null in records of older versions"
    )
    hidden: int | None = Field(None, description="channels of the residual stream")
    hidden_dense: int | None = None
    experts: ExpertsAudit | None = Field(None, description="null if there are no routed experts")
    patterns: list[PatternAudit]
    form: str = Field(
        description="how the weights run: 'dense', 'dense with zeros', 'layers removed', ..."
    )
    speedup_expected: bool
    note: str = Field(description="why a speed-up can or cannot be expected")
    linears: list[LinearAudit]
    missed: str | None = Field(
        None, description="how this differs from what the method's options ask for"
    )

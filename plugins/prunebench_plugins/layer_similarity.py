"""Layer similarity: group neighbouring decoder layers that compute alike, and keep one of each.

The selection of "A Generic Layer Pruning Method for Signal Modulation Recognition Deep Learning
Models" (arXiv:2406.07929), as far as it carries over to decoders.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from prunebench import Field, Method, PrunebenchError, Reference, hookimpl
from prunebench_plugins.depth_options import DepthOptions
from prunebench_plugins.depth_scores import saliences

if TYPE_CHECKING:
    from prunebench import Context


class LayerSimilarity(Method):
    """Divide the layers into as many groups of neighbours as layers stay; keep one of each.

    As in the paper, layers are compared by what they give for the same text, the matrix of
    similarities is divided by Fisher's optimal segmentation, and each group keeps the layer that
    contributes most. The authors' later work on language models does the same with CKA
    (arXiv:2410.14720).

    Three things do not carry over. The paper scores a layer by SynFlow, |w * dR/dw| with the output
    R of a network of absolute weights for an input of ones; norms and softmax between decoder
    layers make that R meaningless, so ``contribution=taylor`` takes the loss on text for R.
    Convolutional networks have layers that change the width and cannot be removed; a decoder has
    none, so all layers are in groups. The paper's classifiers are fine-tuned afterwards: add
    ``recovery: finetune`` or ``lora``.
    """

    name = "layer-similarity"
    reference = Reference(
        title="A Generic Layer Pruning Method for Signal Modulation Recognition Deep Learning"
        " Models",
        arxiv="2406.07929",
    )
    structure: ClassVar = frozenset({"layers"})
    needs_calibration = True

    class Options(DepthOptions):
        similarity: Literal["cosine", "cka"] = Field(
            "cosine",
            description="of two layers' outputs: mean cosine over tokens, or linear CKA",
        )
        contribution: Literal["taylor", "influence"] = Field(
            "taylor",
            description="what the layer to keep has most of: |w * dL/dw| summed over its weights,"
            " or 1 - cos(input, output) averaged over tokens",
        )
        tokens: int = Field(
            512, ge=2, description="most tokens to compare layers on, spread over the calibration"
        )

    def prune(self, model: Any, context: Context) -> None:
        depth = len(context.kept_layers)
        kept = depth - self.options.layers(depth)
        outputs, influence = self._outputs(model, context)
        compare = _cosines if self.options.similarity == "cosine" else _cka
        similarity = compare(outputs)
        contribution = influence
        if self.options.contribution == "taylor":
            contribution = [
                sum(float(vector.double().sum()) for vector in of_layer)
                for of_layer in saliences(model, context)
            ]
        groups = segments(similarity, kept)
        # The first of equal ones stays.
        best = {max(group, key=contribution.__getitem__) for group in groups}
        removed = [layer for layer in range(depth) if layer not in best]
        context.notes |= {
            "neighbour_similarity": similarity.diagonal(1).tolist(),
            "contribution": contribution,
            "groups": [f"{group[0]}-{group[-1]}" for group in groups],
            "removed_in_order": [context.kept_layers[layer] for layer in removed],
        }
        context.remove_layers(model, removed)

    def _outputs(self, model: Any, context: Context) -> tuple[torch.Tensor, list[float]]:
        """Each layer's output on some tokens, float32 [layers, tokens, hidden], and its influence.

        Raises PrunebenchError if a cosine is undefined.
        """
        total = context.windows.numel()
        step = -(-total // self.options.tokens)  # rounded up, so that there are not more
        outputs: list[list[torch.Tensor]] = [[] for _ in context.kept_layers]
        seen: Counter[int] = Counter()  # tokens by layer
        influence = [0.0] * len(outputs)

        def see(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
            before, after = before.flatten(0, 1), after.flatten(0, 1)  # [tokens, hidden]
            # Every step-th token of the whole text, however it is divided into batches.
            chosen = slice(-seen[layer] % step, None, step)
            seen[layer] += len(after)
            a, b = _directions(before[chosen]), _directions(after[chosen])
            influence[layer] += float((1 - (a * b).sum(-1)).double().sum())
            outputs[layer].append(after[chosen].to("cpu", torch.float32, copy=True))

        context.observe_layers(model, see)
        found = torch.stack([torch.cat(parts) for parts in outputs])  # [layers, tokens, hidden]
        for layer, one in enumerate(found):
            norms = torch.linalg.vector_norm(one, dim=-1)
            if not bool((norms.isfinite() & (norms > 0)).all()):
                raise PrunebenchError(
                    f"layer {layer}: its output is zero or not finite on a calibration token, so"
                    " that it cannot be compared",
                    hint="use float32 or bfloat16, or look for a damaged checkpoint",
                )
        return found, [value / found.shape[1] for value in influence]


def segments(similarity: torch.Tensor, number: int) -> list[range]:
    """Divide the layers into ``number`` groups of neighbours by Fisher's optimal segmentation.

    ``similarity`` [layers, layers]: its rows describe the layers. The sum over the groups of the
    squared distances between rows and their group's mean is the lowest possible. Of equal divisions
    the one whose groups begin lowest, from the top down.
    """
    depth = len(similarity)
    rows = similarity.double()
    # diameter[first][last] of the layers first..last
    diameter = [[0.0] * depth for _ in range(depth)]
    for first in range(depth):
        for last in range(first + 1, depth):
            group = rows[first : last + 1]
            diameter[first][last] = float((group - group.mean(0)).square().sum())
    # least[last] of the best division of the layers 0..last into as many groups as were counted
    least = diameter[0]
    begins: list[list[int]] = []
    for groups in range(2, number + 1):
        found = {
            last: min(
                (least[first - 1] + diameter[first][last], first)
                for first in range(groups - 1, last + 1)
            )
            for last in range(groups - 1, depth)
        }
        begins.append([found[last][1] if last in found else 0 for last in range(depth)])
        least = [found[last][0] if last in found else 0.0 for last in range(depth)]
    # Where each group begins, from the last one down.
    result, end = [], depth
    for begin in reversed(begins):
        first = begin[end - 1]
        result.append(range(first, end))
        end = first
    return [range(end), *reversed(result)]


def _directions(states: torch.Tensor) -> torch.Tensor:
    """Unit vectors in at least float32, [..., hidden]."""
    return torch.nn.functional.normalize(states.float(), dim=-1)


def _cosines(outputs: torch.Tensor) -> torch.Tensor:
    """Mean cosine over the tokens between each two layers, [layers, layers]."""
    flat = _directions(outputs).flatten(1)  # [layers, tokens * hidden]
    return flat @ flat.T / outputs.shape[1]


def _cka(outputs: torch.Tensor) -> torch.Tensor:
    """Linear CKA between each two layers (arXiv:1905.00414, equation 3), [layers, layers].

    With K = X X^T of centred outputs X [tokens, hidden] it is the cosine of the two K. A layer
    whose output is the same for all tokens is like no other.
    """
    kernels = []
    for output in outputs:
        centred = output - output.mean(0)
        kernels.append((centred @ centred.T).flatten())
    flat = torch.nn.functional.normalize(torch.stack(kernels), dim=-1)  # [layers, tokens^2]
    return flat @ flat.T


@hookimpl
def prunebench_register_method() -> type[Method]:
    return LayerSimilarity

"""Guesses of what belongs together in a layer: its attention, its MLP, and what gets smaller.

Nothing here is sure. The rules read one forward of a small model (`trace`) and propose sub-blocks,
the likeliest first; `proof` keeps the first one that gives the right logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import torch

from prunebench.model.coupling.slices import is_linear, parameter_owner, width
from prunebench.model.coupling.sub_block import Answer, Cut, Heads, SubBlock
from prunebench.model.coupling.tp_plan import plan_cuts
from prunebench.model.coupling.trace import (
    Address,
    LayerTrace,
    ModuleCall,
    address_of,
    is_at,
    is_inside,
)

_ATTENTION = re.compile(r"Attention|Attn|SelfAtt|MLA$")
MIXER = re.compile(r"Mixer|DeltaNet|ShortConv|Mamba|Recurrent|Lightning|LinearAtt|TimeMix|Delta")
"""Classes that mix tokens and are no attention."""
_NORM = re.compile(r"norm", re.IGNORECASE)
# The longer names are those of ChatGLM.
_HEADS = re.compile(r"^(num_(attention_)?heads(_per_partition)?|n_heads?|num_query_heads|nh)$")
_KEY_HEADS = re.compile(
    r"^(num_(key_value|kv)_heads|n_kv_heads?|n_head_kv|num_key_heads"
    r"|num_multi_query_groups_per_partition|multi_query_group_num)$"
)
# By chance they may be as large as a width: a table of 128 positions, 128 rows of queries.
_NO_WIDTH = re.compile(r"^(layer_idx|head_dim)$|position|vocab|n_ctx")
_HEAD_DIMS = tuple(
    re.compile(f"^{name}$")
    for name in (
        "v_head_dim",
        "head_dim",
        "head_size",
        "attention_head_size",
        "hidden_size_per_attention_head",
        "d_head",
    )
)


def sub_blocks(layer: torch.nn.Module, trace: LayerTrace) -> list[SubBlock]:
    """The attention and the MLP of a layer, without cuts; those that were found.

    What cannot be removed says so in `no_removal`.
    """
    attention = _attention(trace)
    mlp = _mlp(layer, trace, attention)
    found = [
        SubBlock(kind, modules)  # type: ignore[arg-type]
        for kind, modules in (("attention", attention), ("mlp", mlp))
        if modules
    ]
    completed = [_completed(block, trace, found) for block in found]
    after = [block.no_removal for block in completed if block.no_removal]
    # If the attention has no norm of its own, the one before the MLP is part of the residual.
    return [replace(block, no_removal=after[0]) if after else block for block in completed]


def _attention(trace: LayerTrace) -> tuple[str, ...]:
    """The topmost module of the layer that is an attention or another mixer of tokens, and ran."""
    # An attention if there is one: some layers have a mixer of another kind, or both.
    for pattern in (_ATTENTION, MIXER):
        named = [
            call.path
            for call in trace.calls
            if call.path
            and pattern.search(type(call.module).__name__)
            and not _NORM.search(type(call.module).__name__)
            and any(is_linear(each.module) for each in trace.inside(call.path))
        ]
        top = [path for path in named if not any(is_inside(path, other) for other in named)]
        if top:
            return (top[0],)
    return ()


def _mlp(layer: torch.nn.Module, trace: LayerTrace, attention: tuple[str, ...]) -> tuple[str, ...]:
    """The child of the layer that holds what multiplies outside the attention, or loose linears."""
    mixers = [call.path for call in trace.calls if MIXER.search(type(call.module).__name__)]
    beside = [
        call.path
        for call in trace.calls
        if call.path
        and _multiplies(call.module)
        and not any(is_at(call.path, path) for path in (*attention, *mixers) if path)
    ]
    children = list(dict.fromkeys(path.split(".")[0] for path in beside))
    if len(children) == 1 and not any(is_inside(path, children[0]) for path in attention):
        return (children[0],)
    if len(children) > 1 and all(is_linear(layer.get_submodule(child)) for child in children):
        return tuple(children)
    return ()


def _multiplies(module: torch.nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return is_linear(module) or any(parameter.dim() == 3 for parameter in own)


def _completed(block: SubBlock, trace: LayerTrace, all_blocks: Sequence[SubBlock]) -> SubBlock:
    """The sub-block with its norms, its readers and its writer."""
    first = trace.of(block.modules[0])
    last = trace.of(block.modules[-1])
    if first is None or last is None:
        return replace(
            block, no_removal=f"{block.modules[0]} does not run", no_cut="it does not run"
        )
    entry = {address_of(tensor) for tensor in first.inputs}
    calls = [each for path in block.modules for each in trace.inside(path)]
    linears = [each for each in calls if is_linear(each.module)]
    norms, normed = _norms(block, trace, all_blocks)
    reading = [each.path for each in linears if _address(each) in entry]
    experts = any(_multiplies(each.module) and not is_linear(each.module) for each in calls)
    refusal = None
    if not normed:
        refusal = (
            f"a layer with {block.modules[-1]} normalises after adding to the residual, "
            "so an attention or an MLP cannot be removed alone"
        )
    mixture = f"{block.modules[-1]} holds experts, whose channels cannot be removed"
    return replace(
        block,
        no_cut=mixture if experts else None,
        norms=norms,
        readers=tuple(dict.fromkeys(reading)),
        writer=linears[-1].path if linears and not experts else None,
        answer=Answer(len(last.output) if isinstance(last.output, tuple | list) else 0),
        no_removal=refusal,
    )


def _address(call: ModuleCall) -> Address:
    return address_of(call.inputs[0])


def _norms(
    block: SubBlock, trace: LayerTrace, all_blocks: Sequence[SubBlock]
) -> tuple[tuple[str, ...], bool]:
    """Norms that only this sub-block needs, and whether there is any norm before or after it."""
    others = [
        call
        for other in all_blocks
        if other.kind != block.kind
        for path in other.modules
        if (call := trace.of(path)) is not None
    ]
    first, last = trace.of(block.modules[0]), trace.of(block.modules[-1])
    assert first is not None and last is not None
    found, normed = [], False
    for call in trace.calls:
        inside = any(is_at(call.path, path) for each in all_blocks for path in each.modules)
        if inside or not _is_norm(call.module) or not call.inputs or not call.outputs:
            continue
        out, into = address_of(call.outputs[0]), address_of(call.inputs[0])
        before = first.reads(out)
        after = into in {address_of(tensor) for tensor in last.outputs}
        normed |= before or after
        shared = any(other.reads(out) for other in others)
        if (before or after) and not shared:
            found.append(call.path)
    return tuple(dict.fromkeys(found)), normed


def _is_norm(module: torch.nn.Module) -> bool:
    return bool(_NORM.search(type(module).__name__)) and not list(module.children())


def cut_guesses(
    block: SubBlock, layer: torch.nn.Module, trace: LayerTrace, config: Any
) -> Iterator[tuple[SubBlock, int]]:
    """The sub-block with cuts that may belong together, and its number of groups."""
    if block.writer is None:
        return
    if block.kind == "mlp":
        yield from _mlp_guesses(block, layer)
        if (planned := plan_cuts(block, layer, config)) is not None:
            groups = width(layer.get_submodule(planned[-1].linear), 1)
            yield replace(block, cuts=planned, source="plan"), groups
        return
    heads = heads_of(block, layer, config)
    if heads is None:
        return
    guesses = [(*each, "rule") for each in _attention_cuts(block, layer, trace, heads)]
    if (planned := plan_cuts(block, layer, config)) is not None:
        guesses += [(planned, groups, "plan") for groups in {heads.keys, heads.query}]
    for cuts, groups, source in guesses:
        base = replace(
            block,
            cuts=cuts,
            vectors=_vectors(block, layer, {heads.query, groups}),
            heads=heads._replace(keys=groups),
            source=source,
        )
        for attributes, own_config in _head_numbers(block, layer, heads):
            yield replace(base, attributes=attributes, own_config=own_config), groups


def _mlp_guesses(block: SubBlock, layer: torch.nn.Module) -> Iterator[tuple[SubBlock, int]]:
    writer: Any = layer.get_submodule(block.writer or "")
    groups = width(writer, 1)
    attributes = _numbers(layer, block.modules, {groups})
    for parts in (1, 2):
        cuts = [
            Cut(path, 0, parts if width(layer.get_submodule(path), 0) != groups else 1)
            for path in block.readers
        ]
        rows = {width(layer.get_submodule(path), 0) for path in block.readers}
        if any(count % groups for count in rows):
            return
        for chosen in dict.fromkeys((attributes, ())):
            yield (
                replace(block, cuts=(*cuts, Cut(block.writer or "", 1)), attributes=chosen),
                groups,
            )
        if rows == {groups}:
            return


def heads_of(block: SubBlock, layer: torch.nn.Module, config: Any) -> Heads | None:
    """The heads of an attention that nothing was cut from: of its own attributes, or the config's.

    None if they do not fit its last linear.
    """
    attention: Any = layer.get_submodule(block.modules[-1])
    columns = width(layer.get_submodule(block.writer or ""), 1)
    dim = next((found for name in _HEAD_DIMS if (found := _number(attention, name))), None)
    query = _number(attention, _HEADS)
    if query is None:
        query = columns // dim if dim else _number(config, _HEADS)
    if not query or columns % query:
        return None
    keys = _number(attention, _KEY_HEADS) or _number(config, _KEY_HEADS)
    ratio = getattr(attention, "num_key_value_groups", None)
    if isinstance(ratio, int) and query % ratio == 0:
        keys = query // ratio
    return Heads(query, keys if keys and query % keys == 0 else query, columns // query)


def _number(owner: Any, pattern: re.Pattern[str]) -> int | None:
    for name in (*_own(owner), *getattr(owner, "attribute_map", {})):
        value = getattr(owner, name, None)
        if pattern.search(name) and isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _own(owner: Any) -> list[str]:
    return [name for name in vars(owner) if not name.startswith("__")]


def _attention_cuts(
    block: SubBlock, layer: torch.nn.Module, trace: LayerTrace, heads: Heads
) -> Iterator[tuple[tuple[Cut, ...], int]]:
    """(cuts, number of groups), the likeliest first."""
    calls = [
        each.path for path in block.modules for each in trace.inside(path) if is_linear(each.module)
    ]
    between = [path for path in dict.fromkeys(calls) if path not in {*block.readers, block.writer}]
    out = Cut(block.writer or "", 1)
    # Latent attention has one key head for each query head, whatever its config says.
    for groups in dict.fromkeys((heads.keys, heads.query)):
        for names in _subsets(block.readers, between, _squeezing(block, between, trace)):
            rows = [width(layer.get_submodule(path), 0) for path in names]
            if any(count % groups for count in rows):
                continue
            for parts in (1, 3) if len(names) == 1 else (1,):
                yield (*(Cut(path, 0, parts) for path in names), out), groups


def _subsets(
    readers: Sequence[str], between: Sequence[str], squeezing: set[str]
) -> Iterator[tuple[str, ...]]:
    """All readers; or, if linears follow linears (latent attention), these and some readers.

    ``squeezing``: readers that are probably not among them.
    """
    if not between:
        yield tuple(readers)
        return
    all_choices = (
        set(left_out)
        for skipped in range(len(readers) + 1)
        for left_out in combinations(readers, skipped)
    )
    for left_out in chain([squeezing], (each for each in all_choices if each != squeezing)):
        yield (*(path for path in readers if path not in left_out), *between)


def _squeezing(block: SubBlock, between: Sequence[str], trace: LayerTrace) -> set[str]:
    """Readers whose output goes through another linear, such as the first ones of latent attention.

    Their rows belong to no head.
    """
    made: dict[int, str] = {}  # the reader, by the memory that has its output, normed or not
    found: set[str] = set()
    for call in (each for path in block.modules for each in trace.inside(path)):
        sources = {made[at] for at in map(_memory, call.inputs) if at in made}
        if call.path in block.readers:
            made |= {_memory(tensor): call.path for tensor in call.outputs}
        elif call.path in between:
            found |= sources
        elif _is_norm(call.module):
            made |= {_memory(tensor): path for path in sources for tensor in call.outputs}
    return found


def _memory(tensor: torch.Tensor) -> int:
    """Equal for a tensor and all views of it."""
    return tensor.untyped_storage().data_ptr()


def _vectors(block: SubBlock, layer: torch.nn.Module, counts: set[int]) -> tuple[str, ...]:
    """Parameters of the attention that have one entry for each head, and are no linear's."""
    found = []
    for path in block.modules:
        for name, _ in layer.get_submodule(path).named_parameters(prefix=path):
            owner, own = parameter_owner(layer, name)
            if not is_linear(owner) and len(getattr(owner, own)) in counts:
                found.append(name)
    return tuple(found)


def _head_numbers(
    block: SubBlock, layer: torch.nn.Module, heads: Heads
) -> Iterator[tuple[tuple[tuple[str, str], ...], bool]]:
    """Which numbers to reduce with the heads: (attributes, whether the config is one of them)."""
    named = tuple(
        (path, name)
        for path, name in _numbers(layer, block.modules, {heads.query, heads.keys})
        if _HEADS.search(name) or _KEY_HEADS.search(name)
    )
    both = heads.query + 2 * heads.keys
    sizes = {count * heads.dim for count in (heads.query, heads.keys, both, 2 * heads.keys)}
    widths = _numbers(layer, block.modules, sizes)
    attention: Any = layer.get_submodule(block.modules[-1])
    configs = (False, True) if hasattr(attention, "config") else (False,)
    # From the fewest changes to the most: the first that gives the right logits is kept.
    for own_config in configs:
        for extra in dict.fromkeys(
            ((), widths, tuple(each for each in widths if each[1] != "hidden_size"))
        ):
            yield named + extra, own_config


def _numbers(
    layer: torch.nn.Module, modules: Sequence[str], values: set[int]
) -> tuple[tuple[str, str], ...]:
    """(module, attribute) of integers that have one of these values, linears apart."""
    found = []
    for top in modules:
        for path, module in layer.get_submodule(top).named_modules(prefix=top):
            if is_linear(module):
                continue
            found += [
                (path, name)
                for name, value in vars(module).items()
                if isinstance(value, int)
                and not isinstance(value, bool)
                and value in values
                and not _NO_WIDTH.search(name)
            ]
    return tuple(found)

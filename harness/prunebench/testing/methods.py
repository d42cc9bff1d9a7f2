"""What every pruning method promises; each promise is a function that takes a `MethodTrial`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prunebench.model import checkpoint
from prunebench.model.anatomy import anatomy
from prunebench.model.load import load_pruned
from prunebench.plugin.api.context import Context
from prunebench.plugin.api.sparsity import share_of
from prunebench.plugin.asked import asked_of, missed, nothing_removed
from prunebench.testing import surroundings
from prunebench.testing.models import tiny_calibration
from prunebench.testing.promises import (
    NotApplicableError,
    Promise,
    as_json,
    close,
    documented,
    promise,
    repeats,
    same,
)
from prunebench.testing.trial import MethodTrial, Pruned

ALLOCATION_TOLERANCE = 0.05
"""Between a linear's share and its zeros: a small matrix rounds by rows or blocks."""
_ZEROING = frozenset({"unstructured", "n:m"})


def finite(trial: MethodTrial) -> None:
    promise(bool(torch.isfinite(trial.pruned.logits()).all()), "logits are not finite")


def amount(trial: MethodTrial) -> None:
    """The trial's own options, and less by every option that says how much."""
    if trial.plugin.structure == {"none"}:
        raise NotApplicableError("it removes nothing by design")
    asked = asked_of(trial.parsed())
    if nothing_removed(trial.pruned.audit()) and (any(asked.values()) or not asked):
        promise(False, f"it removed nothing{_asked_for(asked)}")
    fault = missed(trial.parsed(), trial.pruned.audit(), trial.tolerance)
    promise(fault is None, str(fault))
    for changes in trial.amounts(1):
        fault = missed(trial.parsed(**changes), trial.prune(**changes).audit(), trial.tolerance)
        promise(fault is None, str(fault))


def _asked_for(asked: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name}={value}" for name, value in asked.items())
    return f" for {said}" if said else ""


def allocation(trial: MethodTrial) -> None:
    if reason := trial.plugin.refuses_allocation(trial.parsed()):
        raise NotApplicableError(f"it takes no allocation: {reason}")
    names = Context(None, 0, []).linears(trial.model())
    # Neighbours differ, so linears that read the same input do too.
    _divided(trial, {name: (0.25, 0.75)[index % 2] for index, name in enumerate(names)})
    wide = {"sparsity": "4:8"}
    if trial.takes(**wide) and trial.plugin.refuses_allocation(trial.parsed(**wide)) is None:
        patterns = {name: ("2:8", "6:8")[index % 2] for index, name in enumerate(names)}
        _divided(trial, patterns, **wide)


def _divided(trial: MethodTrial, shares: Mapping[str, float | str], **changes: Any) -> None:
    """Prune each linear to a sparsity of its own, and look whether it is so."""
    pruned = trial.prune(shares=shares, **changes)
    for name, linear in pruned.context.linears(pruned.model).items():
        found = float((linear.weight == 0).float().mean())
        promise(
            abs(found - share_of(shares[name])) <= ALLOCATION_TOLERANCE,
            f"{name} loses {found:.0%}, but an allocation gives it {shares[name]}:"
            " use `self.sparsity_of(stats)`, or override `refuses_allocation`",
        )


def structure(trial: MethodTrial) -> None:
    declared: set[str] = set(trial.plugin.structure)
    promise(bool(declared), "`structure` is empty; say what the method removes")
    _only_declared(trial.pruned, declared)
    if "sparsity" not in trial.plugin.Options.model_fields:
        return
    # With default options: some, such as `scope=global`, rule out N:M for a method that has it.
    takes = MethodTrial(trial.plugin).takes(sparsity="2:4")
    promise(
        takes == ("n:m" in declared),
        f"2:4 is {'accepted' if takes else 'refused'}, but `structure` says otherwise",
    )
    if trial.takes(sparsity="2:4"):
        pruned = trial.prune(sparsity="2:4")
        _only_declared(pruned, declared)
        [pattern] = pruned.audit((2, 4)).patterns
        promise(
            pattern.violations == 0, f"{pattern.violations} of {pattern.groups} groups break 2:4"
        )


def _only_declared(pruned: Pruned, declared: set[str]) -> None:
    found = pruned.audit()
    happened = {
        "weights became zero": (found.zeros > found.zeros_dense, _ZEROING),
        "layers were removed": (bool(found.removed_layers), {"layers", "blocks"}),
        "attentions or MLPs were removed": (bool(found.removed_blocks), {"blocks"}),
        "matrices got smaller": (
            bool(found.widths) or found.hidden != found.hidden_dense,
            {"width"},
        ),
        "routed experts were removed": (
            found.experts is not None and found.experts.fewer,
            {"experts"},
        ),
    }
    for words, (true, any_of) in happened.items():
        promise(
            not true or bool(declared & any_of),
            f"{words}, but `structure` is {', '.join(sorted(declared))}",
        )


def seed(trial: MethodTrial) -> None:
    repeats(trial.pruned.state, trial.prune().state)
    if not trial.plugin.uses_seed_for(trial.parsed()):
        other = same(trial.pruned.state, trial.prune(seed=1).state)
        promise(other is None, f"another seed changes {other}, but `uses_seed` is not set")


def zero(trial: MethodTrial) -> None:
    nothing = trial.asking(0)
    if not trial.takes(**nothing):
        raise NotApplicableError(f"{trial.amount} may not be 0")
    if trial.plugin.trains:
        raise NotApplicableError("it trains, so weights change even if nothing is pruned")
    dense, pruned = trial.model(), trial.prune(**nothing)
    changed = same(dense.state_dict(), pruned.state)
    if changed is not None:
        # Weights for inputs that are zero on all calibration tokens have no effect. A method may
        # set them to zero; the logits tell.
        equal = torch.equal(pruned.logits(), trial.dense_logits())
        promise(equal, f"with {trial.amount}=0 it changes {changed}, and the logits")


def more(trial: MethodTrial) -> None:
    less, most = (trial.prune(**trial.asking(index)).removed for index in (1, 2))
    promise(
        0 < less < most,
        f"{less:,} parameters are removed for less {trial.amount}, {most:,} for more",
    )


def untouched(trial: MethodTrial) -> None:
    pruned, dense = trial.pruned, trial.model()
    now, before = dict(pruned.model.named_parameters()), dict(dense.named_parameters())
    path = anatomy(dense).layers_path
    if trial.plugin.structure <= _ZEROING | {"none"}:
        scored = _holding_weights(pruned.model)
        now, before = (
            {name: value for name, value in both.items() if name not in scored}
            for both in (now, before)
        )
    elif "width" in trial.plugin.structure:
        if pruned.audit().hidden != pruned.audit().hidden_dense:
            raise NotApplicableError("it removes residual channels, which all matrices read")
        now, before = (
            {name: value for name, value in both.items() if not name.startswith(f"{path}.")}
            for both in (now, before)
        )
    else:
        # Layers or blocks are gone: compare the others under the names that they had before.
        renamed = {
            f"{path}.{new}.": f"{path}.{old}." for new, old in enumerate(pruned.context.kept_layers)
        }
        now = {_former_name(name, renamed): value for name, value in now.items()}
        mine: set[str] = set()
        if trial.plugin.updates_kept_weights:
            mine = _holding_weights(dense)
        if "experts" in trial.plugin.structure:
            mine |= anatomy(dense).mixture().rows.keys()
        now = {name: value for name, value in now.items() if name not in mine}
        before = {name: before[name] for name in now if name in before}
    changed = same(now, before)
    promise(changed is None, f"{changed} changed, which is not what the method prunes")


def _holding_weights(model: Any) -> set[str]:
    """Names of the parameters that hold prunable weights; those of experts hold several matrices."""
    linears = Context(None, 0, []).linears(model).values()
    owners = {id(getattr(linear, "owner", linear.weight)) for linear in linears}
    return {name for name, parameter in model.named_parameters() if id(parameter) in owners}


def _former_name(name: str, renamed: dict[str, str]) -> str:
    for new, old in renamed.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def saved(trial: Any) -> None:
    """Takes a trial of a recovery too."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pruned"
        checkpoint.save(trial.pruned.model, None, target, made_by={})
        loaded: Any = load_pruned(target)
        with torch.no_grad():
            logits = loaded(tiny_calibration()).logits
    promise(
        torch.equal(logits, trial.pruned.logits()), "after saving and loading, the logits differ"
    )


def generates(trial: Any) -> None:
    """Takes a trial of a recovery too."""
    prompt = tiny_calibration(2, 8)
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt),
        "do_sample": False,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
    }
    model = trial.pruned.model
    # A removed layer leaves a gap in the KV cache, unless the layers are numbered again.
    with_cache, without = (
        model.generate(prompt, use_cache=cached, **settings) for cached in (True, False)
    )
    promise(
        torch.equal(with_cache, without), "with a KV cache it generates other tokens than without"
    )


def tidy(trial: MethodTrial) -> None:
    model = trial.model()
    hooks, before, own = (
        surroundings.hooks(model),
        surroundings.of_process(),
        surroundings.of_model(model),
    )
    pruned = trial.prune(model)
    after = surroundings.of_process()
    for what, value in before.items():
        promise(bool(after[what] == value), f"{what} changed")
    trial.leaves_no_setting()
    changed = surroundings.changed(model, own)
    promise(changed is None, str(changed))
    left = surroundings.hooked(model, hooks)
    promise(not left, f"hooks are left on {', '.join(left)}")
    promise(
        torch.equal(pruned.context.windows, tiny_calibration()), "the calibration tokens changed"
    )


def offline(trial: MethodTrial) -> None:
    with surroundings.no_network():
        trial.prune()


def on_cuda(trial: MethodTrial) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("torch sees no GPU")
    pruned = trial.prune(device="cuda")
    promise(
        {parameter.device.type for parameter in pruned.model.parameters()} == {"cuda"},
        "weights left the GPU",
    )
    promise(bool(torch.isfinite(pruned.logits()).all()), "logits are not finite")
    here, there = trial.pruned.removed, pruned.removed
    # Not the same weights: sums in another order break near-ties the other way.
    promise(
        close(there / here if here else 1.0, 1.0, 0.02),
        f"{here:,} parameters are removed on the CPU, {there:,} on the GPU",
    )


METHOD_PROMISES = (
    Promise("finite", "prunes, and logits stay finite", finite),
    Promise("amount", "removes as much as is asked for", amount),
    Promise("allocation", "removes from each linear what an allocation decides", allocation),
    Promise("structure", "removes what `structure` declares and nothing else", structure),
    Promise("seed", "gives the same result for the same seed", seed),
    Promise("zero", "changes nothing when asked for nothing", zero),
    Promise("more", "removes more when asked for more", more),
    Promise("untouched", "leaves all other parameters as they are, bit for bit", untouched),
    Promise("saved", "is the same after saving and loading", saved),
    Promise("generates", "generates the same tokens with a KV cache as without", generates),
    Promise("tidy", "leaves no hooks, gradients, randomness, dtype, threads or TF32 behind", tidy),
    Promise("json", "has options and notes that survive JSON", as_json),
    Promise("documented", "says what it is and what each option means", documented),
    Promise("offline", "needs no network", offline),
    Promise("cuda", "runs on CUDA too", on_cuda),
)

"""What every pruning method promises, each promise a function that tries it on a `Trial`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prunebench.model import checkpoint
from prunebench.model.anatomy import anatomy
from prunebench.model.load import load_pruned
from prunebench.plugin.api.sparsity import pattern_of
from prunebench.testing import surroundings
from prunebench.testing.models import tiny_calibration
from prunebench.testing.trial import NotApplicableError, Pruned, Trial, close, promise, same

_ZEROING = frozenset({"unstructured", "n:m"})


class Promise(NamedTuple):
    """``says`` is one line for people; ``check(trial)`` raises BrokenPromiseError or NotApplicableError."""

    name: str
    says: str
    check: Callable[[Any], None]


def finite(trial: Trial) -> None:
    promise(bool(torch.isfinite(trial.pruned.logits()).all()), "logits are not finite")


def amount(trial: Trial) -> None:
    asked = getattr(trial.parsed(), "sparsity", None)
    if asked is None:
        raise NotApplicableError("no option is called sparsity")
    pattern = pattern_of(asked)
    wanted = pattern.sparsity if pattern else float(asked)
    found = trial.pruned.audit().sparsity
    promise(
        close(found, wanted, trial.tolerance),
        f"sparsity {wanted:.1%} was asked for, {found:.1%} measured",
    )


def structure(trial: Trial) -> None:
    declared: set[str] = set(trial.kind.structure)
    promise(bool(declared), "`structure` is empty; say what the method removes")
    _only_declared(trial.pruned, declared)
    if "sparsity" not in trial.kind.Options.model_fields:
        return
    ever = Trial(trial.kind).takes(sparsity="2:4")
    promise(
        ever == ("n:m" in declared),
        f"2:4 is {'taken' if ever else 'refused'}, yet `structure` says otherwise",
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
        "layers went": (bool(found.removed_layers), {"layers", "blocks"}),
        "attentions or MLPs went": (bool(found.removed_blocks), {"blocks"}),
        "matrices got smaller": (
            bool(found.widths) or found.hidden != found.hidden_dense,
            {"width"},
        ),
    }
    for words, (true, any_of) in happened.items():
        promise(
            not true or bool(declared & any_of),
            f"{words}, yet `structure` is {', '.join(sorted(declared))}",
        )


def seed(trial: Trial) -> None:
    again = same(trial.pruned.state, trial.prune().state)
    promise(again is None, f"two runs with one seed differ in {again}")
    if not trial.kind.uses_seed:
        other = same(trial.pruned.state, trial.prune(seed=1).state)
        promise(other is None, f"another seed changes {other}, yet `uses_seed` is not set")


def zero(trial: Trial) -> None:
    nothing = trial.asking(0)
    if not trial.takes(**nothing):
        raise NotApplicableError(f"{trial.amount} may not be 0")
    if trial.kind.trains:
        raise NotApplicableError("it trains, which changes weights whatever is pruned")
    dense, pruned = trial.model(), trial.prune(**nothing)
    changed = same(dense.state_dict(), pruned.state)
    if changed is not None:  # weights of inputs that are zero on all calibration tokens do nothing
        equal = torch.equal(pruned.logits(), trial.dense_logits())
        promise(equal, f"with {trial.amount}=0 it changes {changed}, and the logits")


def more(trial: Trial) -> None:
    less, most = (trial.prune(**trial.asking(place)).gone for place in (1, 2))
    promise(
        0 < less < most, f"{less:,} parameters go for less and {most:,} for more {trial.amount}"
    )


def untouched(trial: Trial) -> None:
    pruned, dense = trial.pruned, trial.model()
    now, before = dict(pruned.model.named_parameters()), dict(dense.named_parameters())
    path = anatomy(dense).layers_path
    if trial.kind.structure <= _ZEROING | {"none"}:
        mine = {f"{name}.weight" for name in pruned.context.linears(pruned.model)}
        changed = same(
            *(
                {key: value for key, value in all_.items() if key not in mine}
                for all_ in (now, before)
            )
        )
    elif "width" in trial.kind.structure:
        if pruned.audit().hidden != pruned.audit().hidden_dense:
            raise NotApplicableError("residual channels went, which every matrix reads")
        outside = (
            {k: v for k, v in all_.items() if not k.startswith(f"{path}.")}
            for all_ in (now, before)
        )
        changed = same(*outside)
    else:
        places = {
            f"{path}.{new}.": f"{path}.{old}." for new, old in enumerate(pruned.context.kept_layers)
        }
        named = {_moved(key, places): value for key, value in now.items()}
        changed = same(named, {key: before[key] for key in named if key in before})
    promise(changed is None, f"{changed} changed, which is not what the method prunes")


def _moved(name: str, places: dict[str, str]) -> str:
    for new, old in places.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def saved(trial: Trial) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pruned"
        checkpoint.save(trial.pruned.model, None, target, made_by={})
        loaded: Any = load_pruned(target)
        with torch.no_grad():
            logits = loaded(tiny_calibration()).logits
    promise(torch.equal(logits, trial.pruned.logits()), "saved and loaded again, the logits differ")


def generates(trial: Trial) -> None:
    prompt = tiny_calibration(2, 8)
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6,
    }  # fmt: skip
    model = trial.pruned.model
    with_cache, without = (
        model.generate(prompt, use_cache=cached, **settings) for cached in (True, False)
    )
    promise(
        torch.equal(with_cache, without), "with a KV cache it generates other tokens than without"
    )


def tidy(trial: Trial) -> None:
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
    for what, value in surroundings.of_model(model).items():
        promise(
            value == own[what],
            f"{what}: {value or 'none'} after pruning, {own[what] or 'none'} before",
        )
    left = surroundings.hooked(model, hooks)
    promise(not left, f"hooks are left on {', '.join(left)}")
    promise(
        torch.equal(pruned.context.windows, tiny_calibration()), "the calibration tokens changed"
    )


def as_json(trial: Any) -> None:
    """Any kind of plugin with options; ``trial`` has `parsed` and `notes`."""
    options = trial.parsed()
    again = type(options).model_validate_json(options.model_dump_json(by_alias=True), strict=True)
    promise(again == options, f"options {options!r} come back from JSON as {again!r}")
    try:
        json.dumps(trial.notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        promise(False, f"context.notes is no JSON: {error}")


def documented(trial: Any) -> None:
    """Any kind of plugin with options."""
    promise(bool((trial.kind.__doc__ or "").strip()), "the class has no docstring")
    for name, option in trial.kind.Options.model_fields.items():
        promise(
            bool(option.description),
            f"the option {name} has no description: Field(..., description='...')",
        )


def offline(trial: Trial) -> None:
    with surroundings.no_network():
        trial.prune()


def on_cuda(trial: Trial) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("torch sees no GPU")
    pruned = trial.prune(device="cuda")
    promise(
        {parameter.device.type for parameter in pruned.model.parameters()} == {"cuda"},
        "weights left the GPU",
    )
    promise(bool(torch.isfinite(pruned.logits()).all()), "logits are not finite")
    here, there = trial.pruned.gone, pruned.gone
    promise(
        close(there / here if here else 1.0, 1.0, 0.02),
        f"{here:,} parameters go on the CPU, {there:,} on the GPU",
    )


METHOD_PROMISES = (
    Promise("finite", "prunes, and logits stay finite", finite),
    Promise("amount", "removes the share that is asked for", amount),
    Promise("structure", "removes what `structure` declares and nothing else", structure),
    Promise("seed", "gives the same result for the same seed", seed),
    Promise("zero", "changes nothing when asked for nothing", zero),
    Promise("more", "removes more when asked for more", more),
    Promise("untouched", "leaves all other parameters as they are, bit for bit", untouched),
    Promise("saved", "is the same after saving and loading", saved),
    Promise("generates", "generates with a KV cache what it generates without", generates),
    Promise("tidy", "leaves no hooks, gradients, randomness, dtype, threads or TF32 behind", tidy),
    Promise("json", "has options and notes that survive JSON", as_json),
    Promise("documented", "says what it is and what each option means", documented),
    Promise("offline", "needs no network", offline),
    Promise("cuda", "runs on CUDA too", on_cuda),
)

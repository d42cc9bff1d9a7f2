"""What a suite asks of its models, compared with what their files say before any is loaded.

A model that is not on this machine yet is compared when its first cell has loaded it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.byte_path import text_path
from prunebench.measure.quality.task_needs import task_fault
from prunebench.model.folder import read_config
from prunebench.model.hub_cache import cached_config
from prunebench.model.positions import Positions, positions_in, too_long
from prunebench.model.special_tokens import tokens_in
from prunebench.model.supported import no_depth
from prunebench.suite.methods import Treatment, needs

if TYPE_CHECKING:
    from prunebench.experiment.inputs import ModelInput
    from prunebench.experiment.measures import TaskSpec
    from prunebench.experiment.model import ModelRef
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.plugin.registry import Registry
    from prunebench.suite.problems import Problems


def check_models(
    models: Sequence[ModelRef],
    asked: Iterable[ModelInput],
    tasks: Sequence[TaskSpec],
    depth_methods: Collection[str],
    problems: Problems,
) -> None:
    """Note windows that are longer than a model, and tasks without the special tokens they need.

    And models that cannot lose a layer, if there are ``depth_methods``: these remove layers.
    """
    inputs = list(dict.fromkeys(asked))
    for ref in models:
        config = _known_config(ref) if depth_methods else None
        if config is not None and (reason := no_depth(config)):
            named = ", ".join(dict.fromkeys(depth_methods))
            message = f"{named}: the model '{ref.name}' cannot lose layers: {reason}"
            problems.add(("methods",), message, "prune its weights instead")
        if ref.kind != "folder":
            continue
        folder = text_path(ref.location)
        positions = positions_in(read_config(folder))
        if positions is not None:
            _check_windows(inputs, ref.name, positions, problems)
        tokens = tokens_in(folder)
        if tokens is not None and (fault := task_fault(tasks, tokens)):
            message = f"the model '{ref.name}': {fault.message}"
            problems.add(("quality", "tasks"), message, fault.hint)


def _known_config(ref: ModelRef) -> dict[str, Any] | None:
    """The model's config.json, if it is on this machine."""
    if ref.kind == "folder":
        return read_config(text_path(ref.location))
    return cached_config(ref.location, ref.revision) if ref.kind == "hub" else None


def texts_read(
    treatments: Iterable[Treatment], shared: Sequence[CalibrationSpec], registry: Registry
) -> Iterator[CalibrationSpec]:
    """The calibrations that any of the treatments reads: its own, or those of the suite."""
    for treatment in treatments:
        readers = [needs(registry["method"][treatment.method.name].value, treatment.method)]
        if treatment.allocation is not None:
            allocation = registry["allocation"][treatment.allocation.name].value
            readers.append(needs(allocation, treatment.allocation))
        if any(one.reads_text for one in readers):
            yield from shared if treatment.calibration is None else treatment.calibration


def _check_windows(
    asked: Sequence[ModelInput], name: str, positions: Positions, problems: Problems
) -> None:
    for one in asked:
        if one.tokens <= positions.limit:
            continue
        if positions.learned:
            error = too_long(one.what, one.tokens, positions.limit)
            problems.add(one.key, f"the model '{name}': {error.message}", error.hint)
        else:
            problems.warn(
                one.key,
                f"{one.what} takes {one.tokens} tokens, and the model '{name}' was made for "
                f"{positions.limit}",
                "what is measured beyond them says little",
            )

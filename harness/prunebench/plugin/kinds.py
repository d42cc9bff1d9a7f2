"""The kinds of things that a plugin can register: hook, base class and rules of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from prunebench.errors import PluginError, did_you_mean
from prunebench.layerwise.pruner import GROUPS
from prunebench.measure.quality.task_data import HUB, TaskData
from prunebench.model.source import ModelAsset
from prunebench.plugin.api.allocation import Allocation
from prunebench.plugin.api.engine import BUILT_IN, Engine
from prunebench.plugin.api.method import LayerwiseMethod, LinearMethod, Method, Structure
from prunebench.plugin.api.metric import Metric
from prunebench.plugin.api.options import Options
from prunebench.plugin.api.recovery import Recovery
from prunebench.plugin.api.report_section import ReportSection
from prunebench.plugin.api.runtime import Runtime, RuntimeOptions
from prunebench.plugin.registry import Kind
from prunebench.plugin.suite_keys import ALLOCATION, CALIBRATION, DATA, RECOVERY
from prunebench.text.corpus import Corpus


@dataclass(frozen=True)
class KindRules:
    """How one kind is registered, and what makes a value of it valid."""

    hook: str
    base: type
    """The hook returns subclasses of this, or instances if ``instances`` is set."""
    instances: bool = False
    reserved_names: tuple[str, ...] = ()
    """Names with a meaning of their own in suites or on the command line."""
    reserved_options: tuple[str, ...] = ()
    """Keys that a suite puts beside the options, so that no option can have these names."""
    attributes: Mapping[str, type] = field(default_factory=dict)
    """Class attributes without a default, by name, with the type of the value."""
    of_class: Callable[[Any], str | None] = lambda _: None
    """What is wrong with the attributes of a class, for this kind alone."""

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a registered ``value``, or None."""
        complaint = self._wrong_instance(value) if self.instances else self._wrong_class(value)
        if complaint is not None:
            return complaint
        name = getattr(value, "name", None)
        if not isinstance(name, str) or not name or name != name.strip():
            return f"{value!r} has no name"
        if name in self.reserved_names:
            return f"the name '{name}' is reserved; choose another"
        return None

    def _wrong_instance(self, value: Any) -> str | None:
        if isinstance(value, self.base):
            return None
        return f"returned {value!r}, not a prunebench.{self.base.__name__} object"

    def _wrong_class(self, value: Any) -> str | None:
        if not (inspect.isclass(value) and issubclass(value, self.base)):
            return f"returned {value!r}, not a subclass of prunebench.{self.base.__name__}"
        if inspect.isabstract(value):  # would fail when the cell makes an instance, hours later
            missing = ", ".join(sorted(getattr(value, "__abstractmethods__", ())))
            return f"{value.__name__} does not define {missing}"
        for attribute, wanted in self.attributes.items():
            if not isinstance(getattr(value, attribute, None), wanted):
                return f"{value.__name__}.{attribute} must be a {wanted.__name__}"
        if complaint := self.of_class(value):
            return complaint
        return self._wrong_options(value) if hasattr(self.base, "Options") else None

    def _wrong_options(self, value: Any) -> str | None:
        if not (inspect.isclass(value.Options) and issubclass(value.Options, Options)):
            return f"{value.__name__}.Options is not a subclass of prunebench.Options"
        for name, option in value.Options.model_fields.items():
            if taken := {name, option.alias} & set(self.reserved_options):
                return (
                    f"{value.__name__} has an option '{taken.pop()}', which is a key of suites; "
                    "give the option another name"
                )
        return None


def _wrong_method(value: Any) -> str | None:
    """What is wrong with the attributes of a method's class: a misspelt value would be ignored."""
    if isinstance(value.structure, str):
        return f"{value.__name__}.structure is {value.structure!r}, expected a set of names"
    for name in value.structure:
        if name not in get_args(Structure):
            hint = did_you_mean(str(name), get_args(Structure))
            return f"{value.__name__}.structure names {name!r}: {hint}"
    if issubclass(value, LinearMethod) and value.group not in GROUPS:
        hint = did_you_mean(str(value.group), GROUPS)
        return f"{value.__name__}.group is {value.group!r}: {hint}"
    if issubclass(value, LayerwiseMethod):
        # Here, because it imports torch: plugins are registered with a placeholder of that.
        from prunebench.layerwise.statistics import input_statistics

        try:
            input_statistics(value.statistics)
        except PluginError as error:
            return f"{value.__name__}.{error.message}: {error.hint}"
    return None


def _wrong_runtime(value: Any) -> str | None:
    """What is wrong with a runtime's options: without a precision nothing could be converted."""
    if issubclass(value.Options, RuntimeOptions):
        return None
    return f"{value.__name__}.Options is not a subclass of prunebench.RuntimeOptions"


# In the order in which `prunebench plugins` lists them.
KINDS: Mapping[Kind, KindRules] = {
    # A suite writes `{sparsity: 0.5, recovery: lora}`: such keys are in one mapping with options.
    "method": KindRules(
        "prunebench_register_method",
        Method,
        reserved_options=(RECOVERY, CALIBRATION, ALLOCATION),
        of_class=_wrong_method,
    ),
    "allocation": KindRules("prunebench_register_allocation", Allocation),
    "recovery": KindRules("prunebench_register_recovery", Recovery, reserved_options=(DATA,)),
    "model": KindRules("prunebench_register_model_source", ModelAsset, instances=True),
    "corpus": KindRules("prunebench_register_corpus", Corpus, instances=True),
    "task data": KindRules(
        "prunebench_register_task_data", TaskData, instances=True, reserved_names=(HUB,)
    ),
    "metric": KindRules(
        "prunebench_register_metric",
        Metric,
        reserved_options=(DATA,),
        # Without a default: a forgotten direction would turn better and worse around.
        attributes={"higher_is_better": bool},
    ),
    "section": KindRules(
        "prunebench_register_report_section", ReportSection, attributes={"title": str}
    ),
    "engine": KindRules("prunebench_register_engine", Engine, reserved_names=BUILT_IN),
    "runtime": KindRules("prunebench_register_runtime", Runtime, of_class=_wrong_runtime),
}

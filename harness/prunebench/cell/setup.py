"""What the steps of one cell share: its plugins, devices and model files, and the flags."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from prunebench.callbacks import measured_now
from prunebench.cell.phases import Phases
from prunebench.errors import PrunebenchError, printable_values
from prunebench.experiment.cell import Cell
from prunebench.isolation.flags import Flags
from prunebench.isolation.process_guard import guarded
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.speed.io import disk_read_bytes, load_io
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.finite import check_dense_logits, check_dense_weights
from prunebench.model.folder import read_checkpoint
from prunebench.model.load import LoadedModel, load, load_dispatched
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.record.io import LoadIO
from prunebench.text.windows import Windows, evaluation_windows, with_length
from prunebench.training.checkpoint import TrainingCheckpoints

if TYPE_CHECKING:
    from prunebench.experiment.measures import PerplexitySpec
    from prunebench.experiment.plugins import PluginRef
    from prunebench.measure.quality.task_data import TaskData
    from prunebench.plugin.registry import Kind
    from prunebench.text.corpus import Corpus

# The "distribution" of a plugin that is a single file is the file's name; its version is the hash
# of its content.
FILE_SUFFIX = ".py"
# Longer notes (characters of JSON) are dropped: they would bloat every report.
LONGEST_NOTES = 1_000_000


@dataclass
class CellSetup:
    """What the steps of one cell share."""

    cell: Cell
    registry: Registry
    phases: Phases
    device: str
    layer_device: torch.device | None = None
    """Where single decoder layers are pruned, if that is not ``device``."""
    folder: Path = Path()
    """The model's checkpoint, once it is fetched."""
    flags: Flags = field(default_factory=Flags)
    """Side effects of plugins."""
    remember: Callable[[str, Callable[[], Any]], Any] = measured_now
    """Keeps what a method measured for the time after an interruption: see `Context.remember`."""
    calibration_reason: str | None = None
    """Why the cell has its calibration, if nobody named one."""
    texts: dict[PerplexitySpec, Windows] = field(default_factory=dict)
    """What was tokenised so far to measure quality on."""
    training: Path | None = None
    """Where trainings keep their state until the cell has a record; None: nowhere."""

    def checkpoints(self, phase: str) -> TrainingCheckpoints | None:
        """The states of the trainings in this phase."""
        return None if self.training is None else TrainingCheckpoints(self.training / phase)

    @property
    def corpora(self) -> dict[str, Corpus]:
        return self.registry.registered("corpus")

    @property
    def task_data(self) -> dict[str, TaskData]:
        return self.registry.registered("task data")

    def plugin(self, ref: PluginRef, kind: Kind) -> Any:
        """An instance of the plugin that ``ref`` names, with its options.

        Raises PrunebenchError if no plugin registers the name, or if a plugin file has changed
        since the cell was planned.
        """
        entry = self.registry[kind].get(ref.name)
        is_file = ref.distribution.endswith(FILE_SUFFIX)
        if entry is None:
            raise self._missing(ref, kind, is_file)
        if is_file and entry.version != ref.version:
            raise PrunebenchError(
                f"{entry.origin} is not the file that the cell was planned with "
                f"({entry.version}, then {ref.version})",
                hint="run the suite again: its cells are new ones",
            )
        return entry.value(entry.value.Options.model_validate(ref.options))

    def _missing(self, ref: PluginRef, kind: Kind, is_file: bool) -> PrunebenchError:
        problems = [
            problem.message
            for problem in self.registry.problems
            if problem.distribution == ref.distribution
        ]
        remedy = (
            f"give --plugin {ref.distribution}"
            if is_file
            else f"install {ref.distribution} {ref.version}"
        )
        return PrunebenchError(
            f"no plugin registers the {kind} '{ref.name}'"
            + (f": {'; '.join(problems)}" if problems else ""),
            hint=f"{remedy}; `prunebench plugins` lists the available ones",
        )

    def fetch(self) -> None:
        """Download or find the model's checkpoint, in a phase of its own."""
        with self.phases.phase("fetch"):
            self.folder = fetch_checkpoint(self.cell.model)

    def load_timed(
        self, *, unchanged: bool = True, checked: bool = False
    ) -> tuple[LoadedModel, LoadIO]:
        """Load the dense model in a phase of its own, and tell what loading read.

        ``checked``: another cell has found that the dense model neither holds nor computes NaN.
        Raises PrunebenchError as `load` does, and if it does hold or compute NaN.
        """
        watch = watch_of(self.device)
        with self.phases.phase("load"):
            read_before, start = disk_read_bytes(), watch.read()
            loaded = self.load(unchanged=unchanged)
            disturbed = watch.disturbed(start, watch.read())
            read_after = disk_read_bytes()
        if not checked:
            with self.phases.phase("check"):
                check_dense_weights(loaded.model, read_checkpoint(self.folder))
                # On several devices a pass may read all weights from the disk.
                if self.cell.model.placement is None:
                    check_dense_logits(loaded.model, self.folder)
        for note in loaded.notes:
            self.flags.add("the checkpoint", note)
        read = None if read_before is None or read_after is None else read_after - read_before
        return loaded, load_io(
            loaded.weight_bytes,
            loaded.seconds,
            read,
            transfers=loaded.transfers,
            disturbed=disturbed,
        )

    def load(self, *, unchanged: bool = True) -> LoadedModel:
        """The dense model; ``unchanged`` promises that nobody will change its weights.

        A model with a `device_map` is pruned in host memory and dispatched to its devices
        afterwards; if it stays unchanged it goes there straight from its files, so it may be
        larger than host memory. Raises PrunebenchError if host memory cannot hold a model that is
        to be pruned.
        """
        model = self.cell.model
        common: dict[str, Any] = {
            "dtype": model.dtype,
            "trust_remote_code": model.trust_remote_code,
        }
        if model.placement is None:
            return load(self.folder, device=self.device, **common)
        if unchanged:
            return load_dispatched(
                self.folder, device=self.device, placement=model.placement, **common
            )
        asked = dict(model.placement.max_memory)
        available = asked.get("cpu", 0) if asked else psutil.virtual_memory().available
        parameters = read_checkpoint(self.folder).parameters or 0
        needed = parameters * getattr(torch, model.dtype).itemsize
        if needed > available:
            raise PrunebenchError(
                f"pruning {model.name} takes {needed / 1e9:.3g} GB of host memory, "
                f"and it may have {available / 1e9:.3g} GB",
                hint="prune it with `prunebench prune MODEL METHOD --stream --out FOLDER`, "
                "and give FOLDER to the method dense",
            )
        return load(self.folder, device="cpu", **common)

    def evaluation_windows(self, spec: PerplexitySpec, loaded: LoadedModel) -> Windows:
        """The windows of ``spec`` for this model, tokenised once for all that is measured on them.

        Raises PrunebenchError as `prunebench.text.windows.evaluation_windows` does.
        """
        spec = with_length(spec, loaded.model)
        if spec not in self.texts:
            self.texts[spec] = evaluation_windows(
                spec, loaded.tokenizer, vocabulary_size(loaded.model), self.corpora
            )
        return self.texts[spec]

    def plain_notes(self, notes: Any, who: str, longest: int = LONGEST_NOTES) -> dict[str, Any]:
        """A plugin's notes as JSON values for the record; dropped, with a flag, if that fails.

        What JSON cannot express becomes its text, including NaN and infinity. ``longest`` is in
        characters of JSON.
        """
        try:
            text = json.dumps(notes, default=str, allow_nan=True)
        except (ValueError, TypeError, RecursionError) as error:
            self.flags.add(who, f"wrote notes that are not JSON ({str(error)[:200]}); dropped")
            return {}
        if len(text) > longest:
            self.flags.add(
                who, f"wrote notes of {len(text):,} characters, more than {longest:,}; dropped"
            )
            return {}
        # `parse_constant` sees NaN and Infinity, which the record's JSON cannot hold.
        found = printable_values(json.loads(text, parse_constant=str))
        if not isinstance(found, dict):
            self.flags.add(who, "wrote notes that are not a mapping; dropped")
            return {}
        return found


def set_up(cell: Cell, phases: Phases, layer_device: str | None = None) -> CellSetup:
    """Prepare this process for ``cell``: threads, plugins, seeds, devices.

    Raises PrunebenchError if the cell wants a GPU that is not there.
    """
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    flags = Flags()
    with guarded("a plugin's import", flags):
        registry = load_plugins()
    seed_all(cell.seed)
    device = _resolve_device(cell.device)
    if layer_device is None and cell.model.placement is not None and device != "cpu":
        # The model is pruned in host memory (see `load`); the GPU takes one layer at a time.
        layer_device = device
    layers = None if layer_device is None else torch.device(_resolve_device(layer_device))
    return CellSetup(cell, registry, phases, device, layers, flags=flags)


def _resolve_device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = wanted.partition(":")
    seen = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind in seen and not seen[kind]:
        raise PrunebenchError(
            f"device '{wanted}': torch sees no GPU", hint="set `device: cpu` or `device: auto`"
        )
    if kind in seen and int(number or 0) >= seen[kind]:
        raise PrunebenchError(
            f"device '{wanted}': torch sees {seen[kind]} GPUs, counted from 0",
            hint=f"set `device: {kind}` or another number",
        )
    return wanted


def seed_all(seed: int) -> None:
    """Seed torch, numpy and random."""
    torch.manual_seed(seed)
    # NumPy's global generator: a plugin may draw from it. It takes 32 bits.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def vocabulary_size(model: Any) -> int:
    """The number of token ids that ``model`` has embeddings for."""
    return int(model.get_input_embeddings().num_embeddings)

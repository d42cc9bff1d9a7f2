"""DRAM traffic of a GPU, from NVML's performance counters (GPM, on Hopper and later)."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from prunebench.measure.devices.gpu import Gpu
from prunebench.measure.devices.gpu_lookup import torch_gpu
from prunebench.measure.devices.nvml import Nvml
from prunebench.record.devices import DramTraffic

_DRAM_BW_UTIL = 10  # NVML_GPM_METRIC_DRAM_BW_UTIL, per cent


class DramMeter:
    """Context around a stretch of work on the GPU; `result` gives the mean use of its bandwidth.

    ``device`` is torch's name of the GPU. The stretch should last at least 0.1 s, and all work
    queued in it should be finished before it ends.
    """

    def __init__(self, device: str = "cuda") -> None:
        self._nvml = Nvml()
        self._gpu = torch_gpu(self._nvml, device)
        self._instance: Any = None
        self._reason = self._unsupported()
        self._peak = None if self._gpu is None or self._gpu.mig else self._gpu.peak_bytes_per_s()
        self._before: Any = None
        self._started = self._seconds = 0.0
        self._utilisation: float | None = None

    def __enter__(self) -> Self:
        self._before = self._sample()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seconds = time.perf_counter() - self._started
        after = self._sample()
        if self._before is not None and after is not None:
            self._utilisation = self._between(self._before, after)
        for sample in (self._before, after):
            if sample is not None:
                self._nvml.call("nvmlGpmSampleFree", sample)
        self._nvml.close()

    def result(self) -> DramTraffic:
        """The share of the memory bandwidth that was used inside the context."""
        return DramTraffic(
            utilisation=self._utilisation,
            seconds=self._seconds,
            peak_bytes_per_s=self._peak,
            reason=self._reason,
        )

    def _unsupported(self) -> str | None:
        if self._gpu is None:
            return (
                f"NVML: {self._nvml.reason or self._nvml.lost or 'it does not show the GPU in use'}"
            )
        # Only the whole GPU says whether it has counters; a MIG instance is then read by its id.
        whole = self._gpu.parent if self._gpu.mig else self._gpu.handle
        support, problem = self._nvml.ask("nvmlGpmQueryDeviceSupport", whole)
        if problem is not None:
            return problem
        if not getattr(support, "isSupportedDevice", 0):
            return "this GPU has no GPM counters: they came with Hopper"
        if self._gpu.mig:
            self._instance, problem = self._nvml.ask("nvmlDeviceGetGpuInstanceId", self._gpu.handle)
        return problem

    def _sample(self) -> Any:
        """A filled sample; None, with the reason noted, if NVML gives none."""
        if self._reason is not None or self._gpu is None:
            return None
        sample, problem = self._nvml.ask("nvmlGpmSampleAlloc")
        if problem is None:
            problem = self._fill(self._gpu, sample)
        if problem is not None:
            self._reason = problem
            return None
        return sample

    def _fill(self, gpu: Gpu, sample: Any) -> str | None:
        if gpu.mig:
            return self._nvml.ask("nvmlGpmMigSampleGet", gpu.parent, self._instance, sample)[1]
        return self._nvml.ask("nvmlGpmSampleGet", gpu.handle, sample)[1]

    def _between(self, before: Any, after: Any) -> float | None:
        structure = self._nvml.constant("c_nvmlGpmMetricsGet_t")
        if structure is None:
            self._reason = "this version of nvidia-ml-py has no GPM"
            return None
        request = structure()
        request.version = self._nvml.constant("NVML_GPM_METRICS_GET_VERSION")
        request.numMetrics = 1
        request.sample1, request.sample2 = before, after
        request.metrics[0].metricId = _DRAM_BW_UTIL
        answer, problem = self._nvml.ask("nvmlGpmMetricsGet", request)
        if problem is None and answer.metrics[0].nvmlReturn != 0:
            problem = f"nvmlGpmMetricsGet: the metric gives error {answer.metrics[0].nvmlReturn}"
        if problem is not None:
            self._reason = problem
            return None
        return float(answer.metrics[0].value) / 100

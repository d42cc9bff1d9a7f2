"""Write a checkpoint folder as one GGUF file, which llama.cpp reads; one tensor is in memory.

The file has the shapes of the weights, not those of config.json, so that it can also hold a model
whose layers differ. llama.cpp has one architecture for such models, `deci`: a Llama with numbers of
heads and channels for each layer. Everything else is written under the family's own architecture.

Four things differ from transformers' files:

    rope     llama.cpp turns neighbouring channels of a head together, transformers channels half a
             head apart, so the rows of Q and K are reordered for `llama` and `deci`
    norms    Gemma's code adds 1 to the weight of a norm; the file holds the sum
    gone     llama.cpp's `deci` drops the attention of a layer without an MLP, and takes the size of
             a head from layer 0. So an MLP of 32 channels, all zero, is written for one that is
             gone, and an attention of one head, all zero, in layer 0: both add nothing
    biases   of 1-D tensors and norms llama.cpp knows float32 only

Sources: llama.cpp's src/models/deci.cpp and conversion/, and the layout in `gguf_header`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.model.files import atomic_replace, check_file_target
from prunebench.model.gguf_write_plan import GGUFPlan, GGUFTensor, plan_gguf

if TYPE_CHECKING:
    import torch

PRECISIONS: Mapping[str, tuple[str, str]] = {
    # Ours -> (type of a matrix's elements, type of the file), by the names of the package gguf.
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
"""What matrices can be written as. A row that is no multiple of 32 is f16 instead of q8_0."""


def write_gguf(folder: Path, out: Path, precision: str = "f32", *, text: bool = True) -> Path:
    """Write the checkpoint in ``folder`` as the GGUF file ``out``, and return ``out``.

    ``folder`` is what `save_pretrained` or prunebench wrote. ``precision`` is one of `PRECISIONS`.
    ``text`` False writes a vocabulary whose tokens are their own ids, for those who never give it
    text: then any tokenizer will do, no token ends a text, and each token is a whole text, so that
    a server can send it at once. ``out`` is afterwards complete or, on an error, as it was. Raises
    PrunebenchError if llama.cpp could not compute this model, with the reason.
    """
    if precision not in PRECISIONS:
        raise PrunebenchError(
            f"a GGUF file is not written in '{precision}'",
            hint=did_you_mean(precision, PRECISIONS),
        )
    plan = plan_gguf(folder, text=text)
    check_file_target(out)
    with atomic_replace(out) as aside:
        _write(plan, aside, precision)
    return out


def gguf_refusal(folder: Path, *, text: bool = True) -> str | None:
    """Why the checkpoint in ``folder`` cannot be written as GGUF; None if it can.

    No tensor is read.
    """
    try:
        plan_gguf(folder, text=text)
    except PrunebenchError as error:
        return str(error)
    return None


def _write(plan: GGUFPlan, path: Path, precision: str) -> None:
    import gguf

    from prunebench.model.safetensors_io import TensorFiles

    kind, file_type = PRECISIONS[precision]
    writer = gguf.GGUFWriter(path, plan.architecture)
    try:
        plan.describe(writer)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        types = [gguf.GGMLQuantizationType[_stored_as(one, kind)] for one in plan.tensors]
        for tensor, stored in zip(plan.tensors, types, strict=True):
            _announce(writer, tensor, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with TensorFiles(plan.stored) as files:
            for tensor, stored in zip(plan.tensors, types, strict=True):
                values: torch.Tensor = tensor.values(files).float().contiguous()
                writer.write_tensor_data(gguf.quants.quantize(values.numpy(), stored))
    finally:
        writer.close()


def _stored_as(tensor: GGUFTensor, kind: str) -> str:
    if tensor.in_float32:
        return "F32"
    return "F16" if kind == "Q8_0" and tensor.shape[-1] % 32 else kind


def _announce(writer: Any, tensor: GGUFTensor, stored: Any) -> None:
    """Put name, shape and type of a tensor into the header."""
    import gguf
    import numpy as np

    # In bytes, with the type beside it: the one way that is the same for all types.
    shape = gguf.quant_shape_to_byte_shape(tensor.shape, stored)
    size = int(np.prod(shape))
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, raw_dtype=stored)

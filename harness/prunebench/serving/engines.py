"""The engines: which version was read, which models it knows, and how it is started.

The classes of models are those of transformers that the engine has code of its own for. An engine
changes from week to week, so a class that is not listed is only `unknown` where the engine has a
way for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Engine = Literal["transformers", "vllm", "sglang", "llama.cpp", "onnxruntime", "openvino"]


@dataclass(frozen=True)
class EngineFacts:
    """What is known of an engine."""

    read: str
    """What was read of it, and in which version."""
    start: str
    """The command that serves the folder {folder}, or the file {file}."""
    classes: frozenset[str] = frozenset()
    """Names in `architectures` that it has code for."""
    others: str | None = None
    """What it does with other classes, if that may work; None if it refuses them."""


_EVERYWHERE = (
    "LlamaForCausalLM MistralForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM"
    " GraniteForCausalLM OlmoForCausalLM PhiForCausalLM Phi3ForCausalLM Qwen2ForCausalLM"
    " Qwen3ForCausalLM"
)
_OFTEN = (
    " ApertusForCausalLM ArceeForCausalLM BloomForCausalLM CohereForCausalLM Cohere2ForCausalLM"
    " DeepseekV2ForCausalLM DeepseekV3ForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM"
    " FalconForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM"
    " GptOssForCausalLM GraniteMoeForCausalLM HunYuanDenseV1ForCausalLM JambaForCausalLM"
    " Lfm2ForCausalLM MixtralForCausalLM NemotronForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM"
    " OlmoeForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM"
    " SeedOssForCausalLM StableLmForCausalLM Starcoder2ForCausalLM"
)

ENGINES: Mapping[Engine, EngineFacts] = {
    "transformers": EngineFacts(
        "the installed version, by loading the folder without its weights",
        "AutoModelForCausalLM.from_pretrained({folder})",
        others="its own classes are all that there are",
    ),
    "vllm": EngineFacts(
        "vllm/model_executor/models/registry.py at 0002bff0 (early 2026)",
        "vllm serve {folder}",
        frozenset(
            f"{_EVERYWHERE}{_OFTEN} DeciLMForCausalLM GPTJForCausalLM GPTBigCodeForCausalLM"
            " OPTForCausalLM MptForCausalLM PersimmonForCausalLM PhiMoEForCausalLM".split()
        ),
        "vLLM runs other classes by the code of transformers, if that fits its interface",
    ),
    "sglang": EngineFacts(
        "the files of python/sglang/srt/models, as of 2026",
        "python -m sglang.launch_server --model-path {folder}",
        frozenset(
            f"{_EVERYWHERE} DeciLMForCausalLM OPTForCausalLM GPTNeoXForCausalLM GPT2LMHeadModel"
            " MixtralForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM Olmo2ForCausalLM"
            " OlmoeForCausalLM GptOssForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM"
            " Glm4ForCausalLM Glm4MoeForCausalLM".split()
        ),
        "SGLang runs other classes by the code of transformers, if that fits its interface",
    ),
    "llama.cpp": EngineFacts(
        "conversion/__init__.py at 00bdaa10 (2026), and the GGUF writer of prunebench",
        "llama-server -m {file}",
        frozenset(f"{_EVERYWHERE}{_OFTEN} DeciLMForCausalLM SmolLM3ForCausalLM".split()),
    ),
    "onnxruntime": EngineFacts(
        "onnxruntime_genai/models/builder.py of onnxruntime-genai 0.18.0",
        "python -m onnxruntime_genai.models.builder -i {folder} -o NEW -p fp32 -e cpu",
        frozenset(
            f"{_EVERYWHERE} Ernie4_5ForCausalLM GptOssForCausalLM HunYuanDenseV1ForCausalLM"
            " InternLM2ForCausalLM Lfm2ForCausalLM NemotronForCausalLM SmolLM3ForCausalLM".split()
        ),
    ),
    "openvino": EngineFacts(
        "the list of supported models of optimum-intel, which needs transformers below 5.6 and so"
        " an environment of its own",
        "optimum-cli export openvino -m {folder} NEW",
        frozenset(
            f"{_EVERYWHERE} BloomForCausalLM CohereForCausalLM DeepseekV2ForCausalLM"
            " DeepseekV3ForCausalLM ArceeForCausalLM FalconForCausalLM GPT2LMHeadModel"
            " GPTNeoXForCausalLM GPTJForCausalLM OPTForCausalLM MixtralForCausalLM"
            " PersimmonForCausalLM StableLmForCausalLM Starcoder2ForCausalLM".split()
        ),
        "optimum-intel may know it: its list changes with every version",
    ),
}

"""`prunebench check`: every rule is broken by something, and transformers does what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from prunebench.cli import prunebench as command
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block
from prunebench.model.biases import add_biases
from prunebench.model.checkpoint import save
from prunebench.model.decilm import save_decilm
from prunebench.model.gguf_write import write_gguf
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.uniform import uniform
from prunebench.model.width import keep_groups
from prunebench.serving.check import Answer, check
from prunebench.serving.engines import ENGINES
from prunebench.serving.rules import RULES
from tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300
EFFECTS = {rule.name: rule.effect for rule in RULES}


def uneven_model() -> Any:
    model = tiny_model("llama")
    remove_blocks(model, [Block(1, "attention"), Block(2, "mlp")])
    keep_groups(model, {Block(3, "mlp"): range(3, 40), Block(3, "attention"): [1]})
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """A folder, or file, of each kind."""
    root = tmp_path_factory.mktemp("saved")
    shallow, uneven, flap = tiny_model("qwen2"), uneven_model(), tiny_model("llama")
    remove_layers(shallow, [1])
    add_biases(flap, {"model.layers.2.mlp.down_proj": torch.ones(48)})
    models = {
        "dense": tiny_model("llama"),  # heads of 12 channels
        "wide": tiny_model("qwen3"),  # of 16
        "shallow": shallow,
        "uneven": uneven,
        "even": uniform(uneven).model,
        "flap": uniform(flap).model,
    }
    for name, model in models.items():
        save(model, tiny_tokenizer(), root / name, made_by={"method": name})
    save_decilm(uneven, tiny_tokenizer(), root / "decilm")
    write_gguf(root / "uneven", root / "deci.gguf")
    write_gguf(root / "even", root / "llama.gguf")
    return {path.name: path for path in root.iterdir()}


def answer(path: Path, engine: str) -> Answer:
    (found,) = check(path, [engine])
    assert found.engine == engine
    return found


def rules_of(path: Path, engine: str) -> set[str]:
    return {finding.rule for finding in answer(path, engine).findings}


YES = {
    "dense": "transformers vllm sglang llama.cpp openvino",
    "shallow": "transformers vllm sglang openvino",
    "wide": "transformers vllm sglang onnxruntime openvino llama.cpp",
    "even": "transformers vllm sglang llama.cpp openvino",
    "uneven": "llama.cpp",
    "decilm": "vllm sglang",
    "flap": "transformers vllm llama.cpp openvino",
    "deci.gguf": "llama.cpp",
    "llama.gguf": "llama.cpp transformers",
}


@pytest.mark.parametrize("name", YES)
def test_who_reads_what(saved: dict[str, Path], name: str) -> None:
    answers = check(saved[name])
    assert [each.engine for each in answers] == list(ENGINES)
    assert {each.engine for each in answers if each.loads == "yes"} == set(YES[name].split())
    for each in answers:
        assert each.text
        assert (each.start is None) == (each.loads == "no")
        if each.loads == "no" and each.findings:
            first = next(one for one in each.findings if one.effect != "note")
            assert first.text in each.text and first.fix and first.source


@pytest.mark.parametrize("name", ["dense", "wide", "shallow", "even", "flap", "uneven", "decilm"])
def test_transformers_does_what_is_said(saved: dict[str, Path], name: str) -> None:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(saved[name], output_loading_info=True)
        loads = not (report["missing_keys"] or report["mismatched_keys"])
    except (OSError, ValueError):
        loads = False
    assert (answer(saved[name], "transformers").loads == "yes") == loads
    if name == "even":
        torch.testing.assert_close(model(IDS).logits, uneven_model()(IDS).logits)


@pytest.mark.parametrize("shard", ["50GB", "50KB"], ids=["one file", "shards"])
def test_a_plain_model_saved_over_an_uneven_one_is_plain(
    saved: dict[str, Path], tmp_path: Path, shard: str
) -> None:
    folder = shutil.copytree(saved["uneven"], tmp_path / "both")
    assert answer(folder, "transformers").loads == "no"
    tiny_model("llama").save_pretrained(folder, max_shard_size=shard)
    assert answer(folder, "transformers").loads == "yes"


def test_what_transformers_is_told_is_python(saved: dict[str, Path], tmp_path: Path) -> None:
    """A path with blanks, and a file beside others."""
    folder = shutil.copytree(saved["dense"], tmp_path / "my model")
    shutil.copy(saved["llama.gguf"], tmp_path / "a b.gguf")
    for path in (folder, tmp_path / "a b.gguf"):
        start = answer(path, "transformers").start
        assert start is not None
        model = eval(start, {"AutoModelForCausalLM": AutoModelForCausalLM})
        assert model.config.model_type == "llama"
    assert "'" in (answer(folder, "vllm").start or "")


def test_transformers_reads_the_gguf_files_that_it_is_said_to_read(saved: dict[str, Path]) -> None:
    for name, loads in (("llama.gguf", True), ("deci.gguf", False)):
        path = saved[name]
        try:
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=name)
        except (OSError, ValueError, KeyError):
            assert not loads
        else:
            assert loads
            torch.testing.assert_close(
                model(IDS).logits, uneven_model()(IDS).logits, rtol=0, atol=1e-5
            )


def block(layer: int, part: str, **entries: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["block_configs"][layer][part] |= entries

    return change


def without(layer: int, part: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        del config["block_configs"][layer][part][name]

    return change


def entries(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(fields)


SPARSE = {"quant_method": "compressed-tensors", "sparsity_config": {"sparsity_structure": "2:4"}}
BROKEN: list[tuple[str, str, str, Callable[[dict[str, Any]], None] | None]] = [
    ("uneven", "uneven", "transformers vllm sglang onnxruntime openvino", None),
    ("config-and-weights", "dense", "vllm sglang", entries(intermediate_size=96)),
    ("config-and-weights", "dense", "transformers openvino", entries(num_hidden_layers=5)),
    ("own-code", "dense", "vllm transformers", entries(auto_map={"AutoModel": "a.B"})),
    ("decilm-class", "decilm", "transformers onnxruntime openvino", None),
    ("decilm-code", "decilm", "vllm sglang", None),
    ("decilm-factor", "decilm", "sglang llama.cpp", without(0, "ffn", "ffn_mult")),
    ("decilm-factor", "decilm", "sglang llama.cpp", block(0, "ffn", ffn_mult=8)),
    ("decilm-width", "decilm", "vllm sglang llama.cpp", block(3, "ffn", ffn_mult=16.5)),
    ("decilm-heads", "decilm", "vllm sglang", block(3, "attention", n_heads_in_group=4)),
    ("decilm-heads", "decilm", "llama.cpp", entries(num_attention_heads=8)),
    ("decilm-first-attention", "decilm", "vllm sglang", block(0, "attention", no_op=True)),
    ("decilm-linear-key", "decilm", "llama.cpp", without(1, "attention", "replace_with_linear")),
    ("decilm-lost-attention", "decilm", "llama.cpp", block(2, "ffn", no_op=True)),
    ("decilm-head-size", "decilm", "llama.cpp", entries(hidden_size=96)),
    ("decilm-vocabulary", "decilm", "llama.cpp", None),
    ("mlp-biases", "flap", "sglang", None),
    ("sparse24", "dense", "vllm", entries(quantization_config=SPARSE)),
    (
        "rope-theta",
        "dense",
        "vllm sglang openvino",
        entries(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    ),
    ("row-length", "dense", "llama.cpp", None),
    ("head-multiple", "even", "onnxruntime", None),
    ("gguf-class", "deci.gguf", "transformers", None),
    ("gguf-file", "deci.gguf", "onnxruntime openvino", None),
]


@pytest.mark.parametrize(("rule", "name", "engines", "change"), BROKEN)
def test_every_rule_is_broken_by_something(
    saved: dict[str, Path],
    rule: str,
    name: str,
    engines: str,
    change: Callable[[dict[str, Any]], None] | None,
    tmp_path: Path,
) -> None:
    path = saved[name]
    if change is not None:
        before = {engine: rules_of(path, engine) for engine in engines.split()}
        path = shutil.copytree(path, tmp_path / "my model")
        config = json.loads((path / "config.json").read_text())
        change(config)
        (path / "config.json").write_text(json.dumps(config))
        assert not any(rule in found for found in before.values())
    for engine in engines.split():
        found = answer(path, engine)
        (finding,) = (one for one in found.findings if one.rule == rule)
        assert finding.effect == EFFECTS[rule]
        assert (found.loads == "no") >= (finding.effect != "note")
        assert "{" not in finding.fix.replace("{merge: true}", "")
        if "prunebench prune" in finding.fix and path.is_dir():
            assert ("'" in finding.fix) == (" " in str(path))
    others = set(ENGINES) - {engine for r in RULES if r.name == rule for engine in r.sources}
    assert not any(rule in rules_of(path, engine) for engine in others)


def test_a_folder_without_a_tokenizer_or_with_an_adapter(tmp_path: Path) -> None:
    save(tiny_model("llama"), None, tmp_path / "bare", made_by={})
    assert "no tokenizer" in answer(tmp_path / "bare", "vllm").text
    assert answer(tmp_path / "bare", "transformers").loads == "yes"
    (tmp_path / "bare" / "adapter").mkdir()
    assert "adapter" in rules_of(tmp_path / "bare", "transformers")


def test_a_gguf_file_whose_attention_llama_cpp_would_drop(tmp_path: Path) -> None:
    """Our writer never writes one, so this has a header of another."""
    import gguf

    for rule, heads, channels in (
        ("gguf-lost-attention", [4, 4], [80, 0]),
        ("gguf-first-attention", [0, 4], [80, 80]),
    ):
        path = tmp_path / f"{rule}.gguf"
        writer = gguf.GGUFWriter(path, "deci")
        writer.add_block_count(2)
        writer.add_head_count(heads)
        writer.add_head_count_kv([2, 2])
        writer.add_feed_forward_length(channels)
        writer.add_tensor("token_embd.weight", torch.ones(4, 4).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found = answer(path, "llama.cpp")
        assert (found.loads, [one.rule for one in found.findings]) == ("no", [rule])
    assert (
        "computes another model" in answer(tmp_path / "gguf-lost-attention.gguf", "llama.cpp").text
    )


def test_all_rules_are_tried_and_say_where_they_were_read() -> None:
    tried = {rule for rule, *_ in BROKEN}
    tried |= {"tokenizer", "adapter", "gguf-lost-attention", "gguf-first-attention"}
    assert {rule.name for rule in RULES} == tried
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.sources and all(len(source) > 5 for source in rule.sources.values())


@pytest.mark.parametrize(
    ("architecture", "known", "unknown", "refused"),
    [
        ("OPTForCausalLM", "vllm sglang openvino", "", "onnxruntime"),
        ("NanoChatForCausalLM", "", "vllm sglang openvino", "onnxruntime"),
    ],
)
def test_classes_of_models(
    saved: dict[str, Path],
    tmp_path: Path,
    architecture: str,
    known: str,
    unknown: str,
    refused: str,
) -> None:
    folder = shutil.copytree(saved["wide"], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    for names, loads in ((known, "yes"), (unknown, "unknown"), (refused, "no")):
        for engine in names.split():
            assert answer(folder, engine).loads == loads, engine


def test_quantised_weights_are_not_judged(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved["dense"], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (folder / "config.json").write_text(json.dumps(config))
    assert answer(folder, "vllm").loads == "unknown"
    assert "awq" in answer(folder, "vllm").text


def run(*words: str) -> Any:
    return CliRunner().invoke(command, ["check", *words])


def test_the_command(saved: dict[str, Path]) -> None:
    done = run(str(saved["uneven"]))
    assert done.exit_code == 0, done.output
    assert "no      vllm" in done.output and "yes     llama.cpp" in done.output
    assert "dense --out NEW --uniform" in done.output
    assert "decilm" in done.output
    asked = run(str(saved["uneven"]), "--for", "llama.cpp", "--for", "vllm", "--json")
    assert asked.exit_code == 1
    assert [each["engine"] for each in json.loads(asked.output)] == ["vllm", "llama.cpp"]
    assert run(str(saved["decilm"]), "--for", "vllm").exit_code == 0
    assert "--trust-remote-code" in run(str(saved["decilm"]), "--for", "vllm").output
    rules = run("--rules")
    assert all(rule.name in rules.output for rule in RULES)
    assert len(json.loads(run("--rules", "--json").output)) == len(RULES)
    assert run().exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["text.txt"], "is no GGUF file"),
        (["."], "has no config.json"),
        ([".", "--for", "vlm"], "no rules for the engine 'vlm'"),
    ],
)
def test_what_is_no_model(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(PrunebenchError, match=message):
        command.main(["check", *words], standalone_mode=False)

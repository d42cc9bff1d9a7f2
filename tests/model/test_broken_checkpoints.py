"""Checkpoints from the field that are broken: each gets its cause, and a fix that fits or none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prunebench.app.one_cell import one_cell
from prunebench.cell.phases import Phases
from prunebench.cell.pipeline import build_pruned_model
from prunebench.cell.setup import CellSetup
from prunebench.errors import PrunebenchError, first_line
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.load import load
from prunebench.model.source import resolve
from prunebench.plugin.host import load_plugins
from tiny import tiny_checkpoint

Damage = Callable[[Path], object]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", "llama")


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def content(name: str, text: str | bytes) -> Damage:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data)


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def rename(name: str) -> Damage:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        changed = edit(tensors)
        save_file(
            changed if isinstance(changed, dict) else tensors, path, metadata={"format": "pt"}
        )

    return damage


def prefixed(prefix: str) -> Damage:
    return weights(lambda tensors: {f"{prefix}{name}": each for name, each in tensors.items()})


def stored_as(dtype: torch.dtype) -> Damage:
    return weights(
        lambda tensors: {
            name: each.to(dtype) if "proj" in name else each for name, each in tensors.items()
        }
    )


def split(folder: Path, count: int = 7) -> dict[str, str]:
    """Split the weights into shards; returns the index's map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    return where


def index(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        data = {"weight_map": split(folder), **changes}
        (folder / "model.safetensors.index.json").write_text(json.dumps(data))

    return damage


def two_files(folder: Path) -> None:
    """An index with two shards that hold the same tensors."""
    for name in ("one", "other"):
        save_file(load_file(folder / "model.safetensors"), folder / f"{name}.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors", "b": "other.safetensors"}})
    )


# Damage -> the cause in the message, and the fix; None: no hint fits.
AT_PLAN: dict[str, tuple[Damage, str, str | None]] = {
    "gptq": (
        both(
            config(quantization_config={"quant_method": "gptq", "bits": 4}),
            weights(
                lambda tensors: tensors.update(
                    {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, dtype=torch.int32)}
                )
            ),
        ),
        r"is quantised \(gptq, 4 bits\)",
        "name the checkpoint that it was made from",
    ),
    "fp8": (
        both(config(quantization_config={"quant_method": "fp8"}), stored_as(torch.float8_e4m3fn)),
        r"is quantised \(fp8\)",
        "name the checkpoint",
    ),
    "bitnet": (
        both(
            config(model_type="bitnet", quantization_config={"quant_method": "bitnet"}),
            stored_as(torch.uint8),
        ),
        r"is quantised \(bitnet\)",
        "name the checkpoint",
    ),
    "fp8 without a word": (
        stored_as(torch.float8_e4m3fn),
        r"model\.safetensors: model\.layers\.0\.mlp\.down_proj\.weight is stored as F8_E4M3",
        "name the checkpoint",
    ),
    "int8 without a word": (stored_as(torch.int8), "is stored as I8", "name the checkpoint"),
    "bitsandbytes on the fly": (
        config(quantization_config={"load_in_4bit": True}),
        r"config\.json asks to quantise while loading \(bitsandbytes, 4 bits\)",
        "remove `quantization_config`",
    ),
    "a padding id above the vocabulary": (
        config(pad_token_id=320),
        r"config\.json: pad_token_id is 320, but the vocabulary has ids 0 to 319",
        "set it to null",
    ),
    "a padding id below": (config(pad_token_id=-321), "pad_token_id is -321", "set it to null"),
    "a size as text": (config(hidden_size="48"), "hidden_size is '48'", "correct it"),
    "a negative size": (config(hidden_size=-48), "hidden_size is -48", "correct it"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0", "correct it"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0", "correct it"),
    "half a layer": (config(num_hidden_layers=3.5), "num_hidden_layers is 3.5", "correct it"),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings", "correct it"),
    "shards without an index": (
        split,
        r"lacks model\.safetensors\.index\.json, which lists its shards \(",
        "copy or download it",
    ),
    "five of seven shards without an index": (
        both(split, remove("model-00003-of-00007.safetensors", "model-00007-of-00007.safetensors")),
        "lists its shards, and 2 of its 7 shards",
        "copy or download it",
    ),
    "shards that are missing": (
        both(index(), remove("model-00003-of-00007.safetensors")),
        r"lacks 1 of its 7 shards: model-00003-of-00007\.safetensors",
        "copy or download the missing files",
    ),
    "an index without a map": (index(weight_map={}), "has no weight_map", "copy or download"),
    "a tensor in two shards": (
        two_files,
        r"is stored in one\.safetensors and in other\.safetensors",
        "into an empty folder",
    ),
    "another name": (
        rename("weights.safetensors"),
        "neither model.safetensors nor",
        "if weights.safetensors holds the whole model, give it the name model.safetensors",
    ),
    "two other names": (
        both(rename("a.safetensors"), content("b.safetensors", "")),
        "but 2 other weight files: a.safetensors, b.safetensors",
        "leave the model's file there",
    ),
    "Mistral's own names": (
        rename("consolidated.safetensors"),
        "consolidated weights, which have their publisher's own names",
        "download model.safetensors",
    ),
    "Meta's own format": (
        both(remove("config.json"), content("params.json", "{}"), rename("consolidated.00.pth")),
        r"no config\.json but params\.json: it is in its publisher's own format",
        "for transformers",
    ),
    "an adapter alone": (
        both(
            remove("config.json"),
            rename("adapter_model.safetensors"),
            content("adapter_config.json", "{}"),
        ),
        "holds a PEFT adapter, not a model",
        "merge it into its base model",
    ),
    "an adapter with a config": (
        rename("adapter_model.safetensors"),
        "holds a PEFT adapter, not a model",
        "merge it",
    ),
    "pickles alone": (rename("pytorch_model.bin"), "only pickled weights", "convert it once"),
    "a GGUF file in a folder": (
        both(remove("config.json", "model.safetensors"), content("m.gguf", "")),
        "no config.json, but a GGUF file",
        "name .*m.gguf",
    ),
    "a broken link": (
        both(
            remove("model.safetensors"),
            lambda folder: (folder / "model.safetensors").symlink_to("../blobs/abc"),
        ),
        r"model\.safetensors is a link to \.\./blobs/abc, which does not exist",
        "cp -L",
    ),
    "a pointer of Git LFS": (
        content("model.safetensors", LFS),
        r"model\.safetensors is a Git LFS pointer",
        "git lfs pull",
    ),
    "a web page": (
        content("model.safetensors", "<!DOCTYPE html><html>...</html>"),
        r"model\.safetensors is a web page",
        "/resolve/",
    ),
    "a pickle by another name": (
        lambda folder: torch.save({}, folder / "model.safetensors"),
        "is a zip archive, as torch.save writes it",
        "pickled weights are never loaded",
    ),
    "a file of zeros": (content("model.safetensors", bytes(100)), "begins with zeros", "copy or"),
    "an empty file": (content("model.safetensors", ""), "is empty", "copy or download"),
    "a header that lies": (
        content(
            "model.safetensors",
            (86).to_bytes(8, "little")
            + b'{"model.norm.weight":{"dtype":"F32","shape":[640],"data_offsets":[0,256]}}'.ljust(
                86
            )
            + bytes(256),
        ),
        "gives model.norm.weight 256 bytes from byte 94 on, and not 2560",
        "copy or download",
    ),
    "a config of another encoding": (
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text(), encoding="utf-16"
        ),
        r"config\.json is UTF-16",
        "save it as UTF-8",
    ),
    "a config that the Hub did not have": (
        content("config.json", "Entry not found"),
        "is an error message of the Hub",
        "/resolve/",
    ),
    "a config cut short": (content("config.json", '{"a":'), "config.json is not JSON", "copy or"),
    "more layers than weights": (
        config(num_hidden_layers=10**6),
        "num_hidden_layers is 1000000, but the weights have 4",
        "take config and weights from the same checkpoint",
    ),
    "another width": (config(hidden_size=10**8), "hidden_size is 100000000", "same checkpoint"),
    "another vocabulary": (config(vocab_size=10**9), "vocab_size is 1000000000", "same checkpoint"),
    "another MLP": (config(intermediate_size=10**9), "intermediate_size is", "same checkpoint"),
    "another head": (
        config(head_dim=7),
        "num_attention_heads x head_dim is 28, but the weights have 48",
        "same checkpoint",
    ),
    "a pipe": (
        both(
            remove("model.safetensors"),
            lambda folder: os.mkfifo(folder / "model.safetensors"),
        ),
        r"model\.safetensors is a pipe or a device, not a file",
        "copy or download",
    ),
    "a config that is a pipe": (
        both(remove("config.json"), lambda folder: os.mkfifo(folder / "config.json")),
        r"config\.json is a pipe or a device",
        "copy or download",
    ),
    "weights of another framework": (
        rename("flax_model.msgpack"),
        "but weights of another framework: flax_model.msgpack",
        "download the safetensors",
    ),
    "a download that did not finish": (
        rename("model.safetensors.incomplete"),
        r"but model\.safetensors\.incomplete: a download that did not finish",
        "download it again",
    ),
    "weights in a folder below": (
        both(lambda folder: (folder / "sub").mkdir(), rename("sub/model.safetensors")),
        "they are in sub/",
        "name .*/sub",
    ),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer", "save one there"),
}


@pytest.mark.parametrize("fault", AT_PLAN)
def test_what_is_broken_is_named_when_a_suite_is_planned(folder: Path, fault: str) -> None:
    damage, message, hint = AT_PLAN[fault]
    damage(folder)
    with pytest.raises(PrunebenchError, match=message) as caught:
        resolve(str(folder), base=Path(), assets={})
    check(caught.value, folder, hint)


def check(error: PrunebenchError, folder: Path, hint: str | None) -> None:
    assert str(folder) in error.message
    assert "\n" not in str(error)
    assert (error.hint is None) == (hint is None)
    if hint is not None:
        assert re.search(hint, error.hint or ""), error.hint


WHEN_LOADED: dict[str, tuple[Damage, str, str | None]] = {
    "a value of another type": (
        config(rms_norm_eps="1e-5"),
        r"config\.json: Validation error for field 'rms_norm_eps': .*expected float, got str",
        "correct that value",
    ),
    "heads that do not divide the width": (
        config(num_attention_heads=5, head_dim=None),
        r"hidden size \(48\) is not a multiple of the number of attention heads \(5\)",
        "correct that value",
    ),
    "a list of the wrong length": (
        config(layer_types=["full_attention"]),
        "must be equal to the number of `layer_types`",
        "correct that value",
    ),
    "an unknown activation": (
        config(hidden_act="swooglu"),
        "hidden_act is 'swooglu', which transformers does not know",
        None,
    ),
    "an unknown rotary embedding": (
        config(rope_parameters={"rope_type": "quantum", "rope_theta": 1e4}),
        "rope_parameters.rope_type is 'quantum', which transformers does not know",
        None,
    ),
    "a rotary embedding without its factor": (
        config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4}),
        "Missing required keys in `rope_parameters`",
        "correct that value",
    ),
    "another model type": (
        config(model_type="llamma"),
        "transformers .* knows no model type 'llamma'",
        "install a newer transformers",
    ),
    "a model type that is no language model": (
        config(model_type="t5"),
        "a t5 model is no causal language model",
        "name a causal language model",
    ),
    "code of its own": (
        config(model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "runs code of its own",
        "trust_remote_code: true",
    ),
    "names of DataParallel": (
        prefixed("module."),
        "missing keys: .*; instead it holds module.model.embed_tokens.weight",
        "without 'module.' in front",
    ),
    "names of peft": (prefixed("base_model.model."), "missing keys", "merge the adapter"),
    "a layer that lacks a weight": (
        weights(lambda tensors: [tensors.pop("model.layers.3.mlp.up_proj.weight")]),
        "1 missing keys: model.layers.3.mlp.up_proj.weight",
        "take config and weights from the same checkpoint",
    ),
    "a rotary base of 0": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
        "the dense model computes NaN or infinity in float32",
        "a number in config.json is wrong",
    ),
    "NaN": (
        weights(
            lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3, 3].fill_(torch.nan)
        ),
        r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity in 1 of",
        "the model is damaged",
    ),
    "infinity outside the layers": (
        weights(lambda tensors: tensors["model.norm.weight"][3].fill_(torch.inf)),
        r"model\.norm\.weight holds NaN or infinity in 1 of 48",
        "the model is damaged",
    ),
    "a weight too large for float16": (
        weights(lambda tensors: tensors["model.norm.weight"][3].fill_(1e6)),
        r"model\.norm\.weight has weights up to 1e\+06, too large for float16",
        "dtype: bfloat16",
    ),
    "a tokenizer that is a pointer": (
        content("tokenizer.json", LFS),
        r"tokenizer\.json is a Git LFS pointer",
        "git lfs pull",
    ),
    "a tokenizer cut short": (
        content("tokenizer.json", '{"a'),
        r"tokenizer\.json is not JSON",
        "copy or download the file again",
    ),
    "a tokenizer's config cut short": (
        content("tokenizer_config.json", "{"),
        r"tokenizer_config\.json is not JSON",
        "copy or download the file again",
    ),
    "a tokenizer that is another file": (
        content("tokenizer.json", '{"a": 1}'),
        "lacks the key 'added_tokens'",
        "the tokenizer's files",
    ),
    "a vocabulary without its merges": (
        both(remove("tokenizer.json", "tokenizer_config.json"), content("vocab.json", '{"a": 0}')),
        "cannot read the tokenizer",
        "merges.txt, which belongs to vocab.json",
    ),
    "a tokenizer with code": (
        both(
            remove("tokenizer.json"),
            content("vocab.txt", "a"),
            content(
                "tokenizer_config.json",
                '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}',
            ),
        ),
        "custom code",
        "trust_remote_code: true",
    ),
}


@pytest.mark.parametrize("fault", WHEN_LOADED)
def test_what_is_broken_is_named_when_the_model_is_loaded(folder: Path, fault: str) -> None:
    damage, message, hint = WHEN_LOADED[fault]
    damage(folder)
    dtype = "float16" if "float16" in fault else "float32"
    with pytest.raises(PrunebenchError, match=message) as caught:
        setup_of(folder, dtype).load_timed()
    check(caught.value, folder, hint)


def setup_of(folder: Path, dtype: str = "float32") -> CellSetup:
    """What a cell of the method dense shares, for a folder that need not pass the plan."""
    registry = load_plugins()
    cell = one_cell("tiny-llama", {"dense": {}}, registry, command="a test")
    model = cell.model.model_copy(update={"dtype": dtype})
    cell = cell.model_copy(update={"model": model})
    return CellSetup(cell, registry, Phases(), "cpu", folder=folder)


HARMLESS: dict[str, Damage] = {
    "an index without metadata": index(),
    "an index that names another shard": index(
        weight_map={"a": "model-00002-of-00007.safetensors"}
        | {f"b{number}": f"model-{number:05d}-of-00007.safetensors" for number in range(1, 8)}
    ),
    "a byte order mark": lambda folder: (folder / "config.json").write_bytes(
        b"\xef\xbb\xbf" + (folder / "config.json").read_bytes()
    ),
    "quantisation: null": config(quantization_config=None),
    "a padding id from the end": config(pad_token_id=-1),
}


@pytest.mark.parametrize("oddity", HARMLESS)
def test_what_does_no_harm_is_loaded(folder: Path, tmp_path: Path, oddity: str) -> None:
    before = load(tiny_checkpoint(tmp_path / "plain"), dtype="float32", device="cpu").model
    HARMLESS[oddity](folder)
    assert resolve(str(folder), base=Path(), assets={}).sha256
    after = load(folder, dtype="float32", device="cpu").model
    ids = torch.arange(20)[None]
    assert torch.equal(before(ids).logits, after(ids).logits)


def test_a_dense_weight_that_is_not_finite_is_not_blamed_on_the_method(folder: Path) -> None:
    weights(lambda tensors: tensors["model.norm.weight"][3].fill_(torch.nan))(folder)
    cell = one_cell(str(folder), {"magnitude": {"sparsity": 0.5}}, load_plugins(), command="a test")
    with pytest.raises(PrunebenchError, match=r"model\.safetensors: model\.norm\.weight holds NaN"):
        build_pruned_model(CellSetup(cell, load_plugins(), Phases(), "cpu"))


@pytest.mark.parametrize(
    ("start", "packages"),
    [(b"\n\x0e\n\x05<unk>", ("sentencepiece", "protobuf")), (b"IQ== 0\nIg== 1\n", ("tiktoken",))],
)
def test_a_tokenizer_that_needs_a_package_says_which(
    folder: Path, start: bytes, packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove("tokenizer.json")(folder)
    (folder / "tokenizer.model").write_bytes(start)
    monkeypatch.setattr("prunebench.model.folder.find_spec", lambda _: None)
    with pytest.raises(PrunebenchError, match=r"to read tokenizer\.model transformers needs") as no:
        resolve(str(folder), base=Path(), assets={})
    assert (no.value.hint or "").startswith(f"pip install {' '.join(packages)};")
    monkeypatch.setattr("prunebench.model.folder.find_spec", lambda name: name)
    assert resolve(str(folder), base=Path(), assets={}).name == "tiny"


def gguf_file(path: Path, **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(*value)
    if "uint16" not in keys or keys["uint16"][1] == 1:
        writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "keys", "message", "hint"),
    [
        ("m-00001-of-00003.gguf", {}, "is one of the 3 parts of a model", "gguf-split --merge"),
        ("m.gguf", {"uint16": ("split.count", 3)}, "one of the 3 parts", "gguf-split --merge"),
        ("m.gguf", {"type": ("adapter",)}, "of the kind 'adapter'", "name the GGUF file"),
        ("m.gguf", {"type": ("mmproj",)}, "of the kind 'mmproj'", "name the GGUF file"),
        ("m.gguf", {"uint16": ("split.count", 0)}, "holds no weights", "name the GGUF file"),
    ],
)
def test_a_gguf_file_that_is_no_whole_model_is_refused(
    tmp_path: Path, name: str, keys: dict[str, Any], message: str, hint: str
) -> None:
    path = gguf_file(tmp_path / name, **keys)
    with pytest.raises(PrunebenchError, match=message) as caught:
        resolve(str(path), base=Path(), assets={})
    check(caught.value, path, hint)


def test_a_whole_model_that_was_one_part_is_accepted(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m-00001-of-00001.gguf", uint16=("split.count", 1))
    assert resolve(str(path), base=Path(), assets={}).kind == "gguf"


def test_a_pointer_instead_of_a_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(LFS)
    with pytest.raises(PrunebenchError, match=r"m\.gguf is a Git LFS pointer, not a GGUF file"):
        resolve("m.gguf", base=tmp_path, assets={})


def test_nan_in_a_gguf_file_is_named_with_the_file(
    tmp_path: Path, tiny_gguf: Path, cache: Path
) -> None:
    path = tmp_path / "nan.gguf"
    data = np.frombuffer(tiny_gguf.read_bytes(), dtype=np.uint8).copy()
    data[-4:] = np.frombuffer(np.float32(np.nan).tobytes(), dtype=np.uint8)
    path.write_bytes(data.tobytes())
    with pytest.raises(PrunebenchError, match=r"nan\.gguf: .* holds NaN or infinity"):
        fetch_checkpoint(resolve(str(path), base=Path(), assets={}))
    assert not list((cache / "models").glob("*/config.json"))


@pytest.mark.parametrize("command", ["prunebench prune", "prunebench profile"])
def test_an_unknown_model_is_reported_by_the_command_that_was_given(command: str) -> None:
    with pytest.raises(PrunebenchError) as caught:
        one_cell("nowhere", {"dense": {}}, load_plugins(), command=command)
    assert caught.value.message.startswith(f"{command}: models: unknown model 'nowhere'")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("\n  Validation error for field 'a':\n    TypeError: a is b\nthree", None),
        ("only a colon:", "only a colon:"),
        ("", "ValueError"),
    ],
)
def test_a_line_that_ends_with_a_colon_is_followed_by_its_reason(
    text: str, line: str | None
) -> None:
    expected = line or "Validation error for field 'a': TypeError: a is b"
    assert first_line(ValueError(text)) == expected

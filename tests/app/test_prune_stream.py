"""`prunebench prune --stream`: the same folder as pruning in memory gives, from file to file; refusals; nothing by halves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

import prunebench
from prunebench.cli import prunebench as command
from prunebench.layerwise import walk
from prunebench.layerwise.layer_run import LayerRun
from prunebench.model.anatomy import anatomy
from tiny import FAMILIES, tiny_checkpoint

CALIBRATION = {"corpus": "text.txt", "windows": 3, "length": 16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


HALF = {"sparsity": 0.5}


def prune(out: str, method: str, options: dict[str, object], *, stream: bool, **settings):
    return prunebench.prune(
        "model",
        method,
        options=options,
        calibration=CALIBRATION,
        out=out,
        force=True,
        stream=stream,
        **settings,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CASES = [
    ("wanda", HALF, {}),
    ("dsnot", HALF, {}),
    ("sparsegpt", {"sparsity": "2:4"}, {}),
    ("magnitude", {"sparsity": 0.6}, {}),
    ("random", HALF, {"seed": 3}),
]
ALLOCATED = {**HALF, "allocation": {"alphapruning": {}}}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_one_of_pruning_in_memory(family: str, folder: Path) -> None:
    tiny_checkpoint(folder / "model", family)
    for method, options, settings in CASES:
        whole = prune("whole", method, options, stream=False, **settings)
        streamed = prune("streamed", method, options, stream=True, **settings)
        assert files(folder / "streamed") == files(folder / "whole")
        assert streamed.audit == whole.audit
        assert streamed.notes == whole.notes
        assert streamed.model is None


def test_an_allocation_that_reads_weights_only_streams_too(folder: Path) -> None:
    tiny_checkpoint(folder / "model", "llama")
    whole = prune("whole", "magnitude", ALLOCATED, stream=False)
    streamed = prune("streamed", "magnitude", ALLOCATED, stream=True)
    assert files(folder / "streamed") == files(folder / "whole")
    assert len(set(streamed.notes["allocation"]["layer_shares"])) == 4
    assert streamed.notes == whole.notes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_from_shards_to_shards_in_another_type(dtype: str, tied: bool, folder: Path) -> None:
    tiny_checkpoint(folder / "model", "qwen3", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    model.save_pretrained(folder / "model", max_shard_size=90_000)
    whole = prune("whole", "wanda", HALF, stream=False, dtype=dtype)
    streamed = prune("streamed", "wanda", HALF, stream=True, dtype=dtype, shard_size="40 kB")
    assert len(list((folder / "streamed").glob("model-*.safetensors"))) > 3
    assert streamed.audit == whole.audit
    expected = whole.model.state_dict()
    for loaded in (
        prunebench.load_pruned("streamed"),
        AutoModelForCausalLM.from_pretrained("streamed"),
    ):
        assert str(loaded.dtype) == f"torch.{dtype}"
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items()
        )


@pytest.mark.parametrize(
    "options",
    [
        {"true_sequential": True},
        {"allocation": "owl"},
        {"allocation": "uniform"},
        {"layers": [1, 3], "linears": ["mlp"]},
    ],
)
def test_what_goes_over_a_layer_again(options: dict[str, object], folder: Path) -> None:
    """Once more within a layer, and once more over all of them: OWL looks at the dense model first."""
    tiny_checkpoint(folder / "model", "llama")
    whole = prune("whole", "sparsegpt", HALF | options, stream=False)
    streamed = prune("streamed", "sparsegpt", HALF | options, stream=True)
    assert files(folder / "streamed") == files(folder / "whole")
    assert streamed.audit == whole.audit
    assert streamed.notes == whole.notes


def test_layers_may_be_pruned_elsewhere(folder: Path) -> None:
    tiny_checkpoint(folder / "model", "llama")
    prune("here", "wanda", HALF, stream=True)
    prune("there", "wanda", HALF, stream=True, device="cpu", layer_device="cpu")
    assert files(folder / "here") == files(folder / "there")


def test_one_layer_at_a_time_has_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(folder / "model", "llama")
    alive: list[int] = []
    gather = LayerRun.gather

    def watched(run, *arguments, **rest):
        with_weights = [
            layer for layer in seen[0] if any(not weight.is_meta for weight in layer.parameters())
        ]
        alive.append(len(with_weights))
        return gather(run, *arguments, **rest)

    seen: list[torch.nn.ModuleList] = []
    monkeypatch.setattr(LayerRun, "gather", watched)
    monkeypatch.setattr(
        walk, "anatomy", lambda model: seen.append(anatomy(model).layers) or anatomy(model)
    )
    prune("streamed", "sparsegpt", HALF, stream=True)
    assert alive == [1, 1, 1, 1]
    assert all(weight.is_meta for weight in seen[0].parameters())


def test_a_folder_is_pruned_into_its_own_place(folder: Path) -> None:
    tiny_checkpoint(folder / "model", "llama")
    prune("whole", "magnitude", HALF, stream=False)
    prune("model", "magnitude", HALF, stream=True)
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "model")]
    assert weights[0] == weights[1]


def cli(*arguments: str) -> Result:
    text = [
        "--calibration",
        "corpus=text.txt",
        "--calibration",
        "windows=2",
        "--calibration",
        "length=16",
    ]
    return CliRunner().invoke(command, ["prune", *arguments, *text, "--stream", "--out", "pruned"])


def test_the_command_tells_what_it_does(folder: Path) -> None:
    tiny_checkpoint(folder / "model", "llama")
    done = cli("./model", "wanda", "sparsity=2:4", "--shard-size", "100 kB")
    assert done.exit_code == 0, done.output
    assert "50.0% of the prunable weights are zero" in done.output
    assert "the 2:4 pattern holds everywhere" in done.output
    assert "prune ..." in done.output
    told = json.loads((folder / "pruned" / "pruning.json").read_text())
    assert told["plain"]
    assert told["made_by"]["method"] == "wanda"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["./model", "shortgpt", "count=1"],
            "cannot prune layer by layer from the files: it looks at the model as a whole",
        ),
        (["./model", "magnitude", "scope=global"], "compares the weights of all layers"),
        (["./model", "dense"], "it looks at the model as a whole"),
        (
            ["./model", "magnitude", "allocation=ecoflap"],
            "the allocation 'ecoflap' cannot look at the model layer by layer: its scores take",
        ),
        (
            ["./model", "wanda", "recovery={lora: {rank: 2}}"],
            "the recovery 'lora' trains the whole model",
        ),
        (["./model", "wanda", "--format", "decilm"], "is for models whose layers differ"),
        (["./model", "wanda", "--shard-size", "two"], "shard size 'two' is not valid"),
        (
            ["smollm2-135m-instruct", "wanda"],
            "is a GGUF file, whose weights are unpacked as a whole",
        ),
        (["./narrow", "wanda"], "are narrower than config.json says"),
        (["./broken", "wanda"], "model.safetensors: model.norm.weight holds NaN or infinity"),
        (["./model", "wanda", "sparsity=2:5"], "groups of 5 do not divide"),
    ],
)
def test_what_cannot_be_streamed_is_refused_and_leaves_nothing(
    folder: Path, arguments: list[str], said: str
) -> None:
    tiny_checkpoint(folder / "model", "llama")
    if arguments[0] == "./narrow":
        prunebench.prune(
            "model",
            "blockpruner",
            options={"count": 2, "blocks": "mlp"},
            calibration=CALIBRATION,
            out="narrow",
        )
    if arguments[0] == "./broken":
        model = AutoModelForCausalLM.from_pretrained("model")
        model.model.norm.weight.data[3] = float("nan")
        model.save_pretrained("broken")
        (folder / "broken" / "tokenizer.json").write_bytes(
            (folder / "model" / "tokenizer.json").read_bytes()
        )
    before = sorted(path.name for path in folder.iterdir())
    done = cli(*arguments)
    assert done.exit_code != 0
    assert said in str(done.exception), done.output
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == [
        name for name in before if name != "cache"
    ]


def test_a_model_in_memory_or_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(prunebench.PrunebenchError, match="streaming needs a folder"):
        prunebench.prune("model", "wanda", stream=True)
    with pytest.raises(prunebench.PrunebenchError, match="a model in memory cannot be streamed"):
        prunebench.prune(object(), "wanda", out="pruned", stream=True)


PLUGIN = '''
"""Methods that promise more than they keep."""
from prunebench import LinearMethod, hookimpl


class Idle(LinearMethod):
    name = "idle"

    def score(self, weight, stats):
        return weight.abs()

    def prune(self, model, context):
        """Nothing."""


class Curious(Idle):
    name = "curious"

    def prune(self, model, context):
        context.zeros(model)


class Spoiler(LinearMethod):
    name = "spoiler"

    def score(self, weight, stats):
        return weight.abs()

    def prune_linear(self, weight, stats):
        if stats.layer == 2:
            weight.fill_(float("nan"))


@hookimpl
def prunebench_register_method():
    return [Idle, Curious, Spoiler]
'''


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("idle", "'idle' did not read 4 layers"),
        ("curious", "`context.zeros` needs the whole model in memory"),
        ("spoiler", "model.layers.2.self_attn.q_proj.weight: some weights are not finite"),
    ],
)
def test_methods_that_promise_more_than_they_keep_are_named(
    method: str, said: str, folder: Path
) -> None:
    tiny_checkpoint(folder / "model", "llama")
    (folder / "methods.py").write_text(PLUGIN)
    done = cli("./model", method, "sparsity=0.5", "--plugin", "methods.py")
    assert said in str(done.exception), done.output
    assert not (folder / "pruned").exists()
    assert not list(folder.glob(".tmp-*"))

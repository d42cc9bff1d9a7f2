"""`prunebench prune`: a model on disk that loads again, or nothing at all."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from unittest import mock

import gguf
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

import prunebench
from decoding import generated
from prunebench.app.plan import SuiteRequest, plan_suite
from prunebench.cli import main
from prunebench.cli import prunebench as command
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.load import load
from prunebench.record.kept_units import index_text
from tiny import tiny_checkpoint

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def prune(*arguments: str) -> Result:
    text = [
        "--calibration",
        "corpus=text.txt",
        "--calibration",
        "windows=2",
        "--calibration",
        "length=16",
    ]
    return CliRunner().invoke(command, ["prune", *arguments, *text])


STRUCTURED = [
    ("shortgpt", "count=2"),
    ("blockpruner", "count=3"),
    ("llm-pruner", "ratio=0.5", "protect_first=1", "protect_last=1"),
    ("llm-pruner", "ratio=0.25", "granularity=channel"),
]


@pytest.mark.parametrize("arguments", STRUCTURED, ids=lambda words: " ".join(words))
def test_a_structured_method_saves_what_loads_and_generates(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    done = prune("./model", *arguments, "--out", "pruned")
    assert done.exit_code == 0, done.output
    dense = load(folder / "model", dtype="float32", device="cpu").model
    model = prunebench.load_pruned(folder / "pruned")
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (model, dense)]
    assert counts[0] < counts[1]
    assert f"{counts[0]:,} of {counts[1]:,} parameters" in done.output
    if arguments == STRUCTURED[2]:
        assert (
            "2 of 4 KV groups removed in 2 layers; 80 of 160 MLP channels removed in 2 layers"
            in done.output
        )
    text = generated(model, IDS, 5)
    assert text.shape == (2, 17)
    file = json.loads((folder / "pruned" / "pruning.json").read_text())
    told, kept = file["made_by"], file["kept"]
    assert kept["layers"] == index_text(told["kept_layers"], 4)
    if arguments == STRUCTURED[2]:
        assert {kind: set(kept[kind]) for kind in ("attention", "mlp")} == {
            "attention": {"1", "2"},
            "mlp": {"1", "2"},
        }
        assert all(text in {"0 of 2", "1 of 2"} for text in kept["attention"].values())
    assert (kept["hidden"] == "0-47 of 48") == ("granularity=channel" not in arguments)
    assert told["method"] == arguments[0]
    assert told["calibration"]["windows"] == 2
    name, value = arguments[1].split("=")
    assert told["options"][name] == float(value)


def test_zeros_survive_the_file(folder: Path) -> None:
    assert prune("./model", "wanda", "sparsity=2:4", "--out", "pruned").exit_code == 0
    model = prunebench.load_pruned(folder / "pruned")
    for layer in anatomy(model).layers:
        for linear in anatomy(model).linears(layer).values():
            assert bool(((linear.weight.view(-1, 4) != 0).sum(1) <= 2).all())


def test_recovery_goes_with_the_options(folder: Path) -> None:
    settings = "recovery={lora: {rank: 2, epochs: 1, batch_size: 2, micro_batch_size: 1}}"
    done = prune("./model", "magnitude", "sparsity=0.5", settings, "--out", "pruned")
    assert done.exit_code == 0, done.output
    told = json.loads((folder / "pruned" / "pruning.json").read_text())["made_by"]
    assert told["recovery"]["name"] == "lora"
    assert told["recovery"]["options"]["rank"] == 2
    assert "50.0% of the prunable weights are zero" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["./model", "wand"], "did you mean 'wanda'"),
        (["./model", "wanda", "sparsty=0.5"], "did you mean 'sparsity'"),
        (["./model", "wanda", "sparsity"], "write OPTION=VALUE"),
        (["./model", "wanda", "sparsity=0.5", "sparsity=0.6"], "given twice"),
        (["./model", "wanda", "sparsity=[0.5, 0.6]"], "make 2 settings"),
        (["./model", "shortgpt", "count=4"], "all 4 layers would be removed"),
        (["./nowhere", "wanda"], "nowhere does not exist"),
        (["./model", "magnitude", "--precision", "f16"], "`precision` is of the format gguf"),
        (["./model", "wanda", "sparsity=2:5"], "groups of 5 do not divide"),
    ],
)
def test_bad_input_says_the_fix_and_leaves_nothing(
    folder: Path, arguments: list[str], said: str
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    done = prune(*arguments, "--out", "pruned")
    assert done.exit_code != 0
    assert said in f"{done.output} {done.exception} {getattr(done.exception, 'hint', '')}"
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == before


def test_a_folder_with_other_things_is_refused_before_any_work(folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "one.jpg").touch()
    done = prune("./nowhere", "wanda", "--out", "photos")
    assert "is not a checkpoint" in str(done.exception)


def test_an_earlier_model_stays_when_pruning_fails(folder: Path) -> None:
    assert prune("./model", "shortgpt", "count=1", "--out", "pruned").exit_code == 0
    before = {path.name: path.read_bytes() for path in (folder / "pruned").iterdir()}
    assert prune("./model", "shortgpt", "count=4", "--out", "pruned").exit_code != 0
    assert {path.name: path.read_bytes() for path in (folder / "pruned").iterdir()} == before


def test_decilm_is_for_models_whose_layers_differ(folder: Path) -> None:
    done = prune(
        "./model", "blockpruner", "count=2", "blocks=mlp", "--out", "pruned", "--format", "decilm"
    )
    assert done.exit_code == 0, done.output
    config = json.loads((folder / "pruned" / "config.json").read_text())
    assert {block["ffn"]["ffn_mult"] for block in config["block_configs"]} == {1.5 * 256 / 48}
    assert "came back as zeros" in done.output
    assert "MLP of layer" in done.output and "padded with zeros to 256 channels" in done.output


def test_a_model_that_a_format_cannot_hold_is_not_lost(folder: Path) -> None:
    """Pruning may have taken hours."""
    done = prune("./model", "magnitude", "--out", "pruned", "--format", "decilm")
    assert done.exit_code == 1
    assert "all layers of this model have the same shape" in str(done.exception)
    assert "so pruned holds the pruned model in prunebench's own format" in str(done.exception)
    weight = prunebench.load_pruned(folder / "pruned").model.layers[0].mlp.up_proj.weight
    assert 0.4 < float((weight == 0).float().mean()) < 0.6


def test_gguf_is_one_file_in_the_precision_that_was_asked_for(folder: Path) -> None:
    words = ["./model", "blockpruner", "count=2", "blocks=mlp", "--format", "gguf", "--out", "out"]
    done = prune(*words)
    assert done.exit_code == 0, done.output
    assert [path.name for path in (folder / "out").iterdir()] == ["model.gguf"]
    assert "llama-server -m out/model.gguf" in done.output
    reader = gguf.GGUFReader(folder / "out" / "model.gguf")
    assert reader.fields["general.architecture"].contents() == "deci"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    # A folder with nothing but this file can be replaced.
    for more, kind in ((["--precision", "q8_0"], "F16"), (["--dtype", "bfloat16"], "BF16")):
        done = prune(*words, "--force", *more)
        assert done.exit_code == 0, done.output
        found = gguf.GGUFReader(folder / "out" / "model.gguf")
        # Rows of 48 and 80 are no multiple of 32, so that they are F16 instead of Q8_0.
        assert kind in {tensor.tensor_type.name for tensor in found.tensors}
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_uniform_is_a_plain_folder_with_the_same_logits(folder: Path) -> None:
    words = ["./model", "llm-pruner", "ratio=0.5", "protect_first=1", "protect_last=1"]
    for name, more in (("uneven", []), ("even", ["--uniform"])):
        done = prune(*words, *more, "--out", name)
        assert done.exit_code == 0, done.output
        assert ("padded with zeros" in done.output) == (name == "even")
        # What the method left is counted, not the zeros.
        assert "80 of 160 MLP channels removed" in done.output
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(folder / "uneven")
    even = AutoModelForCausalLM.from_pretrained(folder / "even")
    uneven = prunebench.load_pruned(folder / "uneven")
    torch.testing.assert_close(even(IDS).logits, uneven(IDS).logits, rtol=0, atol=2e-6)
    assert json.loads((folder / "even" / "pruning.json").read_text())["plain"]
    streamed = CliRunner().invoke(
        command, ["prune", "./model", "magnitude", "--uniform", "--stream", "--out", "more"]
    )
    assert "`uniform` is for models whose layers differ" in str(streamed.exception)


def test_layers_may_be_pruned_elsewhere(folder: Path) -> None:
    """On the same device the result is the same; without a GPU, cuda is an error."""
    for name, more in (("one", []), ("two", ["--layer-device", "cpu"])):
        assert (
            prune(
                "./model", "sparsegpt", "sparsity=2:4", "--device", "cpu", *more, "--out", name
            ).exit_code
            == 0
        )
    models = [prunebench.load_pruned(folder / name) for name in ("one", "two")]
    assert torch.equal(*(model(IDS).logits for model in models))
    if not torch.cuda.is_available():
        done = prune(
            "./model", "wanda", "--device", "cpu", "--layer-device", "cuda", "--out", "three"
        )
        assert "torch sees no GPU" in str(done.exception)


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("seed=3", "write `--seed 3`"),
        ("device=cpu", "write `--device cpu`"),
        ("layer_device=cpu", "write `--layer-device cpu`"),
        ("layer-device=cpu", "write `--layer-device cpu`"),
        ("dtype=float16", "write `--dtype float16`"),
        ("out=my folder", "write `--out 'my folder'`"),
        ("format=decilm", "write `--format decilm`"),
        ("uniform=true", "write `--uniform`"),
        ("shard-size=1 GB", "write `--shard-size '1 GB'`"),
        ("stream=true", "write `--stream`"),
        ("plugin=mine.py", "write `--plugin mine.py`"),
        ("calibration=text.txt", "write `--calibration corpus=text.txt`"),
        ("model=x", "the model is the first word"),
        ("method=x", "the method is the second word"),
        ("options={sparsity: 0.5}", "unknown option 'options'"),
        ("progress=x", "unknown option 'progress'"),
        ("self=x", "unknown option 'self'"),
    ],
)
def test_a_setting_among_the_options_is_told_its_place(folder: Path, option: str, fix: str) -> None:
    done = prune("./model", "magnitude", "sparsity=0.5", option, "--out", "x")
    assert isinstance(done.exception, prunebench.PrunebenchError)
    assert fix in str(done.exception)
    assert not (folder / "x").exists()


def test_an_option_of_the_method_may_be_called_like_a_setting(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from prunebench import Method, Options, hookimpl\n"
        "class Mine(Method):\n"
        "    name = 'mine'\n"
        "    class Options(Options):\n"
        "        seed: int = 0\n"
        "    def prune(self, model, context):\n"
        "        context.notes['seed'] = self.options.seed\n"
        "@hookimpl\n"
        "def prunebench_register_method():\n"
        "    return Mine\n"
    )
    done = prune("./model", "mine", "seed=3", "--out", "x", "--plugin", "mine.py")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "words",
    [("--seed", "-1"), ("--seed", "1e3"), ("--seed", str(2**63)), ("--device", "gpu")],
    ids=" ".join,
)
def test_numbers_and_devices_have_bounds(folder: Path, words: tuple[str, str]) -> None:
    done = prune("./model", "magnitude", "--out", "x", *words)
    assert done.exit_code != 0
    assert done.exception is None or isinstance(
        done.exception, SystemExit | prunebench.PrunebenchError
    )
    assert not (folder / "x").exists()


def test_a_folder_with_a_model_is_replaced_only_by_force(folder: Path) -> None:
    assert prune("./model", "magnitude", "sparsity=0.5", "--out", "pruned").exit_code == 0
    weights = folder / "pruned" / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(PrunebenchError, match=r"pruned holds a saved model already .*--force"):
        CliRunner().invoke(
            command,
            ["prune", "./model", "magnitude", "sparsity=0.6", "--out", "pruned"],
            catch_exceptions=False,
        )
    assert weights.read_bytes() == before
    done = prune("./model", "magnitude", "sparsity=0.6", "--out", "pruned", "--force")
    assert done.exit_code == 0
    assert weights.read_bytes() != before
    with pytest.raises(PrunebenchError, match="force=True"):
        prunebench.prune("./model", "magnitude", out="pruned")
    prunebench.prune("./model", "magnitude", out="pruned", force=True)


def test_an_empty_folder_needs_no_force(folder: Path) -> None:
    (folder / "a folder").mkdir()
    assert prune("./model", "magnitude", "--out", "a folder").exit_code == 0


def test_the_next_steps_are_commands_that_work(folder: Path) -> None:
    done = prune("./model", "magnitude", "--out", "a 'new' folder")
    load_it, profile_it, check_it, serve_it = (
        shlex.split(line)[2:] for line in done.stdout.split("next:\n")[1].splitlines()
    )
    assert load_it[:2] == ["python", "-c"]
    exec(load_it[2], {})
    assert profile_it == ["prunebench", "profile", "a 'new' folder"]
    assert serve_it == ["prunebench", "check", "a 'new' folder"]
    made = plan_suite(SuiteRequest(check_it[2], overrides=[check_it[4]], only=[check_it[6]]))
    assert (len(made.cells), made.cells[0].method.name) == (1, "dense")
    assert made.cells[0].model.kind == "folder"


@pytest.mark.parametrize("stream", [False, True])
def test_the_console_script_keeps_freed_memory_unless_it_streams(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    words = ["prune", "./model", "magnitude", "--out", "pruned", *["--stream"] * stream]
    monkeypatch.setattr(sys, "argv", ["prunebench", *words])
    keeps = mock.Mock()
    monkeypatch.setattr("prunebench.isolation.heap.keep_freed_memory", keeps)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert keeps.called is not stream
    assert (folder / "pruned").is_dir()


def test_a_program_that_invokes_the_command_keeps_its_own_allocator(folder: Path) -> None:
    with mock.patch("prunebench.isolation.heap.keep_freed_memory") as keeps:
        assert prune("./model", "magnitude", "--out", "pruned").exit_code == 0
    assert not keeps.called

"""Windows longer than a model, and tasks that its tokenizer cannot serve, are found by planning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prunebench.errors import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import Suite, check_suite
from prunebench.suite.source import source_of
from task_folder import task_folder
from tiny import tiny_checkpoint

REGISTRY = load_plugins()
TEXT = {"corpus": "tiny-text", "windows": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`opt` has 128 learned positions, `llama` computes them."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("opt", "llama"):
        tiny_checkpoint(folder / family, family)
    return folder


def suite(model: Path, method: Any = "dense", **more: Any) -> Suite:
    data = {"name": "s", "models": str(model), "methods": [method], "profile": None, **more}
    return check_suite(source_of(data, "s.yaml"), REGISTRY)


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"method": "wanda", "calibration": {**TEXT, "length": 129}}, "a calibration window"),
    (
        {"method": {"shortgpt": {"calibration": {**TEXT, "length": 129}}}},
        "a calibration window",
    ),
    (
        {"method": {"magnitude": {"recovery": {"finetune": {"data": {**TEXT, "length": 129}}}}}},
        "a training window of 'finetune'",
    ),
    ({"quality": {"perplexity": {**TEXT, "length": 129}}}, "perplexity on tiny-text"),
    (
        {"quality": {"metrics": {"kl-divergence": {"data": {**TEXT, "length": 129}}}}},
        "the metric 'kl-divergence'",
    ),
    ({"profile": {"latency": {"prompt": 100, "new_tokens": 29}}}, "a prompt with its new tokens"),
]


@pytest.mark.parametrize(
    ("asked", "what"), ASKED, ids=lambda one: one if isinstance(one, str) else ""
)
def test_more_tokens_than_learned_positions_are_refused(
    models: Path, asked: dict[str, Any], what: str
) -> None:
    with pytest.raises(PrunebenchError) as caught:
        suite(models / "opt", **asked)
    said = f"the model 'opt': {what} takes 129 tokens, but the model has positions for 128 only"
    assert said in str(caught.value)
    assert "ask for at most 128 tokens" in str(caught.value)
    # One token less fits; so does what nobody reads.
    fewer = json.loads(json.dumps(asked).replace("129", "128").replace("29}", "28}"))
    assert suite(models / "opt", **fewer).warnings == ()


@pytest.mark.parametrize(
    ("asked", "what"), ASKED, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_model_that_computes_positions_gets_a_warning(
    models: Path, asked: dict[str, Any], what: str
) -> None:
    [warning] = suite(models / "llama", **asked).warnings
    assert f"{what} takes 129 tokens, and the model 'llama' was made for 128" in warning


def test_text_that_nobody_reads_may_be_longer(models: Path) -> None:
    unread = {"calibration": {**TEXT, "length": 4096}}
    assert suite(models / "opt", "magnitude", **unread).warnings == ()
    assert suite(models / "opt", "magnitude", quality={"perplexity": []}).warnings == ()


@pytest.mark.parametrize("inside", ["text_config", None])
def test_layers_that_share_keys_and_values_stay(
    models: Path, tmp_path: Path, inside: str | None
) -> None:
    shared: dict[str, Any] = {"num_kv_shared_layers": 2}
    model = tmp_path / "sharing"
    shutil.copytree(models / "llama", model)
    config = json.loads((model / "config.json").read_text())
    told = config | ({inside: shared} if inside else shared)
    (model / "config.json").write_text(json.dumps(told))
    said = (
        r"methods: shortgpt: the model 'sharing' cannot lose layers: its last 2 layers read the"
        r" keys and values of other layers \(num_kv_shared_layers\), so no layer can be removed"
    )
    text = {"calibration": {**TEXT, "length": 24}}
    with pytest.raises(PrunebenchError, match=said):
        suite(model, {"shortgpt": {"count": 1}}, **text)
    assert suite(model, "magnitude").treatments
    assert suite(model, "blockpruner", **text).treatments
    assert suite(models / "llama", {"shortgpt": {"count": 1}}, **text).treatments


def without(model: Path, folder: Path, *names: str, kind: str = "TokenizersBackend") -> Path:
    """A copy of ``model`` whose tokenizer lacks these special tokens."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = folder / "tokenizer_config.json"
    named = {f"{name}_token" for name in names}
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key not in named}
    config.write_text(json.dumps({**kept, "tokenizer_class": kind}))
    return folder


def test_a_task_needs_a_token_to_begin_with(models: Path, tmp_path: Path) -> None:
    rows = task_folder(tmp_path / "rows")
    tasks = {"tasks": {"task": "arc_easy", "data": str(rows)}}
    model = without(models / "llama", tmp_path / "mine", "bos", "eos", "unk", "pad")
    with pytest.raises(
        PrunebenchError, match=r"quality\.tasks: the model 'mine': its tokenizer has neither"
    ):
        suite(model, quality=tasks)
    assert suite(model).tasks == ()
    bos = without(models / "llama", tmp_path / "bos", "eos", "pad")
    assert suite(bos, quality=tasks).tasks
    # A class with tokens of its own: only transformers knows them.
    other = without(models / "llama", tmp_path / "other", "bos", "eos", kind="LlamaTokenizer")
    assert suite(other, quality=tasks).tasks


def test_a_written_answer_needs_a_token_to_end_at(models: Path, tmp_path: Path) -> None:
    model = without(models / "llama", tmp_path / "mine", "eos", "pad")
    with pytest.raises(PrunebenchError, match=r"no eos token, and the answers of the task 'gsm8k'"):
        suite(model, quality={"tasks": ["arc_easy", "gsm8k"]})
    assert suite(model, quality={"tasks": ["arc_easy"]}).tasks


def test_a_task_whose_package_is_missing_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunebench.measure.quality import task_needs

    monkeypatch.setattr(
        task_needs, "_is_there", lambda module: module not in {"langdetect", "nltk"}
    )
    with pytest.raises(PrunebenchError) as caught:
        suite(models / "llama", quality={"tasks": ["arc_easy", "ifeval"]})
    said = "quality.tasks.task: the task 'ifeval' needs the Python packages langdetect, nltk"
    assert said in str(caught.value)
    assert "pip install 'lm-eval[ifeval]'" in str(caught.value)

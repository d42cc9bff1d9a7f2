"""A saved model replaces a saved model, and never anything else of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunebench.app.prune import PruneJob, prune_model
from prunebench.errors import PrunebenchError
from prunebench.model.checkpoint import save
from prunebench.model.files import atomic_replace, path_lock
from prunebench.model.save_target import save_target
from tiny import tiny_checkpoint, tiny_model


def family(folder: Path) -> str:
    kind: str = json.loads((folder / "config.json").read_text())["model_type"]
    return kind


@pytest.mark.parametrize(
    "others",
    [
        ["notes.md"],
        ["README.md", ".gitattributes"],
        ["train.py"],
        ["data/rows.json"],
        ["adapter_config.json"],
        ["adapter/notes.md"],
        ["optimizer.pt", "trainer_state.json"],
        ["index.html"],
    ],
    ids=" ".join,
)
def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, others: list[str]) -> None:
    folder = tiny_checkpoint(tmp_path / "mine", "llama")
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of the user")
    with pytest.raises(PrunebenchError, match="holds more than a saved model, which would be lost"):
        save(tiny_model("opt"), None, folder)
    assert family(folder) == "llama"
    assert all((folder / name).read_text() == "of the user" for name in others)


def test_a_saved_model_with_its_adapter_is_replaced(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "mine", "llama")
    (folder / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "adapter" / name).touch()
    save(tiny_model("opt"), None, folder)
    assert family(folder) == "opt"
    assert not (folder / "adapter").exists()


def test_a_project_that_has_a_config_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"port": 8080}')
    (tmp_path / "server.js").touch()
    job = PruneJob("tiny-llama", "magnitude", options={"sparsity": 0.5}, out=tmp_path)
    with pytest.raises(PrunebenchError, match=r"would be lost: server\.js"):
        prune_model(job)


@pytest.mark.parametrize("out", [".", "..", "../..", ""])
def test_the_working_folder_is_not_replaced(
    tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(PrunebenchError, match="is the working folder, or holds it"):
        save(tiny_model("opt"), None, Path(out))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_a_link_stays_a_link_and_its_folder_is_replaced(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "disk" / "model", "llama")
    (tmp_path / "out").symlink_to(folder)
    save(tiny_model("opt"), None, tmp_path / "out")
    assert (tmp_path / "out").readlink() == folder
    assert family(folder) == "opt"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["old", "older", "new", "x" * 255, "é" * 127])
def test_any_name_can_be_replaced(tmp_path: Path, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", "llama").rename(tmp_path / name)
    save(tiny_model("opt"), None, folder)
    assert family(folder) == "opt"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_put_there_while_saving_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = tiny_model("opt"), tiny_checkpoint(tmp_path / "out", "llama")
    write = model.save_pretrained

    def slowly(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        (folder / "thesis.tex").write_text("of the user")

    monkeypatch.setattr(model, "save_pretrained", slowly)
    with pytest.raises(PrunebenchError, match=r"out holds more than a saved model.*thesis\.tex"):
        save(model, None, folder)
    assert (folder / "thesis.tex").read_text() == "of the user"
    assert family(folder) == "llama"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_appears_while_saving_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tiny_model("opt"), tmp_path / "out"
    write = model.save_pretrained

    def slowly(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        out.write_text("of the user")

    monkeypatch.setattr(model, "save_pretrained", slowly)
    with pytest.raises(PrunebenchError, match="cannot write"):
        save(model, None, out)
    assert out.read_text() == "of the user"


def test_a_file_is_no_folder_to_save_in(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("of the user")
    with pytest.raises(PrunebenchError, match="is a file, not a folder"):
        save_target(tmp_path / "out")


def test_a_writer_of_another_name_keeps_its_scratch_folder(tmp_path: Path) -> None:
    """The name 'a-b' begins like 'a', whose lock says nothing about it."""
    with atomic_replace(tmp_path / "a-b") as aside:
        aside.write_text("half")
        with path_lock(tmp_path / "a"):
            pass
        assert aside.read_text() == "half"
    assert (tmp_path / "a-b").read_text() == "half"

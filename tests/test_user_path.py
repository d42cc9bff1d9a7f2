"""Whatever a user writes where a path may be is a path, a name, or an error with a fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.app.plan import SuiteRequest, plan_suite
from prunebench.app.prune import PruneJob, prune_model
from prunebench.cli.profile import command as profile
from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir
from prunebench.plugin.files import with_files
from prunebench.plugin.scaffold import write_package
from prunebench.store.run_folder import RunStore
from prunebench.user_path import user_path

IMPOSSIBLE = {
    "too long": "9" * 300,
    "too long inside": f"a/{'9' * 300}/b",
    "NUL": "a\0b",
    "unknown user": "~nobody-of-this-name/x",
    "half a character": "\ud83d",
}


@pytest.mark.parametrize("text", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_text_that_can_be_no_path_is_named_in_one_short_line(text: str) -> None:
    with pytest.raises(PrunebenchError, match=r"^the thing '.*' is not a valid path: ") as caught:
        user_path(text, what="the thing", hint="fix it")
    assert caught.value.hint == "fix it"
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 160


def test_a_path_need_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for text in ("file", "missing", "missing/x", "file/below"):
        assert user_path(text, what="w", hint="h", base=tmp_path) == tmp_path / text
    assert user_path("~/x", what="w", hint="h", base=tmp_path) == Path.home() / "x"


SUITE = {"name": "s", "models": ["tiny-llama"], "methods": ["dense"], "profile": None}


@pytest.mark.parametrize("text", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize(
    "changes",
    [
        lambda text: {"models": [text]},
        lambda text: {"models": [f"./{text}"]},
        lambda text: {"quality": {"perplexity": [{"corpus": text}]}},
        lambda text: {"quality": {"perplexity": [{"corpus": {"file": text}}]}},
        lambda text: {"quality": {"tasks": [{"task": "piqa", "data": text}]}},
    ],
    ids=["model", "model path", "corpus", "corpus file", "task data"],
)
def test_suites(changes, text: str) -> None:
    with pytest.raises(PrunebenchError):
        plan_suite(SuiteRequest(SUITE | changes(text)))


@pytest.mark.parametrize("text", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_other_names(text: str) -> None:
    for use in (
        lambda: plan_suite(SuiteRequest(text)),
        lambda: plan_suite(SuiteRequest(f"{text}.yaml")),
        lambda: plan_suite(SuiteRequest(SUITE, Path(text))),
        lambda: prune_model(PruneJob("tiny-llama", "magnitude", out=Path(text))),
        lambda: RunStore.open(Path(text)),
        lambda: with_files([f"{text}.py"]).__enter__(),
        lambda: write_package("my-method", "method", Path(text)),
    ):
        with pytest.raises(PrunebenchError):
            use()


def test_a_suite_whose_name_is_too_long_for_a_folder_is_refused_when_it_is_planned() -> None:
    with pytest.raises(PrunebenchError, match="the run folder 'runs/xxx"):
        plan_suite(SuiteRequest(SUITE | {"name": "x" * 300}))


def test_a_plugin_whose_name_is_too_long_for_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match=r"the new folder '.*' is not a valid path"):
        write_package("x" * 300, "method", tmp_path)


def test_a_cache_that_cannot_be_a_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", "9" * 300)
    with pytest.raises(PrunebenchError, match=r"PRUNEBENCH_CACHE '999.*' is not a valid path"):
        cache_dir()


def test_profile_names_a_file_that_cannot_be_written_before_it_measures() -> None:
    done = CliRunner().invoke(profile, ["tiny-llama", "--json", "9" * 300])
    assert isinstance(done.exception, PrunebenchError)
    assert "--json '999" in done.exception.message

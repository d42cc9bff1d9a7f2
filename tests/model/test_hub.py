"""Models of the hub, from a server on this machine that answers and fails as the Hub does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download

from hub_server import HubServer, Repository
from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef
from prunebench.model.fetch import fetch_checkpoint
from tiny import tiny_checkpoint

REF = ModelRef(name="x", kind="hub", location="org/tiny")
SMALL_FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
FILES = {*SMALL_FILES, "model.safetensors"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("origin") / "tiny")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model(hub: HubServer, files: dict[str, bytes]) -> Repository:
    return hub.repository("org/tiny", files)


def at(revision: str | None) -> ModelRef:
    return REF.model_copy(update={"revision": revision})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


# What is downloaded


def test_a_model_is_downloaded_once_without_pickles_code_or_a_word(
    hub, hub_cache, files, monkeypatch, capfd
):
    more = {
        "pytorch_model.bin": b"pickle",
        "modeling_own.py": b"raise SystemExit",
        "onnx/config.json": b"{}",
        "adapter_config.json": b"{}",
    }
    repository = hub.repository("org/tiny", files | more)
    capfd.readouterr()
    folder = fetch_checkpoint(REF)
    assert capfd.readouterr() == ("", "")
    assert contents(folder) == files
    assert folder.name == repository.refs["main"]
    assert len(hub.taken()) == len(FILES)
    assert not parts(hub_cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # only the cache is left
    hub.requests.clear()
    assert fetch_checkpoint(REF) == folder
    assert not hub.requests


def test_code_comes_only_if_it_is_trusted(hub, files):
    config = json.dumps(json.loads(files["config.json"]) | {"auto_map": {"AutoConfig": "own.C"}})
    hub.repository("org/tiny", files | {"own.py": b"x = 1", "config.json": config.encode()})
    assert not (fetch_checkpoint(REF) / "own.py").exists()
    trusting = REF.model_copy(update={"trust_remote_code": True})
    assert (fetch_checkpoint(trusting) / "own.py").read_bytes() == b"x = 1"


def test_a_partly_cached_model_is_completed(hub, model, files):
    folder = fetch_checkpoint(REF)
    (folder / "model.safetensors").resolve().unlink()
    hub.requests.clear()
    assert contents(fetch_checkpoint(REF)) == files
    assert len(hub.taken()) == 1


def test_shards_and_files_with_equal_contents_are_downloaded_once_each(hub, files):
    copies = {"vocab.txt": b"equal", "merges.txt": b"equal"}
    hub.repository("org/tiny", files | copies)
    assert contents(fetch_checkpoint(REF)) == files | copies
    assert len(hub.taken()) == len(FILES) + 1


def test_several_cells_that_fetch_at_once_download_each_file_once(hub, model, files):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch_checkpoint(REF), range(4)))
    assert len(set(folders)) == 1
    assert contents(folders[0]) == files
    assert len(hub.taken()) == len(FILES)


def test_pickled_weights_are_refused_and_never_downloaded(hub, files):
    weights = {"pytorch_model.bin": b"pickle"}
    hub.repository("org/tiny", {name: files[name] for name in SMALL_FILES} | weights)
    with pytest.raises(PrunebenchError, match=r"'org/tiny'.*no \*\.safetensors") as caught:
        fetch_checkpoint(REF)
    assert "never pickled" in caught.value.hint
    assert not hub.taken("pytorch_model")


def test_a_family_that_cannot_be_pruned_costs_one_small_download(hub, files):
    hub.repository("org/tiny", files | {"config.json": b'{"model_type": "mamba"}'})
    with pytest.raises(PrunebenchError, match="'org/tiny': a mamba model is a pure state-space"):
        fetch_checkpoint(REF)
    assert [request.path.split("/")[-1] for request in hub.taken()] == ["config.json"]


def test_a_repository_that_is_no_model_is_named(hub):
    hub.repository("org/tiny", {"README.md": b"hello"})
    with pytest.raises(PrunebenchError, match=r"'org/tiny' has no config\.json on the hub"):
        fetch_checkpoint(REF)


# Names and revisions


def test_a_model_that_the_hub_does_not_have_is_named(hub, model):
    with pytest.raises(
        PrunebenchError, match=f"model 'org/tyni' is not on the hub at {hub.url}, or it is private"
    ) as caught:
        fetch_checkpoint(REF.model_copy(update={"location": "org/tyni"}))
    assert caught.value.hint.startswith("check the spelling; if it is private, set HF_TOKEN")
    fetch_checkpoint(REF)
    with pytest.raises(PrunebenchError) as caught:
        fetch_checkpoint(REF.model_copy(update={"location": "org/tyni"}))
    assert caught.value.hint.startswith("did you mean 'org/tiny'? Otherwise check the spelling")


def test_a_name_that_cannot_be_one_is_refused_without_a_request(hub):
    with pytest.raises(PrunebenchError, match="not a Hub id"):
        fetch_checkpoint(REF.model_copy(update={"location": "org/.."}))
    assert not hub.requests


def test_an_unknown_revision_is_named(hub, model):
    with pytest.raises(PrunebenchError, match="'org/tiny' has no revision 'v9'") as caught:
        fetch_checkpoint(at("v9"))
    assert caught.value.hint.startswith("name a branch, a tag or a commit")


def test_a_branch_that_moved_leaves_pinned_and_cached_models_as_they_are(
    hub, model, files, hub_cache
):
    first = model.refs["main"]
    before = fetch_checkpoint(REF)
    second = model.commit(files | {"generation_config.json": b'{"top_k": 1}'})
    assert fetch_checkpoint(REF) == before  # what is cached is used, without a request
    assert fetch_checkpoint(at(second)).name == second
    assert fetch_checkpoint(at(first)) == before
    assert len(hub.taken("model.safetensors")) == 1  # the weights are the same in both
    hub_cache.rename(hub_cache.with_name("old"))
    assert fetch_checkpoint(at(first)).name == first
    assert fetch_checkpoint(REF).name == second
    assert fetch_checkpoint(at("main")).name == second


def test_a_branch_that_moves_during_the_download_does_not_mix_two_commits(hub, model, files):
    first = model.refs["main"]
    changed = {name: data + b" " for name, data in files.items() if name.endswith(".json")}
    hub.before("tokenizer.json", lambda: model.commit(files | changed))
    folder = fetch_checkpoint(REF)
    assert folder.name == first
    assert contents(folder) == files


# Access


@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_member_gets_a_gated_or_private_model_and_only_the_hub_sees_the_token(
    hub, model, files, access, monkeypatch
):
    model.access = access
    model.members.add("hf_member")
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert contents(fetch_checkpoint(REF)) == files
    seen = {request.authorization for request in hub.requests if "/cdn/" in request.path}
    assert seen == {None}


@pytest.mark.parametrize(
    ("access", "token", "message", "hint"),
    [
        ("gated", None, "'org/tiny' is gated: the hub gives it only to", "then set HF_TOKEN"),
        ("gated", "hf_other", "gated, and the token that is set has no access", "with the account"),
        ("private", None, "is not on the hub at .*, or it is private", "set HF_TOKEN, or run"),
        ("private", "hf_other", "is not on the hub at .*, or it is private", "let the token read"),
    ],
)
def test_a_model_that_is_not_for_everybody_is_one_error_that_says_what_to_do(
    hub, model, access, token, message, hint, monkeypatch
):
    model.access = access
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PrunebenchError, match=message) as caught:
        fetch_checkpoint(REF)
    assert hint in caught.value.hint
    if access == "gated":
        assert f"{hub.url}/org/tiny" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert not hub.taken("safetensors")


def test_a_token_that_the_hub_does_not_know_is_named(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.refuse("/api/models", 401, x_error_message="Invalid credentials in Authorization header")
    with pytest.raises(PrunebenchError, match="does not accept the token") as caught:
        fetch_checkpoint(REF)
    assert "HF_TOKEN" in caught.value.hint
    assert "hf_expired" not in str(caught.value)


def test_a_private_model_stays_unknown_if_the_hub_refuses_with_its_code(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    hub.refuse("/api/models", 401, x_error_code="RepoNotFound")
    with pytest.raises(PrunebenchError, match="is not on the hub"):
        fetch_checkpoint(REF)


# Files on Xet, the hub's own storage


def test_files_on_xet_come_through_its_client(hub, model, files, monkeypatch):
    hub.xet = True
    calls = []

    def client(repository, name, **options):
        calls.append((repository, name, options["revision"]))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        return hf_hub_download(repository, name, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("prunebench.model.hub_files.find_spec", lambda _: object())
    assert contents(fetch_checkpoint(REF)) == files
    assert calls == [("org/tiny", "model.safetensors", model.refs["main"])]


def test_files_on_xet_come_over_http_if_there_is_no_client(hub, model, files, monkeypatch):
    hub.xet = True
    monkeypatch.setattr("prunebench.model.hub_files.find_spec", lambda _: None)
    hub.cut("/cdn/", after=100_000)
    assert contents(fetch_checkpoint(REF)) == files
    assert hub.taken("/cdn/")[-1].range == "bytes=100000-"


# Connections that are cut


def test_a_cut_download_goes_on_from_where_it_stopped(hub, model, files):
    weights = len(files["model.safetensors"])
    hub.cut("/cdn/", after=100_000)
    assert contents(fetch_checkpoint(REF)) == files
    taken = hub.taken("/cdn/")
    assert [(one.range, one.sent) for one in taken] == [
        (None, 100_000),
        ("bytes=100000-", weights - 100_000),
    ]


def test_the_next_run_goes_on_from_where_an_interrupted_one_stopped(hub, model, files, hub_cache):
    weights = len(files["model.safetensors"])
    hub.cut("/cdn/", after=100_000)
    hub.cut("/cdn/", after=0, times=3)
    with pytest.raises(
        PrunebenchError,
        match=f"download of model.safetensors stopped after 100,000 of {weights:,} bytes",
    ) as caught:
        fetch_checkpoint(REF)
    assert caught.value.hint == "run again: it goes on from there"
    assert len(parts(hub_cache)) == 1
    hub.requests.clear()
    assert contents(fetch_checkpoint(REF)) == files
    [taken] = hub.taken("/cdn/")
    assert (taken.range, taken.sent) == ("bytes=100000-", weights - 100_000)
    assert not parts(hub_cache)


def test_a_part_of_another_file_is_thrown_away(hub, model, files, hub_cache):
    hub.cut("/cdn/", after=100_000)
    hub.cut("/cdn/", after=0, times=3)
    with pytest.raises(PrunebenchError, match="stopped after"):
        fetch_checkpoint(REF)
    [part] = parts(hub_cache)
    for wrong in (b"x" * 100_000, b"x" * 1_000_000):
        part.write_bytes(wrong)
        assert contents(fetch_checkpoint(REF)) == files
        (hub_cache / "models--org--tiny" / "blobs" / part.stem).unlink()


def test_a_hub_that_sends_no_ranges_sends_the_whole_file_again(hub, model, files):
    hub.ranges = False
    hub.cut("/cdn/", after=100_000)
    assert contents(fetch_checkpoint(REF)) == files
    assert [one.sent for one in hub.taken("/cdn/")] == [100_000, len(files["model.safetensors"])]


def test_a_connection_that_always_breaks_is_given_up(hub, model):
    hub.cut("/cdn/", after=1000, times=1000)
    with pytest.raises(PrunebenchError, match="stopped after 3,000 of"):
        fetch_checkpoint(REF)


def test_a_file_that_arrives_damaged_is_not_kept(hub, model, files, hub_cache):
    hub.corrupt("/cdn/")
    with pytest.raises(PrunebenchError, match=r"model\.safetensors arrived damaged"):
        fetch_checkpoint(REF)
    assert not parts(hub_cache)
    hub.corrupt("/api/resolve-cache/.*/config.json")
    with pytest.raises(PrunebenchError, match="arrived damaged"):
        fetch_checkpoint(at(model.commit({**files, "config.json": files["config.json"] + b" "})))
    assert fetch_checkpoint(REF).name == model.refs["main"]


def test_a_connection_that_is_cut_before_an_answer_is_opened_again(hub, model, files):
    hub.cut("/api/models", after=3)
    hub.cut("/resolve/", after=0)
    assert contents(fetch_checkpoint(REF)) == files


# A busy hub


@pytest.mark.parametrize("pattern", ["/api/models", "/resolve/", "/cdn/"])
@pytest.mark.parametrize("headers", [{"retry_after": "0"}, {"ratelimit": '"api";r=0;t=0'}])
def test_a_busy_hub_is_waited_for_if_the_time_is_short(hub, model, files, pattern, headers, caplog):
    hub.refuse(pattern, 429, times=2, **headers)
    assert contents(fetch_checkpoint(REF)) == files
    assert sum("trying again in 0 s" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize("pattern", ["/api/models", "/resolve/", "/cdn/"])
def test_a_busy_hub_that_asks_for_minutes_is_an_error_that_says_how_many(hub, model, pattern):
    hub.refuse(pattern, 429, times=100, retry_after="300")
    with pytest.raises(PrunebenchError, match="has had too many requests") as caught:
        fetch_checkpoint(REF)
    assert caught.value.hint == "run again in 300 s; with HF_TOKEN set, the hub allows more"


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_with_a_fault_is_tried_three_times(hub, model, files, status):
    hub.refuse("/api/models", status, times=2)
    assert contents(fetch_checkpoint(REF)) == files
    hub.refuse("/api/models", status, times=3)
    with pytest.raises(PrunebenchError, match=f"answers with error {status}") as caught:
        fetch_checkpoint(at("main2"))
    assert caught.value.hint.startswith("run again later; without a network")


# A slow hub


@pytest.mark.parametrize("pattern", ["/api/models", "/resolve/"])
def test_a_hub_that_does_not_answer_is_given_up_after_the_time_that_is_set(
    hub, model, pattern, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with (
        hub.hold(pattern),
        pytest.raises(
            PrunebenchError, match=f"no answer from the hub at {hub.url} within 0.2 s"
        ) as caught,
    ):
        fetch_checkpoint(REF)
    assert "HF_HUB_ETAG_TIMEOUT" in caught.value.hint


def test_a_file_that_stops_coming_is_given_up_and_goes_on_in_the_next_run(
    hub, model, files, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    with (
        hub.hold("/cdn/", after=1000),
        pytest.raises(PrunebenchError, match=r"stopped after 3,000 of .* bytes: timed out"),
    ):
        fetch_checkpoint(REF)
    assert contents(fetch_checkpoint(REF)) == files
    assert hub.taken("/cdn/")[-1].range == "bytes=3000-"


# The disk, and servers that are no hub


def test_a_full_disk_is_named_before_anything_is_downloaded(hub, model, monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: type("Usage", (), {"total": 1, "used": 0, "free": 1000})
    )
    with pytest.raises(
        PrunebenchError, match=r"are left to download, and .* has 1e-06 GB"
    ) as caught:
        fetch_checkpoint(REF)
    assert "HF_HOME" in caught.value.hint
    assert not hub.taken("/cdn/")


def test_a_cache_that_cannot_be_written_is_named(hub, model, hub_cache):
    hub_cache.write_text("a file")
    with pytest.raises(PrunebenchError, match=r"cannot write .*hub") as caught:
        fetch_checkpoint(REF)
    assert "HF_HOME" in caught.value.hint


def test_a_server_that_is_no_hub_is_named(hub, model):
    hub.refuse("/api/models", 200)
    with pytest.raises(PrunebenchError, match="gave no usable answer"):
        fetch_checkpoint(REF)
    hub.refuse("/resolve/", 200, times=9)
    with pytest.raises(PrunebenchError, match="has no commit or no ETag") as caught:
        fetch_checkpoint(REF)
    assert "HF_ENDPOINT" in caught.value.hint


def test_an_answer_cannot_lead_out_of_the_cache(hub, model, hub_cache):
    for headers in (
        {"etag": '"../../../evil"', "x_repo_commit": "a" * 40},
        {"etag": '"a"', "x_repo_commit": "../../evil"},
    ):
        hub.refuse("/resolve/", 200, **headers)
        with pytest.raises(PrunebenchError, match="which cannot be stored"):
            fetch_checkpoint(REF)
    assert not list(hub_cache.parent.rglob("evil"))

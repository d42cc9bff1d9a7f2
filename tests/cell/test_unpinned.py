"""What comes from a branch of the hub is named, with the commit that the branch is."""

from __future__ import annotations

import pytest

from hub_server import HubServer
from prunebench.app.plan import SuiteRequest, plan_suite
from prunebench.cell.unpinned import Unpinned, unpinned
from prunebench.errors import PrunebenchError
from prunebench.model.fetch import fetch_checkpoint
from tiny import tiny_checkpoint

COMMIT = "c0ffee" * 6 + "c0ff"
SUITE = {
    "name": "s",
    "models": ["org/tiny"],
    "methods": ["dense", {"magnitude": {"sparsity": 0.5, "recovery": {"finetune": {"data": {"corpus": "bookcorpus"}}}}}],
    "quality": {
        "perplexity": [{"corpus": ["wikitext2", "ptb"], "windows": 2, "length": 32}],
        "tasks": [{"task": ["piqa"]}],
    },
    "profile": None,
}  # fmt: skip
PARQUET = "refs/convert/parquet"


def found(suite: dict) -> list[Unpinned]:
    planned = plan_suite(SuiteRequest(suite))
    return unpinned(planned.cells[-1], planned.registry.registered("corpus"))


def test_models_corpora_and_tasks_without_a_commit_are_listed(hub_cache):
    assert found(SUITE) == [
        Unpinned("model org/tiny", "main", None),
        Unpinned("corpus ptb", PARQUET, None),
        Unpinned("corpus bookcorpus", PARQUET, None),
        Unpinned("task piqa", "main", None),
    ]
    pinned = SUITE | {"models": [f"org/tiny@{COMMIT}"], "methods": ["dense"]}
    assert [one.what for one in found(pinned)] == ["corpus ptb", "task piqa"]
    assert found(pinned | {"models": ["tiny-llama"], "quality": None}) == []


def test_the_commit_that_is_cached_is_named(hub: HubServer, tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = hub.repository("org/tiny", files)
    planned = plan_suite(SuiteRequest(SUITE))
    fetch_checkpoint(planned.cells[0].model)
    assert found(SUITE)[0] == Unpinned("model org/tiny", "main", model.refs["main"])


def test_a_cached_model_of_another_family_is_refused_when_it_is_planned(hub: HubServer, tmp_path):
    hub.repository("org/tiny", {"config.json": b'{"model_type": "mamba"}'})
    planned = plan_suite(SuiteRequest(SUITE))
    with pytest.raises(PrunebenchError, match="pure state-space model"):
        fetch_checkpoint(planned.cells[0].model)
    # The download stopped at the config, and `main` is not noted: pin it, as a cell would know it.
    commit = next((tmp_path / "hub").glob("*/snapshots/*")).name
    with pytest.raises(PrunebenchError, match="a mamba model is a pure state-space"):
        plan_suite(SuiteRequest(SUITE | {"models": [f"org/tiny@{commit}"]}))

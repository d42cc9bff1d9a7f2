"""Every method on every family works or says why not; makes the table in plugins/README.md."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from prunebench import Context, PrunebenchError, anatomy, load_pruned
from prunebench.model.checkpoint import save
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_context
from tiny import FAMILIES, tiny_model

README = Path(__file__).resolve().parents[2] / "plugins" / "README.md"
BEGIN, END = "<!-- families: made by tests/plugins/test_families.py -->", "<!-- families end -->"
TITLES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "opt": "OPT",
    "gpt_neox": "GPT-NeoX", "phi": "Phi",
}  # fmt: skip
TRAINING = {"max_steps": 1, "batch_size": 2, "micro_batch_size": 2}
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "random": ("random", {"sparsity": "2:4"}),
    "magnitude": ("magnitude", {"sparsity": 0.5}),
    "imp": ("imp", {"sparsity": 0.5, "rounds": 2, **TRAINING}),
    "wanda": ("wanda", {"sparsity": 0.5}),
    "sparsegpt": ("sparsegpt", {"sparsity": "2:4"}),
    "ria": ("ria", {"sparsity": 0.5}),
    "besa": ("besa", {"sparsity": 0.5}),
    "dsnot": ("dsnot", {"sparsity": 0.5}),
    "llm-pruner": ("llm-pruner", {"ratio": 0.5, "protect_first": 1, "protect_last": 1}),
    "llm-pruner, channels": ("llm-pruner", {"ratio": 0.25, "granularity": "channel"}),
    "hywia": ("hywia", {"ratio": 0.5, "protect_first": 1, "protect_last": 1}),
    "flap": ("flap", {"ratio": 0.4}),
    "disp-llm": ("disp-llm", {"ratio": 0.5, "total_n_step": 2, "hidden_size": 4}),
    "slicegpt": ("slicegpt", {"ratio": 0.25, "round_interval": 4}),
    "minitron": ("minitron", {"intermediate_size": 0.5, "num_hidden_layers": 3, "multiple_of": 4}),
    "blockpruner": ("blockpruner", {"count": 2}),
    "budget-search": ("budget-search", {"rounds": 1, "mlp": [0.5], "attention": [0.5]}),
    "shortgpt": ("shortgpt", {"count": 1}),
    "llm-streamline": ("llm-streamline", {"layer_intervals": 1}),
    "shortened-llama": ("shortened-llama", {"count": 1, "plus_heuristic": False}),
    "sleb": ("sleb", {"count": 1}),
    "laco": ("laco", {"C": 2, "target": 0.25}),
    "layer-similarity": ("layer-similarity", {"count": 1}),
    "apply": ("apply", {"units": {"attention": [1], "mlp_channels": {"2": "0-9"}}}),
}
REPLACING = {"batch_size": 2, "gradient_accumulation_step": 1}
RECOVERIES = {f"+ {name}": name for name in ("lora", "finetune", "distill", "streamline")}
IDS = torch.randint(2, 300, (2, 16), generator=torch.Generator().manual_seed(5))


def prune(model, name: str, options: dict[str, object]) -> None:
    kind = load_plugins()["method"][name].value
    context = Context(IDS, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        kind(kind.Options.model_validate(options)).prune(model, context)


def recover(model, name: str) -> None:
    kind = load_plugins()["recovery"][name].value
    context = tiny_context(model)
    if kind.replaces_layers:
        context.remove_layers(model, [2])
    else:
        prune(model, "magnitude", {"sparsity": 0.5})
    options = REPLACING if kind.replaces_layers else TRAINING
    with torch.enable_grad():
        kind(kind.Options.model_validate(options)).recover(model, context)


def outcome(family: str, row: str, folder: Path) -> str:
    """'yes', or why the method refuses this family."""
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    try:
        if row in RECOVERIES:
            recover(model, RECOVERIES[row])
        else:
            prune(model, *METHODS[row])
    except PrunebenchError as error:
        assert all(map(torch.equal, model.parameters(), dense.parameters())), "refused, yet changed"
        return error.message
    logits = model(IDS).logits
    assert bool(torch.isfinite(logits).all())
    assert not torch.equal(logits, dense(IDS).logits)
    save(model, None, folder / f"{family}-{row}", made_by={})
    assert torch.equal(load_pruned(folder / f"{family}-{row}")(IDS).logits, logits)
    return "yes"


def table(found: dict[tuple[str, str], str]) -> str:
    rows = [*METHODS, *RECOVERIES]
    reasons = sorted({said for said in found.values() if said != "yes"})
    mark = {said: f"no ({number})" for number, said in enumerate(reasons, 1)} | {"yes": "yes"}
    lines = [
        "| | " + " | ".join(TITLES[family] for family in FAMILIES) + " |",
        "|---" * (len(FAMILIES) + 1) + "|",
    ]
    lines += [
        f"| {row} | " + " | ".join(mark[found[family, row]] for family in FAMILIES) + " |"
        for row in rows
    ]
    return "\n".join(
        [*lines, "", *(f"({number}) {said}." for number, said in enumerate(reasons, 1))]
    ).rstrip()


def written() -> str:
    text = README.read_text(encoding="utf-8")
    assert BEGIN in text and END in text
    return text.split(BEGIN)[1].split(END)[0].strip()


@pytest.mark.families
@pytest.mark.timeout(600)
def test_plugins_readme_has_the_table_of_what_works(tmp_path: Path) -> None:
    found = {
        (family, row): outcome(family, row, tmp_path)
        for family in FAMILIES
        for row in [*METHODS, *RECOVERIES]
    }
    made = table(found)
    print(f"\n{made}\n")
    assert written() == made, (
        "put the table that is printed above between the marks in plugins/README.md"
    )


@pytest.mark.parametrize("number", range(len(METHODS) + len(RECOVERIES)))
def test_a_sample_of_the_table_holds(tmp_path: Path, number: int) -> None:
    """Two families of each row, other ones in the next; `tox run -e families` tries them all."""
    row = [*METHODS, *RECOVERIES][number]
    lines = [line for line in written().splitlines() if line.startswith(f"| {row} |")]
    marks = dict(zip(FAMILIES, (cell.strip() for cell in lines[0].split("|")[2:]), strict=False))
    reasons = dict(re.findall(r"^(\(\d+\)) (.*)\.$", written(), re.MULTILINE))
    for family in (
        list(FAMILIES)[number % len(FAMILIES)],
        list(FAMILIES)[(3 * number + 1) % len(FAMILIES)],
    ):
        said = outcome(family, row, tmp_path)
        mark = marks[family]
        assert said == (mark if mark == "yes" else reasons[mark.removeprefix("no ")]), family


def test_every_method_and_recovery_is_in_the_table() -> None:
    registry = load_plugins()
    ours = {
        name for name, entry in registry["method"].items() if entry.distribution == "prunebench"
    }
    # None of these families has experts to remove.
    assert ours - {"dense", "reap"} == {name for name, _ in METHODS.values()}
    assert {
        name for name, entry in registry["recovery"].items() if entry.distribution == "prunebench"
    } == set(RECOVERIES.values())


def test_opt_350m_with_its_post_norm_is_refused_if_that_matters() -> None:
    model = tiny_model("opt", do_layer_norm_before=False)
    with pytest.raises(PrunebenchError, match="normalises after adding"):
        prune(model, "blockpruner", {"count": 2})
    prune(model, "wanda", {"sparsity": 0.5})
    prune(model, "llm-pruner", {"ratio": 0.5, "protect_first": 1, "protect_last": 1})
    assert bool(torch.isfinite(model(IDS).logits).all())

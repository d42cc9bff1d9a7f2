"""`allocation:` in suites: fan-out, identity, and combinations that are refused."""

from __future__ import annotations

import pytest

from prunebench import Allocation, PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import PluginEntry
from prunebench.suite.load import check_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import source_of

REGISTRY = load_plugins()


class SharesOnly(Allocation):
    name = "shares-only"

    def shares(self, model, sparsity, context):
        raise NotImplementedError


REGISTRY["allocation"]["shares-only"] = PluginEntry(
    "allocation", "shares-only", SharesOnly, distribution="dist", version="1.0", origin=""
)


def cells(*methods, calibration=True, seeds=(0,), **more):
    text = {"corpus": "tiny-text", "windows": 2, "length": 32}
    data = {
        "name": "s",
        "models": "tiny-llama",
        "methods": list(methods),
        "seeds": list(seeds),
        **more,
    }
    if calibration:
        data["calibration"] = text
    return planned(data).cells[1:]


def planned(data):
    return plan(check_suite(source_of(data, "s.yaml"), REGISTRY), REGISTRY)


def test_lists_fan_out_and_the_label_names_the_allocation() -> None:
    found = cells(
        {
            "wanda": {
                "sparsity": [0.5, 0.7],
                "allocation": [None, "uniform", {"owl": {"spread": [0.1, 0.2]}}],
            }
        },
    )
    assert len(found) == 8
    assert [cell.label for cell in found[:4]] == [
        "wanda sparsity=0.5",
        "wanda sparsity=0.5 allocation=uniform",
        "wanda sparsity=0.5 allocation=owl spread=0.1",
        "wanda sparsity=0.5 allocation=owl spread=0.2",
    ]
    assert len({cell.id for cell in found}) == 8


def test_it_is_part_of_the_id_only_if_it_is_given() -> None:
    plain, owl = cells("wanda", {"wanda": {"allocation": "owl"}})
    assert "allocation" not in plain.identity()
    assert owl.identity()["allocation"]["options"] == {"threshold": 5.0, "spread": 0.08}


def test_patterns_of_n_m_can_be_divided_too() -> None:
    found = cells({"wanda": {"sparsity": [0.5, "3:8"], "allocation": ["owl", "uniform"]}})
    assert [cell.label for cell in found][2:] == [
        "wanda sparsity=3:8 allocation=owl",
        "wanda sparsity=3:8 allocation=uniform",
    ]


def test_it_goes_with_a_recovery() -> None:
    [cell] = cells({"wanda": {"sparsity": 0.7, "allocation": "owl", "recovery": "lora"}})
    assert cell.label == "wanda sparsity=0.7 allocation=owl + lora"


def test_a_method_that_reads_no_text_gets_the_allocations() -> None:
    plain, *owl = cells("magnitude", {"magnitude": {"allocation": "owl"}}, seeds=(0, 1))
    assert plain.calibration is None
    assert [cell.seed for cell in owl] == [0, 1]
    assert all(cell.calibration for cell in owl)
    own = cells({"magnitude": {"allocation": "owl", "calibration": {"windows": 3}}})
    assert own[0].calibration.windows == 3


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            {"wanda": {"sparsity": "2:4", "allocation": "shares-only"}},
            "'shares-only' divides shares, and 'wanda sparsity=2:4' prunes 2:4 (leave `allocation`",
        ),
        ({"shortgpt": {"allocation": "owl"}}, "'shortgpt' takes no allocation: it decides itself"),
        ({"imp": {"allocation": "uniform"}}, "'imp' takes no allocation"),
        ({"dense": {"allocation": "uniform"}}, "'dense' takes no allocation"),
        ({"magnitude": {"scope": "global", "allocation": "owl"}}, "`scope: global` decides it"),
        ({"wanda": {"allocation": "owll"}}, "unknown allocation 'owll' (did you mean 'owl'?)"),
        ({"wanda": {"allocation": {"owl": {"spred": 1}}}}, "unknown option 'spred'"),
        ({"wanda": {"allocation": {"owl": {"spread": 2}}}}, "less than or equal to 0.5"),
        ({"wanda": {"allocation": []}}, "an empty list makes no cells"),
        ({"wanda": {"allocation": 3}}, "3 is no allocation"),
    ],
)
def test_senseless_allocations_are_refused_before_anything_runs(method, said: str) -> None:
    with pytest.raises(PrunebenchError) as caught:
        cells(method)
    assert said in str(caught.value)
    assert "methods[0]" in str(caught.value) or "methods." in str(caught.value)


def test_calibration_is_required_even_if_only_the_allocation_needs_it() -> None:
    with pytest.raises(PrunebenchError, match="'owl' needs calibration and the suite has none"):
        cells({"magnitude": {"allocation": "owl"}}, calibration=False)


def test_a_published_figure_names_the_allocation() -> None:
    text = {"corpus": "tiny-text", "windows": 2, "length": 32}
    data = {
        "name": "s",
        "models": "tiny-llama",
        "methods": ["wanda", {"wanda": {"allocation": "owl"}}],
        "calibration": text,
        "quality": {"perplexity": text},
        "expect": [
            {"model": "tiny-llama", "method": "wanda", "value": 1.0, "source": "a"},
            {
                "model": "tiny-llama",
                "method": "wanda",
                "allocation": "owl",
                "value": 2.0,
                "source": "b",
            },
        ],
    }
    assert [figure.method for figure in planned(data).expect] == ["wanda", "wanda allocation=owl"]


def ours(kind: str) -> list[str]:
    return [name for name, each in REGISTRY[kind].items() if each.distribution == "prunebench"]


WEIGHTS = ("magnitude", "wanda", "sparsegpt", "ria", "random", "dsnot")
UNITS = {"apply": {"units": {"layers": "1"}}}


@pytest.mark.parametrize("method", ours("method"))
def test_every_allocation_and_every_recovery_go_with_every_method_or_are_refused(
    method: str,
) -> None:
    allocations, options = ours("allocation"), UNITS.get(method, {})
    assert {"uniform", "owl", "alphapruning", "ecoflap", "besa"} == set(allocations)
    if method not in WEIGHTS:
        for allocation in allocations:
            with pytest.raises(PrunebenchError, match=f"'{method}.*' takes no allocation: it "):
                cells({method: {**options, "allocation": allocation}})
        return
    # `streamline` replaces layers that are gone: it is refused with its own reason.
    repairs = [None, *sorted({*ours("recovery")} - {"streamline"})]
    assert repairs == [None, "distill", "finetune", "lora"]
    found = cells({method: {"sparsity": 0.5, "allocation": allocations, "recovery": repairs}})
    pairs = {(cell.allocation.name, cell.recovery and cell.recovery.name) for cell in found}
    assert pairs == {(one, other) for one in allocations for other in repairs}
    assert len({cell.id for cell in found}) == len(found) == len(pairs)
    with pytest.raises(
        PrunebenchError, match=f"'streamline' replaces removed layers, and '{method}"
    ):
        cells({method: {"recovery": "streamline"}})


@pytest.mark.parametrize("allocation", ["alphapruning", "ecoflap"])
def test_n_m_goes_with_the_new_allocations(allocation: str) -> None:
    [cell] = cells({"wanda": {"sparsity": "2:8", "allocation": allocation}})
    assert cell.label == f"wanda sparsity=2:8 allocation={allocation}"

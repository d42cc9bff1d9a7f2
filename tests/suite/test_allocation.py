"""`allocation:` in suites: fanned out, part of the id only where it is given, refused where it makes no sense."""

from __future__ import annotations

import pytest

from prunebench import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import check_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import Source

REGISTRY = load_plugins()


def cells(tmp_path, *methods, calibration=True, seeds=(0,), **more):
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
    return plan(check_suite(Source("s.yaml", tmp_path, "", data, {}), REGISTRY), REGISTRY).cells[1:]


def test_it_fans_out_and_stands_in_the_label(tmp_path) -> None:
    found = cells(
        tmp_path,
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


def test_it_is_part_of_the_id_only_where_it_is_given(tmp_path) -> None:
    plain, owl = cells(tmp_path, "wanda", {"wanda": {"allocation": "owl"}})
    assert "allocation" not in plain.identity()
    assert owl.identity()["allocation"]["options"] == {"threshold": 5.0, "spread": 0.08}


def test_it_goes_with_a_recovery(tmp_path) -> None:
    [cell] = cells(tmp_path, {"wanda": {"sparsity": 0.7, "allocation": "owl", "recovery": "lora"}})
    assert cell.label == "wanda sparsity=0.7 allocation=owl + lora"


def test_a_method_that_reads_no_text_gets_the_allocations(tmp_path) -> None:
    plain, *owl = cells(tmp_path, "magnitude", {"magnitude": {"allocation": "owl"}}, seeds=(0, 1))
    assert plain.calibration is None
    assert [cell.seed for cell in owl] == [0, 1]
    assert all(cell.calibration for cell in owl)
    own = cells(tmp_path, {"magnitude": {"allocation": "owl", "calibration": {"windows": 3}}})
    assert own[0].calibration.windows == 3


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            {"wanda": {"sparsity": "2:4", "allocation": "owl"}},
            "'wanda sparsity=2:4' takes no allocation: 2:4 takes the same",
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
def test_what_makes_no_sense_is_said_before_anything_runs(tmp_path, method, said: str) -> None:
    with pytest.raises(PrunebenchError) as caught:
        cells(tmp_path, method)
    assert said in str(caught.value)
    assert "methods[0]" in str(caught.value) or "methods." in str(caught.value)


def test_text_is_asked_for_where_only_the_allocation_needs_it(tmp_path) -> None:
    with pytest.raises(PrunebenchError, match="'owl' needs calibration and the suite has none"):
        cells(tmp_path, {"magnitude": {"allocation": "owl"}}, calibration=False)


def test_a_published_figure_names_the_allocation(tmp_path) -> None:
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
    made = plan(check_suite(Source("s.yaml", tmp_path, "", data, {}), REGISTRY), REGISTRY)
    assert [figure.method for figure in made.expect] == ["wanda", "wanda allocation=owl"]

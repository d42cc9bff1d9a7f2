"""The API section of plugins/README.md is made from the docstrings that it shows."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prunebench
from prunebench import (
    Anatomy,
    Context,
    InputStatistic,
    LayerTraining,
    LinearStats,
    TensorCache,
    kth_lowest,
    learning,
    lowest,
    lowest_overall,
    next_token_backward,
    registered_method,
    set_to_zero,
)
from prunebench.layerwise.partial_forward import PartialForward
from prunebench.layerwise.statistics import GRADIENTS, STATISTICS
from readmes import ROOT

README = Path(ROOT) / "plugins" / "README.md"
BEGIN, END = "<!-- api: made by tests/docs/test_api_page.py -->", "<!-- api end -->"

OF_THE_HARNESS = {
    Context: {
        "adapter", "alone", "calibration", "checkpoints", "dense_indices", "dense_source", "draw",
        "layer_source", "shares", "trained_tokens", "used_shares",
    },
    LayerTraining: {"run", "targets"},
    LinearStats: {"gathered"},
}  # fmt: skip
"""Fields that the harness sets or reads; a method has no use for them."""

SETUP = """from prunebench.testing import tiny_context, tiny_model

model = tiny_model("llama")
context = tiny_context(model)
"""

SECTIONS: list[tuple[str, type, str, str]] = [
    (
        "The context",
        Context,
        "`context` in `prune` and `recover`:",
        SETUP
        + """
paths = list(context.linears(model))  # "model.layers.0.self_attn.q_proj" and so on
context.remove_layers(model, [1])
assert context.kept_layers == [0, 2, 3]  # by their indices in the dense model
""",
    ),
    (
        "The anatomy",
        Anatomy,
        (
            "`prunebench.anatomy(model)` names the parts of a model, whatever its family. A layer is"
            ' one of `layers`, and a kind is "attention" or "mlp". `prunebench.Block(layer, kind)`'
            " names one sub-block, for `remove_blocks` and `keep_groups`:"
        ),
        "from prunebench import Block, anatomy\n"
        + SETUP
        + """
parts = anatomy(model)
channels = parts.groups(parts.layers[0], "mlp")  # 80
context.keep_groups(model, {Block(0, "mlp"): range(channels // 2)})
""",
    ),
    (
        "Statistics",
        LinearStats,
        (
            "Put their names into a method's `statistics`, or give them to `context.observe_linears`."
            " `stats` is a `prunebench.LinearStats`, which has each under its name, and with"
            ' `stats["NAME"]`:'
        ),
        SETUP
        + """
found = {}
wanted = {"input_norm", "input_variance", "gradient_norm"}
context.observe_linears(model, wanted, lambda linears, stats: found.update(stats))
assert found["mlp.down_proj"].input_norm.shape == (80,)  # of the last layer that was seen
""",
    ),
    (
        "Training layer by layer",
        LayerTraining,
        (
            "`context.train_layers(model, trainer)` gives a trainer one decoder layer after the other."
            " This one learns a factor for each linear:"
        ),
        "import torch\n"
        + SETUP
        + """

class Shrink:
    statistics = frozenset()  # or those that `layer.stats` shall have

    def train_layer(self, layer):  # gradients are on
        scale = {name: torch.full((), 0.9, requires_grad=True) for name in layer.linears}
        optimiser = torch.optim.AdamW(scale.values(), lr=0.01)
        for batch in range(layer.batches):
            weights = {name: lin.weight * scale[name] for name, lin in layer.linears.items()}
            error = layer.forward(batch, weights) - layer.target(batch)
            optimiser.zero_grad()
            error.square().mean().backward()
            optimiser.step()
        return {name: lin.weight * scale[name].detach() for name, lin in layer.linears.items()}

    def see_trained(self, layer, target, output):
        \"\"\"Each batch with the new weights; both are [windows of the batch, length, hidden].\"\"\"


with torch.no_grad():  # as in `prune`
    context.train_layers(model, Shrink())
""",
    ),
    (
        "Running in pieces",
        PartialForward,
        "`context.partial_forward(model)` runs layers one by one, with or without sub-blocks:",
        SETUP
        + """
run = context.partial_forward(model)
[states] = run.start()  # one batch, [windows, length, hidden]
states = run.run(0, 0, states, ["mlp"])  # the output of layer 0 without its MLP
""",
    ),
]

OWN_STATISTIC = """import torch
from prunebench import InputStatistic
from prunebench.testing import tiny_context, tiny_model


class Silent(InputStatistic):
    \"\"\"How many tokens an input feature is not positive for, int64 [in].\"\"\"

    name = "silent"

    def __init__(self, features, device):
        self.count = torch.zeros(features, dtype=torch.int64, device=device)

    def add(self, inputs, windows):
        self.count += (inputs <= 0).sum(dim=0)  # [tokens, in] -> [in]

    def result(self):
        return self.count


model, found = tiny_model("opt"), {}
context = tiny_context(model)
context.observe_linears(model, {Silent}, lambda linears, stats: found.update(stats))
assert found["fc2"]["silent"].shape == (80,)
"""


def members(kind: type) -> Iterator[tuple[str, str]]:
    """Name, with arguments, and docstring of every public member, in the order of the source."""
    [node] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(node, ast.ClassDef)
    for each in node.body:
        if isinstance(each, ast.FunctionDef):
            if each.name == "__post_init__":
                yield from _fields(each.body)
            elif not each.name.startswith("_") and (text := ast.get_docstring(each)):
                yield _call(each), text
    yield from _fields(node.body)


def _fields(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in itertools.pairwise(body):
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            target = getattr(field, "target", None) or getattr(field, "targets", [None])[0]
            name = getattr(target, "id", None) or getattr(target, "attr", None)
            if name:
                yield name, inspect.cleandoc(str(text.value.value))


def _call(function: ast.FunctionDef) -> str:
    if any(getattr(one, "id", None) == "property" for one in function.decorator_list):
        return function.name
    given = function.args
    names = [one.arg for one in given.args if one.arg != "self"]
    defaults = [None] * (len(names) - len(given.defaults)) + [*map(ast.unparse, given.defaults)]
    words = [
        name if value is None else f"{name}={value}"
        for name, value in zip(names, defaults, strict=True)
    ]
    words += ["*"] * bool(given.kwonlyargs)
    words += [
        one.arg if value is None else f"{one.arg}={ast.unparse(value)}"
        for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return f"{function.name}({', '.join(words)})"


def of_function(function: Callable[..., Any]) -> str:
    [node] = ast.parse(inspect.getsource(function)).body
    assert isinstance(node, ast.FunctionDef)
    return item(f"prunebench.{_call(node)}", inspect.getdoc(function) or "")


def item(name: str, text: str) -> str:
    said = " ".join(text.replace("``", "`").split())
    # A code span must not be broken, but it may move to the next line as a whole.
    held = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), f"- `{name}`: {said}")
    lines = textwrap.wrap(
        held, 99, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\0", " ")


def page() -> str:
    parts = []
    for title, kind, introduction, example in SECTIONS:
        parts += [f"### {title}", "\n".join(textwrap.wrap(introduction, 99)), code(example)]
        listed = [
            item(name, text)
            for name, text in members(kind)
            if name.partition("(")[0] not in OF_THE_HARNESS.get(kind, ())
        ]
        parts.append("\n".join(listed))
        if kind is LinearStats:
            own = inspect.getdoc(InputStatistic) or ""
            words = f"A statistic of your own is a class. `prunebench.InputStatistic`: {own}"
            parts += [
                "\n".join(textwrap.wrap(" ".join(words.replace("``", "`").split()), 99)),
                code(OWN_STATISTIC),
            ]
    masks = (lowest, lowest_overall, kth_lowest)
    functions = (*masks, set_to_zero, learning, next_token_backward, registered_method)
    kept = inspect.getdoc(TensorCache) or ""
    shown = [*map(of_function, functions), item("prunebench.TensorCache(name)", kept)]
    shown += [item(f"TensorCache.{name}", text) for name, text in members(TensorCache)]
    parts += ["### Functions", "\n".join(shown)]
    return "\n\n".join(parts)


def code(text: str) -> str:
    return f"```python\n{text.strip()}\n```"


def test_the_api_section_is_what_the_docstrings_say(tmp_path: Path) -> None:
    made = page()
    text = README.read_text(encoding="utf-8")
    assert BEGIN in text and END in text
    written = text.split(BEGIN)[1].split(END)[0].strip()
    new = tmp_path / "api.md"
    new.write_text(made, encoding="utf-8")
    assert written == made, f"put {new} between the marks in plugins/README.md"


def test_every_statistic_is_an_attribute_with_a_docstring() -> None:
    shown = {name for name, _ in members(LinearStats)}
    assert {*STATISTICS, *GRADIENTS} <= shown


def test_what_the_page_shows_is_public() -> None:
    for name in (
        "Anatomy",
        "Block",
        "Context",
        "ExpertRows",
        "InputStatistic",
        "LinearStats",
        "anatomy",
    ):
        assert name in prunebench.__all__

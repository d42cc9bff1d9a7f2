"""What a model makes of each choice: -ln p per token, question by question."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunebench.measure.quality.choice_scores import ChoiceScores
from prunebench.measure.quality.tasks import evaluate_tasks
from task_folder import arc_rows, spec, task_folder
from tiny import tiny_model, tiny_tokenizer


def test_the_scores_are_those_of_an_independent_computation(tmp_path: Path) -> None:
    folder = task_folder(tmp_path)
    model = tiny_model("llama", max_position_embeddings=512)
    tokenizer, found = tiny_tokenizer(), {}
    results = evaluate_tasks(model, tokenizer, [spec("arc_easy", folder, limit=6)], choices=found)
    assert list(found) == ["arc_easy"]
    assert "".join(str(int(one.correct)) for one in found["arc_easy"]) == results[0].correct
    for row, scores in zip(arc_rows(30)[:6], found["arc_easy"], strict=True):
        prompt = f"Question: {row['question']}\nAnswer:"
        start = len(tokenizer.encode(prompt))
        wanted = []
        for choice in row["choices"]["text"]:
            ids = torch.tensor([tokenizer.encode(f"{prompt} {choice}")])
            with torch.no_grad():
                likely = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            wanted.append(-float(likely[start - 1 :].mean()))
        assert isinstance(scores, ChoiceScores)
        assert scores.nll == pytest.approx(wanted, rel=1e-5)

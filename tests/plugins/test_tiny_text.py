from __future__ import annotations

import hashlib

from prunebench_plugins.tiny_text import TinyText


def test_the_text_is_the_same_on_every_machine():
    """The revision names these bytes: raise it when they change."""
    corpus = TinyText()
    text = "\n\n".join(document for split in corpus.splits for document in corpus.documents(split))
    assert corpus.revision == "1"
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "e01b7ea05508d6f6335c0d0064e25282480fac090751d2a19a5590bcaf150364"
    )


def test_the_splits_share_no_paragraph():
    corpus = TinyText()
    calibration, evaluation = map(corpus.documents, corpus.splits)
    assert len(calibration) == len(evaluation) == 40
    assert not set(calibration) & set(evaluation)
    assert all(
        sentence.endswith(".") and len(sentence) > 200 for sentence in [*calibration, *evaluation]
    )

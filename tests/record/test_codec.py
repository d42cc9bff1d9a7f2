"""Records as text: the checksum finds edits, and records of older schemas are read."""

from __future__ import annotations

import json

import pytest

from prunebench.record.codec import STEPS, UnreadableRecordError, checksum, from_json, to_json
from small_records import cell, record


def test_records_of_an_older_schema_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.loads(to_json(record(cell())))
    del data["sha256"]
    assert from_json(json.dumps({**data, "schema": 1})) == record(cell())
    with pytest.raises(UnreadableRecordError, match="its checksum is missing"):
        from_json(json.dumps(data))

    def rename(old: dict[str, object]) -> dict[str, object]:
        rest = {key: value for key, value in old.items() if key != "was"}
        return {**rest, "status": old["was"]}

    monkeypatch.setitem(STEPS, 1, rename)
    assert from_json(json.dumps({**data, "schema": 1, "was": "skipped"})).status == "skipped"


def test_another_order_or_spacing_is_no_damage_but_another_digit_is() -> None:
    text = to_json(record(cell()))
    data = json.loads(text)
    reordered = json.dumps(dict(reversed(data.items())), separators=(",", ":"))
    assert from_json(reordered) == record(cell())
    assert data["sha256"] == checksum(
        {key: value for key, value in data.items() if key != "sha256"}
    )
    with pytest.raises(UnreadableRecordError, match="does not match"):
        from_json(text.replace("2026-01-01", "2026-01-02"))


@pytest.mark.parametrize("schema", ["true", "1.0", '"2"', "0", "99"])
def test_a_schema_that_no_step_leads_from_is_refused(schema: str) -> None:
    with pytest.raises(UnreadableRecordError, match="this version reads 2"):
        from_json(f'{{"schema": {schema}}}')

"""The session logs of coding agents become episodes, and what is left out is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.errors import DataError
from orbiter.train.formats import check, convert, detect, format_of, read

SAMPLES = Path(__file__).parent / "samples"
LOGS = {
    "claude_code_2.1": "claude-code",
    "claude_code_1.0.jsonl": "claude-code",
    "codex_0.155": "codex",
    "codex_0.2": "codex",
    "session-gemini_cli_0.20.json": "gemini-cli",
    "gemini_cli_2026": "gemini-cli",
    "opencode_1.1_export.json": "opencode",
    "opencode_1.1_storage": "opencode",
    "pi_3.jsonl": "pi",
    "hermes_2026.jsonl": "hermes",
}


def items(name: str) -> list[TrajectoryItem]:
    return list(read(SAMPLES / name))


def roles(item: TrajectoryItem) -> list[object]:
    return [message["role"] for message in item.messages or [{"role": "user"}]]


def run_of(item: TrajectoryItem, call_id: str) -> dict[str, Any]:
    runs: Any = item.metadata["tool_runs"]
    (run,) = [run for run in runs if run["tool_call_id"] == call_id]
    return dict(run)


@pytest.mark.parametrize(("name", "format"), LOGS.items())
def test_a_log_is_known_and_nothing_is_wrong_with_it(name: str, format: str) -> None:
    assert detect(SAMPLES / name).name == format
    report = check(SAMPLES / name)
    assert report.ok
    assert (report.episodes, report.items) == (1, len(items(name)))


@pytest.mark.parametrize(("name", "format"), LOGS.items())
def test_a_log_fills_only_the_fields_that_are_listed(name: str, format: str) -> None:
    survives = format_of(format).survives
    for item in items(name):
        assert {f"metadata.{entry}" for entry in item.metadata} <= survives


@pytest.mark.parametrize("name", LOGS)
def test_steps_are_numbered_and_every_result_follows_its_call(name: str) -> None:
    found = items(name)
    assert [item.step for item in found] == list(range(len(found)))
    for item in found:
        asked: set[object] = set()
        for message in item.messages or ():
            calls: Any = message.get("tool_calls") or ()
            asked |= {call["id"] for call in calls}
            if message["role"] == "tool":
                assert message["tool_call_id"] in asked


def test_claude_codes_blocks_become_one_answer_with_parallel_calls() -> None:
    first, second, *_ = items("claude_code_2.1")
    assert first.tool_calls is not None
    assert [call["id"] for call in first.tool_calls] == ["toolu_1", "toolu_2"]
    assert first.action.startswith("I look at both files.\n<tool_call>")
    assert first.metadata["reasoning"] == "Look first."
    assert (first.metadata["input_tokens"], first.metadata["cached_tokens"]) == (1004, 900)
    assert first.metadata["finish_reason"] == "tool_use"
    assert roles(second) == ["user", "assistant", "tool", "tool"]
    assert run_of(first, "toolu_1")["seconds"] == 2.0


def test_claude_codes_sub_agent_is_part_of_the_episode_of_the_call_that_started_it() -> None:
    found = items("claude_code_2.1")
    below = [item for item in found if item.agent == "Explore"]
    assert [item.action[:11] for item in below] == ["<tool_call>", "Only checko"]
    assert {item.metadata["parent_tool_call_id"] for item in below} == {"toolu_3"}
    assert {item.episode_id for item in found} == {"5f0c1d2e-0000-4000-8000-000000000001"}
    assert run_of(found[1], "toolu_3")["seconds"] == 5.5  # what Claude Code measured itself


def test_an_older_sidechain_is_found_by_the_prompt_of_its_call() -> None:
    _, below, _ = items("claude_code_1.0.jsonl")
    assert (below.state, below.action, below.agent) == ("Count the tests", "12", "general-purpose")
    assert below.metadata["parent_tool_call_id"] == "toolu_t"
    assert below.episode_id == "0b1e0000-0000-4000-8000-000000000002"


def test_a_user_who_goes_back_abandons_what_came_after() -> None:
    found = items("claude_code_2.1")
    (abandoned,) = [item for item in found if item.metadata.get("abandoned")]
    assert abandoned.action == "I stop."
    after = next(item for item in found if item.action == "Now it passes.")
    assert "Wrong way, stop." not in after.state
    assert after.state.endswith("Please read it again.")


@pytest.mark.parametrize("name", ["claude_code_2.1", "codex_0.155", "pi_3.jsonl"])
def test_after_compaction_the_context_is_the_summary(name: str) -> None:
    last = items(name)[-1]
    assert last.metadata["compactions"] == 1
    assert "ummary" in last.state
    assert items(name)[0].metadata.get("compactions") is None


def test_opencodes_summary_replaces_the_context_but_for_the_request() -> None:
    *_, summary, last = items("opencode_1.1_export.json")
    assert summary.action == "We fixed it."
    assert last.messages == [
        {"role": "user", "content": "What did we do so far?"},
        {"role": "assistant", "content": "We fixed it."},
        {"role": "user", "content": "Bye"},
    ]


def test_codex_keeps_custom_calls_searches_exit_codes_and_tokens() -> None:
    first, second, *_ = items("codex_0.155")
    assert first.tool_calls is not None
    assert first.tool_calls[1] == {
        "id": "call_2",
        "type": "custom",
        "custom": {"name": "apply_patch", "input": "*** Begin Patch\n*** End Patch"},
    }
    assert run_of(first, "call_1") == {
        "tool_call_id": "call_1", "name": "shell", "seconds": 1.5, "error": True, "exit_code": 1,
    }  # fmt: skip
    assert (first.metadata["input_tokens"], first.metadata["reasoning_tokens"]) == (2000, 20)
    assert second.tool_calls is not None
    assert second.tool_calls[0]["type"] == "web_search_call"
    assert roles(first)[0] == "system"


def test_codex_joins_the_thread_of_a_sub_agent_to_its_parents_episode() -> None:
    found = items("codex_0.155")
    (below,) = [item for item in found if item.agent]
    assert (below.agent, below.action) == ("explorer", "test_cart.py")
    assert below.episode_id == found[0].episode_id


def test_a_picture_in_a_result_stays_a_picture() -> None:
    codex = items("codex_0.155")[-1]
    gemini = items("opencode_1.1_export.json")[0]
    pi = items("pi_3.jsonl")[1]
    for item in (codex, gemini, pi):
        contents = [message["content"] for message in item.messages or ()]
        assert any("image_url" in str(content) for content in contents)


def test_gemini_clis_later_lines_change_earlier_messages() -> None:
    found = items("gemini_cli_2026")
    assert [item.action[:9] for item in found] == ["I read it", "buy milk", "Buy milk.", "Welcome."]
    assert "oops" not in found[-1].state
    assert found[1].metadata["parent_tool_call_id"] == "read_file-1"
    cancelled = items("session-gemini_cli_0.20.json")[0]
    assert run_of(cancelled, "sh-2")["error"] == "cancelled"


def test_opencodes_steps_are_answers_and_its_folder_says_the_same_as_its_export() -> None:
    exported = items("opencode_1.1_export.json")[:3]
    stored = [item for item in items("opencode_1.1_storage") if item.agent is None]
    assert [item.action for item in exported] == [item.action for item in stored]
    (below,) = [item for item in items("opencode_1.1_storage") if item.agent == "explore"]
    assert below.metadata["parent_tool_call_id"] == "call_t1"
    assert run_of(exported[1], "call_t2")["error"] == "File not found"


def test_hermes_has_its_tools() -> None:
    first, second = items("hermes_2026.jsonl")
    assert first.tools is not None
    assert first.tools[0]["function"]["name"] == "terminal"  # type: ignore[index]
    assert (first.metadata["reasoning"], second.action) == ("List.", "One file.")


def test_secrets_addresses_and_home_paths_are_masked_unless_asked_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert(SAMPLES / "claude_code_2.1", out)
    text = out.read_text()
    assert "/ada" not in text
    assert "ada@" not in text
    assert "sk_live" not in text
    assert "STRIPE_SECRET_KEY=***" in text
    assert "/home/user/shop/cart.py" in text
    assert "user@example.com" in text
    convert(SAMPLES / "claude_code_2.1", out, redact=False)
    assert "/home/ada/shop/cart.py" in out.read_text()
    assert "sk_live_51HxAbCdEfGhIjKl" in out.read_text()


def test_what_is_left_out_is_counted_by_type() -> None:
    notes = "\n".join(check(SAMPLES / "claude_code_2.1").notes)
    assert "unknown types: hologram (1)" in notes
    assert "attachment (1)" in notes
    assert "went back to an earlier message (1)" in notes
    notes = "\n".join(check(SAMPLES / "codex_0.155").notes)
    assert "event_msg/wormhole_opened (1), quasar (1)" in notes
    assert "object with $teleport (1)" in "\n".join(check(SAMPLES / "gemini_cli_2026").notes)
    assert "part/antimatter (1)" in "\n".join(check(SAMPLES / "opencode_1.1_export.json").notes)
    assert "wormhole (1)" in "\n".join(check(SAMPLES / "pi_3.jsonl").notes)


@pytest.mark.parametrize("name", ["claude_code_1.0.jsonl", "pi_3.jsonl", "hermes_2026.jsonl"])
def test_a_damaged_line_names_file_and_line(name: str, tmp_path: Path) -> None:
    lines = (SAMPLES / name).read_text().splitlines()
    lines[2] = lines[2][:40]
    path = tmp_path / name
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"{name}:3: "):
        list(read(path, LOGS[name]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"type": "user", "uuid": "x", "sessionId": "s"}, "has no message"),
        ({"type": "user", "uuid": "x", "message": {"content": 5}}, "expected text or blocks"),
        ({"uuid": "x"}, "it has no type"),
        (
            {"type": "user", "message": {"content": "a"}, "timestamp": "noon"},
            "expected an ISO time",
        ),
    ],
)
def test_a_malformed_record_is_refused_with_its_line(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    lines = (SAMPLES / "claude_code_1.0.jsonl").read_text()
    path = tmp_path / "s.jsonl"
    path.write_text(lines + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"s\.jsonl:9: .*{reason}"):
        list(read(path, "claude-code"))
    skipped: list[Any] = []
    kept = list(read(path, "claude-code", on_error="skip", skipped=skipped))
    assert (len(kept), len(skipped)) == (3, 1)


def test_a_session_that_was_resumed_in_another_file_is_not_read_twice(tmp_path: Path) -> None:
    text = (SAMPLES / "claude_code_1.0.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl").write_text(text)
    assert len(list(read(tmp_path, "claude-code"))) == 3
    assert any("another file" in note for note in check(tmp_path, "claude-code").notes)


def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"role": "user", "parts": [{"text": "a"}]}]))
    with pytest.raises(DataError, match="a checkpoint of Gemini CLI, not a session"):
        list(read(path, "gemini-cli"))
    path.write_text(json.dumps({"type": "text", "sessionID": "s", "part": {"type": "text"}}))
    with pytest.raises(DataError, match="opencode export"):
        list(read(path, "opencode"))
    path.write_text(json.dumps({"conversations": [{"from": "human", "value": "a"}]}))
    with pytest.raises(DataError, match="sharegpt"):
        list(read(path, "hermes"))
    with pytest.raises(DataError, match="no file named"):
        list(read(tmp_path, "codex"))


def test_empty_and_compressed_files_are_left_out_and_counted(tmp_path: Path) -> None:
    log = SAMPLES / "codex_0.2/rollout-2025-06-01-old.jsonl"
    (tmp_path / "rollout-a.jsonl").write_text(log.read_text())
    (tmp_path / "rollout-b.jsonl").write_text("\n")
    (tmp_path / "rollout-c.jsonl.zst").write_bytes(b"x")
    report = check(tmp_path)
    assert (report.format, report.items, report.problems) == ("codex", 2, [])
    assert any("empty files (1)" in note for note in report.notes)
    assert any("compressed files (.zst): decompress them first (1)" in n for n in report.notes)


def test_a_log_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    depth = 800
    deep = json.loads('{"a":' * depth + "1" + "}" * depth)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}
    row = {"role": "assistant", "content": "", "tool_calls": [call]}
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"role": "session_meta"}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match="nested too deep"):
        list(read(path, "hermes"))


@pytest.mark.parametrize(
    "text", ["a" * 2_000_000, "a-" * 1_000_000, "/home/" + "a" * 2_000_000, "a.b@" * 500_000]
)
def test_masking_takes_time_in_proportion_to_the_text(text: str) -> None:
    from orbiter.train.redact import mask_private

    assert len(mask_private(text)) <= len(text)  # a quadratic rule would run for hours

"""What of others may be printed."""

import json

from services.core import terminal

HOSTILE = "\x1b[2J\x07\x9b\x7f\u202e\u2066\u061c\u2028\ud800\r"


def test_what_could_command_a_terminal_is_taken_out_and_nothing_else():
    kept = "A mug,\t«ø» 漢字 🙂\nsecond line"
    assert terminal.printable(kept) == kept
    assert terminal.printable(HOSTILE) == "[2J"


def test_json_for_a_terminal_is_the_same_value_in_escapes():
    line = terminal.json_line({"a": HOSTILE, "b": "ø"})
    assert "ø" in line
    assert line.isprintable()
    assert json.loads(line) == {"a": HOSTILE, "b": "ø"}

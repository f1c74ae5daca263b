"""What a command prints of a file from elsewhere."""

from __future__ import annotations

import io

from budgetfusion_nodes.command_line.options import say


def test_a_name_gives_a_terminal_no_commands() -> None:
    out = io.StringIO()
    say("a\x1b[2J\x07\u202eb\tc\nd 名", out)
    assert out.getvalue() == "a\\x1b[2J\\x07\\u202eb\tc\nd 名\n"


def test_letters_that_a_terminal_lacks_end_no_command() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="cp1252")
    say("é 名 \udcff", out)
    out.flush()
    assert raw.getvalue().decode("cp1252").rstrip() == "é \\u540d \\udcff"

"""Lines of a log about a step."""

import pytest

from data_prep.build import progress

pytestmark = pytest.mark.quick


def test_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 30.0, 40.0, 61.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    counts = progress.Progress("step 2 caption", 2000)
    counts.add(1000, asked=900, cached=100, aside=3)
    assert capsys.readouterr().err == ""
    counts.add(200, asked=200, cached=50)
    assert capsys.readouterr().err == (
        "step 2 caption: 1,200 of 2,000 drafts, 1,100 requests, 150 from the cache, 3 set aside, 40.0 a second\n"
    )
    counts.add(20)
    assert capsys.readouterr().err == ""
    counts.add(610)
    assert "1,830 of 2,000 drafts" in capsys.readouterr().err

"""A thousand damaged and hostile files, and the fuzzer itself."""

import pytest

from tests.fuzzing import OUTCOMES, fuzz, table


@pytest.mark.slow
def test_every_fault_is_found():
    results = list(fuzz(11, seed=0, seconds=5, targets="tests.fuzz.broken"))
    assert [(result.kind, result.outcome) for result in results] == [
        ("_content", "read"),
        ("_refuse", "refused, but whole"),
        ("_fail", "untyped error"),
        ("_abort", "crash"),
        ("_hang", "hang"),
        ("_take_memory", "untyped error"),
        ("_run_something", "executed"),
        ("_start_something", "executed"),
        ("_warn", "warning"),
        ("_change", "silently wrong"),
        ("_content", "hostile, but read"),
    ]
    assert [result.number for result in results] == list(range(11))
    assert "MemoryError" in results[5].detail
    assert "os.system" in results[7].detail


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        ("tests.fuzz.readers", 31),
        pytest.param("tests.fuzz.targets", 32, marks=pytest.mark.slow),  # commands too
    ],
)
def test_a_thousand_damaged_files(targets: str, kinds: int):
    results = list(fuzz(1000, seed=0, targets=targets))
    wrong = [result for result in results if result.outcome not in OUTCOMES]
    assert not wrong, "\n".join(map(str, wrong))
    found = {outcome: {r.kind for r in results if r.outcome == outcome} for outcome in OUTCOMES}
    # Damage that no reader minds, and none that they mind, would show nothing.
    assert len(found["read"]) == kinds, table(results)
    # Commands leave out what is broken; few have nothing else.
    assert len(found["refused"] - {"command"}) == 30, table(results)

"""The experiment on the input of many hosts: in small, and by hand where the answer is known."""

import json
from pathlib import Path

import pytest

from experiments.many_hosts import report
from experiments.many_hosts.study import Hosts, decoding, order, speed
from experiments.running import page

FOLDER = Path(__file__).parent.parent / "experiments" / "many_hosts"


def test_hosts_read_what_one_reads_and_nothing_twice():
    found = order(4, 2)
    assert found == {
        "hosts": 4,
        "images": 2 * 2 * 4 * 2,
        "same_as_one_host": True,
        "twice_in_an_epoch": 0,
    }


@pytest.mark.parametrize(("cores", "busy"), [(1, 0.25), (2, 0.5), (4, 1.0), (8, 1.0)])
def test_without_chance_it_is_a_quotient(cores, busy):
    """A batch takes 8 x 0.5 s of a core, and a step 1 s: four cores keep up."""
    for hosts in 1, 5:
        assert speed(Hosts(hosts, 8, 1.0, cores), [0.5], 200) == pytest.approx(busy, abs=0.02)


def test_the_slowest_host_is_waited_for():
    assert speed(Hosts(5, 8, 1.0, 4, slow=1), [0.5], 200) == pytest.approx(0.5, abs=0.02)
    # By chance every host is the last one at times: the more, the more often.
    seconds = [0.1, 0.9]
    few, many = (speed(Hosts(n, 8, 1.0, 4), seconds, 300) for n in (1, 64))
    assert many < few <= 1


def test_decoding_takes_time_of_the_processor():
    found = decoding(4)
    assert len(found) == 4
    assert min(found) > 0


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    assert results["order"]["hosts"] == 256
    assert results["order"]["same_as_one_host"]
    assert not results["order"]["twice_in_an_epoch"]
    enough = results["spare"].index(1.25)
    assert results["busy"]["256 hosts"][enough] > 0.95
    assert results["busy"]["one is slow"][enough] < 0.7

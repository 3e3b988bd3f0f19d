import subprocess
import sys

import psutil
import pytest

from benchmarks.stack import alive, free_ports, memory, processes_of

PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"


def test_ports_are_different_and_can_be_used():
    ports = free_ports(5)

    assert len(set(ports)) == 5
    assert all(1024 < port < 65536 for port in ports)


@pytest.fixture
def family(tmp_path):
    """A process with a child, and an unrelated one that works inside the state folder."""
    (tmp_path / "data").mkdir()
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    detached = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path / "data", start_new_session=True
    )
    while not psutil.Process(parent.pid).children():
        pass
    yield parent, detached
    for process in [*psutil.Process(parent.pid).children(), parent, detached]:
        process.kill()
    parent.wait()
    detached.wait()


def test_the_tree_holds_children_and_what_works_in_the_state_folder(family, tmp_path):
    parent, detached = family

    members = {process.pid for process in processes_of(parent.pid, tmp_path)}

    child = psutil.Process(parent.pid).children()[0].pid
    assert members == {parent.pid, child, detached.pid}


def test_memory_is_summed_and_shared_pages_count_once_in_pss(family, tmp_path):
    parent, _ = family

    rss, pss = memory(processes_of(parent.pid, tmp_path))

    assert rss > memory([psutil.Process(parent.pid)])[0] > 2**20
    assert 0 < pss < rss


def test_what_was_killed_is_not_alive_even_before_it_is_reaped(family, tmp_path):
    parent, _ = family
    members = processes_of(parent.pid, tmp_path)
    child = next(process for process in members if process.ppid() == parent.pid)

    child.kill()
    while child.status() != psutil.STATUS_ZOMBIE:
        pass

    assert len(alive(members)) == len(members) - 1

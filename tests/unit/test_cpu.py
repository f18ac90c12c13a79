"""The allocator's settings of a CPU run."""

import subprocess
import sys

import pytest

from bigjax import cpu


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """kernel(mode): the machine offers huge pages in this mode."""
    path = tmp_path / "enabled"
    monkeypatch.setattr(cpu, "_HUGE_PAGES", path)
    monkeypatch.setattr(cpu, "_has_tunable", lambda: True)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    modes = ("always", "madvise", "never")
    return lambda mode: path.write_text(" ".join(f"[{m}]" if m == mode else m for m in modes))


def test_huge_pages_are_asked_for_where_the_kernel_wants_to_be_asked(kernel, monkeypatch):
    assert cpu.environment() == {}  # no such file
    for mode, variables in {
        "always": {},
        "never": {},
        "madvise": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    }.items():
        kernel(mode)
        assert cpu.environment() == variables
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert cpu.environment() == {"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")  # the user's choice
    assert cpu.environment() == {}
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(cpu, "_has_tunable", lambda: False)
    assert cpu.environment() == {}


def test_freed_memory_is_kept_only_without_huge_pages(kernel, monkeypatch):
    calls = []

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, *setting):
            calls.append(setting)

    monkeypatch.setattr(cpu.ctypes, "CDLL", Library)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    for mode, tunables, keeps in (
        ("never", "", True),
        ("never", "glibc.malloc.hugetlb=1", True),
        ("madvise", "", True),  # in another program, which did not restart
        ("madvise", "glibc.malloc.hugetlb=1", False),
        ("always", "", False),
    ):
        kernel(mode)
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        calls.clear()
        cpu.keep_freed_memory()
        assert bool(calls) == keeps, (mode, tunables)


def test_a_process_restarts_once_with_its_arguments(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from bigjax import cpu\n"
        "cpu.environment = lambda: {} if 'ADDED' in os.environ else {'ADDED': 'yes'}\n"
        "print('start', flush=True)\n"
        "cpu.restart_with_huge_pages()\n"
        "print(os.environ['ADDED'], sys.flags.no_site, sys.argv[1:], os.getpid())\n"
    )
    command = [sys.executable, "-X", "utf8", str(script), "--a=b c", "--side", "ä"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    out, _ = process.communicate(timeout=60)
    assert out.splitlines() == ["start", "start", f"yes 0 ['--a=b c', '--side', 'ä'] {process.pid}"]


def test_the_command_starts_with_huge_pages_where_the_machine_has_them(tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    text = (
        "import os\n"
        "from bigjax import main\n"
        "print('start', flush=True)\n"
        "main.main = lambda argv: print(os.environ.get('GLIBC_TUNABLES'))\n"
        "main.cli()"
    )
    tunables = cpu.environment().get("GLIBC_TUNABLES")
    for name, expected in (
        ("bigjax", ["start", "start", tunables] if tunables else ["start", "None"]),
        ("my_program.py", ["start", "None"]),  # a user's program is not run twice
    ):
        script = tmp_path / name
        script.write_text(text)
        run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
        assert run.stdout.split() == expected, run.stderr

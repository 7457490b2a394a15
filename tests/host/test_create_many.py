"""Many images at once: each as it would be by itself, in order, and no one's fault is another's."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.sandbox.backends import KINDS
from tests.support import instar as run_instar
from tests.support import same_bytes

import instar
from instar.formats import creatable
from instar.guest import create_many as guest
from instar.host import create_many as host
from instar.host import make as make_module
from instar.host.create import create

if TYPE_CHECKING:
    from pathlib import Path

    from instar.core.wire import Wire

NONE = instar.Isolation("none")


def make(jobs: list[dict[str, Any]], isolation: instar.Isolation = NONE) -> list[Any]:
    return list(instar.create_many(jobs, isolation=isolation))


def message(result: object) -> str:
    assert isinstance(result, instar.InstarError)
    return str(result)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_create(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_600_000_000.0)
    monkeypatch.setattr("os.urandom", bytes)
    many, one = tmp_path / "many", tmp_path / "one"
    jobs = []
    for folder in (many, one):
        folder.mkdir()
    for row in creatable():
        if row.name == "luks":
            continue
        for name, size in (("a", "1M"), ("b", "1M"), ("c", 3 << 30)):
            jobs.append({"filename": f"{many}/{name}.{row.name}", "size": size, "format": row.name})
            create(f"{one}/{name}.{row.name}", size, format=row.name, isolation=NONE)
    results = make(jobs, instar.Isolation(kind))
    assert [result.filename for result in results] == [job["filename"] for job in jobs]
    for path in sorted(one.iterdir()):
        same_bytes(many / path.name, path)
        assert (many / path.name).stat().st_blocks <= path.stat().st_blocks


def test_fault_of_one_is_no_other_s(tmp_path: Path) -> None:
    good = [{"filename": f"{tmp_path}/{n}", "size": "1M", "format": "qcow2"} for n in range(3)]
    bad: list[dict[str, Any]] = [
        {"filename": f"{tmp_path}/x", "size": "1M", "format": "qcow2", "options": {"cluster_size": 5}},
        {"filename": f"{tmp_path}/no/x", "size": "1M", "format": "qcow2"},
        {"filename": f"{tmp_path}/x", "format": "qcow2"},
        {"filename": f"{tmp_path}/x", "size": 1 << 62, "format": "vpc"},
        {"filename": f"{tmp_path}/x", "sise": "1M"},
        {"size": "1M"},
        {"filename": f"{tmp_path}/x", "size": 1.5},
    ]
    results = make([good[0], *bad[:3], good[1], *bad[3:], good[2]])
    assert [isinstance(result, instar.InstarError) for result in results] == [0, 1, 1, 1, 0, 1, 1, 1, 1, 0]
    assert "a job has no key 'sise'" in message(results[6])
    assert "'filename' is missing" in message(results[7])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_job_of_strange_texts_is_its_own_fault(tmp_path: Path) -> None:
    job = {"filename": f"{tmp_path}/x", "size": "1M", "format": "qcow2"}
    bad: list[dict[str, Any]] = [
        {**job, "filename": f"{tmp_path}/\ud800"},
        {**job, "filename": f"{tmp_path}/\0", "backing": __file__, "backing_format": "raw"},
        {**job, "options": [1]},
        {**job, "options": [["cluster_size"]]},
        {**job, "options": [["cluster_size", [65536]]]},
        {**job, "options": {"data_file": "\ud800"}},
    ]
    results = make([{**job, "filename": f"{tmp_path}/0"}, *bad, {**job, "filename": f"{tmp_path}/1"}])
    assert [isinstance(result, instar.InstarError) for result in results] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_backing_file_named_in_pairs_is_that_of_the_image(tmp_path: Path) -> None:
    base, top = (f"{tmp_path}/{name}.qcow2" for name in ("base", "top"))
    options = [["backing_file", "base.qcow2"], ["backing_fmt", "qcow2"]]
    jobs = [
        {"filename": base, "size": "7M", "format": "qcow2"},
        {"filename": top, "format": "qcow2", "options": options},
    ]
    assert [result.virtual_size for result in make(jobs)] == [7 << 20, 7 << 20]
    assert instar.info(top, isolation=NONE).backing_filename == "base.qcow2"


def test_passphrases_are_no_matter_of_a_cell_that_looks_at_a_backing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").write_bytes(bytes(512))
    forked = []
    monkeypatch.setattr(
        "instar.host.backing.look_at_backing",
        lambda _request, _open, given, *_, **__: forked.append(given.single_threaded),
    )
    job = {"filename": f"{tmp_path}/x", "size": 512, "format": "qcow2", "backing": "base", "backing_format": "raw"}
    for secrets in ({}, {"a": b"passphrase"}):
        given = instar.Isolation("none", single_threaded=True)
        list(instar.create_many([job], isolation=given, secrets=secrets))
    assert forked == [True, False]


def test_earlier_image_is_there_for_a_later_one_that_names_it(tmp_path: Path) -> None:
    base, top = (f"{tmp_path}/{name}.qcow2" for name in ("base", "top"))
    results = make(
        [
            {"filename": base, "size": "7M", "format": "qcow2"},
            {"filename": top, "format": "qcow2", "backing": "base.qcow2", "backing_format": "qcow2"},
        ]
    )
    assert [result.virtual_size for result in results] == [7 << 20] * 2
    assert instar.info(top, isolation=NONE).backing_filename == "base.qcow2"


def test_more_than_share_a_cell_are_all_made(tmp_path: Path) -> None:
    jobs = [{"filename": f"{tmp_path}/{n}", "size": n << 20, "format": "vpc"} for n in range(1, 8)]
    results = list(host.create_many(jobs, isolation=NONE, together=3))
    assert [result.filename for result in results if isinstance(result, instar.CreateResult)] == [
        job["filename"] for job in jobs
    ]


def test_images_alike_have_identities_of_their_own(tmp_path: Path) -> None:
    make([{"filename": f"{tmp_path}/{n}", "size": "1M", "format": "vhdx"} for n in range(3)])
    assert len({(tmp_path / str(n)).read_bytes() for n in range(3)}) == 3


def test_large_ones_are_made_by_themselves(tmp_path: Path) -> None:
    options = {"preallocation": "metadata", "cluster_size": 4096}
    (result,) = make([{"filename": f"{tmp_path}/x", "size": "8G", "format": "qcow2", "options": options}])
    assert result.metadata_bytes > guest.MOST_BYTES
    assert instar.check(result.filename, isolation=NONE).clean


@pytest.mark.parametrize("answer", [[], [{"alone": True}] * 5, instar.SandboxError("died", "it died")])
def test_where_the_shared_cell_fails_each_image_gets_its_own(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object, **__: object) -> Wire:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    monkeypatch.setattr(host, "call", call)
    results = make([{"filename": f"{tmp_path}/{n}", "size": "1M", "format": "qcow2"} for n in range(2)])
    assert [result.virtual_size for result in results] == [1 << 20] * 2


def test_where_there_is_no_cell_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: object, **__: object) -> Wire:
        raise instar.SandboxError("unavailable", "none here")

    for module in (host, make_module):
        monkeypatch.setattr(module, "call", call)
    with pytest.raises(instar.SandboxError, match="none here"):
        make([{"filename": f"{tmp_path}/x", "size": "1M", "format": "qcow2"}])


class TestCommand:
    def test_answers_each_line_in_order(self, tmp_path: Path) -> None:
        lines = [
            json.dumps({"filename": "a", "size": "1M", "format": "qcow2"}),
            "no json",
            "",
            "[]",
            json.dumps({"filename": "b", "size": "1M", "format": "nix"}),
            json.dumps({"filename": "c", "size": "1M"}),
        ]
        (tmp_path / "jobs").write_text("\n".join(lines))
        done = run_instar("--isolation=process", "create", "--batch", "jobs", cwd=tmp_path)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["filename"] for row in told] == ["a", None, None, "b", "c"]
        assert [row["error"]["code"] for row in told if "error" in row] == ["bad-job", "bad-job", "unknown-format"]
        assert done.returncode == 1
        assert done.stderr == ""

    def test_takes_no_other_words(self, tmp_path: Path) -> None:
        done = run_instar("create", "--batch", "jobs", "x", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "leave out x" in done.stderr

    def test_is_not_in_the_dialect_of_qemu_img(self, tmp_path: Path) -> None:
        done = run_instar("create", "--batch", "jobs", cwd=tmp_path, dialect="qemu-img")
        assert "unrecognized option" in done.stderr

    def test_answers_while_more_is_to_come(self, tmp_path: Path) -> None:
        """A program that writes a line and waits for its answer gets it."""
        import os
        import subprocess

        from tests.sandbox.cells import SOURCE

        with subprocess.Popen(
            [sys.executable, "-m", "instar", "--isolation=process", "create", "--batch", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            text=True,
            bufsize=1,
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            for name in ("a", "b"):
                program.stdin.write(json.dumps({"filename": name, "size": "1M", "format": "qcow2"}) + "\n")
                assert json.loads(program.stdout.readline())["filename"] == name
            program.stdin.close()
            assert program.wait(30) == 0

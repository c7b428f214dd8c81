"""Downloads against a local server that cuts, forgets, changes and lies; archives that would do harm.

    python -m pytest tests/test_downloads.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_downloads.py     # also sums and readers on real files
"""
import errno
import hashlib
import io
import re
import shutil
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

import data
import finetune

BODY = np.random.default_rng(0).bytes(1_000_003)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves server.files {name: bytes}, with Range unless server.ranges is false. server.cuts: numbers of bytes after
    which the next answers end; server.answers: statuses of the next ones."""

    def do_GET(self):
        server, name, asked = self.server, self.path.strip("/").split("/")[-1], self.headers["Range"]
        server.requests.append((name, asked))
        status = server.answers.pop(0) if server.answers else 200 if name in server.files else 404
        if status != 200:
            return self.send_error(status)
        whole = server.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start >= len(whole):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(whole) - start))
        self.send_header("ETag", server.tag or f'"{sha256(whole)[:8]}"')
        self.end_headers()
        sent = whole[start:][:server.cuts.pop(0) if server.cuts else None]
        self.wfile.write(sent)
        server.sent += len(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of BODY as file.bin at 127.0.0.1; its `url` is what --mirror takes."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(data, "PAUSE", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.cuts, server.answers = {"file.bin": BODY}, [], [], []
    server.ranges, server.lengths, server.tag, server.sent = True, True, None, 0
    server.handle_error = lambda *_: None   # a client that hangs up, as with a full disk, is no error of the server
    server.url = f"http://127.0.0.1:{server.server_address[1]}/some/where"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def remote(content=BODY, name="file.bin", sha=True, size=True, keep="file.bin"):
    """The published file, as the table would have it; its own host must never be asked."""
    return data.Remote(f"https://not.to.be.asked.invalid/{name}", len(content) if size else None,
                       sha256(content) if sha is True else sha or None, keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- a file arrives whole or not at all

def test_plain(server, tmp_path, capsys):
    path = data.fetch(remote(), tmp_path / "new" / "file.bin", server.url + "/")
    assert path.read_bytes() == BODY and names(path.parent) == ["file.bin"]
    assert server.requests == [("file.bin", None)]


def test_own_url(server, tmp_path):
    """Without a mirror the file's own address is asked, and a query is no part of its name."""
    own = remote()._replace(url=f"{server.url}/file.bin?dl=1")
    server.files["file.bin?dl=1"] = BODY
    assert data.fetch(own, tmp_path / "file.bin").read_bytes() == BODY
    assert server.requests == [("file.bin?dl=1", None)]
    assert data.fetch(own, tmp_path / "again.bin", server.url).exists() and server.requests[1] == ("file.bin", None)


def test_cut_connection_is_resumed(server, tmp_path):
    server.cuts = [300_000, 0, 500_000]
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert server.sent == len(BODY)   # no byte twice
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=300000-", "bytes=800000-"]
    assert names(tmp_path) == ["file.bin"]


def test_cut_without_a_stated_length(server, tmp_path):
    """Only size and sum can tell then."""
    server.lengths, server.cuts = False, [300_000]
    with pytest.raises(data.DownloadError, match="300,000 bytes, expected 1,000,003"):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert not (tmp_path / "file.bin").exists()
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY


def test_gives_up_in_the_end_and_goes_on_in_the_next_call(server, tmp_path):
    server.cuts = [400_000] + [0] * data.TRIES
    with pytest.raises(data.DownloadError, match=f"cut after 400,000 of 1,000,003 bytes, {data.TRIES} times"):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    server.cuts = []
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert server.sent == len(BODY) and server.requests[-1][1] == "bytes=400000-" and names(tmp_path) == ["file.bin"]


def test_server_without_range(server, tmp_path):
    server.ranges, server.cuts = False, [300_000]
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert server.sent == 300_000 + len(BODY) and names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("change", ["tag", "size", "shorter than the part"])
def test_file_changed_on_the_server(server, tmp_path, change):
    """What came of the old file is thrown away, not continued with the new one."""
    old = {"tag": BODY[::-1], "size": BODY + b"more", "shorter than the part": BODY * 3}[change]
    server.files["file.bin"], server.cuts, server.tag = old, [2_000_000 if len(old) > 2 * len(BODY) else 300_000], None
    server.cuts += [0] * data.TRIES
    with pytest.raises(data.DownloadError):
        data.fetch(remote(size=False), tmp_path / "file.bin", server.url)
    assert not (tmp_path / "file.bin").exists() and (tmp_path / "file.bin.part").exists()
    server.files["file.bin"], server.cuts, server.sent = BODY, [], 0
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert names(tmp_path) == ["file.bin"]


def test_part_of_another_address_is_not_continued(server, tmp_path):
    server.cuts = [300_000] + [0] * data.TRIES
    with pytest.raises(data.DownloadError):
        data.fetch(remote(), tmp_path / "file.bin", server.url + "/elsewhere")
    server.cuts = []
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert server.requests[-1][1] is None


def test_wrong_hash(server, tmp_path):
    server.files["file.bin"] = BODY[:-1] + b"x"
    with pytest.raises(data.DownloadError) as caught:
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    for said in (sha256(BODY), sha256(server.files["file.bin"]), "file.bin.wrong", "--mirror URL", "put the file at"):
        assert said in str(caught.value)
    assert names(tmp_path) == ["file.bin.wrong"]


def test_wrong_size_is_noticed_before_it_is_fetched(server, tmp_path):
    server.files["file.bin"] = BODY * 2
    with pytest.raises(data.DownloadError, match="2,000,006 bytes, expected 1,000,003"):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == [] and len(server.requests) == 1


def test_404_says_what_to_do_and_asks_once(server, tmp_path):
    with pytest.raises(data.DownloadError, match="the server says 404 Not Found.*--mirror URL.*put the file at"):
        data.fetch(remote(name="gone.bin"), tmp_path / "gone.bin", server.url)
    assert names(tmp_path) == [] and len(server.requests) == 1


def test_busy_server_is_asked_again(server, tmp_path):
    server.answers = [503, 429, 500]
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY and len(server.requests) == 4


def test_no_server(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(data.DownloadError, match=f"refused.*{data.TRIES} times"):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == []


def test_complete_file_costs_no_request(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(BODY)
    data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert server.requests == [] and names(tmp_path) == ["file.bin"]


def test_killed_between_the_last_byte_and_the_check(server, tmp_path):
    """The whole .part, not yet verified, is verified and costs no request."""
    server.cuts = [len(BODY) - 1] + [0] * data.TRIES
    with pytest.raises(data.DownloadError):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    (tmp_path / "file.bin.part").write_bytes(BODY)
    server.requests.clear()
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY and server.requests == []
    assert names(tmp_path) == ["file.bin"]


def test_corrupted_file_is_found_by_its_hash(server, tmp_path, capsys):
    (tmp_path / "file.bin").write_bytes(BODY[:500] + b"?" + BODY[501:])   # of the right size
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert names(tmp_path) == ["file.bin", "file.bin.wrong"] and len(server.requests) == 1
    assert "kept as file.bin.wrong, fetched again" in capsys.readouterr().out


def test_corrupted_file_and_a_dead_server(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"half")
    server.files.clear()
    with pytest.raises(data.DownloadError, match="404"):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == ["file.bin.wrong"]


def test_no_space_is_noticed_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_002))
    with pytest.raises(data.DownloadError, match="needs 1,000,003 bytes in .*, where 1,000,002 are free"):
        data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == []


def test_space_for_the_rest_is_enough(server, tmp_path, monkeypatch):
    server.cuts = [900_000]
    free = iter([2_000_000, 100_003])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY


def test_disk_that_fills_up(server, tmp_path, monkeypatch):
    """A write takes half of what it is given, the next one fails: what came is kept, and continued later."""
    class Full(io.FileIO):
        def write(self, piece):
            if self.tell() >= 200_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(piece[:(len(piece) + 1) // 2])

    def opened(path, mode="r", *more, **others):
        full = str(path).endswith(".part") and mode in ("wb", "ab")
        return Full(path, mode) if full else open(path, mode, *more, **others)

    with monkeypatch.context() as patched:
        patched.setattr(data, "open", opened, raising=False)
        with pytest.raises(data.DownloadError, match="No space left on device; make room and start again"):
            data.fetch(remote(), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    have = (tmp_path / "file.bin.part").stat().st_size
    assert have >= 200_000 and (tmp_path / "file.bin.part").read_bytes() == BODY[:have]
    assert data.fetch(remote(), tmp_path / "file.bin", server.url).read_bytes() == BODY
    assert server.requests[-1][1] == f"bytes={have}-" and names(tmp_path) == ["file.bin"]


# --- files whose sha256 is known in part, or not at all

def test_unknown_sha256_is_said_and_kept(server, tmp_path, capsys):
    unknown = remote(sha=False, size=False)
    path = data.fetch(unknown, tmp_path / "file.bin", server.url)
    assert f"sha256 {sha256(BODY)}, but none is published" in capsys.readouterr().out
    assert (tmp_path / "file.bin.sha256").read_text() == f"{sha256(BODY)}  file.bin\n"
    data.fetch(unknown, path, server.url)
    assert len(server.requests) == 1 and capsys.readouterr().out == ""
    path.write_bytes(BODY + b"!")   # damaged since
    assert data.fetch(unknown, path, server.url).read_bytes() == BODY and len(server.requests) == 2
    path.unlink()
    server.files["file.bin"] = b"another file"
    with pytest.raises(data.DownloadError, match=f"sha256 .*, expected {sha256(BODY)}"):
        data.fetch(unknown, path, server.url)
    assert not path.exists()


def test_a_web_page_is_not_the_file(server, tmp_path):
    server.files["file.bin"] = b"\n<!DOCTYPE html><html>Sign in to go on</html>"
    with pytest.raises(data.DownloadError, match="a web page instead of the file"):
        data.fetch(remote(sha=False, size=False), tmp_path / "file.bin", server.url)
    assert names(tmp_path) == ["file.bin.wrong"]


def test_first_digits_of_sha256(server, tmp_path, capsys):
    data.fetch(remote(sha=sha256(BODY)[:8], size=False), tmp_path / "file.bin", server.url)
    assert "of which the first 8 digits are published, and agree" in capsys.readouterr().out
    with pytest.raises(data.DownloadError, match=r"expected 0123abcd\.\.\."):
        data.fetch(remote(sha="0123abcd", size=False), tmp_path / "other.bin", server.url)
    assert not (tmp_path / "other.bin").exists()


# --- archives

def zipped(*members, method=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info, target


GOOD = ("T/train.tsv", "the train file\n" * 50), ("T/dev.tsv", "the dev file\n")


@pytest.mark.parametrize("content, message", [
    (zipped(*GOOD)[:-30], "is damaged .*delete it"),
    (zipped(*GOOD)[:40], "is damaged"),
    (b"no zip at all", "is damaged"),
    (zipped(*GOOD, method=zipfile.ZIP_STORED).replace(b"the dev", b"THE dev"), "is damaged .*CRC"),
    (zipped(*GOOD, ("../climbs.txt", "x")), "'../climbs.txt' would lie outside"),
    (zipped(*GOOD, ("T/../../climbs.txt", "x")), "would lie outside"),
    (zipped(*GOOD, ("T\\..\\..\\climbs.txt", "x")), "would lie outside"),
    (zipped(*GOOD, ("/absolute.txt", "x")), "'/absolute.txt' would lie outside"),
    (zipped(*GOOD, ("C:/absolute.txt", "x")), "would lie outside"),
    (zipped(*GOOD, link("T/link", "/etc")), "'T/link' is a link"),
    (zipped(link("T/train.tsv", "/etc/passwd"), GOOD[1]), "'T/train.tsv' is a link or a device"),
    (zipped(*GOOD, ("T/bomb", b"\0" * 30_000_000)), "would grow to 30,000,763 bytes, over 100 times"),
    (zipped(GOOD[0]), "0 members T/dev.tsv, expected one; it holds T/train.tsv"),
    (zipped(*GOOD, ("again/T/dev.tsv", "x")), "2 members T/dev.tsv"),
], ids=["truncated", "cut to its start", "no zip", "wrong CRC", "climbs", "climbs within", "climbs by backslash",
        "absolute", "drive", "symlink", "symlink in place", "bomb", "member lacks", "member twice"])
def test_harmful_archives_are_refused(tmp_path, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "T.zip").write_bytes(content)
    with pytest.raises(data.DownloadError, match=message):
        data.unpack(tmp_path / "in" / "T.zip", {name: name for name, _ in GOOD}, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "T.zip"]   # nothing under a final name, nor elsewhere


def test_unpacking_takes_what_is_wanted(tmp_path):
    (tmp_path / "T.zip").write_bytes(zipped(
        *GOOD, ("T/original/dev.tsv", "not this"), ("__MACOSX/T/dev.tsv", "nor this"), ("T/Icon\r", "nor this")))
    places = data.unpack(tmp_path / "T.zip", {"T/train.tsv": "t/train.tsv", "T/dev.tsv": "t/valid.tsv"}, tmp_path)
    assert [path.read_text() for path in places] == [GOOD[0][1], GOOD[1][1]]
    assert names(tmp_path) == ["T.zip", "t"] and names(tmp_path / "t") == ["train.tsv", "valid.tsv"]
    before = [path.stat().st_mtime_ns for path in places]
    data.unpack(tmp_path / "T.zip", {"T/train.tsv": "t/train.tsv", "T/dev.tsv": "t/valid.tsv"}, tmp_path)
    assert before == [path.stat().st_mtime_ns for path in places]   # whole: left alone


def test_no_space_to_unpack(tmp_path, monkeypatch):
    (tmp_path / "T.zip").write_bytes(zipped(*GOOD))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(data.DownloadError, match="unpacking .*T.zip needs 763 bytes"):
        data.unpack(tmp_path / "T.zip", {name: name for name, _ in GOOD}, tmp_path)
    assert names(tmp_path) == ["T.zip"]


# --- the table and the commands

READ = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "PIQA", "SWAG", "TRACIE"]


def command(monkeypatch, *words):
    """`python data.py WORDS` in this process; its error message, or None."""
    monkeypatch.setattr(sys, "argv", ["data.py", *map(str, words)])
    try:
        data.main()
    except SystemExit as stopped:
        return str(stopped.code)


def test_table(capsys, monkeypatch):
    for kind, sources in data.DOWNLOADS.items():
        files = [remote for source in sources.values() for remote in source.files]
        for published in files:
            assert published.url.startswith("https://")
            assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}|", published.sha256 or "")
            assert published.sha256 is None or len(published.sha256) == 8 or published.size
        served = [published.url.partition("?")[0].rpartition("/")[2] for published in files]
        assert len(set(served)) == len(served)   # a mirror is one folder
        assert len({published.sha256 for published in files if published.sha256}) == len(
            [published for published in files if published.sha256])
        assert all((source.files or source.ask) and bool(source.sums) == any(file.sha256 for file in source.files)
                   for source in sources.values())
        assert command(monkeypatch, kind) is None
        listed = capsys.readouterr().out
        assert all(f"\n{name} " in listed for name in sources)
    assert {"AX", "diagnostics", "SQuAD1", "SQuAD2", *READ} == set(data.DOWNLOADS["tasks"])


def test_table_agrees_with_real_files(real_data):
    published = {file.keep: file for kind in data.DOWNLOADS.values() for source in kind.values()
                 for file in source.files if isinstance(file.keep, str)}
    for place, real in (("TRACIE/iid/tracie_train.txt", "tracie/iid/tracie_train.txt"),
                        ("TRACIE/iid/tracie_test.txt", "tracie/iid/tracie_test.txt"),
                        ("TRACIE/uniform-prior/tracie_train_uniform_prior.txt",
                         "tracie/uniform-prior/tracie_train_uniform_prior.txt"),
                        ("PIQA/tests.jsonl", "piqa/tests.jsonl"),
                        ("bert-base-uncased/vocab.txt", "vocab/bert-base-uncased-vocab.txt")):
        content = (real_data / real).read_bytes()
        assert (published[place].size, published[place].sha256) == (len(content), sha256(content)), place


def publish(monkeypatch, server, kind, name, contents):
    """Replaces a row's sizes and sums by those of `contents` {place: bytes}, packs and serves them as the row says."""
    files = []
    for published in data.DOWNLOADS[kind][name].files:
        served = (contents[published.keep] if isinstance(published.keep, str) else
                  zipped(*[(member, contents[place]) for member, place in published.keep.items()]))
        server.files[published.url.partition("?")[0].rpartition("/")[2]] = served
        files.append(published._replace(size=len(served), sha256=sha256(served)))
    monkeypatch.setitem(data.DOWNLOADS[kind], name, data.DOWNLOADS[kind][name]._replace(files=files))


def places(kind, name):
    return [place for published in data.DOWNLOADS[kind][name].files
            for place in ([published.keep] if isinstance(published.keep, str) else published.keep.values())]


PAIR = "event: {} starts before b story: c d .\tanswer: positive\n"
PARAPHRASE = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta b\tb a\n0\t3\t4\ta c\tc d\n"


def rows(place):
    """A small file of the task's form."""
    task, name = place.split("/", 1)
    return {"CoLA": "s\t1\t\tA sentence .\n" if "test" not in name else "index\tsentence\n0\tA sentence .\n",
            "SST-2": "sentence\tlabel\na fine film\t1\n",
            "MRPC": PARAPHRASE if "dev" not in name else "3\t4\n",
            "STS-B": "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta b\tb a\t2.5\n",
            "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\ta ?\tb ?\t0\n",
            "MNLI": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
            "QNLI": "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n",
            "RTE": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
            "WNLI": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n",
            "PIQA": '{"goal": "g", "sol1": "a", "sol2": "b"}\n' if name.endswith("l") else "1\n",
            "SWAG": ",sent1,sent2,ending0,ending1,ending2,ending3,label\n0,a,b,c,d,e,f,2\n",
            "TRACIE": PAIR.format(name)}[task].encode()


@pytest.mark.parametrize("name", READ)
def test_files_lie_where_the_readers_look(server, tmp_path, monkeypatch, name):
    publish(monkeypatch, server, "tasks", name, {place: rows(place) for place in places("tasks", name)})
    words = "tasks", name.lower(), "--out", tmp_path, "--mirror", server.url
    assert command(monkeypatch, *words) is None
    for task in [name] if name != "TRACIE" else ["TRACIE-iid", "TRACIE-uniform-prior"]:
        folder = finetune.task_folder(tmp_path, task)
        for split, count in finetune.TASKS[task].rows.items():
            if count is not None:   # TRACIE has no dev split
                assert len(finetune.TASKS[task].read(folder, split)) == 1 + ((task, split) == ("MRPC", "test"))

    asked = len(server.requests)
    assert command(monkeypatch, *words) is None and len(server.requests) == asked
    damaged = tmp_path / places("tasks", name)[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[::-1])
    assert command(monkeypatch, *words) is None and damaged.read_bytes() == whole


def test_real_files_through_a_mirror(server, real_data, tmp_path, monkeypatch):
    for name, folder in (("CoLA", "glue"), ("RTE", "glue"), ("STS-B", "glue"), ("WNLI", "glue")):
        publish(monkeypatch, server, "tasks", name, {
            place: (real_data / folder / place).read_bytes() for place in places("tasks", name)})
    for place in places("tasks", "TRACIE"):
        server.files[place.split("/")[-1]] = (real_data / place.replace("TRACIE", "tracie")).read_bytes()
    assert command(monkeypatch, "tasks", "CoLA", "RTE", "STS-B", "WNLI", "TRACIE", "--out", tmp_path,
                   "--mirror", server.url) is None
    for task in ("CoLA", "RTE", "STS-B", "WNLI", "TRACIE-iid", "TRACIE-uniform-prior"):
        for split, count in finetune.TASKS[task].rows.items():
            if count is not None:
                assert len(finetune.TASKS[task].read(finetune.task_folder(tmp_path, task), split)) == count


def test_other_places():
    assert places("tasks", "SQuAD1") == ["SQuAD1/train-v1.1.json", "SQuAD1/dev-v1.1.json"]
    assert places("tasks", "SQuAD2") == ["SQuAD2/train-v2.0.json", "SQuAD2/dev-v2.0.json"]
    assert places("tasks", "diagnostics") == ["diagnostics/diagnostic-full.tsv"]
    assert places("tasks", "AX") == ["AX/AX.tsv"]


def test_one_dead_link_does_not_stop_the_others(server, tmp_path, monkeypatch):
    publish(monkeypatch, server, "tasks", "RTE", {place: rows(place) for place in places("tasks", "RTE")})
    message = command(monkeypatch, "tasks", "WNLI", "RTE", "SQuAD1", "--out", tmp_path, "--mirror", server.url)
    assert "WNLI: " in message and "404" in message and "SQuAD1: " in message and "RTE: " not in message
    assert (tmp_path / "RTE" / "train.tsv").exists() and not (tmp_path / "WNLI").exists()
    assert "unknown: imdb; there are CoLA" in command(monkeypatch, "tasks", "IMDB", "--out", tmp_path)


def test_corpus_is_fetched_and_packed(server, tmp_path, monkeypatch, tiny_vocab, tiny_tokenizer):
    line = "the cat sat on the mat"
    publish(monkeypatch, server, "text", "wikitext-2-raw", {
        place: f" \n = Title = \n \n {line} {place.split('.')[1]} \n".encode()
        for place in places("text", "wikitext-2-raw")})
    words = "text", "wikitext-2-raw", "--vocab", tiny_vocab, "--out", tmp_path, "--mirror", server.url
    assert command(monkeypatch, *words) is None and command(monkeypatch, *words) is None
    assert len(server.requests) == 1
    for split in ("train", "valid"):
        assert (np.fromfile(tmp_path / f"{split}.bin", np.uint16).tolist()
                == tiny_tokenizer.encode(f"{line} {split}", add_special_tokens=False).ids)


def test_what_is_not_fetched_here_needs_no_flag(monkeypatch, capsys):
    assert command(monkeypatch, "text", "english-wikipedia") is None
    said = capsys.readouterr().out
    assert "WikiExtractor.py" in said and "fetched" not in said


def test_weights(server, tmp_path, monkeypatch, capsys):
    server.files |= {"resnet152-394f9c45.pth": BODY, "resnext101.pth": BODY, "vocab.txt": b"[PAD]\n"}
    message = command(monkeypatch, "weights", "all", "--out", tmp_path, "--mirror", server.url)
    assert f"resnet152-394f9c45.pth: sha256 {sha256(BODY)}, expected 394f9c45..." in message
    assert "vocab.txt: 6 bytes, expected 231,508" in message and "resnext101:" not in message
    assert names(tmp_path) == ["bert-base-uncased", "resnet152-394f9c45.pth.wrong", "resnext101.pth",
                               "resnext101.pth.sha256"]
    assert names(tmp_path / "bert-base-uncased") == [] and "Google Drive" in capsys.readouterr().out

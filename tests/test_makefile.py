"""The Makefile: what is asked decides what is run; published files arrive whole and right.

    python -m pytest tests/test_makefile.py

Stages are stood in for by a script that writes down its arguments and touches its outputs; files
come from a local server that cuts, lies and forgets.
"""
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import finetune

MAKEFILE = Path(finetune.__file__).parent / "Makefile"
STUB = """#!/bin/sh
case "$*" in *"$FAILING"*) test "$FAILING" && exit 3;; esac
echo "$*" >> calls
case "$*" in *--out*) out=${*##*--out }; out=${out%% *};; esac
case "$*" in
*"data.py mini"*) mkdir -p $out; test -e $out/world.json || touch $out/world.json;;
*"data.py video"*) touch $out/splits.json;;
*"data.py text"*) mkdir -p $out; touch $out/valid.json;;
*teacher.py*) mkdir -p $out/model; touch $out/model/video_encoder.pt;;
*distill.py*) mkdir -p $out/model; touch $out/model/distill_heads.pt;;
*"data.py bank"*) touch $4/bank.json;;
esac
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the Makefile and the script that stands for python; the working directory."""
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "data.py").touch()
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name in ("MAKEFLAGS", "MAKELEVEL", "SEED", "SIZE", "DATA", "TEXT", "RUN", "MIRROR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path


def make(*words):
    """Runs make. Returns its exit code, what it said, and the calls of python."""
    Path("calls").write_text("")
    command = ["make", "PYTHON=./python", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr, Path("calls").read_text().splitlines()


def stages(calls):
    """The first words of each call, without those that always run."""
    names = [" ".join(call.split()[:2]) for call in calls]
    return [name for name in names if not name.startswith(("finetune.py", "evaluate.py"))]


MINI_STAGES = ["data.py mini", "data.py text", "data.py video",
               "distill.py --objective", "distill.py --teacher", "teacher.py --data"]


# --------------------------------------------------------------------------------------------------
# The pipeline


def test_all_stages_then_none(project):
    code, said, calls = make()
    assert code == 0, said
    assert sorted(stages(calls)) == MINI_STAGES
    for task in ("QNLI", "PIQA"):
        assert (f"finetune.py --model runs/student --data data/mini/tasks --task {task} --seed 0"
                in calls)
    evaluated = [call.split()[1] for call in calls if call.startswith("evaluate.py")]
    assert sorted(evaluated) == ["probe", "report", "retrieve", "table"]
    assert evaluated.index("report") > max(evaluated.index("probe"), evaluated.index("retrieve"))
    first = Path("runs/seconds.tsv").read_text()
    assert "mini world" in first and "student" in first
    code, said, calls = make("all")
    assert code == 0 and stages(calls) == []
    # of this make only
    rows = Path("runs/seconds.tsv").read_text().splitlines()
    assert sorted(row.split("\t")[0] for row in rows) == [
        "finetune student/PIQA", "finetune student/QNLI", "finetune teacher/PIQA",
        "finetune teacher/QNLI", "finetune text-only/PIQA", "finetune text-only/QNLI"]


@pytest.mark.parametrize("asked, data, run", [
    (["SEED=7"], "data/mini-7", "runs/mini-7"),
    (["DATA=data/mini-7"], "data/mini-7", "runs/mini-7"),
    (["SIZE=small"], "data/mini", "runs/mini-small"),
    (["STREAMS=frame"], "data/mini", "runs/mini-frame"),
    (["STREAMS=frame motion", "SEED=7"], "data/mini-7", "runs/mini-7-frame-motion"),
    (["DATA=./data/mini"], "data/mini", "runs"),
    (["DATA=data//mini/"], "data/mini", "runs"),
])
def test_what_is_asked_names_the_folders(project, asked, data, run):
    """`make SEED=7` after `make` is another world, not "nothing to be done"."""
    assert make()[0] == 0
    code, said, calls = make(*asked)
    assert code == 0, said
    if run == "runs":
        assert stages(calls) == []
        return
    teacher = next(call for call in calls if call.startswith("teacher.py"))
    assert f"--data {data} " in teacher and teacher.endswith(f"--out {run}/teacher")
    assert ("--streams frame" in teacher) == ("STREAMS" in asked[0])
    assert f"--seed {7 if data.endswith('7') else 0}" in teacher
    assert any(f"data.py mini --seed 7 --out {data}" in call for call in calls) == ("7" in data)
    assert stages(make(*asked)[2]) == []


def test_something_else_in_the_same_run_makes_the_stages_look(project):
    make()
    wanted = ["distill.py --objective", "distill.py --teacher", "teacher.py --data"]
    code, said, calls = make("RUN=runs", "SIZE=small")
    assert code == 0 and sorted(stages(calls)) == wanted
    assert stages(make("RUN=runs", "SIZE=small")[2]) == []


def test_a_stage_that_refuses_stops_make(project, monkeypatch):
    make()
    monkeypatch.setenv("FAILING", "teacher.py")
    assert make("RUN=runs", "SIZE=small")[0] != 0
    monkeypatch.setenv("FAILING", "")
    assert "teacher.py --data" in stages(make()[2])   # asked again for what is there


def test_an_interrupted_make_keeps_the_world(project):
    """Ctrl-C as the generator, done, is about to end."""
    with open("python", "a") as stub:
        # exec: a shell that is just starting a child may miss the signal
        stub.write('case "$*" in *"data.py mini"*) exec sleep 30;; esac\n')
    process = subprocess.Popen(["make", "PYTHON=./python", "data"], start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("data/mini/world.json").exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) != 0 and Path("data/mini/world.json").exists()


def test_an_edited_generator_is_looked_at(project):
    make()
    subprocess.run(["touch", "-d", "2000-01-01", "data/mini/world.json"], check=True)
    assert stages(make()[2]) == ["data.py mini"]   # which says whether the world is the same


def test_a_world_lies_in_its_own_folder(project):
    code, said, calls = make("DATA=data/mini", "SEED=7")
    assert code != 0 and calls == [] and "is another world than that of SEED=7" in said


@pytest.mark.parametrize("name", ["mini-kinetics", "mini-7b", "mini7", "minis"])
def test_only_numbered_folders_are_generated(project, name):
    """A folder of the reader's own is not touched; the message says what to run."""
    film = project / "data" / name / "videos" / "a.mp4"
    film.parent.mkdir(parents=True)
    film.touch()
    code, said, calls = make(f"DATA=data/{name}", "data")
    assert code != 0 and calls == [] and film.exists()
    assert f"data/{name} holds no features yet" in said and "data.py video --videos" in said
    assert "--streams resnet152 resnext101" in said


def touch(*places):
    for place in map(Path, places):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def test_own_data_are_retrieved_and_reported(project):
    touch("data/own/splits.json", "data/own/text/valid.json")
    code, said, calls = make("DATA=data/own", "TASKS=RTE")
    assert code == 0, said
    assert "evaluate.py retrieve runs/own/teacher runs/own/student --data data/own" in calls
    assert not any("probe" in call for call in calls)
    assert any(call.startswith("evaluate.py report runs/own/text-only") for call in calls)
    assert any("--data data/tasks --task RTE" in call for call in calls)


def test_paper_scale(project):
    touch("data/howto100m/splits.json", "data/wiki/valid.json")
    code, said, calls = make("DATA=data/howto100m", "TEXT=data/wiki", "SIZE=base", "NPROC=8",
                             "teacher", "distill")
    assert code == 0, said
    assert all(call.startswith("-m torch.distributed.run --standalone --nproc_per_node=8")
               for call in calls)
    assert "--text data/wiki --size base" in calls[1]
    assert calls[1].endswith("--out runs/howto100m-wiki-base/student")


def test_claims_make_their_worlds_then_what_is_missing_then_a_report(project):
    code, said, calls = make("claims", "SEEDS=3 0", "CLAIMS=1 2", "JOBS=3")
    assert code == 0, said
    once = ["data.py bank", "data.py mini", "data.py text", "data.py video"]
    assert sorted(stages(calls)) == sorted(2 * once)
    assert "data.py mini --seed 0 --out data/mini" in calls
    chosen = "--make 3 --runs runs/claims --seeds 3 0 --claims 1 2"
    assert calls[-1] == f"evaluate.py claims {chosen}"
    for arm in ("text-only", "teacher", "frozen"):
        Path("runs/claims/world-3", arm).mkdir(parents=True)
    Path("runs/claims/claims.json").touch()
    code, said, calls = make("claims", "SEEDS=3 4")
    assert code == 0 and calls[-1] == (
        "evaluate.py report --claims runs/claims/claims.json --out runs/claims/report.html "
        "runs/claims/world-3/teacher runs/claims/world-3/text-only")


def test_asking_what_claims_would_run_runs_nothing(project):
    code, said, calls = make("-n", "claims", "SEEDS=3")
    assert code == 0 and calls == [] and "evaluate.py claims --make" in said


def test_the_folder_may_have_a_name_with_a_space_but_no_given_name(project, monkeypatch):
    inside = project / "my folder"
    inside.mkdir()
    for name in ("Makefile", "data.py", "python"):
        shutil.copy(name, inside)
    monkeypatch.chdir(inside)
    code, said, calls = make()
    assert code == 0 and sorted(stages(calls)) == MINI_STAGES, said
    for name in ("RUN", "DATA", "TEXT"):
        code, said, calls = make(f"{name}=runs/my run")
        assert code != 0 and f"{name}=runs/my run: make takes no name with a space" in said


def test_what_ends_make_ends_its_stage(project):
    """SIGTERM to make alone, as a job scheduler sends it."""
    (project / "python").write_text(STUB.replace(
        '*teacher.py*)', '*teacher.py*) trap "touch ended; exit 1" TERM; touch begun; '
        'for i in 1 2 3 4 5 6 7 8 9; do sleep 1; done;'))
    process = subprocess.Popen(["make", "PYTHON=./python", "teacher"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    for _ in range(400):
        if not Path("begun").exists():
            time.sleep(0.05)
    process.terminate()
    assert process.wait(20) != 0
    assert Path("ended").exists() and not Path("runs/mini/teacher/model").exists()


def test_claims_that_fail_count_and_are_reported(project, monkeypatch):
    Path("runs/claims").mkdir(parents=True)
    Path("runs/claims/claims.json").touch()
    for failing in ("evaluate.py claims", "data.py mini --seed 3"):
        monkeypatch.setenv("FAILING", failing)
        code, said, calls = make("claims", "SEEDS=3 4")
        assert (code != 0) == (failing == "evaluate.py claims")   # which knows what lacks its world
        assert calls[-1].startswith("evaluate.py report")
        assert "data.py mini --seed 4 --out data/mini-4" in calls or Path("data/mini-4").exists()


# --------------------------------------------------------------------------------------------------
# Published files


class Handler(BaseHTTPRequestHandler):
    """Serves server.files {name: bytes}; server.cuts: bytes after which the next answers end."""

    def do_GET(self):
        server = self.server
        name = self.path.strip("/")
        asked = self.headers["Range"]
        server.requests.append((name, asked))
        if name not in server.files:
            return self.send_error(404)
        whole = server.files[name]
        start = 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(whole):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(whole[start:][:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(project):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {}
    server.requests = []
    server.cuts = []
    server.ranges = True
    server.handle_error = lambda *_: None   # a client that hangs up is no error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def fetch(server, *targets, sums=None):
    """make TARGETS from the server, whose files' sums are published unless `sums` says others."""
    if sums is None:
        sums = {name: sha256(content) for name, content in server.files.items()}
    table = "".join(f"{name}={digest}\n" for name, digest in sums.items())
    port = server.server_address[1]
    code, said, _ = make(*targets, f"MIRROR=http://127.0.0.1:{port}", f"SUMS={table}")
    return code, said


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


BODY = bytes(range(256)) * 2000


def test_a_file_arrives_once(server, project):
    server.files["AX.tsv"] = BODY
    assert fetch(server, "data/tasks/AX")[0] == 0
    assert files_under(project / "data") == ["tasks/AX/AX.tsv"]
    assert Path("data/tasks/AX/AX.tsv").read_bytes() == BODY
    assert fetch(server, "data/tasks/AX")[0] == 0
    assert server.requests == [("AX.tsv", None)]


def test_a_cut_is_resumed(server, project):
    server.files["AX.tsv"] = BODY
    server.cuts = [100_000, 50_000]
    assert fetch(server, "data/tasks/AX")[0] == 0
    assert Path("data/tasks/AX/AX.tsv").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_it_gives_up_and_the_next_make_goes_on(server, project):
    server.files["AX.tsv"] = BODY
    server.cuts = [100_000, 0, 0, 0, 0]
    code, said = fetch(server, "data/tasks/AX")
    assert code != 0 and "MIRROR=URL" in said
    assert files_under(project / "data") == ["tasks/AX/AX.tsv.part"]
    assert fetch(server, "data/tasks/AX")[0] == 0
    assert server.requests[-1] == ("AX.tsv", "bytes=100000-")
    assert files_under(project / "data") == ["tasks/AX/AX.tsv"]


def test_a_server_without_ranges(server, project):
    server.files["AX.tsv"] = BODY
    server.cuts = [100_000]
    server.ranges = False
    assert fetch(server, "data/tasks/AX")[0] == 0
    assert Path("data/tasks/AX/AX.tsv").read_bytes() == BODY


def test_a_part_that_is_whole(server, project):
    """Killed between the last byte and the check: there is nothing left to ask for (416)."""
    server.files["AX.tsv"] = BODY
    Path("data/tasks/AX").mkdir(parents=True)
    Path("data/tasks/AX/AX.tsv.part").write_bytes(BODY)
    assert fetch(server, "data/tasks/AX")[0] == 0
    assert Path("data/tasks/AX/AX.tsv").read_bytes() == BODY


@pytest.mark.parametrize("served, digest, message, left", [
    (BODY, "0" * 64, f"sha256 {sha256(BODY)}, expected {'0' * 64}", ["AX.tsv.wrong"]),
    (BODY, "1234abcd", "expected 1234abcd", ["AX.tsv.wrong"]),
    (b"\n<!DOCTYPE html>Sign in", "", "a web page, not the file", ["AX.tsv.wrong"]),
    (None, "0" * 64, "HTTP 404", []),
])
def test_nothing_wrong_gets_the_name(server, project, served, digest, message, left):
    if served:
        server.files["AX.tsv"] = served
    code, said = fetch(server, "data/tasks/AX", sums={"AX.tsv": digest} if digest else {})
    assert code != 0 and message in said
    assert files_under(project / "data") == [f"tasks/AX/{name}" for name in left]


@pytest.mark.parametrize("target, name, digits", [
    ("resnext101", "resnext101.pth", 0), ("resnet152", "resnet152-394f9c45.pth", 8)])
def test_what_is_published_of_a_sum_is_compared(server, project, target, name, digits):
    server.files[name] = BODY
    sums = {name: sha256(BODY)[:digits]}
    code, said = fetch(server, f"data/weights/{target}", sums=sums)
    assert code == 0 and (f"{sha256(BODY)}; none is published" in said) == (digits == 0)
    assert files_under(project / "data") == [f"weights/{name}"]


def zipped(members):
    """A zip of {name: text}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


HEADS = {   # task: what its files hold
    "CoLA": "s\t1\t\tA sentence .\n",
    "SST-2": "sentence\tlabel\na fine film\t1\n",
    "STS-B": "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta b\tb a\t2.5\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\ta ?\tb ?\t0\n",
    "MNLI": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
    "WNLI": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n",
}
PARAPHRASES = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta b\tb a\n0\t3\t4\ta c\tc d\n"
SWAG = ",sent1,sent2,ending0,ending1,ending2,ending3,label\n0,a,b,c,d,e,f,2\n"
STORY = "event: a starts before b story: c d .\tanswer: positive\n"
PLAIN = {
    "msr_paraphrase_train.txt": PARAPHRASES, "msr_paraphrase_test.txt": PARAPHRASES,
    "mrpc_dev_ids.tsv": "3\t4\n", "AX.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n",
    "train.csv": SWAG, "val.csv": SWAG, "test.csv": SWAG,
    "tests.jsonl": '{"goal": "g", "sol1": "a", "sol2": "b"}\n',
    "tracie_train.txt": STORY, "tracie_test.txt": STORY, "tracie_train_uniform_prior.txt": STORY,
}


def publish_tasks(server):
    splits = ["train", "dev", "test", "dev_matched", "dev_mismatched", "test_matched",
              "test_mismatched"]
    for task, content in HEADS.items():
        name = {"QQP": "QQP-clean", "QNLI": "QNLIv2"}.get(task, task)
        members = {f"{task}/{split}.tsv": content for split in splits}
        if task == "CoLA":
            members["CoLA/test.tsv"] = "index\tsentence\n0\tA sentence .\n"
        members[f"{task}/original/dev.tsv"] = "not this"
        members[f"__MACOSX/{task}/._dev.tsv"] = "nor this"
        server.files[f"{name}.zip"] = zipped(members)
    for name, content in PLAIN.items():
        server.files[name] = content.encode()
    folder = "physicaliqa-train-dev"
    members = {}
    for split in ("train", "dev"):
        members[f"{folder}/{split}.jsonl"] = PLAIN["tests.jsonl"]
        members[f"{folder}/{split}-labels.lst"] = "1\n"
    server.files[f"{folder}.zip"] = zipped(members)
    server.files["diagnostic-full.tsv?dl=1"] = b"Premise\tHypothesis\tLabel\n"
    for name in ("train-v1.1", "dev-v1.1", "train-v2.0", "dev-v2.0"):
        server.files[f"{name}.json"] = b"{}"


def test_files_lie_where_the_readers_look(server, project):
    publish_tasks(server)
    code, said = fetch(server, "data/tasks")
    assert code == 0, said
    for task in [*HEADS, "MRPC", "AX", "PIQA", "SWAG", "TRACIE-iid", "TRACIE-uniform-prior"]:
        folder = finetune.task_folder(project / "data" / "tasks", task)
        for split in finetune.TASKS[task].files:
            if not (task.startswith("TRACIE") and split == "dev"):   # none is published
                rows = finetune.TASKS[task].read(folder, split)
                assert len(rows) in (1, 2), (task, split)
    left = files_under(project / "data" / "tasks")
    assert "diagnostics/diagnostic-full.tsv" in left
    assert "SQuAD2/dev-v2.0.json" in left and "SQuAD1/train-v1.1.json" in left
    assert not any("original" in name or ".part" in name for name in left)
    assert not list((project / "data" / "downloads").glob("*.unpacked"))
    asked = len(server.requests)
    assert fetch(server, "data/tasks")[0] == 0 and len(server.requests) == asked


def test_one_dead_link_does_not_stop_the_others(server, project):
    publish_tasks(server)
    del server.files["WNLI.zip"]
    code, said = fetch(server, "-k", "data/tasks/WNLI", "data/tasks/RTE")
    assert code != 0 and "HTTP 404" in said
    assert files_under(project / "data" / "tasks") == ["RTE/dev.tsv", "RTE/test.tsv",
                                                       "RTE/train.tsv"]


@pytest.mark.parametrize("content, message", [
    (b"no zip at all", "is damaged"),
    (zipped({"raw_caption.json": "{}" * 500})[:-30], "is damaged"),
    (zipped({"raw_caption.json": "abc"}).replace(b"\x4b\x4c\x4a\x06\x00", b"KLJKL"), "is damaged"),
    (zipped({"other.json": "{}"}), "raw_caption.json"),
    (zipped({"../climbs.json": "{}"}), "raw_caption.json"),
])
def test_bad_archives_leave_nothing(server, project, content, message):
    server.files["raw_caption.zip"] = content
    code, said = fetch(server, "data/howto100m/raw_caption.json", sums={})
    assert code != 0 and message in said
    assert not Path("data/howto100m/raw_caption.json").exists()
    assert not list(project.parent.glob("climbs.json"))


def test_wikitext_is_fetched_and_packed(server, project):
    server.files["vocab.txt"] = b"[PAD]\n"
    members = {f"wikitext-103-raw/wiki.{split}.raw": split for split in ("train", "valid", "test")}
    server.files["wikitext-103-raw-v1.zip"] = zipped(members)
    code, said = fetch(server, "data/wiki")
    assert code == 0, said
    assert Path("calls").read_text().splitlines() == [
        "data.py text --train data/wiki/wikitext-103-raw/wiki.train.raw --valid "
        "data/wiki/wikitext-103-raw/wiki.valid.raw --vocab data/weights/bert-base-uncased "
        "--out data/wiki"]
    assert fetch(server, "data/wiki")[0] == 0 and Path("calls").read_text() == ""


def test_the_sums_are_complete_and_those_of_real_files():
    table = re.search(r"define SUMS\n(.*?)\nendef", MAKEFILE.read_text(), re.S)[1]
    sums = dict(line.split("=") for line in table.splitlines())
    assert len(sums) == len(set(sums.values())) == 33
    assert all(re.fullmatch("[0-9a-f]{64}|394f9c45", digest) for digest in sums.values())
    folder = Path(os.environ.get("REAL_DATA", "none"))
    for place in ("tracie/iid/tracie_train.txt", "tracie/iid/tracie_test.txt",
                  "tracie/uniform-prior/tracie_train_uniform_prior.txt", "piqa/tests.jsonl",
                  "vocab/bert-base-uncased-vocab.txt"):
        path = folder / place
        if path.exists():
            name = path.name.removeprefix("bert-base-uncased-")
            assert sums[name] == sha256(path.read_bytes())

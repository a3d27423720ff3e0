"""The download scripts against a local server: resume, mirror, counts, hashes, hostile archives, missing tools."""

import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "SentEval" / "data"

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and (shutil.which("curl") or shutil.which("wget"))), reason="needs bash, and curl or wget"
)


class Handler(SimpleHTTPRequestHandler):
    """A file server that logs (path, Range header) and honours ranges if ``ranges`` says so."""

    log: list
    ranges: bool

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.log.append((self.path, self.headers.get("Range")))
        start = re.match(r"bytes=(\d+)-$", self.headers.get("Range") or "")
        if not (start and self.ranges):
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        first = int(start[1])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:])


@pytest.fixture
def server(tmp_path):
    """(url, folder that is served, log of requests, handler class)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("H", (Handler,), {"log": [], "ranges": True})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder, handler.log, handler
    httpd.shutdown()


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts, so that nothing is written into the checkout."""
    root = tmp_path / "data"
    for file in ("fetch.sh", "downstream/download_dataset.sh", "probing/download_probing.sh"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / file, root / file)
    return root


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "no_proxy": "127.0.0.1", **environment}
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, env=env, timeout=120)


def published(scale: dict[str, int] | None = None) -> dict[str, str]:
    """Every file of the archive with its published number of lines; ``scale`` replaces single numbers."""
    sick, scored = "1\ta\tb\t4.5\tNEUTRAL", "g\tf\ty\t1\t2.5\ta\tb"
    spec = {
        "MR/rt-polarity.pos": (5331, "good"),
        "MR/rt-polarity.neg": (5331, "bad"),
        "CR/custrev.pos": (2406, "good"),
        "CR/custrev.neg": (1369, "bad"),
        "SUBJ/subj.objective": (5000, "it is"),
        "SUBJ/subj.subjective": (5000, "i think"),
        "MPQA/mpqa.pos": (3312, "good"),
        "MPQA/mpqa.neg": (7294, "bad"),
        **{f"SST/binary/sentiment-{p}": (n, "a b\t1") for p, n in (("train", 67349), ("dev", 872), ("test", 1821))},
        **{f"SST/fine/sentiment-{p}": (n, "4 a b") for p, n in (("train", 8544), ("dev", 1101), ("test", 2210))},
        "TREC/train_5500.label": (5452, "NUM:dist How far ?"),
        "TREC/TREC_10.label": (500, "ABBR:exp What ?"),
        "MRPC/msr_paraphrase_train.txt": (4077, "1\t2\t3\ta\tb"),
        "MRPC/msr_paraphrase_test.txt": (1726, "0\t2\t3\ta\tb"),
        "SICK/SICK_train.txt": (4501, sick),
        "SICK/SICK_trial.txt": (501, sick),
        "SICK/SICK_test_annotated.txt": (4928, sick),
        **{f"STS/STSBenchmark/sts-{p}.csv": (n, scored) for p, n in (("train", 5749), ("dev", 1500), ("test", 1379))},
    }
    script = (DATA / "downstream/download_dataset.sh").read_text()
    for year, subsets in re.findall(r"^(STS1\d)\|(.+)$", script, re.MULTILINE):
        for subset, count in (entry.split("=") for entry in subsets.split()):
            spec[f"STS/{year}-en-test/STS.input.{subset}.txt"] = (int(count) + 3, "a\tb")
            spec[f"STS/{year}-en-test/STS.gs.{subset}.txt"] = (int(count), "4.2")
    files = {name: (line + "\n") * (scale or {}).get(name, count) for name, (count, line) in spec.items()}
    return {name: text + ("\n\n\n" if "/STS.gs." in name else "") for name, text in files.items()}  # 3 unscored pairs


def archive(path: Path, files: dict[str, str], prefix: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.mark.parametrize("prefix", ["", "./", "senteval/downstream/"])
def test_fetch_check_and_run_again(server, checkout, prefix):
    url, served, log, _ = server
    archive(served / "senteval.tar", published(), prefix)
    script = checkout / "downstream/download_dataset.sh"
    done = run(script, "--mirror", url)
    assert done.returncode == 0, done.stderr
    assert "complete and checked: MR CR SUBJ MPQA SST2 SST5 TREC MRPC SICK STSBenchmark STS12" in done.stdout
    assert (checkout / "downstream/STS/STS16-en-test/STS.gs.headlines.txt").is_file()
    assert not (checkout / "downstream/senteval.tar").exists() and not (checkout / "downstream/.unpacked").exists()
    assert len(log) == 1
    assert run(script, "--mirror", url).returncode == 0
    assert len(log) == 1  # nothing was fetched again
    assert run(script, "SNLI", "--mirror", url).returncode == 1  # asked for, not in the archive


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, checkout, ranges):
    url, served, log, handler = server
    handler.ranges = ranges
    archive(served / "senteval.tar", published())
    whole = (served / "senteval.tar").read_bytes()
    (checkout / "downstream/senteval.tar.part").write_bytes(whole[:100_000])
    done = run(checkout / "downstream/download_dataset.sh", SENTEVAL_MIRROR=url)
    assert done.returncode == 0, done.stderr
    assert log[0] == ("/senteval.tar", "bytes=100000-")  # a server without ranges sends all of it in a second request
    assert not list((checkout / "downstream").glob("senteval.tar*"))


def test_wrong_counts_and_formats_are_told(server, checkout):
    url, served, _, _ = server
    files = published({"SUBJ/subj.subjective": 20})
    files["TREC/TREC_10.label"] = files["TREC/TREC_10.label"].replace("ABBR:exp What", "exp What", 1)
    del files["STS/STS14-en-test/STS.gs.images.txt"]
    archive(served / "senteval.tar", files)
    done = run(checkout / "downstream/download_dataset.sh", "--mirror", url)
    assert done.returncode == 1
    assert "SUBJ: SUBJ/subj.subjective hold 20 lines, 5000 are published" in done.stderr
    assert "TREC: TREC/TREC_10.label, line 1 is not in the published format" in done.stderr
    assert "STS14: " in done.stderr and "images.txt is missing" in done.stderr
    assert run(checkout / "downstream/download_dataset.sh", "MR", "STS12").returncode == 0  # these are whole


def test_the_first_hash_is_kept_and_compared(server, checkout):
    url, served, _, _ = server
    folder = checkout / "downstream"
    archive(served / "senteval.tar", published())
    assert run(folder / "download_dataset.sh", "--mirror", url).returncode == 0
    recorded = (folder / "SHA256SUMS").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}  senteval\.tar\n", recorded)
    shutil.rmtree(folder / "MR")
    archive(served / "senteval.tar", published(), "other/")
    done = run(folder / "download_dataset.sh", "--mirror", url)
    assert done.returncode == 1 and "has changed since it was first downloaded" in done.stderr
    assert not (folder / "MR").exists() and (folder / "SHA256SUMS").read_text() == recorded


def test_an_archive_cannot_leave_its_folder(server, checkout):
    url, served, _, _ = server
    script = checkout / "downstream/download_dataset.sh"
    archive(served / "senteval.tar", {"MR/rt-polarity.pos": "a\n", "../../escaped.txt": "x\n"})
    done = run(script, "--mirror", url)
    assert done.returncode == 1 and "lead out of the folder" in done.stderr
    assert not list(checkout.parent.rglob("escaped.txt"))
    for file in ("senteval.tar", "SHA256SUMS"):
        (checkout / "downstream" / file).unlink()
    with tarfile.open(served / "senteval.tar", "w") as tar:
        link = tarfile.TarInfo("MR")
        link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
        tar.addfile(link)
    done = run(script, "--mirror", url)
    assert done.returncode == 1 and "links or devices" in done.stderr


def test_no_network_and_no_tool(checkout, tmp_path):
    script = checkout / "downstream/download_dataset.sh"
    done = run(script, "--mirror", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "could not fetch http://127.0.0.1:9/senteval.tar: check the network, name a mirror" in done.stderr
    tools = tmp_path / "tools"
    tools.mkdir()
    names = "bash dirname basename sed awk grep paste cut sha256sum tar rm mv cp mkdir wc printf"
    for tool in names.split(" "):
        if shutil.which(tool):
            (tools / tool).symlink_to(shutil.which(tool))
    done = run(script, PATH=str(tools))
    assert done.returncode == 2 and "neither curl nor wget was found" in done.stderr
    done = run(script, "MRR")
    assert done.returncode == 2 and "unknown task MRR; choose from MR CR" in done.stderr
    help_text = run(script, "--help")
    assert help_text.returncode == 0 and "--mirror URL" in help_text.stdout


def test_probing_files(server, checkout):
    url, served, log, _ = server
    parts = (("tr", 100_000), ("va", 10_000), ("te", 10_000))
    rows = [f"{part}\t{'OI'[i % 2]}\ta b .\n" for part, count in parts for i in range(count)]
    (served / "bigram_shift.txt").write_text("".join(rows))
    (served / "odd_man_out.txt").write_text("".join(rows[:50_000]) + "tr\tX\n")
    script = checkout / "probing/download_probing.sh"
    done = run(script, "--mirror", url, "bigram_shift.txt")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "complete and checked: bigram_shift.txt\n"
    assert run(script, "--mirror", url, "bigram_shift.txt").returncode == 0 and len(log) == 1
    done = run(script, "--mirror", url, "odd_man_out.txt")
    assert done.returncode == 1
    assert "odd_man_out.txt: line 50001 is not" in done.stderr
    assert "3 classes, 2 are published" in done.stderr and "50001 rows of part tr, 99000 to 101000" in done.stderr
    assert run(script, "nothing.txt").returncode == 2
    (checkout / "probing/bigram_shift.txt").write_text("changed\n")
    done = run(script, "bigram_shift.txt")
    assert done.returncode == 1 and "has changed since" in done.stderr

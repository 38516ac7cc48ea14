"""Fetching COCO from a server that breaks off, lies about sizes and serves other files; all of it on this machine."""

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command import mrcnn

from mrcnn_scratch.datasets import download, open_dataset
from mrcnn_scratch.datasets.coco_archives import ARCHIVES, Archive
from mrcnn_scratch.datasets.coco_export import export_coco
from mrcnn_scratch.datasets.download import download_coco
from mrcnn_scratch.datasets.shapes import ShapesDataset


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


FILES = {f"val2017/{i}.jpg": bytes([i]) * 20_000 for i in range(10)}
CONTENT = zipped(FILES)


def expected(content: bytes = CONTENT, members: int = 10) -> dict[str, Archive]:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return {"val": Archive("zips/val2017.zip", len(content), digest, 250_000, "val2017", members)}


class Server:
    """Serves CONTENT at /zips/val2017.zip; the attributes say how badly."""

    def __init__(self):
        self.content, self.break_after, self.ranges, self.stated, self.codes = CONTENT, None, True, None, []
        self.requests, self.sent = [], 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        if self.codes and (code := self.codes.pop(0)) != 200:
            handler.send_error(code)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        total = len(self.content) if self.stated is None else self.stated
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.stated != "":
            handler.send_header("Content-Length", str(total - start))
        handler.end_headers()
        if self.break_after is not None:
            body = body[: self.break_after]
        handler.wfile.write(body)
        self.sent += len(body)
        handler.close_connection = True


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def get(server, root, archives=None, **more):
    archives = archives or expected()
    return download_coco(root, ["val"], server.address, progress=False, archives=archives, pause=0.001, **more)


def unpacked(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("val2017/*")}


def refused(server, root, *words, **more) -> str:
    with pytest.raises(ValueError) as error:
        get(server, root, **more)
    assert all(word in str(error.value) for word in words), error.value
    assert not unpacked(root)
    return str(error.value)


def test_fetched_verified_unpacked_and_not_again(server, tmp_path):
    assert get(server, tmp_path) == ["val2017: 10 files, verified"]
    assert unpacked(tmp_path) == FILES
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["val2017.zip.done"]
    assert get(server, tmp_path) == ["val2017: complete already"] and server.requests == [None]


def test_a_line_that_breaks_off_is_resumed_where_it_broke(server, tmp_path):
    server.break_after = 60_000
    get(server, tmp_path)
    assert unpacked(tmp_path) == FILES
    assert server.sent == len(CONTENT)  # no byte came twice
    assert server.requests == [None, *(f"bytes={n}-" for n in range(60_000, len(CONTENT), 60_000))]


def test_an_interrupted_run_goes_on(server, tmp_path, monkeypatch):
    server.break_after = 50_000
    real, calls = download._one_connection, []

    def once(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        real(*arguments)

    monkeypatch.setattr(download, "_one_connection", once)
    with pytest.raises(KeyboardInterrupt, match="val2017.zip is kept: the same command goes on"):
        get(server, tmp_path)
    assert (tmp_path / "downloads" / "val2017.zip.part").stat().st_size == 50_000
    monkeypatch.setattr(download, "_one_connection", real)
    get(server, tmp_path)
    assert unpacked(tmp_path) == FILES and server.sent == len(CONTENT)


def test_a_server_that_cannot_resume_begins_anew(server, tmp_path):
    part = tmp_path / "downloads" / "val2017.zip.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 70_000)
    server.ranges = False
    get(server, tmp_path)
    assert unpacked(tmp_path) == FILES and server.requests == ["bytes=70000-"]


@pytest.mark.parametrize("size", [len(CONTENT) + 1, len(CONTENT) - 1, 512])
def test_a_server_with_another_size_is_refused_before_a_byte_is_kept(server, tmp_path, size):
    server.stated = size
    refused(server, tmp_path, f"{size:,} bytes", f"{len(CONTENT):,}", "--mirror")
    assert not list((tmp_path / "downloads").glob("*.part"))


def test_a_server_that_states_no_size_and_sends_too_much(server, tmp_path):
    server.stated, server.content = "", CONTENT + b"more"
    refused(server, tmp_path, "sends more than", f"{len(CONTENT):,}")


def test_a_login_page_in_its_place_is_no_endless_loop(server, tmp_path):
    server.stated, server.content, server.ranges = "", b"<html>log in</html>", False
    refused(server, tmp_path, "ended early", "6 times in a row", "run the same command again")


def test_a_wrong_file_of_the_right_size_is_moved_aside_and_fetched_anew(server, tmp_path):
    server.content = b"\0" * len(CONTENT)
    refused(server, tmp_path, "MD5 is", "moved to", "val2017.zip.wrong")
    assert (tmp_path / "downloads" / "val2017.zip.wrong").stat().st_size == len(CONTENT)
    server.content = CONTENT
    get(server, tmp_path)
    assert unpacked(tmp_path) == FILES


def test_a_part_of_another_file_does_not_pass(server, tmp_path):
    part = tmp_path / "downloads" / "val2017.zip.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 70_000)
    refused(server, tmp_path, "MD5 is")
    assert not part.exists()


def test_busy_servers_are_asked_again_missing_files_are_not(server, tmp_path):
    server.codes = [503, 429, 500]
    get(server, tmp_path)
    assert unpacked(tmp_path) == FILES and len(server.requests) == 4
    server.codes, server.requests = [404], []
    with pytest.raises(ValueError, match="404 Not Found: check --mirror"):
        get(server, tmp_path / "other")
    assert len(server.requests) == 1


def test_no_server_at_all(tmp_path):
    with pytest.raises(ValueError, match="6 times in a row"):
        download_coco(tmp_path, ["val"], "http://127.0.0.1:9", progress=False, archives=expected(), pause=0.001)


def test_space_is_checked_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 300_000}))
    refused(server, tmp_path / "new", "0.0 GB free", "val2017.zip need", "make room")
    assert server.requests == [] and not (tmp_path / "new").exists()


def test_members_outside_the_folder_are_refused_before_any_is_written(server, tmp_path):
    server.content = zipped({"val2017/1.jpg": b"1", "../outside.jpg": b"2"})
    archives = expected(server.content, 1)
    refused(server, tmp_path / "root", "'../outside.jpg' would be written outside", archives=archives)
    assert not (tmp_path / "outside.jpg").exists()


def test_too_few_members_and_a_damaged_one(server, tmp_path):
    with pytest.raises(ValueError, match="holds 10 files of val2017, expected are 11"):
        get(server, tmp_path / "few", expected(members=11))
    assert not (tmp_path / "few" / "downloads" / "val2017.zip.done").exists()
    place = CONTENT.index(b"\3" * 20_000)
    server.content = CONTENT[:place] + b"\4" + CONTENT[place + 1 :]
    with pytest.raises(ValueError, match="val2017/3.jpg is damaged"):
        get(server, tmp_path / "damaged", expected(server.content))
    assert "val2017/3.jpg" not in unpacked(tmp_path / "damaged")


def test_unpacking_goes_on_where_it_was_stopped(server, tmp_path, monkeypatch):
    real, count = download.shutil.copyfileobj, []

    def stops(*arguments):
        if len(count) == 4:
            raise KeyboardInterrupt
        count.append(1)
        real(*arguments)

    monkeypatch.setattr(download.shutil, "copyfileobj", stops)
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        get(server, tmp_path)
    assert len(unpacked(tmp_path)) == 4 and not list(tmp_path.rglob("*.tmp"))
    count.clear()
    monkeypatch.setattr(download.shutil, "copyfileobj", lambda *arguments: (count.append(1), real(*arguments)))
    get(server, tmp_path)
    assert unpacked(tmp_path) == FILES and len(count) == 6 and server.requests == [None]  # nothing fetched twice


def test_archives_can_be_kept(server, tmp_path):
    get(server, tmp_path, keep_archives=True)
    assert (tmp_path / "downloads" / "val2017.zip").read_bytes() == CONTENT


def test_the_published_archives():
    assert {name: archive.size for name, archive in ARCHIVES.items()} == {
        "annotations": 252907541, "val": 815585330, "train": 19336861798
    }  # fmt: skip
    assert [len(archive.md5) for archive in ARCHIVES.values()] == [32, 32, 32]


def test_the_command_fetches_what_opens_as_coco(server, tmp_path, monkeypatch, capsys):
    """The official layout: annotations/instances_val2017.json and val2017/."""
    drawn, root = tmp_path / "drawn", tmp_path / "coco"
    export_coco([ShapesDataset("demo", 3, split="val")], drawn)
    (root / "annotations").mkdir(parents=True)
    truth = (drawn / "annotations" / "instances_val.json").read_text()
    (root / "annotations" / "instances_val2017.json").write_text(truth)
    names = [record["file_name"] for record in json.loads(truth)["images"]]
    server.content = zipped({f"val2017/{name}": next(drawn.rglob(name)).read_bytes() for name in names})
    monkeypatch.setattr(download, "ARCHIVES", expected(server.content, 3))
    assert mrcnn("data", "download", "coco", "--root", root, "--mirror", server.address) == 0
    assert "val2017: 3 files, verified" in capsys.readouterr().out
    dataset = open_dataset("coco", "val", root=root)
    assert len(dataset) == 3 and dataset[0][0].shape[0] == 3
    (root / "val2017" / names[0]).write_bytes((root / "val2017" / names[0]).read_bytes()[:-200])
    assert len(open_dataset("coco", "val", root=root)) == 3  # headers alone: a cut file shows when it is read
    with pytest.raises(ValueError, match=names[0]):
        open_dataset(root, "val")
    with pytest.raises(ValueError, match="'coco' needs its folder: give root"):
        open_dataset("coco", "val")
    with pytest.raises(ValueError, match="goes with 'coco'"):
        open_dataset(str(root), "val", root=root)


def test_mistakes_of_the_command(tmp_path, capsys):
    assert mrcnn("data", "download", "imagenet", "--root", tmp_path / "x") == 2
    assert "it is coco" in capsys.readouterr().err
    assert mrcnn("data", "download", "coco", "--root", tmp_path / "x", "--parts", "test") == 2
    assert "no part 'test': choose of annotations, val, train" in capsys.readouterr().err

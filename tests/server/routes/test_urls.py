"""Pictures behind URLs: where they point, who may fetch them, when they end."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import Server, assert_error, exchange, until

NAME = r"[A-Za-z0-9_-]{22,}"


@pytest.mark.behaviour(55)
@pytest.mark.parametrize(("output_format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_a_url_is_absolute_and_fetches_as_what_it_is(server: Server, output_format: str, suffix: str) -> None:
    body = server.generate(output_format=output_format, response_format="url").json()
    url = body["data"][0]["url"]
    assert re.fullmatch(rf"{re.escape(server.url)}/images/{NAME}\.{suffix}", url)
    for headers in ({}, {"authorization": "Bearer whatever"}, {"authorization": "nonsense"}):
        response = server.get(url, headers=headers)
        assert response.status_code == 200
        assert response.headers["content-type"] == f"image/{output_format}"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == "sandbox"
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    max_age = re.fullmatch(r"private, max-age=(\d+), immutable", response.headers["cache-control"])
    assert max_age is not None
    assert 3500 < int(max_age[1]) <= 3600
    head = server.request("HEAD", url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        response.headers["content-length"],
    )


@pytest.mark.behaviour(55)
def test_one_range(server: Server) -> None:
    url = server.generate().json()["data"][0]["url"]
    whole = server.get(url).content
    size = len(whole)
    for asked, start, stop in (
        ("bytes=0-9", 0, 10),
        ("bytes=5-", 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=0-{size + 99}", 0, size),
    ):
        part = server.get(url, headers={"range": asked})
        assert (part.status_code, part.content) == (206, whole[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    for asked in ("bytes=0-1,3-4", "bytes=" + ",".join(["0-0"] * 10_000)[:30_000], "bytes=-", "lines=1-2", "bytes=a-b"):
        response = server.get(url, headers={"range": asked})
        assert (response.status_code, response.content) == (200, whole)
    assert_error(server.get(url, headers={"range": f"bytes={size}-"}), 416, "range_not_satisfiable")
    for asked in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        refused = server.get(url, headers={"range": asked})
        assert_error(refused, 416, "range_not_satisfiable")
        assert refused.headers["content-range"] == f"bytes */{size}"


@pytest.mark.fault(92)
def test_ranges_that_do_not_count(server: Server) -> None:
    """HEAD has none, nor has a picture other than the one that If-Range names, nor one that ends before it begins."""
    one, other = (server.generate().json()["data"][0]["url"] for _ in range(2))
    whole = server.get(one)
    etag, size = whole.headers["etag"], len(whole.content)
    for headers in ({"range": "bytes=0-9"}, {"range": f"bytes={size}-"}, {"range": "bytes=-0"}):
        head = server.request("HEAD", one, headers=headers)
        assert (head.status_code, head.headers["content-length"]) == (200, str(size))
        assert "content-range" not in head.headers
    ignored = [{"range": asked} for asked in ("bytes=5-2", "bytes=1-0", f"bytes={size + 9}-{size}", "bytes=", "bytes")]
    strangers = [server.get(other).headers["etag"], f"W/{etag}", '"x"', "Sun, 06 Nov 1994 08:49:37 GMT", ""]
    ignored += [{"range": "bytes=0-9", "if-range": validator} for validator in strangers]
    for headers in ignored:
        answer = server.get(one, headers=headers)
        assert (answer.status_code, answer.content) == (200, whole.content), headers
    for headers in ({"range": "bytes=0-9", "if-range": etag}, {"range": "Bytes=0-9"}, {"range": "bytes= 0-9"}):
        part = server.get(one, headers=headers)
        assert_answer(92, part, 206)
        assert part.content == whole.content[:10]


@pytest.mark.behaviour(57)
def test_other_names_are_not_found(server: Server) -> None:
    name = urlsplit(server.generate().json()["data"][0]["url"]).path.removeprefix("/images/")
    strange = [
        "",
        ".",
        "..",
        "../server.log",
        "..%2fserver.log",
        "%2e%2e/server.log",
        "..\\server.log",
        ".fluxserve-store",
    ]
    strange += ["/etc/passwd", "%2Fetc%2Fpasswd", f"{name}%00.png", f"{name}/", f"./{name}", f"x/../{name}", name[:-4]]
    strange += [f"{name}.html", name.replace(".png", ".jpg"), name.upper(), "%C3%A4" * 22 + ".png", "A" * 22 + ".png"]
    strange += ["A" * 22 + suffix for suffix in (".svg", ".html", ".gif", ".PNG", "")]
    for path in strange:
        answer = exchange(
            server, [f"GET /images/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()]
        )
        assert answer.startswith(b"HTTP/1.1 404 "), path
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "image_not_found", path


@pytest.mark.behaviour(57)
def test_urls_expire(start_server: StartServer) -> None:
    server = start_server("--url-ttl", "1.5")
    url = server.generate().json()["data"][0]["url"]
    assert server.get(url).headers["cache-control"] == "private, max-age=1, immutable"
    until(lambda: server.get(url).status_code != 200)
    assert_error(server.get(url), 410, "image_expired")
    assert not list(server.store.glob("*.png"))


@pytest.mark.behaviour(56)
def test_public_url(start_server: StartServer) -> None:
    server = start_server("--public-url", "https://pictures.example/flux/")
    headers = {"x-forwarded-host": "evil.example", "host": "pictures.example"}
    url = server.generate(headers=headers).json()["data"][0]["url"]
    assert re.fullmatch(rf"https://pictures\.example/flux/images/{NAME}\.png", url)


@pytest.mark.fault(21)
@pytest.mark.behaviour(56)
def test_forwarded_headers_count_from_trusted_proxies_alone(server: Server, start_server: StartServer) -> None:
    forwarded = {
        "x-forwarded-proto": "https",
        "x-forwarded-host": "invented.example, pictures.example",
        "x-forwarded-prefix": "/flux",
    }
    assert server.generate(headers=forwarded).json()["data"][0]["url"].startswith(server.url)
    trusting = start_server("--trusted-proxies", "10.0.0.0/8", "--trusted-proxies", "127.0.0.1")
    url = trusting.generate(headers=forwarded).json()["data"][0]["url"]
    assert re.fullmatch(rf"https://pictures\.example/flux/images/{NAME}\.png", url)
    strange = {"x-forwarded-proto": "javascript", "x-forwarded-host": 'a"b', "x-forwarded-prefix": "/a b"}
    assert trusting.generate(headers=strange).json()["data"][0]["url"].startswith("http://127.0.0.1:")


@pytest.mark.behaviour(58)
def test_a_store_that_takes_nothing(start_server: StartServer) -> None:
    server = start_server()
    pictures = server.folder / "pictures"
    shutil.rmtree(pictures)
    pictures.write_text("a file in the folder's place")
    assert_error(server.generate(seed=5800), 503, "storage_full")
    assert server.count("begin", 5800) == 0
    refused = server.generate(seed=5801)
    assert_error(refused, 503, "storage_full")
    assert refused.headers["x-should-retry"] == "false"
    assert server.count("begin", 5801) == 0
    assert server.generate(response_format="b64_json").status_code == 200
    assert server.get("/readyz").json() == {"status": "store"}
    pictures.unlink()
    pictures.mkdir()
    assert server.get("/readyz").status_code == 200
    assert server.generate().status_code == 200


def test_a_second_server_on_the_same_folder_is_refused(server: Server, start_server: StartServer) -> None:
    with pytest.raises(AssertionError, match="same picture folder"):
        start_server("--output-dir", str(server.folder / "pictures"))


def test_pictures_outlive_a_restart(start_server: StartServer, tmp_path: Path) -> None:
    folder = ("--output-dir", str(tmp_path / "kept"))
    first = start_server(*folder)
    path = urlsplit(first.generate().json()["data"][0]["url"]).path
    assert first.stop() == 0
    second = start_server(*folder)
    assert second.get(path).status_code == 200

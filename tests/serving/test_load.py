"""Tests serve_hf.py as a process: many clients, slow and broken ones, SIGTERM, and memory over many requests."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import psutil
import pytest
from audio_files import ROOT, encoded, tone
from tiny_models import save_tiny_classifier

RATE = 16000
CLIPS = [
    encoded(tone(seconds, hz=200 + 300 * index), RATE, "WAV") for index, seconds in enumerate((0.2, 0.5, 0.6, 2.0))
]
HEAD = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\nContent-Length: {}\r\n\r\n"
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(tmp_path, *options, max_length=64):
    """Runs serve_hf.py with a tiny model in float32, whose scores depend on no batch; yields address and process."""
    folder = save_tiny_classifier(tmp_path / "model", max_length=max_length)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "errors", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "serve_hf.py", str(folder), "--port", "0", "--dtype", "float32", *options],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        yield re.search(r"http://\S+(?=;)", line)[0], process
    finally:
        process.kill()
        process.wait()
    assert b"Traceback" not in (tmp_path / "errors").read_bytes()


def held(address: str) -> dict[str, float]:
    text = httpx.get(f"{address}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^dual_ssast_held_(\w+) (\S+)$", text, re.MULTILINE)}


def counted(address: str) -> dict[str, float]:
    """Requests by status."""
    text = httpx.get(f"{address}/metrics").text
    return {status: float(n) for status, n in re.findall(r'_requests_total{.*status="(\d+)"} (\S+)', text)}


async def patient(client: httpx.AsyncClient, content: bytes) -> list[float]:
    """The scores, after as many attempts as a busy service needs."""
    for _ in range(3000):  # another program may have the cores
        response = await client.post("/classify", files={"file": ("a.wav", content)})
        if response.status_code == 200:
            found = {entry["label"]: entry["score"] for entry in response.json()["scores"]}
            return [found[name] for name in ("high", "low", "mid")]
        assert response.status_code == 503 and response.headers["retry-after"] == "1", response.text
        await asyncio.sleep(0.2)
    raise AssertionError("always busy")


async def raw(address: str, parts: list[bytes], pause_s: float, reads: bool = True) -> bytes:
    """Sends parts over a connection of its own until an answer comes; returns its first line, or nothing."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = asyncio.ensure_future(reader.readline())
    try:
        for part in parts:
            if answer.done():
                break
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(answer, 60) if reads else b""
    except ConnectionError:
        return b""
    finally:
        answer.cancel()
        writer.close()


async def insistent(address: str, parts: list[bytes], pause_s: float) -> bytes:
    """Sends as `raw` does, until the service is not busy."""
    while b" 503 " in (line := await raw(address, parts, pause_s)):
        await asyncio.sleep(0.2)
    return line


def split(content: bytes, count: int) -> list[bytes]:
    size = -(-len(content) // count)
    return [content[first : first + size] for first in range(0, len(content), size)]


def test_hundreds_of_clients_slow_and_broken_ones_among_them(tmp_path):
    with served(tmp_path, "--upload_s", "20", "--max_queue", "64") as (address, _):
        alone = {content: asyncio.run(one(address, content)) for content in CLIPS}

        async def crowd():
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
                whole = HEAD.format(len(CLIPS[1])).encode() + CLIPS[1]
                slow = [insistent(address, split(whole, 20), 0.1) for _ in range(20)]  # 2 s
                slower = [raw(address, split(whole, 600), 0.1) for _ in range(20)]  # a minute
                slow, slower = (list(map(asyncio.ensure_future, group)) for group in (slow, slower))
                await asyncio.sleep(1)  # they come first: a busy service would refuse them at once
                right = [patient(client, CLIPS[index % len(CLIPS)]) for index in range(300)]
                broken = [raw(address, [whole[: 100 * index]], 0.01, reads=False) for index in range(1, 60)]
                broken += [raw(address, [whole], 0, reads=False) for _ in range(60)]
                rubbish = [raw(address, [os.urandom(300) + b"\r\n\r\n"], 0.01) for _ in range(20)]
                groups = [list(map(asyncio.ensure_future, group)) for group in (right, slow, slower, broken, rubbish)]
                return [await asyncio.gather(*group) for group in groups]

        right, slow, slower, _, rubbish = asyncio.run(crowd())
        for index, scores in enumerate(right):
            np.testing.assert_allclose(scores, alone[CLIPS[index % len(CLIPS)]], atol=1e-5)
        statuses = [[line.split()[1] for line in lines if line] for lines in (slow, slower)]
        assert set(statuses[0]) <= {b"200", b"408"} and b"200" in statuses[0]
        assert statuses[1] and set(statuses[1]) == {b"408"}
        assert all(not line or line.split()[1] == b"400" for line in rubbish)
        wait_until(lambda: not any(held(address).values()))
        assert "500" not in counted(address) and counted(address)["408"] >= len(statuses[1])
        assert httpx.get(f"{address}/health").status_code == 200


async def one(address: str, content: bytes) -> list[float]:
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        return await patient(client, content)


def wait_until(holds, seconds: float = 20):
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.1)


def test_sigterm_finishes_what_is_in_flight_and_ends_with_0(tmp_path):
    long = encoded(tone(60.0), RATE, "FLAC")
    with served(tmp_path) as (address, process):

        async def ask():
            async with httpx.AsyncClient(base_url=address, timeout=600) as client:
                tasks = [
                    asyncio.ensure_future(
                        client.post("/classify", files={"file": ("a.flac", long)}, data={"hop_s": 0.05})
                    )
                    for _ in range(3)
                ]
                while (await client.get("/metrics")).text.find("dual_ssast_held_requests 3.0") < 0:
                    await asyncio.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                return [response.status_code for response in await asyncio.gather(*tasks)]

        assert asyncio.run(ask()) == [200] * 3
        assert process.wait(timeout=30) == 0
        host, port = address.removeprefix("http://").split(":")
        with pytest.raises(OSError):
            socket.create_connection((host, int(port)), timeout=5).close()


def test_ctrl_c_ends_with_one_line(tmp_path):
    with served(tmp_path) as (address, process):
        assert httpx.get(f"{address}/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert (tmp_path / "errors").read_text().split("\n")[-2] == "interrupted; the service is closed"


def test_memory_is_flat_over_ten_thousand_requests(tmp_path):
    with served(tmp_path) as (address, process):
        memory = psutil.Process(process.pid)

        async def ask(count: int):
            async def client(number: int):
                async with httpx.AsyncClient(base_url=address, timeout=60) as own:
                    for index in range(count // 16):
                        if index % 10 == 9:
                            response = await own.post(
                                "/classify", content=b"rubbish", headers={"content-type": "audio/x"}
                            )
                            assert response.status_code == 422
                        else:
                            files = {"file": (f"{number}-{index}.wav", CLIPS[(number + index) % len(CLIPS)])}
                            assert (await own.post("/classify", files=files)).status_code == 200

            await asyncio.gather(*map(client, range(16)))

        asyncio.run(ask(1600))  # what is allocated once
        before = memory.memory_info().rss
        asyncio.run(ask(10_000))
        grown_mb = (memory.memory_info().rss - before) / 2**20
        assert grown_mb < 15 and not any(held(address).values())
        print(f"{grown_mb:.1f} MB after 10,000 requests")

"""The service under load: clients that send good and bad images at once, then SIGTERM.

    python benchmarks/service.py --model fashion-mnist --source t10k-images-idx3-ubyte.gz

Prints requests by outcome, latency, images/s against the library in batches, memory over time, and
what became of the requests that were under way when the service was told to stop.
"""

import argparse
import asyncio
import io
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from liftmap.detector import Detector
from liftmap.images.entry import readable
from liftmap.images.sources import open_source

BAD_SHARE, SEVERAL_SHARE, SEVERAL = 0.1, 0.2, 8
PATIENCE = 90.0  # seconds


@dataclass
class Tally:
    """What the clients saw; `own` are the processor seconds that they took themselves."""

    outcomes: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of good requests
    images: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: int = 0  # taken by the service and never answered
    refused: int = 0  # not taken
    own: float = 0.0


def png(image: Image.Image) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return file.getvalue()


def bad_requests(good: bytes) -> dict[str, dict[str, object]]:
    """Requests that must each be refused with a reason."""
    with io.BytesIO() as file:
        Image.new("1", (20_000, 20_000)).save(file, "PNG")
        bomb = file.getvalue()
    return {
        "empty file": {"files": [("images", ("a.png", b""))]},
        "text": {"files": [("images", ("a.png", b"no image"))]},
        "cut short": {"files": [("images", ("a.png", good[: len(good) // 2]))]},
        "400 megapixels": {"files": [("images", ("a.png", bomb))]},
        "no image": {"data": {"false_alarms": "0.05"}, "files": [("other", ("a", b"x"))]},
        "rate of 2": {"data": {"false_alarms": "2"}, "files": [("images", ("a.png", good))]},
        "not base64": {"json": {"images": ["?"]}},
        "not JSON": {"content": b"{", "headers": {"content-type": "application/json"}},
        "65 images": {"files": [("images", ("a.png", good))] * 65},
    }


@dataclass
class Asked:
    """A request, encoded once: the clients share this machine's cores with the service."""

    kind: str
    images: int
    content: bytes
    headers: dict[str, str]

    @classmethod
    def encode(cls, kind: str, images: int, **form: object) -> "Asked":
        request = httpx.Request("POST", "http://service/v1/score", **form)  # type: ignore[arg-type]
        names = ("content-type", "content-length")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        return cls(kind, images, request.read(), headers)


def all_requests(good: list[bytes], seed: int = 0) -> tuple[list[Asked], list[Asked]]:
    """(good, bad) requests to choose from."""
    draw, found = random.Random(seed), []
    for image in good:
        images = SEVERAL if draw.random() < SEVERAL_SHARE else 1
        some = [image, *draw.choices(good, k=images - 1)]
        form = [("images", (f"{i}.png", data)) for i, data in enumerate(some)]
        found.append(Asked.encode("good", images, files=form))
    bad = bad_requests(good[0]).items()
    return found, [Asked.encode(kind, 0, **form) for kind, form in bad]


async def client(
    address: str,
    requests: tuple[list[Asked], list[Asked]],
    tally: Tally,
    stop: asyncio.Event,
    seed: int,
) -> None:
    """Send one request after the other until told to stop, or until the service is gone."""
    draw, (good, bad) = random.Random(seed), requests
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as http:
        while not stop.is_set():
            asked = draw.choice(bad if draw.random() < BAD_SHARE else good)
            begun = time.monotonic()
            try:
                answer = await http.post("/v1/score", content=asked.content, headers=asked.headers)
            except httpx.ConnectError:
                tally.refused += 1
                return
            except httpx.TransportError:
                tally.lost += 1
                return
            judge(asked.kind, asked.images, answer, time.monotonic() - begun, tally)


def judge(kind: str, images: int, answer: httpx.Response, seconds: float, tally: Tally) -> None:
    tally.outcomes[kind, answer.status_code] += 1
    if kind == "good":
        tally.seconds.append(seconds)
        if answer.status_code == 200:
            results = answer.json()["results"]
            tally.images += len(results)
            if len(results) != images or any(r["score"] is None for r in results):
                tally.wrong.append(f"good: {answer.text[:200]}")
    elif not (400 <= answer.status_code < 500 and answer.json().get("detail")):
        tally.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


async def images_a_batch(address: str) -> float:
    """Mean number of images that the service scored at once."""
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as http:
        told = (await http.get("/metrics")).text
    total, count = (
        float(re.findall(rf"^liftmap_batch_images_{name} (\S+)", told, re.MULTILINE)[0])
        for name in ("sum", "count")
    )
    return total / count


async def load(
    address: str,
    requests: tuple[list[Asked], list[Asked]],
    clients: int,
    seconds: float,
    service: subprocess.Popen[str],
) -> tuple[Tally, list[float], float, Tally]:
    """What was seen under load, memory each second, images a batch, and what of a stop."""
    stop, tally, memory, begun = asyncio.Event(), Tally(), [], time.process_time()
    tasks = [asyncio.create_task(client(address, requests, tally, stop, i)) for i in range(clients)]
    for _ in range(round(seconds)):
        await asyncio.sleep(1)
        memory.append(resident(service.pid))
    stop.set()
    await asyncio.gather(*tasks)
    tally.own = time.process_time() - begun
    batch = await images_a_batch(address)
    ending, never = Tally(), asyncio.Event()
    tasks = [
        asyncio.create_task(client(address, requests, ending, never, -i)) for i in range(clients)
    ]
    await asyncio.sleep(3)
    service.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    return tally, memory, batch, ending


def library_rate(detector: Detector, pictures: list[Image.Image], images: int) -> float:
    """Images/s of the library called in batches on the same images."""
    pixels = detector.prepare(pictures)
    rows = torch.arange(images) % len(pixels)
    detector.score_pixels(pixels[: detector.batch])  # the first call is slower
    begun = time.monotonic()
    for part in torch.split(rows, detector.batch):
        detector.score_pixels(pixels[part])
    return images / (time.monotonic() - begun)


def started(model: str, port: int, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "liftmap", "serve", model, "--port", str(port)]
    service = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    for _ in range(600):
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return service
        except httpx.TransportError:
            pass
        if service.poll() is not None:
            raise SystemExit(f"the service ended with {service.returncode}")
        time.sleep(0.1)
    raise SystemExit("the service does not start")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--source", required=True, help="good images")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--images", type=int, default=1000, help="different good images")
    parser.add_argument("--port", type=int, default=8765)
    asked = parser.parse_args()
    address = f"http://127.0.0.1:{asked.port}"
    found = readable(open_source(asked.source))
    pictures = [image for _, image in islice(found, asked.images)]
    requests = all_requests([png(picture) for picture in pictures])
    service = started(asked.model, asked.port, address)
    tally, memory, batch, ending = asyncio.run(
        load(address, requests, asked.clients, asked.seconds, service)
    )
    code = service.wait(PATIENCE)
    alone = library_rate(Detector.from_pretrained(asked.model), pictures, 3000)
    report(tally, memory, batch, ending, asked, alone, code)
    if tally.wrong or tally.lost or ending.wrong or ending.lost:
        raise SystemExit(1)


def report(
    tally: Tally,
    memory: list[float],
    batch: float,
    ending: Tally,
    asked: argparse.Namespace,
    alone: float,
    code: int,
) -> None:
    print("| request | status | answers |\n|---|---|---|")
    for (kind, status), count in sorted(tally.outcomes.items()):
        print(f"| {kind} | {status} | {count} |")
    p50, p95, p99 = 1000 * np.quantile(tally.seconds, [0.5, 0.95, 0.99])
    rate, tenth = tally.images / asked.seconds, max(1, len(memory) // 10)
    early, late = np.mean(memory[tenth : 2 * tenth]), np.mean(memory[-tenth:])
    print(
        f"\n{asked.clients} clients, {asked.seconds:.0f} s; good requests p50 {p50:.0f} ms, p95 "
        f"{p95:.0f} ms, p99 {p99:.0f} ms; {batch:.0f} images a batch"
    )
    print(
        f"{rate:.1f} images/s, the library in batches {alone:.1f} ({rate / alone:.2f}); the "
        f"clients themselves took {tally.own / asked.seconds:.0%} of a core"
    )
    print(
        f"memory {early:.0f} MB in the second tenth of the time, {late:.0f} MB in the last; wrong "
        f"answers {len(tally.wrong)}, lost requests {tally.lost}"
    )
    answered = sum(ending.outcomes.values())
    print(
        f"SIGTERM under load: exit code {code}, {answered} requests answered, {ending.refused} "
        f"not taken, {ending.lost} lost, {len(ending.wrong)} wrong"
    )
    for line in tally.wrong[:5] + ending.wrong[:5]:
        print(line)


if __name__ == "__main__":
    main()

"""Bytes that no honest program would send; the same in every run."""

import random
import struct


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def filled(node: int) -> bytes:
    """A protobuf that most requests take for theirs: node, numbers, texts, nested messages."""
    inner = b"\x08" + varint(node)
    text = b"\x12" + varint(64) + b"a" * 64
    return b"\x0a" + varint(len(inner)) + inner + text + b"\x18\x01" + b"\x22\x00"


def protobufs(node: int) -> list[bytes]:
    """Malformed, truncated, deep, random; the same in every run."""
    draw = random.Random(5)
    whole = filled(node)
    bodies = [whole[:end] for end in range(0, len(whole), 7)]
    bodies += [b"\xff" * 12, b"\x0a" + varint(2**40), b"\x0a" * 5000, b"\x80" * 100]
    bodies += [b"\x0b" * 2000, struct.pack("<Q", 2**63) * 100, b'{"node": 1}']
    for size in (1, 8, 64, 512, 4096, 65536):
        bodies += [draw.randbytes(size), whole + draw.randbytes(size)]
    return bodies


JSON_BODIES: list[bytes] = [
    b"",
    b"{",
    b"[" * 30_000,
    b'{"a":' * 10_000,
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe{}",
    b'{"site": "\\ud800"}',
    b'{"site": "\x00"}',
    b'{"site": 1e999, "time": NaN}',
    b'{"nonce": ' + b"9" * 20_000 + b"}",
    b'{"site": "' + b"x" * 60_000 + b'"}',
    b"{" + b",".join(b'"k%d": 1' % n for n in range(4000)) + b"}",
]


def raw_requests() -> list[bytes]:
    draw = random.Random(7)
    head = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return [
        b"",
        b"\r\n" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(100),
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"X" * 70_000,
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        head + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
        head + b"".join(b"X%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        head + b"Content-Length: -5\r\n\r\n",
        head + b"Content-Length: five\r\n\r\n",
        head + b"Content-Length: 99999999999999999999\r\n\r\n",
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /docs",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n",
        head + b"X:\x00\r\n\r\n",
        head + b"\xff\xff: \xff\r\n\r\n",
        head + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        head + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        *(draw.randbytes(2**size) for size in range(0, 17, 2)),
    ]

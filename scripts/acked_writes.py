#!/usr/bin/env python3
"""Writes stamped blocks to an NBD export until it dies, then checks that no acknowledged write is missing.

usage: acked_writes.py write URI STATE SECONDS    ends early, and well, when the server goes away
       acked_writes.py check URI STATE            exit 1 and a line for each block that is wrong

Each of eight connections owns every eighth block and has one write under way, so what a block may hold is known
exactly: its stamp's sequence lies between the last acknowledged and the last sent one. A write counts as acknowledged
only once it is durable: four connections set FUA on the write, four send FLUSH after it.
"""
import json, os, random, socket, struct, sys, threading, time
from urllib.parse import urlparse

BLOCK = 4096
CONNECTIONS = 8
BLOCKS = 16384  # 64 MiB: few enough that most blocks are overwritten many times
READ, WRITE, FLUSH = 0, 1, 3
FUA = 1


class Nbd:
    """One connection, one request at a time: fixed newstyle handshake, OPT_GO, simple replies."""

    def __init__(self, uri):
        url = urlparse(uri)
        self.sock = socket.create_connection((url.hostname, url.port), timeout=60)
        magic, _, _ = struct.unpack(">8s8sH", self.take(18))
        assert magic == b"NBDMAGIC", "not an NBD server"
        name = url.path[1:].encode()
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 7, len(option)) + option)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            data = self.take(length)
            if kind & 0x80000000:
                raise SystemExit(f"error: the server refuses export {name.decode()}: {data.decode(errors='replace')}")
            if kind == 1:
                return

    def take(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise ConnectionError("closed")
            data += part
        return bytes(data)

    def request(self, kind, offset=0, length=0, data=b"", flags=0):
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 1, offset, length) + data)
        _, error, _ = struct.unpack(">IIQ", self.take(16))
        if error:
            raise OSError(error, f"NBD error {error} at offset {offset}")
        return self.take(length) if kind == READ else b""


def stamp(run, block, sequence):
    """The stamp fills the block, so that a torn write shows."""
    return struct.pack("<QQQQ", run, block, sequence, 0) * (BLOCK // 32)


def writer(uri, lane, run, deadline, seen, failures):
    """`seen` maps block -> [last acknowledged, last sent sequence]."""
    rng = random.Random(run * CONNECTIONS + lane)
    flags = FUA if lane % 2 else 0
    try:
        nbd = Nbd(uri)
        sequence = 0
        while time.monotonic() < deadline:
            block = rng.randrange(BLOCKS // CONNECTIONS) * CONNECTIONS + lane
            sequence += 1
            entry = seen.setdefault(block, [0, 0])
            entry[1] = sequence
            nbd.request(WRITE, block * BLOCK, BLOCK, stamp(run, block, sequence), flags)
            if not flags:
                nbd.request(FLUSH)
            entry[0] = sequence
    except ConnectionError:
        pass  # the crash we came for
    except OSError as error:
        failures.append(str(error))


def write(uri, state, seconds):
    run = int(os.environ.get("SEED") or random.getrandbits(48))
    deadline = time.monotonic() + seconds
    seen, failures = [{} for _ in range(CONNECTIONS)], []
    lanes = [threading.Thread(target=writer, args=(uri, i, run, deadline, seen[i], failures)) for i in range(CONNECTIONS)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    blocks = {block: entry for part in seen for block, entry in part.items()}
    with open(state, "w") as out:
        json.dump({"run": run, "blocks": blocks}, out)
    print(f"seed {run}: {len(blocks)} blocks, {sum(1 for e in blocks.values() if e[0])} with an acknowledged write")
    for failure in failures:
        print(f"error: {failure}")
    return 1 if failures else 0


def check(uri, state):
    with open(state) as file:
        saved = json.load(file)
    nbd, wrong = Nbd(uri), 0
    for block, (acknowledged, sent) in ((int(b), e) for b, e in saved["blocks"].items()):
        data = nbd.request(READ, block * BLOCK, BLOCK)
        run, number, sequence, _ = struct.unpack_from("<QQQQ", data)
        if data == bytes(BLOCK):
            good, found = acknowledged == 0, "nothing"
        else:
            whole = data == stamp(saved["run"], block, sequence)
            good, found = whole and acknowledged <= sequence <= sent, f"write {sequence}" if whole else "a torn or foreign block"
        if not good:
            wrong += 1
            print(f"block {block}: holds {found}, acknowledged {acknowledged}, last sent {sent}")
    print(f"{len(saved['blocks']) - wrong} blocks right, {wrong} wrong")
    return 1 if wrong or not saved["blocks"] else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", uri, state, seconds]:
            sys.exit(write(uri, state, float(seconds)))
        case ["check", uri, state]:
            sys.exit(check(uri, state))
    sys.exit(__doc__)

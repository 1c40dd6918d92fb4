#!/usr/bin/env python3
"""Restores one disk or file of one point, written from doc/format.md and nothing else.

    reader.py REPOSITORY POINT NAME OUTPUT

NAME is the target of a disk, or the name of a file kept with the point. It proves that the document is
enough. No libraries: BLAKE3 and LZ4 are spelled out; Zstandard is left to the program `zstd`. Slow,
complete, and strict.
"""

import json
import os
import subprocess
import sys
import tomllib

# ---- BLAKE3, by its specification ----

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED, CONTEXT, MATERIAL = 1, 2, 4, 8, 16, 32, 64
COLUMNS = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
DIAGONALS = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
MASK = 0xFFFFFFFF


def compress(chaining, block, counter, length, flags):
    v = chaining + IV[:4] + [counter & MASK, counter >> 32, length, flags]
    m = [int.from_bytes(block[i : i + 4], "little") for i in range(0, 64, 4)]
    for _ in range(7):
        for (a, b, c, d), i in zip(COLUMNS + DIAGONALS, range(0, 16, 2)):
            for word, (right_d, right_b) in ((m[i], (16, 12)), (m[i + 1], (8, 7))):
                v[a] = (v[a] + v[b] + word) & MASK
                x = v[d] ^ v[a]
                v[d] = (x >> right_d | x << 32 - right_d) & MASK
                v[c] = (v[c] + v[d]) & MASK
                x = v[b] ^ v[c]
                v[b] = (x >> right_b | x << 32 - right_b) & MASK
        m = [m[p] for p in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def subtree(key, data, counter, flags, root):
    """The chaining value of a subtree; with `root`, of the whole input."""
    if len(data) <= 1024:
        blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
        chaining = key
        for i, block in enumerate(blocks):
            f = flags | (CHUNK_START if i == 0 else 0)
            if i == len(blocks) - 1:
                f |= CHUNK_END | root
            chaining = compress(chaining, block.ljust(64, b"\0"), counter, len(block), f)
        return chaining
    left = 1 << ((len(data) - 1) // 1024).bit_length() - 1
    halves = subtree(key, data[: left * 1024], counter, flags, 0)
    halves = halves + subtree(key, data[left * 1024 :], counter + left, flags, 0)
    return compress(key, words_to_bytes(halves), 0, 64, flags | PARENT | root)


def words_to_bytes(words):
    return b"".join(word.to_bytes(4, "little") for word in words)


def bytes_to_words(data):
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def keyed_hash(key, data):
    return words_to_bytes(subtree(bytes_to_words(key), data, 0, KEYED, ROOT))


def derive_key(context, material):
    context_key = subtree(IV, context.encode(), 0, CONTEXT, ROOT)
    return words_to_bytes(subtree(context_key, material, 0, MATERIAL, ROOT))


# ---- LZ4 block ----


def unpack_lz4(data):
    out, at = bytearray(), 0

    def length(start):
        nonlocal at
        if start == 15:
            while True:
                at += 1
                start += data[at - 1]
                if data[at - 1] != 255:
                    break
        return start

    while True:
        token = data[at]
        at += 1
        literals = length(token >> 4)
        out += data[at : at + literals]
        at += literals
        if at == len(data):
            return bytes(out)
        distance = number(data, at, 2)
        at += 2
        for _ in range(length(token & 15) + 4):
            out.append(out[-distance])


def unpack_zstd(data):
    return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout


UNPACK = [bytes, unpack_lz4, unpack_zstd]


# ---- the format ----


def number(data, at, size):
    return int.from_bytes(data[at : at + size], "little")


def check(condition, what):
    if not condition:
        sys.exit(f"{what}: damaged, or of a later version")


class Repository:
    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, "config.toml"), "rb") as file:
            config = tomllib.load(file)
        check(config["format_version"] == 1 and config["incompatible_features"] == [], "config.toml")
        check(config["hash"] == "blake3" and not config.get("crypto"), "config.toml")
        self.chunk_size, self.fan_out = config["chunk_size"], config["fan_out"]
        id_key = bytes.fromhex(config["id_key"])
        contexts = ["id of a chunk", "id of a manifest node", "id of a disk root", "id of a blob"]
        prefix = "virtkeep repository v1: "
        self.id_keys = [None] + [derive_key(prefix + context, id_key) for context in contexts]
        self.checksum_key = derive_key(prefix + "checksum of an object", id_key)
        self.places = {}
        for folder, _, files in os.walk(os.path.join(path, "packs")):
            for name in sorted(files):
                if name.endswith(".pack"):
                    self.read_table(os.path.join(folder, name))

    def checksum(self, data):
        return keyed_hash(self.checksum_key, data)

    def read_table(self, path):
        with open(path, "rb") as file:
            header = file.read(64)
            check(header[:8] == b"VKPACK\r\n" and number(header, 8, 2) == 1, path)
            check(header[56:] == self.checksum(header[:56])[:8], path)
            check(header[16:32].hex() + ".pack" == os.path.basename(path), path)
            end = file.seek(-80, os.SEEK_END)
            trailer = file.read()
            check(trailer[72:] == b"\nVKPEND\n", path)
            file.seek(number(trailer, 0, 4))
            table = file.read(end - number(trailer, 0, 4))
        check(trailer[8:40] == self.checksum(header + table + trailer[:8]), path)
        check(len(table) == 4 + 44 * number(trailer, 4, 4) and table[:4] == b"vkt\xf1", path)
        for at in range(4, len(table), 44):
            place = path, number(table, at + 32, 4), number(table, at + 36, 4)
            self.places[table[at : at + 32]] = place

    def fetch(self, kind, identity):
        path, offset, length = self.places[identity]
        with open(path, "rb") as file:
            file.seek(offset)
            record = file.read(length)
        what = f"record {identity.hex()}"
        header = number(record, 4, 2)
        check(record[:4] == b"vkr\xf1" and 60 <= header <= 1024, what)
        check(record[header - 8 : header] == self.checksum(record[: header - 8])[:8], what)
        check(record[6] == kind and record[8] == 0 and record[20:52] == identity, what)
        raw_length, stored = number(record, 12, 4), record[header:]
        check(raw_length <= [0, self.chunk_size, 8226, 48, 1 << 20][kind], what)
        check(len(stored) == number(record, 16, 4) and record[7] < len(UNPACK), what)
        raw = UNPACK[record[7]](stored)
        check(len(raw) == raw_length, what)
        if kind == 1:
            raw = raw.ljust(self.chunk_size, b"\0")
        check(keyed_hash(self.id_keys[kind], raw) == identity, what)
        return raw

    def point(self, name):
        places = [os.path.join(self.path, folder, name) for folder in ("points", "forgotten")]
        with open(next(filter(os.path.exists, places)), "rb") as file:
            record = file.read()
        check(record[:8] == b"VKPOINT\n" and number(record, 8, 2) == 1 and record[10] == 0, name)
        check(record[-32:] == self.checksum(record[:-32]), name)
        body = 24 + number(record, 12, 2)
        check(body + number(record, 16, 4) == len(record) - 32, name)
        point = json.loads(record[body:-32])
        check(point["id"] == name, name)
        return point

    def restore(self, disk, out):
        root = self.fetch(3, bytes.fromhex(disk["root"]))
        size, height = number(root, 0, 8), 1
        while self.fan_out**height * self.chunk_size < size:
            height += 1
        check(len(root) == 48 and size == disk["size"] and root[14] == height, "root")
        check(number(root, 8, 4) == self.chunk_size, "root")
        check(number(root, 12, 2) == self.fan_out, "root")
        out.truncate(size)
        if root[15]:
            self.descend(root[16:], height - 1, 0, size, out)

    def descend(self, identity, level, chunk, size, out):
        node = self.fetch(2, identity)
        check(node[0] == level and 1 << node[1] == self.fan_out, "node")
        bitmap, at = node[2:], 2 + self.fan_out // 8
        for i in range(self.fan_out):
            if not bitmap[i // 8] >> i % 8 & 1:
                continue
            child, at = node[at : at + 32], at + 32
            child_chunk = chunk + i * self.fan_out**level
            if level > 0:
                self.descend(child, level - 1, child_chunk, size, out)
            else:
                offset = child_chunk * self.chunk_size
                out.seek(offset)
                out.write(self.fetch(1, child)[: size - offset])
        check(at == len(node), "node")


def main():
    repository, point, name, output = sys.argv[1:]
    repository = Repository(repository)
    point = repository.point(point)
    with open(output, "wb") as out:
        for disk in point["disks"]:
            if disk["target"] == name:
                return repository.restore(disk, out)
        for file in point["files"]:
            if file["name"] == name:
                for piece in file["pieces"]:
                    out.write(repository.fetch(4, bytes.fromhex(piece)))
                return check(out.tell() == file["size"], name)
    sys.exit(f"the point has no {name}")


main()

"""Hostile planner files, made from real ones: what damage, lies and other kinds of file look like.

Each maker is a pure function of a random generator and the bytes of real planners.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import pickle
import random
import sqlite3
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from budgetfusion_nodes.predictor.planner_file import MAX_FILE_BYTES

Originals = Sequence[bytes]
Maker = Callable[[random.Random, Originals], bytes]

MARKUP = "<img src=x onerror=alert(1)><script>alert(1)</script>"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\n\x00\u202e"
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**18, 2**63, -(2**63), 10**400, -0.0, 1e-320, 1e308, -1e308),
    *("", "NaN", "-1", MARKUP, ESCAPES, "../../etc/passwd", "\ud800", "a" * 5000, "﷽" * 300),
    *([], {}, [[]], {"": {}}, [None], [0.5] * 3000, {str(n): n for n in range(500)}),
)
CONSTANTS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 4000, "9" * 5000, "1e-999", "0x10", "01", "1.")
WEIGHTS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e30, 1e-45, 0.0)
MEGABYTE = 1 << 20
TRIES = 4
"""To make a large file that is not too large."""


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensors' bytes) of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Mapping[str, Any] | bytes, tensors: bytes) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + tensors


def description_of(content: bytes) -> dict[str, Any]:
    """What a planner says of itself."""
    return json.loads(parts(content)[0]["__metadata__"]["planner"])


def with_description(content: bytes, text: str) -> bytes:
    """The same file with another description."""
    header, tensors = parts(content)
    header["__metadata__"]["planner"] = text
    return joined(header, tensors)


def _header_size(content: bytes) -> int:
    return 8 + struct.unpack("<Q", content[:8])[0]


# ------------------------------------------------------------------------------------------------------------ damage


def flip(rng: random.Random, originals: Originals) -> bytes:
    """A few bytes anywhere."""
    content = bytearray(rng.choice(originals))
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def flip_header(rng: random.Random, originals: Originals) -> bytes:
    """A few bytes of the header, its length among them."""
    original = rng.choice(originals)
    content, size = bytearray(original), _header_size(original)
    for _ in range(rng.choice((1, 1, 2, 5))):
        content[rng.randrange(size)] = rng.choice(b'[]{}",:0123456789eE-+.ntf \\\xff\x00')
    return bytes(content)


def cut(rng: random.Random, originals: Originals) -> bytes:
    content = rng.choice(originals)
    return content[: rng.choice((rng.randrange(len(content)), rng.randrange(_header_size(content)), rng.randrange(20)))]


def grown(rng: random.Random, originals: Originals) -> bytes:
    content = rng.choice(originals)
    return content + rng.randbytes(rng.choice((1, 7, 4096)))


def spliced(rng: random.Random, originals: Originals) -> bytes:
    """The beginning of one and the end of another."""
    one, other = rng.choice(originals), rng.choice(originals)
    at = rng.randrange(len(one))
    return one[:at] + other[min(at, len(other)) :]


def crossed(rng: random.Random, originals: Originals) -> bytes:
    """One's header over another's tensors."""
    return joined(parts(rng.choice(originals))[0], parts(rng.choice(originals))[1])


def repeated(rng: random.Random, originals: Originals) -> bytes:
    """A block written twice, or not at all."""
    content = rng.choice(originals)
    a, b = sorted(rng.randrange(_header_size(content) * 2) for _ in range(2))
    return content[:b] + content[a:b] + content[b:] if rng.random() < 0.5 else content[:a] + content[b:]


# -------------------------------------------------------------------------------------------------------------- lies


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        found += _places(inner, (*path, key))
    return found


def _put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = copy.deepcopy(new)  # the next lie may be told inside it


def lie(rng: random.Random, originals: Originals) -> bytes:
    """Something else in one to three places of the description."""
    content = rng.choice(originals)
    told = description_of(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [path for path in _places(told) if len(path) < 3 or rng.random() < 0.1]
        _put(told, rng.choice(places), rng.choice(NASTY))
    return with_description(content, json.dumps(told))


def constant(rng: random.Random, originals: Originals) -> bytes:
    """A number that is none, or an endless one."""
    content = rng.choice(originals)
    told = description_of(content)
    _put(told, rng.choice(_places(told)), "@@")
    return with_description(content, json.dumps(told).replace('"@@"', rng.choice(CONSTANTS)))


def dropped(rng: random.Random, originals: Originals) -> bytes:
    """A key missing, or one of another planner in its place."""
    content, other = rng.choice(originals), description_of(rng.choice(originals))
    told = description_of(content)
    key = rng.choice(list(told))
    if rng.random() < 0.5:
        del told[key]
    else:
        told[key] = other.get(key)
    return with_description(content, json.dumps(told))


def doubled(rng: random.Random, originals: Originals) -> bytes:
    """A key twice, in the description or in the table of tensors."""
    content = rng.choice(originals)
    if rng.random() < 0.5:
        told = description_of(content)
        key = rng.choice(list(told))
        text = json.dumps(told)
        return with_description(content, text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice(NASTY))}}}")
    header, tensors = parts(content)
    key = rng.choice(list(header))
    entry = json.dumps({**header[key], **({} if key == "__metadata__" else {"shape": [1, 1]})})
    return joined((json.dumps(header)[:-1] + f", {json.dumps(key)}: {entry}}}").encode(), tensors)


def table(rng: random.Random, originals: Originals) -> bytes:
    """Types, shapes and places of tensors that do not fit what is there."""
    header, tensors = parts(rng.choice(originals))
    key = rng.choice([name for name in header if name != "__metadata__"])
    field = rng.choice(("dtype", "shape", "data_offsets"))
    wrong = {
        "dtype": ("F64", "F16", "BF16", "I64", "U8", "F8_E4M3", "", None, 7, MARKUP),
        "shape": ([], [-1], [2**62, 2**62], [10**9, 10**9], [1.5], "x", None, [[1]], [0], header[key]["shape"] * 2),
        "data_offsets": ([0, 0], [-1, 4], [0, 2**63], [2**62, 2**62 + 4], [4, 0], [0], None, [0.0, 4.0], [0, 4]),
    }
    header[key] = {**header[key], field: rng.choice(wrong[field])}
    return joined(header, tensors)


def length(rng: random.Random, originals: Originals) -> bytes:
    """A header that is longer or shorter than it says."""
    content = rng.choice(originals)
    true = _header_size(content) - 8
    said = rng.choice((0, 1, true - 1, true + 1, len(content), 2**31, 2**32, 2**63, 2**64 - 1, 100_000_001))
    return struct.pack("<Q", said) + content[8:]


def frame(rng: random.Random, originals: Originals) -> bytes:
    """Metadata of other kinds of file, or of none."""
    header, tensors = parts(rng.choice(originals))
    key = rng.choice(("format", "version", "planner", None))
    if key is None:
        header["__metadata__"] = rng.choice(NASTY)
    else:
        header["__metadata__"][key] = rng.choice((*NASTY, "pt", "1", "3", "2.0"))
    return joined(header, tensors)


def sizes(rng: random.Random, originals: Originals) -> bytes:
    """Shapes that would take all memory."""
    content = rng.choice(originals)
    told = description_of(content)
    if "sizes" in told:
        for key in rng.sample(list(told["sizes"]), rng.randint(1, 3)):
            told["sizes"][key] = rng.choice((0, -1, 64, 1024, 65536, 10**6, 2**31, 2**63, 10**30))
    return with_description(content, json.dumps(told))


# ------------------------------------------------------------------------------------------------------------- bulk


def deep(rng: random.Random, originals: Originals) -> bytes:
    """Thousands of brackets, in the header or in the description."""
    depth = rng.choice((100, 900, 1100, 20_000, 500_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    nest = opened * depth + "1" + closed * depth
    content = rng.choice(originals)
    if rng.random() < 0.5:
        return joined(nest.encode()[: 2 * MEGABYTE], b"")
    told = json.dumps(description_of(content))
    return with_description(content, told[:-1] + f', "{rng.choice(("later", "provenance"))}": {nest}}}')


def many(rng: random.Random, originals: Originals) -> bytes:
    """As many of something as two megabytes hold."""
    content = rng.choice(originals)
    told = description_of(content)
    key = rng.choice(("later", "provenance", "scale", "grid", "metrics", "quantiles", "name", "backends", "levels"))
    one, wrap = rng.choice(
        (("[]", "[]"), ("{}", "[]"), ("1", "[]"), ('"x"', "[]"), ("1e5", "[]"), ("null", "[]"), ('"", "', '""'))
    )
    if rng.random() < 0.3:
        items = ",".join(f'"{n}":[]' for n in range(100_000))
        text = "{" + items + "}"
    else:
        room = rng.choice((50_000, 500_000, 1_900_000))
        text = wrap[0] + ",".join([one] * (room // (len(one) + 1))) + wrap[1]
    told[key] = "@@"
    return with_description(content, json.dumps(told).replace('"@@"', text if wrap == "[]" else json.dumps(text)))


def tensors_many(rng: random.Random, originals: Originals) -> bytes:
    """A table of many empty tensors."""
    header, tensors = parts(rng.choice(originals))
    for n in range(rng.choice((1000, 20_000))):
        header[f"t{n}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return joined(header, tensors)


# -------------------------------------------------------------------------------- files that fit, with hostile numbers


def weights(rng: random.Random, originals: Originals) -> bytes:
    """Numbers in the tensors that no fit gives."""
    content = rng.choice(originals)
    metadata = parts(content)[0]["__metadata__"]
    found = load(content)
    if not found:
        return lie(rng, originals)
    for key in rng.sample(list(found), rng.choice((1, 1, 3, len(found)))):
        value = rng.choice(WEIGHTS)
        flat = found[key].clone().reshape(-1)
        if len(flat):
            flat[rng.randrange(len(flat)) if rng.random() < 0.5 else slice(None)] = value
        found[key] = flat.reshape(found[key].shape)
    return save({k: v.half() for k, v in found.items()} if rng.random() < 0.1 else found, metadata)


def thresholds(rng: random.Random, originals: Originals) -> bytes:
    """Scales, limits and thresholds at the ends of what a number holds."""
    content = rng.choice(originals)
    told = description_of(content)
    small, large = rng.choice(((1e-320, 1e29), (1e-30, 1e20), (5e-324, 9.9e29)))
    told["novelty_limit"] = rng.choice((small, large))
    told["scale"] = [rng.choice((small, large)) for _ in told.get("scale", ())]
    if "risk" in told:
        rows = [[rng.choice((0.0, 1e29)) for _ in row] for row in told["risk"]["theta"]]
        flat = rng.choice((0.0, 1e29, 5e-324))
        told["risk"]["theta"] = rng.choice((rows, [[flat] * len(row) for row in rows]))
        told["risk"]["prompts"] = rng.choice((1, 10**8, 10**15, 10**400))
    return with_description(content, json.dumps(told))


def large(rng: random.Random, originals: Originals) -> bytes:
    """A planner of curves as large as its description may ask for: consistent, and dear to build."""
    told = description_of(rng.choice([one for one in originals if "sizes" in description_of(one)]))
    shapes: dict[str, tuple[int, ...]] = {}
    dtype = rng.choice((torch.float32, torch.float16))
    for _ in range(TRIES):
        width, pooled = rng.choice(((65536, 0), (65536, 65536), (16384, 16384), (64, 0)))
        hidden, context, networks = rng.choice(((1024, 64, 1), (32, 1024, 2), (700, 16, 1), (400, 9, 3), (8, 8, 16)))
        told["sizes"] |= {"token_in": width, "pooled_in": pooled, "context": context, "hidden": hidden}
        told["sizes"] |= {"networks": networks, "pooled_width": told["sizes"]["token_width"] if pooled else 0}
        shapes = _shapes(told)
        if sum(map(math.prod, shapes.values())) * dtype.itemsize < MAX_FILE_BYTES:
            break
    tensors = {key: torch.full(shape, 0.01, dtype=dtype) for key, shape in shapes.items()}
    tensors["novelty.whitening"] = torch.eye(*shapes["novelty.whitening"]).to(dtype)
    return save(tensors, {"format": "budgetfusion.planner", "version": "2", "planner": json.dumps(told)})


def _shapes(told: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    from budgetfusion_nodes.predictor.planner_description import Description

    return Description.model_validate_json(json.dumps(told)).shapes()


def long_grid(rng: random.Random, originals: Originals) -> bytes:
    """A thousand counts, with tensors to match."""
    told = description_of(rng.choice([one for one in originals if "sizes" in description_of(one)]))
    told["grid"] = sorted(rng.sample(range(1, 1001), rng.choice((2, 500, 1000))))
    tensors = {key: torch.rand(shape) for key, shape in _shapes(told).items()}
    return save(tensors, {"format": "budgetfusion.planner", "version": "2", "planner": json.dumps(told)})


# ------------------------------------------------------------------------------------------------- other kinds of file


class _Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a pickle was run')",))


def other(rng: random.Random, originals: Originals) -> bytes:
    """What else may be called .safetensors."""
    kind = rng.randrange(10)
    if kind == 0:
        return _zipped({"archive/data.pkl": pickle.dumps(_Bomb()), "a": b"\0" * (32 * MEGABYTE)})
    if kind == 1:
        return pickle.dumps(_Bomb(), protocol=rng.randrange(5))
    if kind == 2:
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
        return buffer.getvalue()
    if kind == 3:
        return gzip.compress(rng.choice(originals))
    if kind == 4:
        return b"\x89PNG\r\n\x1a\n" + rng.randbytes(2000)
    if kind == 5:
        return _database()
    if kind == 6:
        return rng.choice((b"", b"\0", b"\0" * 8, b"\0" * 4096, b"\xff" * 4096, b"{}", b"<!doctype html><script>"))
    if kind == 7:
        return json.dumps(description_of(rng.choice(originals))).encode()
    if kind == 8:
        return rng.randbytes(rng.choice((7, 8, 9, 100, 100_000)))
    return save({"lora_up": torch.zeros(4, 4)}, {"format": "pt"})


def _zipped(content: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "database"
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE t (a)")
        return path.read_bytes()


def untouched(rng: random.Random, originals: Originals) -> bytes:
    return rng.choice(originals)


MAKERS: Mapping[Maker, int] = {
    **dict.fromkeys((flip, flip_header, lie, constant, weights, thresholds, table), 10),
    **dict.fromkeys((cut, spliced, crossed, repeated, dropped, doubled, frame, sizes, other), 6),
    **dict.fromkeys((grown, length, deep, many), 4),
    **dict.fromkeys((tensors_many, long_grid, untouched), 2),
    large: 1,
}
"""Maker -> how often."""


def hostile(rng: random.Random, originals: Originals) -> tuple[str, bytes]:
    """(kind, content) of one hostile file."""
    (maker,) = rng.choices(list(MAKERS), list(MAKERS.values()))
    return maker.__name__, maker(rng, originals)

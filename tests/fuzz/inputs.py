"""Makes the fuzzer's inputs: small valid files of every kind, and what damage makes of them."""

import copy
import io
import json
import random
import struct
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
import yaml
from audio_encodings import ENCODINGS, WITHOUT_LENGTH, encode
from audio_files import ROOT, tone
from golden import FIXTURES, checkpoint, shrunk_state
from tiny_models import save_tiny_classifier, save_tiny_cnn
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

# Kind -> share of the inputs.
KINDS = {
    "audio": 40, "upload": 5, "manifest": 20, "recipe": 12, "checkpoint": 9, "config": 8, "safetensors": 6,
}  # fmt: skip
NAMES = ("clip",) * 12 + ("$a_$b", "<i>&", "a\nb", "-x", "caf\udce9", "é" * 100, "%s {x}", "clip.wav", " ")
NUMBERS = (0, 1, 2, 3, 8, 16, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
VALUES = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", " ", "nan",
    "none", "1e-4", "x" * 300, "é\u2028", "\x00", "$x$", "../..", [], {}, [None], [[]], [0, -1], ["a", 1],
    {"a": {"b": 1}}, {"0": "a", "1": "a"},
)  # fmt: skip
TOKENS = (
    '"', '"', "'", ",", ";", "\t", "\n", "\r", "\r\n", "\x00", "\ufeff", "\\", "[", "{", "}", "[" * 5000,
    "{a: " * 2000, "&a ", "*a",
    "!!python/object/apply:os.system ['true']", "\n---\n", ": ", "- ", "? ", "<<: ", "nan", "NaN",
    "1e999", "null", "é", "\u2028", "\x1a", "\x85", "#", "$", "9" * 5000, "0x", "2020-01-01", "=", " ", "%", "@",
)  # fmt: skip
BOMB = "&a0 [x, x]"  # nine levels of nine references: a billion values, where they are written out
for _level in range(1, 10):
    BOMB = f"&a{_level} [{BOMB}{f', *a{_level - 1}' * 8}]"
LABELS = ("low", "high")


class Input(NamedTuple):
    """
    Holds a file and what is known about it.

    facts: `seconds` of sound before the damage, `cut`: only the end is missing, in a format that stores its length;
        `base`: saved folder or family; `intact`: bytes as they were made; ...
    """

    kind: str
    name: str
    content: bytes
    facts: dict


def make_seeds(folder: Path) -> dict[str, list[Input]]:
    """Makes valid inputs of every kind; the saved models that some belong to are written below `folder`."""
    recordings = _recordings()
    return {
        "audio": recordings,
        "upload": [seed._replace(kind="upload") for seed in recordings],
        "manifest": _manifests(),
        "recipe": [
            Input("recipe", "recipe.yaml", path.read_bytes(), {})
            for path in sorted((ROOT / "recipes").rglob("*.yaml"))
            if path.parent.name != "accelerate"
        ],
        "checkpoint": _checkpoints(),
        **_saved_files(folder),
    }


def make_input(seeds: dict[str, list[Input]], seed: int, index: int) -> Input:
    """Returns input number `index` of a seed."""
    rng = random.Random(f"{seed}/{index}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    source = rng.choice(seeds[kind])
    damage = {"recipe": _damage_text, "config": _damage_text, "checkpoint": _damage_checkpoint}.get(kind, _damage_bytes)
    if kind == "safetensors" and rng.random() < 0.5:
        damage = _damage_safetensors
    if kind == "manifest" and not source.name.endswith((".parquet", ".xlsx")):
        damage = _damage_text
    found = damage(rng, source, rng.choice(seeds[kind]))
    if kind in ("audio", "upload"):
        stem, ending = rng.choice(NAMES), source.name.rsplit(".", 1)[1]
        if rng.random() < 0.1:
            ending = rng.choice(("wav", "mp3", "ogg", "flac", "m4a", "txt", "WAV"))
        found = found._replace(name=f"{stem}.{ending}")
    return found


def _recordings() -> list[Input]:
    made = []
    for encoding in ENCODINGS:
        for rate, channels, seconds in ((16000, 1, 0.6), (44100, 2, 0.3)):
            rate, channels = encoding.rate or rate, encoding.channels or channels
            samples = tone(seconds, rate, channels=channels).reshape(-1, channels)
            facts = {"seconds": seconds, "declares": encoding.declares}
            if encoding.container in WITHOUT_LENGTH:
                facts = {}
            name = f"clip.{encoding.extension}"
            made.append(Input("audio", name, encode(samples, rate, encoding), facts))
            if encoding.container in ("MP3", "OGG", "mp3", "ogg"):  # joined files, as `cat` and Icecast leave them
                facts = {"seconds": 2 * seconds, "declares": False}
                made.append(Input("audio", name, 2 * encode(samples, rate, encoding), facts))
    return made


def _manifests() -> list[Input]:
    names = [f"{word}_{index}.wav" for index in range(5) for word in LABELS]
    table = pandas.DataFrame({"file_name": names, "label": list(LABELS) * 5, "notes": ["a, b", 'said "c"'] * 5})
    plain = table.drop(columns="notes")
    binary = io.BytesIO(), io.BytesIO(), io.BytesIO()
    table.to_parquet(binary[0])
    audio = [{"path": name, "bytes": b"RIFF"} for name in names]
    pandas.DataFrame({"audio": audio, "label": plain["label"]}).to_parquet(binary[1])
    plain.to_excel(binary[2], index=False)
    texts = {
        "plain.csv": plain.to_csv(index=False),
        "quoted.csv": table.to_csv(index=False),
        "semicolons.csv": plain.to_csv(index=False, sep=";"),
        "windows.csv": plain.to_csv(index=False, lineterminator="\r\n"),
        "plain.tsv": plain.to_csv(index=False, sep="\t"),
        "Raven.txt": plain.assign(Begin=0.5).to_csv(index=False, sep="\t"),
        "rows.json": table.to_json(orient="records"),
        "columns.json": plain.to_json(orient="columns"),
        "ssast.json": json.dumps({"data": [{"wav": name, "labels": "low,high"} for name in names]}),
        "rows.jsonl": table.to_json(orient="records", lines=True),
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= dict(zip(("paths.parquet", "bytes.parquet", "sheet.xlsx"), (buffer.getvalue() for buffer in binary)))
    return [Input("manifest", name, content, {"rows": len(names)}) for name, content in files.items()]


def _checkpoints() -> list[Input]:
    states = {
        "ssast": checkpoint("ssast_patch_finetuned_0.json"),
        "ssast pretrained": checkpoint("ssast_frame_pretrained.json"),
        "ast": shrunk_state("ast_tiny_weights.json", 4),
        "vggish": shrunk_state("vggish_weights.json"),
        "panns-cnn14": shrunk_state("cnn14_weights.json"),
    }
    made = []
    for name, state in states.items():
        for is_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=is_zip)
            facts = {"base": name.split()[0], "checked": is_zip}
            made.append(Input("checkpoint", "weights.pth", buffer.getvalue(), facts))
    asit = (FIXTURES / "asit_pretrain.pth").read_bytes()
    return [*made, Input("checkpoint", "weights.pth", asit, {"base": "asit", "checked": True})]


def _saved_files(folder: Path) -> dict[str, list[Input]]:
    save_tiny_classifier(folder / "dual_ssast")
    for family in ("vggish", "panns_cnn14"):
        save_tiny_cnn(folder / family, family, num_labels=3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ASTForAudioClassification(ASTConfig(**sizes, max_length=32)).save_pretrained(folder / "hf-ast")
    ASTFeatureExtractor(max_length=32).save_pretrained(folder / "hf-ast")
    found = {"config": [], "safetensors": []}
    for path in sorted(folder.glob("*/*")):
        kind = {".json": "config", ".safetensors": "safetensors"}.get(path.suffix)
        if kind:
            found[kind].append(Input(kind, path.name, path.read_bytes(), {"base": path.parent.name}))
    return found


def _place(rng: random.Random, size: int) -> int:
    """Draws a position; half of them lie in the header."""
    return rng.randrange(max(1, min(size, 256) if rng.random() < 0.5 else size))


def _damage_bytes(rng: random.Random, source: Input, other: Input) -> Input:
    content, facts = bytearray(source.content), dict(source.facts)
    ways = rng.choices(
        ("cut", "flip", "number", "run", "drop", "repeat", "insert", "join", "none"), k=rng.choice((1, 1, 2, 3))
    )
    for way in ways:
        start, length = _place(rng, len(content)), rng.choice((1, 2, 4, 16, 100, 1000))
        if way == "cut":
            del content[rng.randrange(len(content) + 1) :]
        elif way == "flip":
            for _ in range(rng.choice((1, 1, 4, 64))):
                if content:
                    content[_place(rng, len(content))] ^= 1 << rng.randrange(8)
        elif way == "number":
            form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
            limit = 2 ** (8 * struct.calcsize(form))
            written = struct.pack(form, rng.choice(NUMBERS) % limit)
            content[start : start + len(written)] = written
        elif way == "run":
            filler = rng.choice((b"\x00", b"\xff", None))
            content[start : start + length] = filler * length if filler else rng.randbytes(length)
        elif way == "drop":
            del content[start : start + length]
        elif way == "repeat":
            content[start:start] = content[start : start + length]
        elif way == "insert":
            content[start:start] = rng.randbytes(length)
        elif way == "join":
            content += other.content
    facts |= {"cut": ways == ["cut"] and facts.get("declares", False), "intact": set(ways) == {"none"}}
    if "join" in ways:
        facts.pop("seconds", None)
    return source._replace(content=bytes(content), facts=facts)


def _damage_text(rng: random.Random, source: Input, other: Input) -> Input:
    if rng.random() < 0.15:
        return _damage_bytes(rng, source, other)
    text = source.content.decode()
    if source.kind in ("recipe", "config") and rng.random() < 0.6:
        tree = yaml.safe_load(text) if source.kind == "recipe" else json.loads(text)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change_leaf(rng, tree)
        if source.kind == "config":
            return source._replace(content=json.dumps(tree).encode())
        text = yaml.safe_dump(tree, allow_unicode=True)
    if source.kind == "recipe" and rng.random() < 0.03:
        text += f"\nlabel_column: {rng.choice((BOMB, '&a [*a]', '&a {b: *a}'))}\n"
    if rng.random() < 0.6 or source.kind == "manifest":
        for _ in range(rng.choice((1, 1, 2, 4))):
            text = _change_text(rng, text)
    codec = rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "latin-1", "utf-32"))
    return source._replace(content=text.encode(codec, "replace"))


def _change_leaf(rng: random.Random, tree):
    """Replaces, adds or removes one value of nested dictionaries and lists, in place."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(tree[key], (dict, list)) or rng.random() < 0.3:
            break
        tree = tree[key]
    way = rng.random()
    value = copy.deepcopy(rng.choice(VALUES))
    if way < 0.7:
        tree[key] = value
    elif way < 0.85:
        del tree[key]
    elif isinstance(tree, dict):
        tree[rng.choice(("auto_map", "x", "", "label_column", "dtype", "torch_dtype", "_attn_implementation"))] = value
    else:
        tree.append(value)


def _change_text(rng: random.Random, text: str) -> str:
    lines, place = text.split("\n"), rng.randrange(len(text) + 1)
    way = rng.choice(("token", "token", "token", "cut", "drop", "line twice", "line less", "line ends", "separators"))
    if way == "token":
        return text[:place] + rng.choice(TOKENS) + text[place:]
    if way == "cut":
        return text[:place]
    if way == "drop":
        return text[:place] + text[place + rng.choice((1, 5, 50)) :]
    if way == "line ends":
        return text.replace("\n", rng.choice(("\r\n", "\r", "\n\n", " \n", ",\n", "\t\n")))
    if way == "separators":
        return text.replace(rng.choice(",\t;:"), rng.choice(",\t;:| "))
    row = rng.randrange(len(lines))
    lines[row : row + 1] = [lines[row]] * 2 if way == "line twice" else []
    return "\n".join(lines)


def _damage_checkpoint(rng: random.Random, source: Input, other: Input) -> Input:
    """Damages the bytes, or the content of a file whose bytes are as torch.save writes them."""
    if rng.random() < 0.6:
        return _damage_bytes(rng, source, other)
    state = torch.load(io.BytesIO(source.content), weights_only=False)
    while any(isinstance(value, dict) for value in state.values()):  # ASiT's and PANNs' lie in a wrapper
        state = next(value for value in state.values() if isinstance(value, dict))
    state = dict(state)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(list(state))
        value, way = state[name], rng.randrange(9)
        if way == 0:
            del state[name]
        elif way == 1:
            state[rng.choice(("x", 3, None, ("a",), "module.x", name + "_"))] = value
        elif way == 2:
            state[name] = copy.deepcopy(rng.choice(VALUES))
        elif isinstance(value, torch.Tensor):
            state[name] = [
                lambda v: (
                    torch.full_like(v, rng.choice((float("nan"), float("inf"), 1e38))) if v.is_floating_point() else v
                ),
                lambda v: v.to(rng.choice((torch.int8, torch.float16, torch.complex64, torch.bool, torch.float64))),
                lambda v: v.flatten(),
                lambda v: v.flatten()[:0],
                lambda v: v.to_sparse() if rng.random() < 0.5 else v.T.contiguous() if v.ndim == 2 else v[None],
                lambda v: v.new_zeros(()).expand(tuple(rng.choice((1, 3, 10**5)) for _ in v.shape)),
            ][way - 3](value)
        if not state:
            break
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return source._replace(content=buffer.getvalue(), facts={**source.facts, "intact": False, "checked": False})


def _damage_safetensors(rng: random.Random, source: Input, other: Input) -> Input:
    """Damages the header: names, types, shapes and places of the tensors."""
    size = struct.unpack("<Q", source.content[:8])[0]
    tree = json.loads(source.content[8 : 8 + size])
    for _ in range(rng.choice((1, 2))):
        _change_leaf(rng, tree)
    header = json.dumps(tree).encode()
    return source._replace(content=struct.pack("<Q", len(header)) + header + source.content[8 + size :])

"""Write the model `filetype`: magika's network out of its Python package, our steps around it, answers of magika's own."""

from __future__ import annotations

import json
import re
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from magika import Magika

HERE = Path(__file__).parent

SAMPLES = {
    "python": "import json\nfrom pathlib import Path\n\n\ndef main() -> None:\n    print(json.loads(Path('a').read_text()))\n",
    "sql": "SELECT name, count(*) FROM users\nJOIN orders ON orders.user_id = users.id\nGROUP BY name ORDER BY name;\n",
    "c": '#include <stdio.h>\n\nint main(void)\n{\n    printf("%d\\n", 42);\n    return 0;\n}\n',
    "shell": '#!/bin/sh\nset -eu\nfor file in *.txt; do\n    [ -s "$file" ] && echo "$file" >> list\ndone\n',
    "short": "hi\n",
}
"""Texts whose types are the model's golden answers; the last is too short for the network."""


def write(folder: Path) -> None:
    """Fill `folder` with the newest model of the package; raise `ValueError` if its features are others than ours."""
    version = folder / "1"
    golden = folder / "golden"
    version.mkdir()
    golden.mkdir()
    with as_file(files("magika")) as package:
        source = _newest(package / "models")
        settings = json.loads((source / "config.min.json").read_text(encoding="utf-8"))
        kinds = json.loads((package / "config" / "content_types_kb.min.json").read_text(encoding="utf-8"))
        shutil.copyfile(source / "model.onnx", version / "model.onnx")
        magika = Magika(model_dir=source)
    shutil.copyfile(HERE / "model.toml", folder / "model.toml")
    shutil.copyfile(HERE / "model.py", version / "model.py")
    _dump(version / "config.json", _config(settings, kinds))
    for name, sample in SAMPLES.items():
        _dump(golden / f"{name}.json", _golden(magika, sample))


def _newest(models: Path) -> Path:
    """Return the folder `standard_v<major>_<minor>` with the highest version."""
    found = {
        tuple(map(int, match.groups())): folder
        for folder in models.iterdir()
        if (match := re.fullmatch(r"standard_v(\d+)_(\d+)", folder.name))
    }
    if not found:
        names = sorted(folder.name for folder in models.iterdir())
        message = f"magika's models in {models}: expected standard_v<major>_<minor>, found {names}"
        raise ValueError(message)
    return found[max(found)]


def _config(settings: dict[str, Any], kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Say what `model.py` needs to know in its own words, the overwritten labels already resolved."""
    if settings["mid_size"] or settings["use_inputs_at_offsets"]:
        message = "magika's model takes bytes from elsewhere than the head and the tail of a content, which model.py does not"
        raise ValueError(message)
    labels = []
    for label in settings["target_labels_space"]:
        trusted = settings["overwrite_map"].get(label, label)
        threshold = settings["thresholds"].get(label, settings["medium_confidence_threshold"])
        doubted = "txt" if kinds[trusted]["is_text"] else "unknown"
        labels.append({"trusted": trusted, "threshold": threshold, "doubted": doubted})
    return {
        "head": settings["beg_size"],
        "tail": settings["end_size"],
        "block": settings["block_size"],
        "padding": settings["padding_token"],
        "shortest": settings["min_file_size_for_dl"],
        "labels": labels,
    }


def _golden(magika: Magika, sample: str) -> dict[str, Any]:
    """Ask magika itself about a sample."""
    result = magika.identify_bytes(sample.encode())
    return {"inputs": {"content": [sample]}, "outputs": {"type": [str(result.output.label)], "score": [result.score]}}


def _dump(file: Path, content: dict[str, Any]) -> None:
    """Write JSON for people to read too."""
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

"""Builds the models whose artefacts are not in the repository, from packages: `python models/build.py [NAME ...]`.

Each has a `build.py`, which makes its files, and a `template.yaml`, of which this makes the manifest: with the digests
of the files, and with what the build found out. A version without a manifest is none, so a service that starts before
its models are built leaves them out. What is newer than its sources is not built again.
"""

import argparse
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

MODELS = Path(__file__).parent
Build = Callable[[Path], Mapping[str, Any]]
"""Makes the files of a version in its folder; gives what the template lacks."""


def is_built(folder: Path) -> bool:
    """Whether the manifest is newer than all that it was made of."""
    manifest = folder / "manifest.yaml"
    sources = [folder / "build.py", folder / "template.yaml", *folder.glob("texts.yaml"), MODELS / "build.py"]
    return manifest.exists() and all(source.stat().st_mtime <= manifest.stat().st_mtime for source in sources)


def build_of(folder: Path) -> Build:
    """The `build` of the folder's script."""
    name = f"build_{folder.parent.name}_{folder.name}".replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, folder / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build: Build = module.build
    return build


def merged(template: Any, found: Any) -> Any:
    """The template with what was found, level by level."""
    if not isinstance(template, Mapping) or not isinstance(found, Mapping):
        return found
    return {**template, **{name: merged(template.get(name), value) for name, value in found.items()}}


def stamped(entry: Any, folder: Path) -> Any:
    """Whatever names a file, with the sha256 of that file."""
    if isinstance(entry, list):
        return [stamped(item, folder) for item in entry]
    if not isinstance(entry, Mapping):
        return entry
    result = {name: stamped(value, folder) for name, value in entry.items()}
    if "file" in result:
        result["sha256"] = hashlib.sha256((folder / result["file"]).read_bytes()).hexdigest()
    return result


def main() -> int:
    """Builds those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model; without any, all of them")
    parser.add_argument("--force", action="store_true", help="also what is built already")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    # transformers would import torchvision, for images that are not here; its binary does not fit every build of torch.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    folders = sorted(path.parent for path in MODELS.glob("*/*/template.yaml"))
    known = {folder.parent.name for folder in folders}
    unknown = set(arguments.names) - known
    if unknown:
        print(f"no model {min(unknown)!r} is built here; there are {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    for folder in folders:
        if arguments.names and folder.parent.name not in arguments.names:
            continue
        name = f"{folder.parent.name}@{folder.name}"
        if is_built(folder) and not arguments.force:
            print(f"{name} is built")
            continue
        print(f"{name} ...", flush=True)
        found = build_of(folder)(folder)
        template = yaml.safe_load((folder / "template.yaml").read_text())
        manifest = stamped(merged(template, found), folder)
        text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=120)
        (folder / "manifest.yaml").write_text(f"# Made of template.yaml by models/build.py.\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

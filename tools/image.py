"""Writes container images without a registry: Docker archives and OCI archives, byte for byte reproducible.

Called by the tests (also for images that are broken on purpose) and by `make demo`. Standard library only.
Everything here is a pure function of its arguments: entries are sorted, times are zero, owners are what the
caller says, and gzip is not used.

An image is a sequence of layers, a layer a sequence of `Entry` objects. `busybox_entries` gives the usual
small userland out of a statically linked busybox.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ARCHITECTURE = "amd64"
CREATED = "1970-01-01T00:00:00Z"

# Media types: OCI image-spec v1.1, media-types.md.
MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"

_DIRECTORIES = ("bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr/bin", "var")
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n"
_GROUP = "root:x:0:\nstaff:x:50:user\nuser:x:1000:\n"


@dataclass(frozen=True)
class Entry:
    """One name in a layer: a directory (`data` and `link` None), a regular file (`data`) or a symbolic link
    (`link`).
    """

    path: str
    data: bytes | None = None
    link: str | None = None
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class ImageConfig:
    """The run configuration of an image, in the words of OCI image-spec `config.md`."""

    cmd: tuple[str, ...] = ("sh",)
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ("PATH=/usr/bin:/bin:/sbin",)
    working_dir: str = "/"
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_json(self, diff_ids: Sequence[str]) -> bytes:
        """The image's configuration object with the layers' uncompressed digests."""
        config: dict[str, Any] = {"Cmd": list(self.cmd), "Env": list(self.env)}
        config["WorkingDir"] = self.working_dir
        if self.entrypoint:
            config["Entrypoint"] = list(self.entrypoint)
        if self.user:
            config["User"] = self.user
        if self.labels:
            config["Labels"] = dict(self.labels)
        return _json(
            {
                "architecture": ARCHITECTURE,
                "os": "linux",
                "created": CREATED,
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
                "history": [{"created": CREATED} for _ in diff_ids],
            }
        )


def layer_tar(entries: Iterable[Entry]) -> bytes:
    """One uncompressed layer. Entries keep their order by path; a later entry of the same path wins."""
    by_path = {entry.path: entry for entry in entries}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(by_path):
            entry = by_path[path]
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
            if entry.link is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                archive.addfile(info)
            elif entry.data is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def docker_archive(name: str, layers: Sequence[bytes], config: ImageConfig) -> bytes:
    """A `docker save` archive holding one image called `name`; what `ctr image import` of every release
    reads.
    """
    body = config.as_json([_digest(layer) for layer in layers])
    config_name = f"{hashlib.sha256(body).hexdigest()}.json"
    files = {config_name: body}
    layer_names = []
    for layer in layers:
        layer_name = f"{hashlib.sha256(layer).hexdigest()}/layer.tar"
        files[layer_name] = layer
        layer_names.append(layer_name)
    files["manifest.json"] = _json([{"Config": config_name, "RepoTags": [name], "Layers": layer_names}])
    return _tar_of(files)


def oci_archive(name: str, layers: Sequence[bytes], config: ImageConfig) -> bytes:
    """An OCI image layout as a tar archive; the name travels in the annotation that containerd reads."""
    body = config.as_json([_digest(layer) for layer in layers])
    blobs = [body, *layers]
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": _descriptor(MEDIA_CONFIG, body),
            "layers": [_descriptor(MEDIA_LAYER, layer) for layer in layers],
        }
    )
    blobs.append(manifest)
    platform = {"architecture": ARCHITECTURE, "os": "linux"}
    annotations = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    reference = {**_descriptor(MEDIA_MANIFEST, manifest), "platform": platform, "annotations": annotations}
    files = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in blobs}
    files["index.json"] = _json({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [reference]})
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    return _tar_of(files)


def busybox_entries(busybox: Path) -> list[Entry]:
    """A small userland: busybox with a link per applet, users `root` and `user` (1000), `/tmp`.

    Raises OSError or subprocess.CalledProcessError when `busybox` cannot be read or run here.
    """
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    entries = [Entry(path) for path in _DIRECTORIES]
    entries.append(Entry("tmp", mode=0o1777))
    entries.append(Entry("bin/busybox", data=busybox.read_bytes()))
    entries += [Entry(f"bin/{name}", link="busybox") for name in applets if name != "busybox"]
    entries.append(Entry("etc/passwd", data=_PASSWD.encode(), mode=0o644))
    entries.append(Entry("etc/group", data=_GROUP.encode(), mode=0o644))
    return entries


def find_busybox() -> Path:
    """The statically linked busybox of this machine (Debian: package busybox-static).

    Raises FileNotFoundError when there is none, naming the package.
    """
    for candidate in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if candidate.exists() and _is_static(candidate):
            return candidate
    raise FileNotFoundError(
        "No statically linked busybox in /bin or /usr/bin; install the package busybox-static"
    )


def write_if_changed(path: Path, data: bytes) -> None:
    """Writes `data` to `path` atomically unless it is there already."""
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def _is_static(program: Path) -> bool:
    # A dynamically linked ELF program names its loader in a PT_INTERP segment; the path is in the first
    # kilobytes.
    return b"/ld-linux" not in program.read_bytes()[:4096]


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _tar_of(files: Mapping[str, bytes]) -> bytes:
    return layer_tar(Entry(path, data=data, mode=0o644) for path, data in files.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tools.image OUT [--name NAME] [--format docker|oci]`: writes the busybox image."""
    parser = argparse.ArgumentParser(prog="python -m tools.image", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="docker.io/strato/busybox:latest")
    parser.add_argument("--format", choices=("docker", "oci"), default="docker")
    options = parser.parse_args(arguments)
    layers = [layer_tar(busybox_entries(find_busybox()))]
    image_format: Literal["docker", "oci"] = options.format
    writer = docker_archive if image_format == "docker" else oci_archive
    write_if_changed(options.out, writer(options.name, layers, ImageConfig()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

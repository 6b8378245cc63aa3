"""The app bundle that a run of Flower names, the same bytes on every machine.

Flower starts no run without a "FAB", an archive of the app's code, and hands it to every node. Ours
holds nothing but the names of the two apps: an executor of ours never unpacks it, it only compares
its digest, so that a run of anybody else's code is refused by name. Not compressed, because
compressors differ.
"""

import hashlib
import io
import zipfile
from typing import Final

PYPROJECT: Final = """\
[project]
name = "offsite"
version = "1.0.0"
description = "Names the apps that are installed on both sides; holds no code."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "offsite"

[tool.flwr.app.components]
serverapp = "offsite_installed:server_app"
clientapp = "offsite_installed:client_app"
"""
CONTENT: Final = ".info/CONTENT"
_DATE: Final = (1980, 1, 1, 0, 0, 0)


def fab() -> bytes:
    """The archive."""
    data = PYPROJECT.encode()
    listed = f"pyproject.toml,{hashlib.sha256(data).hexdigest()},{8 * len(data)}"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("pyproject.toml", data), (CONTENT, listed.encode())):
            archive.writestr(zipfile.ZipInfo(name, _DATE), content)
    return out.getvalue()


def fab_sha256() -> str:
    """Its digest in hex digits, as Flower names it."""
    return hashlib.sha256(fab()).hexdigest()

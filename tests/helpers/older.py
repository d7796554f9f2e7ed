"""A run folder as versions before checksums left it, for tests that change its files."""

import json
from pathlib import Path

from tutelage.utils.checksums import CHECKSUMS, MANIFEST, STARTED


def without_checksums(run: Path) -> Path:
    """The run, with nothing recorded about its files."""
    for path in (path for name in (MANIFEST, STARTED) for path in run.glob(f"**/{name}")):
        value = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: entry for key, entry in value.items() if key not in ("files", "checksum")}
        path.write_text(json.dumps(kept), encoding="utf-8")
    for path in run.glob(f"**/{CHECKSUMS}"):
        path.unlink()
    return run

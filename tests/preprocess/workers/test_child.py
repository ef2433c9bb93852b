"""The decode process: it stays light."""

from __future__ import annotations

from pathlib import Path

from tests.preprocess.builds import ROOT, run_python
from tests.preprocess.tiny_videos import make_video

_DECODE_ONE = """
import sys
from pathlib import Path
import preprocess.workers.child as child
from preprocess.sources import SourceVideo
from shards.format.schema import Encoding
path = Path(sys.argv[1])
read = child.open_reader(child.DecodeOptions(Encoding(), timeout_seconds=60))
answer = child.decode_video(SourceVideo("a", path, "a", 1, None), read)
heavy = [name for name in ("torch", "webdataset", "obstore") if name in sys.modules]
print(answer.row["verdict"], heavy)
"""


def test_a_decode_worker_imports_neither_torch_nor_webdataset(tmp_path: Path) -> None:
    done = run_python("-c", _DECODE_ONE, str(make_video(tmp_path / "a.avi")), cwd=ROOT)
    assert done.stdout.strip() == "ok []", done.stderr

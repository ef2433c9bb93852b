"""Structural checks of AVI, MP4 and Matroska: cut files, contradictions, and legal oddities."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocess.decode.containers import Structure, check_bytes, check_container
from tests.preprocess.tiny_videos import make_video
from tests.shared_data import shared_data

SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm")
FASTSTART, FRAGMENTED = {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}
Whole = Callable[..., bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return the bytes of a video by suffix and container options; each is made once."""
    folder = tmp_path_factory.mktemp("whole")
    made: dict[str, bytes] = {}

    def get(suffix: str, **options: str) -> bytes:
        name = f"video{'-'.join([*options, *options.values()])}{suffix}"
        if name not in made:
            made[name] = make_video(folder / name, frames=20, options=options).read_bytes()
        return made[name]

    return get


def replaced(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


VARIANTS = [
    *((suffix, {}) for suffix in SUFFIXES),
    *((".mp4", FASTSTART), (".mp4", FRAGMENTED), (".mkv", {"live": "1"}), (".webm", {"live": "1"})),
]


@pytest.mark.parametrize(("suffix", "options"), VARIANTS)
def test_a_whole_container_has_no_error_even_with_bytes_after_its_end(
    whole: Whole, suffix: str, options: dict
) -> None:
    data = whole(suffix, **options)
    expected = Structure(num_blocks=20 if suffix in (".mkv", ".webm") else None)
    assert check_bytes(data) == expected
    if "live" not in options:  # of unknown size, a file ends where it ends
        assert check_bytes(data + bytes(300)) == expected


@pytest.mark.parametrize(("suffix", "options"), VARIANTS)
def test_a_cut_container_has_a_missing_end_and_no_contradiction(
    whole: Whole, suffix: str, options: dict
) -> None:
    data = whole(suffix, **options)
    for end in range(len(data) // 10, len(data) - 600, 97):
        found = check_bytes(data[:end])
        if options not in (
            FRAGMENTED,
            {"live": "1"},
        ):  # these may be cut between two fragments or clusters
            assert found.missing, end
        assert found.inside is None, end


def test_avi_chunks_that_do_not_follow_each_other_are_a_contradiction(whole: Whole) -> None:
    data = whole(".avi")
    first = data.index(b"00dc", data.index(b"movi"))
    second = data.index(b"00dc", first + 4)
    assert "a frame's chunk should begin here" in (
        check_bytes(replaced(data, second, b"\x80\1\2\3")).inside or ""
    )
    grown = replaced(data, first + 4, struct.pack("<I", 1 << 30))
    assert check_bytes(grown).missing


def test_an_avi_index_that_points_elsewhere_is_a_contradiction(whole: Whole) -> None:
    data = whole(".avi")
    third = data.rindex(b"idx1") + 8 + 2 * 16
    assert "index entry 2" in (
        check_bytes(replaced(data, third + 8, struct.pack("<I", 77))).inside or ""
    )


def test_an_avi_index_that_is_stated_and_not_there_is_missing(whole: Whole) -> None:
    data = whole(".avi")
    without = data[: data.rindex(b"idx1")]
    without = replaced(without, 4, struct.pack("<I", len(without) - 8))
    assert "states an index" in (check_bytes(without).missing or "")


def test_mp4_tables_that_do_not_agree_are_a_contradiction(whole: Whole) -> None:
    data = whole(".mp4")
    stts, stco, stsz = (data.index(name) for name in (b"stts", b"stco", b"stsz"))
    assert "'stts' states 21 samples" in (
        check_bytes(replaced(data, stts + 12, struct.pack(">I", 21))).inside or ""
    )
    assert "the last sample needs" in (
        check_bytes(replaced(data, stco + 12, struct.pack(">I", 1 << 30))).inside or ""
    )
    assert "longer than its box" in (
        check_bytes(replaced(data, stsz + 12, struct.pack(">I", 1 << 20))).inside or ""
    )
    assert "does not fit" in (
        check_bytes(replaced(data, stts - 4, struct.pack(">I", 1 << 20))).inside or ""
    )


def test_an_unknown_mp4_box_before_the_frames_is_a_contradiction(whole: Whole) -> None:
    data = whole(".mp4")
    found = check_bytes(replaced(data, data.index(b"mdat"), b"mdax"))
    assert "'mdax' is no box that can stand here" in (found.inside or "")


def test_a_cut_moov_is_missing_whatever_its_tables_say(whole: Whole) -> None:
    data = whole(".mp4")
    found = check_bytes(data[: data.index(b"stsz") + 30])
    assert found.missing
    assert found.inside is None


def test_a_matroska_checksum_that_does_not_match_is_a_contradiction(whole: Whole) -> None:
    data = whole(".mkv")
    assert b"\xbf\x84" in data
    middle = len(data) // 2
    found = check_bytes(replaced(data, middle, bytes([data[middle] ^ 1])))
    assert "the checksum of the cluster does not match" in (found.inside or "")


def test_webm_elements_that_do_not_fit_are_a_contradiction(whole: Whole) -> None:
    data = whole(".webm")
    cluster = data.index(b"\x1f\x43\xb6\x75", 300)
    block = data.index(b"\xa3", cluster + 8)
    assert "unknown element" in (check_bytes(replaced(data, block, b"\x81")).inside or "")
    assert "longer than the cluster" in (
        check_bytes(replaced(data, block + 1, b"\x1f\xff\xff\xf0")).inside or ""
    )
    assert "has no size" in (
        check_bytes(replaced(data, block + 1, b"\x1f\xff\xff\xff")).inside or ""
    )
    cue = data.rindex(b"\xf1")
    wrong = replaced(data, cue + 2, bytes([data[cue + 2] ^ 1]))
    assert "where no cluster begins" in (check_bytes(wrong).inside or "")


def test_a_file_of_another_kind_has_no_error(tmp_path: Path) -> None:
    for name, data in (
        ("empty.avi", b""),
        ("text.mp4", b"some text " * 50),
        ("zeros.webm", bytes(999)),
    ):
        (tmp_path / name).write_bytes(data)
        assert check_container(tmp_path / name) == Structure()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(SUFFIXES),
    end=st.floats(0.0, 1.0),
    changes=st.lists(
        st.tuples(st.floats(0.0, 0.999), st.binary(min_size=1, max_size=8)), max_size=4
    ),
)
@example(suffix=".avi", end=0.9999999999999999, changes=[])
def test_check_bytes_never_raises(
    whole: Whole, suffix: str, end: float, changes: list[tuple[float, bytes]]
) -> None:
    data = whole(suffix)
    for where, new in changes:
        data = replaced(data, int(where * len(data)), new)
    assert isinstance(check_bytes(data[: int(end * len(data))]), Structure)


@pytest.mark.parametrize("folder", ["ucf101", "hmdb51", "kinetics400", "ssv2", "odd"])
def test_every_sample_clip_is_whole_and_consistent(folder: str) -> None:
    clips = [
        path for path in (shared_data() / "clips" / folder).rglob("*.*") if path.suffix in SUFFIXES
    ]
    assert clips
    for path in clips:
        found = check_container(path)
        assert (found.missing, found.inside) == (None, None), path.name
        assert found.num_blocks in (None, num_packets(path)), path.name


def num_packets(path: Path) -> int:
    with av.open(str(path), metadata_errors="ignore") as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


NUM_CHUNKS, CHUNK_BYTES = 8_000, 60_000


def sparse_avi(path: Path) -> None:
    """Write 480 MB of frames, of which only the chunk headers take space."""
    size = 4 + NUM_CHUNKS * (8 + CHUNK_BYTES)
    with path.open("wb") as file:
        file.write(
            b"RIFF" + struct.pack("<I", size + 12) + b"AVI LIST" + struct.pack("<I", size) + b"movi"
        )
        for _ in range(NUM_CHUNKS):
            file.write(b"00dc" + struct.pack("<I", CHUNK_BYTES))
            file.seek(CHUNK_BYTES, 1)
        file.truncate(file.tell())


def sparse_matroska(path: Path) -> None:
    """Write the same in clusters of 20 blocks."""

    def element(name: bytes, num_bytes: int) -> bytes:
        return name + (1 << 56 | num_bytes).to_bytes(8, "big")

    with path.open("wb") as file:
        file.write(element(b"\x1a\x45\xdf\xa3", 0))
        file.write(element(b"\x18\x53\x80\x67", NUM_CHUNKS // 20 * (12 + 20 * (5 + CHUNK_BYTES))))
        for number in range(NUM_CHUNKS):
            if number % 20 == 0:
                file.write(element(b"\x1f\x43\xb6\x75", 20 * (5 + CHUNK_BYTES)))
            file.write(b"\xa3" + (1 << 28 | CHUNK_BYTES).to_bytes(4, "big") + b"\x81")
            file.seek(CHUNK_BYTES - 1, 1)
        file.truncate(file.tell())


_MEASURE = """
import resource, sys
from pathlib import Path
from preprocess.decode.containers import check_container
from shards.files import hash_file
hash_file(Path(sys.argv[1]))  # as a worker does: the file is cached
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = check_container(Path(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(found.inside, (after - before) // 1024)
"""


@pytest.mark.parametrize("write", [sparse_avi, sparse_matroska])
def test_a_container_is_never_in_memory_as_a_whole(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "large")], capture_output=True, text=True
    )
    inside, megabytes = done.stdout.split()[-2:]
    assert inside == "None", done
    assert int(megabytes) < 100

"""What a decoding showed -> ok | short | damaged | undecodable, with a reason a person understands.

Pure. The rules and what they miss were measured on 132 clean clips and about 4000 damaged copies of
them: no false alarm, every truncation seen, 55 to 92 % of single flipped bytes that change a pixel.
    A byte that changes
pixels without breaking the code words is invisible to every decoder; `source_sha256` is there for
that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LogLine = tuple[int, str, str]  # libav's level, the name of what speaks, what it says
_WARNING_LEVEL = 24  # of libav's log
# Lines that clean files give: 1 UCF-101 clip; junk behind a whole WebM.
_HARMLESS_LINES = (
    "Discarding excessive bitstream in packed xvid",
    "File extends beyond end of segment",
)
_CUT_LINES = ("File ended prematurely", "Packet corrupt")
_TAIL_PACKETS = 2  # a finding in the last packets also fits a video that was merely cut


@dataclass(frozen=True)
class Finding:
    """Something the demuxer or the decoder complained about.

    packet: index of the video packet, -1 while opening; of a damaged frame its number, counted from
        1
    is_missing: whether it says that bytes are missing at the end, instead of wrong inside"""

    packet: int
    text: str
    is_missing: bool = False


@dataclass(frozen=True)
class Evidence:
    """All that the verdict of one video rests on.

    problem: why nothing could be decoded at all, else None
    missing_end: what the container's structure states beyond the end of the file, else None
    inconsistent: what contradicts itself in that structure, else None
    num_packets_shown: packets that should become a frame, None if all
    num_frames_good: frames that decoded without an error; num_frames_bad: frames marked corrupt
    end_gap_seconds: how far the last packet ends before the stated end; 0 if that is not known or
        not reliable"""

    problem: str | None = None
    missing_end: str | None = None
    inconsistent: str | None = None
    codec: str | None = None
    num_packets_stated: int | None = None
    num_packets: int = 0
    num_packets_shown: int | None = None
    num_frames_good: int = 0
    num_frames_bad: int = 0
    end_gap_seconds: float = 0.0
    fps: float | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """name: one of `shards.format.schema.VERDICTS`; reason: None exactly if it is ok"""

    name: str
    reason: str | None


def findings_in(lines: Sequence[LogLine], *, packet: int) -> list[Finding]:
    """The lines that tell of damage; what is said at INFO is noise, but for concealed errors."""
    found = []
    for level, _, raw in lines:
        text = " ".join(raw.split())
        if text.startswith(_CUT_LINES):
            found.append(Finding(packet, text, is_missing=True))
        elif text.startswith("concealing") or (
            level <= _WARNING_LEVEL and not text.startswith(_HARMLESS_LINES)
        ):
            found.append(Finding(packet, text))
    return found


def judge(evidence: Evidence) -> Verdict:
    """Decide. Nothing decoded, else damage inside, else a missing end, else damage at the end, else
    ok."""
    contradiction = (
        f"the container contradicts itself: {evidence.inconsistent}"
        if evidence.inconsistent
        else None
    )
    if evidence.problem is not None:
        why = f"cut short: {evidence.missing_end}" if evidence.missing_end else contradiction
        return Verdict("undecodable", "; ".join(filter(None, (evidence.problem, why))))
    if evidence.num_frames_good == 0:
        return Verdict("undecodable", _no_frames(evidence))
    inside, tail = _split_findings(evidence)
    missing = _missing(evidence)
    if inside or contradiction:
        decoder = _describe(evidence, inside) if inside else None
        return Verdict("damaged", "; ".join(filter(None, (contradiction, decoder, missing))))
    if missing:
        return Verdict("short", missing)
    if tail:
        return Verdict("damaged", _describe(evidence, tail))
    return Verdict("ok", None)


def _split_findings(evidence: Evidence) -> tuple[list[Finding], list[Finding]]:
    """Findings of damage inside the video and in its last packets; frames that never came out count
    as inside."""
    damage = [finding for finding in evidence.findings if not finding.is_missing]
    first_tail = evidence.num_packets - _TAIL_PACKETS
    inside = [finding for finding in damage if finding.packet < first_tail]
    tail = [finding for finding in damage if finding.packet >= first_tail]
    # DivX packs two frames into one packet and leaves one packet empty (10 of 11 HMDB-51 clips)
    slack = 1 if evidence.codec == "mpeg4" else 0
    num_frames = evidence.num_frames_good + evidence.num_frames_bad
    num_shown = (
        evidence.num_packets if evidence.num_packets_shown is None else evidence.num_packets_shown
    )
    if not damage and evidence.inconsistent is None and num_frames < num_shown - slack:
        lost = f"{num_shown} packets gave {num_frames} frames"
        inside.append(Finding(packet=0, text=lost))
    return inside, tail


def _missing(evidence: Evidence) -> str | None:
    """Why the end of the video is believed to be missing."""
    if evidence.missing_end:
        return f"cut short: {evidence.missing_end}"
    stated = evidence.num_packets_stated
    if stated is not None and 0 < evidence.num_packets < stated:
        return f"cut short: the file states {stated} video packets and has {evidence.num_packets}"
    cut = next((finding for finding in evidence.findings if finding.is_missing), None)
    if cut is not None:
        return f"cut short: {cut.text}"
    if evidence.fps and evidence.end_gap_seconds > 1.5 / evidence.fps + 0.05:
        return f"cut short: the last video packet ends {evidence.end_gap_seconds:.2f} s before the stated end"
    return None


def _describe(evidence: Evidence, findings: list[Finding]) -> str:
    first = findings[0]
    at = (
        "while opening"
        if first.packet < 0
        else f"at packet {first.packet} of {evidence.num_packets}"
    )
    bad = f", {evidence.num_frames_bad} damaged frames left out" if evidence.num_frames_bad else ""
    count = f"{len(findings)} decoder findings" if len(findings) > 1 else "1 decoder finding"
    return f"{count}{bad}, the first {at}: {first.text}"


def _no_frames(evidence: Evidence) -> str:
    damage = [finding for finding in evidence.findings if not finding.is_missing]
    why = (
        _missing(evidence)
        or evidence.inconsistent
        or (damage[0].text if damage else "the decoder said nothing")
    )
    if evidence.num_frames_bad:
        return f"none of {evidence.num_frames_bad} frames decodes without an error; {why}"
    return f"no frame in {evidence.num_packets} video packets; {why}"

"""Facts and errors in the lines of FFmpeg's log."""

from __future__ import annotations

from preprocess.decode.ffmpeg_log import DecodeLog


def feed(log: DecodeLog, *lines: str) -> DecodeLog:
    for line in lines:
        log.feed(line)
    return log


FRAME = (
    "decoder -> pts:{} pts_time:0 pkt_dts:0 pkt_dts_time:0 duration:1 keyframe:1 frame_type:1 "
    "time_base:1/10"
)
AROUND = "[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2]"


def test_log_errors_have_the_packet_that_was_decoded_and_those_of_the_parser_are_left_out() -> None:
    log = feed(
        DecodeLog(0),
        "[h264 @ 0x7] [error] what probing finds comes again",
        f"{AROUND} [verbose] Starting thread...",
        *[f"{AROUND} [info] {FRAME.format(pts)}" for pts in (0, 1)],
        "[h264 @ 0x8] [error] missing picture",
        "[h264 @ 0x9] [error] error while decoding MB 1 2",
        f"{AROUND} [error] Error submitting packet to decoder: Invalid data",
        f"{AROUND} [warning] corrupt decoded frame",
        f"{AROUND} [info] {FRAME.format(2)}",
        f"{AROUND} [verbose] Decoder thread received EOF packet",
        f"{AROUND} [info] {FRAME.format(3)}",
        "[in#0/avi @ 0x3] [verbose]   Input stream #0:0 (video): 5 packets read (9 bytes); "
        "4 frames decoded; 1 decode",
    )
    found = [(finding.packet, finding.text) for finding in log.findings({"missing picture"})]
    assert found == [(3, "error while decoding MB 1 2"), (3, "the frame is marked corrupt")]
    assert log.times_seconds == [0.0, 0.1, 0.2, 0.3]
    assert log.damaged == {2}
    assert log.num_counted == 4


def test_the_log_of_a_decoder_that_only_refuses_packets_gives_one_finding() -> None:
    started = f"{AROUND} [verbose] Starting thread..."
    refused = f"{AROUND} [error] Error submitting packet to decoder: Invalid data found"
    log = feed(DecodeLog(0), started, refused)
    assert [finding.text for finding in log.findings(())] == ["decoding failed: Invalid data found"]

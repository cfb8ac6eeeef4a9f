"""Reads the records of an event file, also of one that is being written, cut off or damaged."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

HEADER, FOOTER = 12, 4  # length and its checksum; checksum of the content


class EventFile:
    """The records of an event file. Each call of `read` continues where the last one ended.

    TensorBoard's own reader computes checksums in Python: 100 ms per megabyte.

    Args:
        path: the file.

    Attributes:
        offset: bytes that have been read.
        rest: bytes behind them that are no whole record.
        damaged: the number of records whose checksum is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = self.rest = self.damaged = 0

    def read(self) -> Iterator[bytes]:
        """The content of each new record that is whole."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(self.offset)
            while (length := content_length(file.read(HEADER))) is not None:
                end = self.offset + HEADER + length + FOOTER
                if end > size:
                    break
                content, footer = file.read(length), file.read(FOOTER)
                self.offset = end
                if checksum(content) == footer:
                    yield content
                else:
                    self.damaged += 1
            self.rest = size - self.offset

    def events(self) -> Iterator[Event]:
        """Each new record as a protocol buffer."""
        for content in self.read():
            try:
                yield Event.FromString(content)
            except DecodeError:
                self.damaged += 1

    @property
    def note(self) -> str:
        """What cannot be read, and why; empty if all can."""
        if self.damaged:
            return f"{self.path}: skipped {self.damaged} damaged records"
        if self.rest:
            return f"{self.path}: the last {self.rest} bytes are no whole record: it is being written, or was cut off"
        return ""


def content_length(header: bytes) -> int | None:
    """The bytes of a record's content, by its header; None if that is cut off or damaged."""
    if len(header) < HEADER or checksum(header[:8]) != header[8:]:
        return None
    return int(struct.unpack("<Q", header[:8])[0])


def checksum(data: bytes) -> bytes:
    """The masked CRC-32C of event files."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def event_files(folder: Path) -> list[Path]:
    """The event files in a folder, in the order in which they were begun: their names have time, process and number."""
    return sorted(
        (Path(entry.path) for entry in os.scandir(folder) if "tfevents" in entry.name and entry.is_file()),
        key=lambda path: ([int(part) for part in path.name.split(".") if part.isdecimal()], path.name),
    )

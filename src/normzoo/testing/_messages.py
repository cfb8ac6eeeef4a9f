"""What a helpful error message contains."""

import re

from normzoo.testing._law import expect

REMEDY = r"\b(use|take|build|give|convert|call|lower|raise|move|need|default|defaults|divisors|choose|pass)\b"


def assert_helpful(error: Exception, received: str) -> None:
    """Raises unless the message names what was received, and a remedy."""
    message = str(error)
    expect(received in message, f"the message lacks what was received, {received}: {message}")
    expect(re.search(REMEDY, message), f"the message lacks a remedy: {message}")

"""What can be wrong with a video file, one class per thing a caller may want to tell apart.

Every message is a sentence for a person: what was wrong, which file, what is accepted and what to do next.
"""

from __future__ import annotations


class VideoError(Exception):
    """Base of every error about a video file; catching it covers all of them."""


class VideoNotFound(VideoError):
    """No file is there."""


class NotAFile(VideoError):
    """Something is there, but not a plain local file: a folder, a pipe, a device, an address."""


class EmptyFile(VideoError):
    """The file holds no bytes."""


class NotAVideo(VideoError):
    """The bytes are not a video container that this project reads."""


class NoVideoStream(VideoError):
    """A media file without moving pictures: audio only, or audio with cover art."""


class NoFrames(VideoError):
    """A video stream from which not one frame can be decoded."""


class FileChanged(VideoError):
    """The file was replaced or rewritten after it was opened."""


class UnsupportedByBackend(VideoError):
    """The chosen backend is known to return wrong frames for this file, so it refuses; another backend may not."""


class BackendMissing(VideoError):
    """The backend's package is not installed; the message holds the line that installs it."""

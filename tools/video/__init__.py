"""Frames by time, exactly: `Video`, `Clip`, `Frames`, sampling and the decoding backends.

Importing this package loads neither torch nor a decoder; the decoder is loaded when the first file is opened.
"""

from closeup.tools.video.cache import cache_stats, clear_caches, close_readers, set_cache_limits
from closeup.tools.video.clip import Clip, window_iou
from closeup.tools.video.errors import (
    BackendMissing,
    EmptyFile,
    FileChanged,
    NoFrames,
    NotAFile,
    NotAVideo,
    NoVideoStream,
    UnsupportedByBackend,
    VideoError,
    VideoNotFound,
)
from closeup.tools.video.facts import Probe
from closeup.tools.video.frames import Frames
from closeup.tools.video.reader import Video, probe

__all__ = [
    "BackendMissing",
    "Clip",
    "EmptyFile",
    "FileChanged",
    "Frames",
    "NoFrames",
    "NoVideoStream",
    "NotAFile",
    "NotAVideo",
    "Probe",
    "UnsupportedByBackend",
    "Video",
    "VideoError",
    "VideoNotFound",
    "cache_stats",
    "clear_caches",
    "close_readers",
    "probe",
    "set_cache_limits",
    "window_iou",
]

"""Decoders behind `Video`, chosen by name: `pyav` (default), `decord` and `torchcodec` (optional packages).

A backend returns FFmpeg's frame or raises `UnsupportedByBackend` with the reason; nothing is ever re-routed to another.
"""

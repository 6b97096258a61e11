"""Frames by time, exactly: `Video`, `Clip`, `Frames`, sampling and the decoding backends."""

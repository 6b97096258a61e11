"""`closeup replay`: recorded messages through the environment again; every difference is a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from closeup.app.errors import NO_ANSWER

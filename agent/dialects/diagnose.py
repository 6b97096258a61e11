"""What a broken call probably meant: shown to people, never to the model and never acted on.

The reading is json-repair's, when that package is installed (`pip install "closeup[repair]"`). It stays out of what the
model sees, because an observation must not depend on an optional package: replaying a trajectory would give another
    one.
"""

from __future__ import annotations

import importlib.util
import json

MAX_CHARS = 2000  # json-repair is not linear in time; longer texts are not diagnosed


def likely_call(text: str) -> str:
    """The JSON a lenient reader makes of `text`, at most 300 characters; "" when there is none or no such reader."""
    if len(text) > MAX_CHARS or importlib.util.find_spec("json_repair") is None:
        return ""
    import json_repair

    try:
        value = json_repair.loads(text)
        said = json.dumps(value, allow_nan=False) if isinstance(value, dict) and value else ""
        return said if len(said) <= 300 else ""
    except (ValueError, TypeError, RecursionError, IndexError, KeyError, AttributeError):
        return ""  # a diagnosis that fails is no diagnosis; the strict reader's sentence stands

"""How a command ends when it cannot do what was asked: one sentence on standard error and an exit code, no traceback.

0 = done; 1 = the agent gave no answer, or a check found faults; 2 = bad input; 70 = a bug (with the way to see more);
130 = interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USAGE, NO_ANSWER, BUG, INTERRUPTED = 2, 1, 70, 130


class BadInput(Exception):
    """Input a command cannot use; the message says what was wrong, what is accepted and what to run next."""


def guarded(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code; every failure becomes a sentence on standard error."""
    try:
        return command()
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # the reader went away: nothing left to say, and nobody to say it to
        return 0
    except Exception as error:
        if os.environ.get("CLOSEUP_TRACEBACK"):
            raise
        if _is_bad_input(error):
            complain(str(error))
            return USAGE
        complain(
            f"internal error: {type(error).__name__}: {error}. Set CLOSEUP_TRACEBACK=1 to see where, and report it."
        )
        return BUG


def complain(sentence: str) -> None:
    """One line on standard error."""
    sys.stderr.write("closeup: " + " ".join(sentence.split()) + "\n")


def _is_bad_input(error: Exception) -> bool:
    # Only modules that are loaded can have raised: looking them up keeps `closeup --help` light.
    families = (
        ("closeup.tools.video.errors", "VideoError"),
        ("closeup.tools.registry", "DuplicateTool"),
        ("closeup.tools.registry", "UnknownTool"),
        ("closeup.agent.task", "TaskError"),
        ("closeup.agent.preset", "PresetError"),
        ("closeup.agent.subtitles", "SubtitleError"),
        ("closeup.agent.trajectory", "TrajectoryError"),
        ("closeup.agent.models.load", "ModelError"),
        ("closeup.agent.models.fit", "FitError"),
        ("closeup.agent.models.diskstore", "CacheError"),
        ("closeup.rl.evaluate", "EvalError"),
        ("closeup.rl.configfile", "ConfigError"),
        ("closeup.rl.checkpoints", "CheckpointError"),
        ("closeup.rl.reward_registry", "RewardError"),
        ("closeup.rl.rows", "RowError"),
        ("closeup.rl.sft", "NothingToLearn"),
        ("closeup.rl.grpo", "RolloutError"),
        ("closeup.extras", "MissingExtra"),
    )
    kinds: list[type[BaseException]] = [BadInput]
    for module, name in families:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            kinds.append(kind)
    return isinstance(error, tuple(kinds))

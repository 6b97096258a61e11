"""`Agent`: two lines from a checkpoint to an answer."""

import json
import subprocess
import sys

import pytest

from closeup import Agent
from closeup.agent.events import Answered, Opened
from closeup.agent.models.load import ModelError
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import PresetError
from closeup.tools.video import VideoError


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SCRIPT = [call("zoom_clip", start=2, end=4), call("answer", choice="B", evidence=[[2, 4]])]


@pytest.fixture
def film(make_video):
    return make_video(seconds=20.0)


def test_a_question_is_answered_with_its_evidence(film):
    events = []
    agent = Agent(ScriptedPolicy(SCRIPT), "tiny")
    result = agent.ask(film, "Which digit?", options=["3", "7"], on_event=events.append)
    assert (result.answer, result.choice, result.evidence) == ("7", "B", ((2.0, 4.0),))
    assert result.steps == 2 and result.visual_tokens == result.trajectory.outcome.visual_tokens > 0
    assert result.reason == "" and result.seconds > 0
    assert isinstance(events[0], Opened) and any(isinstance(e, Answered) for e in events)


def test_no_answer_comes_with_the_reason(film):
    result = Agent(ScriptedPolicy(["hm"] * 9), "tiny").ask(str(film), "Which digit?", max_steps=2)
    assert result.answer is None and result.steps == 2 and "forced" in result.reason


def test_bad_input_is_raised_before_anything_runs(film, tmp_path):
    agent = Agent(ScriptedPolicy(SCRIPT), "tiny")
    with pytest.raises(VideoError):
        agent.ask(tmp_path / "nothing.mp4", "Which?")
    with pytest.raises(ValueError, match="same text"):
        agent.ask(film, "Which?", options=["3", "3"])
    with pytest.raises(ValueError, match="max_steps"):
        agent.ask(film, "Which?", max_steps=0)
    with pytest.raises(PresetError):
        Agent.from_pretrained("tiny", preset="no such preset")
    with pytest.raises(ModelError):
        Agent.from_pretrained("tinny")


def test_a_checkpoint_brings_its_preset(film, tmp_path):
    folder = write_random_checkpoint(tmp_path / "model")
    (folder / "closeup.json").write_text('{"preset": "tiny"}')
    agent = Agent.from_pretrained(str(folder), device="cpu")
    assert agent.preset.name == "tiny"
    first, again = (agent.ask(film, "Which?", options=["3", "7"], temperature=1.0, seed=4) for _ in range(2))
    assert [s.ids for s in first.trajectory.steps] == [s.ids for s in again.trajectory.steps]
    assert all(step.prompt_ids for step in first.trajectory.steps)


def test_importing_the_agent_loads_no_torch():
    code = "import sys; from closeup import Agent; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("question", "settings", "says"),
    [
        ("", {}, "question is empty"),
        ("Which?", {"options": ["a"]}, "two or more"),
        ("Which?", {"options": "abc"}, "two or more"),
        ("Which?", {"max_steps": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(question, settings, says):
    with pytest.raises(ValueError, match=says):
        Agent(ScriptedPolicy(["x"]), "tiny").ask("film.mp4", question, **settings)

"""`TransformersPolicy`: a local checkpoint writes the messages, batched over live episodes, caches kept across turns.

How a turn goes: the new messages are rendered behind the exact ids of what came before, new clips are encoded (once per
distinct clip, whoever shows it), the new tokens are read on top of the episode's keys and values, and all live requests
are sampled together, one token per step.

Invariants
1. Token ids are never made twice: what was sampled stays as sampled, what was rendered stays as rendered. A context
   that does not continue the episode's last one is rendered from its messages as a new path (`Completion.extends` is
   False).
2. A turn on kept keys and values gives what a full forward over all ids gives; keys and values that were dropped for
   space are recomputed from the same ids, pixels and positions.
3. A request's ids do not depend on its batch. Seeds are per request (see `sampler.py`, which also says what the
   recorded log-probabilities are).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.messages import Message
from closeup.agent.models.adapter import Adapter, Encoded, EncodeError, Media
from closeup.agent.models.featurecache import FeatureCache
from closeup.agent.models.load import Timestamps, load_adapter
from closeup.agent.models.media import MediaStore, weights_digest
from closeup.agent.policies.base import Completion, Policy, Request, TokenCallback
from closeup.agent.policies.episodes import EpisodeBook, EpisodeState
from closeup.agent.policies.rowcache import attention_of_rows
from closeup.agent.policies.rows import Row, write_rows
from closeup.agent.policies.sampler import Sampler, check
from closeup.agent.policies.stream import TextStream
from closeup.tools.video.reader import Video

logger = logging.getLogger(__name__)

SMALL_MODEL = 50_000_000
"""Parameters below which a model runs on one CPU thread: its matrix products are too small to share. Measured with 2.7
million parameters, batch 16, on a host whose two cores are busy: 6 ms a token with one thread, 15 ms with two."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A request that could be rendered: what it added, and the row that writes its message."""

    index: int
    request: Request
    encoded: Encoded
    extends: bool
    row: Row
    speaker: _Speaker | None


class TransformersPolicy(Policy):
    """Writes messages with a checkpoint of a supported family, on this machine."""

    max_context: int  # always known here

    def __init__(
        self,
        model: str | Adapter,
        *,
        dtype: str = "auto",
        device: str = "auto",
        timestamps: Timestamps | None = None,
        max_batch: int = 64,
        kv_cache_bytes: int = 2 << 30,
        feature_cache_bytes: int = 1 << 30,
        feature_cache_dir: Path | None = None,
        max_context: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Load a model, or take a loaded adapter.

        Args:
            model: "tiny", "tiny-half", a checkpoint folder, a hub id, or an `Adapter`.
            dtype: "auto" is float32 for models below 2 GiB on a CPU, else the checkpoint's own.
            device: "auto" is CUDA when there is one.
            timestamps: how a frame's time reaches the model; None = as the checkpoint's own preset says.
            max_batch: requests sampled together; more are done in turn.
            kv_cache_bytes: most bytes of keys and values kept between turns, all episodes together.
            feature_cache_bytes: most bytes of vision features kept in memory.
            feature_cache_dir: folder of a cache that outlives the process (`closeup cache build` fills one); clips that
                are in it are neither decoded nor encoded. For towers that are not being trained.
            max_context: most tokens of a context, when it shall be less than the model takes.

        Raises:
            ModelError: see `closeup.agent.models.load`. CacheError: `feature_cache_dir` cannot be used.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        if isinstance(model, Adapter):
            self.adapter = model
        else:
            self.adapter = load_adapter(
                model, dtype=dtype, device=device, timestamps=timestamps, trust_remote_code=trust_remote_code
            )
        self.geometry = self.adapter.geometry
        self.name = f"transformers:{self.adapter.checkpoint.model}"
        self.max_context = min(self.adapter.max_context, max_context or self.adapter.max_context)
        disk = None if feature_cache_dir is None else FeatureCache(feature_cache_dir)
        self.media = MediaStore(self.adapter, max_bytes=feature_cache_bytes, disk=disk)
        if disk is not None:
            self.adapter.records = disk
        self._book = EpisodeBook(kv_cache_bytes)
        self._weights = weights_digest(self.adapter.model)
        self._max_batch = max_batch
        self._lock = threading.Lock()  # one generation at a time: the model's attention setting is shared
        parameters = sum(p.numel() for p in self.adapter.model.parameters())
        self._one_thread = self.adapter.model.device.type == "cpu" and parameters < SMALL_MODEL

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        """One completion per request, in order; see `Policy.generate`.

        Text is streamed in whole characters; the prefix, which the caller knows, is not.

        Raises:
            ValueError: two requests of one episode in a call.
        """
        if len({request.episode_id for request in requests}) != len(requests):
            raise ValueError("two requests of one call have the same episode_id; an episode has one turn at a time")
        done: list[Completion] = []
        with self._alone(cancel) as ours:
            if not ours:
                return [Completion(text=request.assistant_prefix, finish="cancelled") for request in requests]
            with (
                torch.inference_mode(),
                attention_of_rows(self.adapter.text_config),
                _threads(1 if self._one_thread else None),
            ):
                for begin in range(0, len(requests), self._max_batch):
                    done += self._generate(requests[begin : begin + self._max_batch], on_token, cancel)
        return done

    @contextmanager
    def _alone(self, cancel: threading.Event | None) -> Iterator[bool]:
        """Hold the model; gives False, without it, when `cancel` is set while another call has it."""
        while not self._lock.acquire(timeout=0.02):
            if cancel is not None and cancel.is_set():
                yield False
                return
        try:
            yield True
        finally:
            self._lock.release()

    def forget(self, episode_id: str) -> None:
        self._book.forget(episode_id)  # at once, also while another thread generates

    def weights_changed(self) -> None:
        """Call it after changing the model's weights in place: nothing computed with the old ones is used again."""
        with self._lock:
            self._book.drop_kept()
            self.media.weights_changed()
            self._weights = weights_digest(self.adapter.model)

    def settings(self) -> dict[str, Any]:
        import transformers

        suppressed = hashlib.sha256(repr(self.adapter.suppressed_ids).encode()).hexdigest()[:16]
        return {
            "policy": "transformers",
            "model": self.adapter.checkpoint.model,
            "family": self.adapter.family,
            "dtype": str(self.adapter.model.dtype).removeprefix("torch."),
            "device": self.adapter.model.device.type,
            "weights": self._weights,
            "tokenizer": self.adapter.tokenizer_digest,
            "timestamps": self.adapter.timestamps,
            "suppressed_ids": suppressed,
            "max_context": self.max_context,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    # ---- one batch -------------------------------------------------------------------------------------------------

    def _generate(
        self, requests: Sequence[Request], on_token: TokenCallback | None, cancel: threading.Event | None
    ) -> list[Completion]:
        done: dict[int, Completion] = {}
        turns: list[_Turn] = []
        for index, request in enumerate(requests):
            if cancel is not None and cancel.is_set():
                done[index] = Completion(text=request.assistant_prefix, finish="cancelled")
                continue
            try:
                turns.append(self._turn(index, request, on_token))
            except EncodeError as error:
                done[index] = _failed(request, str(error))
            except Exception as error:  # one episode's fault (its video, its settings) must not end the others
                logger.exception("episode %s cannot be put to the model", request.episode_id)
                done[index] = _failed(request, f"{type(error).__name__}: {error}")
        if turns:
            try:
                self._write(turns, cancel)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                for turn in turns:
                    done[turn.index] = _failed(
                        turn.request,
                        f"out of memory with {len(turns)} episodes at a time; lower max_batch, frames or pixels",
                    )
            else:
                for turn in turns:
                    done[turn.index] = self._finish(turn)
        return [done[index] for index in range(len(requests))]

    def _turn(self, index: int, request: Request, on_token: TokenCallback | None) -> _Turn:
        """Render what is new in a request. Raises `EncodeError`, `VideoError` or `ValueError`."""
        if not request.messages or request.messages[-1].role == "assistant":
            raise EncodeError("a context ends with a user or tool message")
        check(request.sampling)
        state = self._book.begin(request.episode_id)
        extends = state is not None and state.continued_by(request.messages)
        if state is not None and extends:
            ids, media, kept = state.ids, state.media, state.kept
            new, closed = request.messages[len(state.messages) :], ids[-1] == self.adapter.stop_ids[0]
        else:
            ids, media, kept, new, closed = [], [], None, request.messages, True
        encoded = self.adapter.encode(
            new, request.videos, first=not extends, closed=closed, assistant_prefix=request.assistant_prefix
        )
        context = ids + list(encoded.ids)
        room = self.max_context - len(context)
        if room < 1:
            raise EncodeError(
                f"the context has {len(context)} tokens and the model takes {self.max_context}, its own message "
                "included; use fewer or smaller frames, or fewer steps"
            )
        speaker = None if on_token is None else _Speaker(self.adapter, request, on_token)
        row = Row(
            ids=context,
            media=media + list(encoded.media),
            kept=kept,
            unread=0 if kept is None else len(media),
            limit=min(request.sampling.max_new_tokens, room),
            on_id=None if speaker is None else speaker.push,
        )
        return _Turn(index, request, encoded, extends, row, speaker)

    def _write(self, turns: Sequence[_Turn], cancel: threading.Event | None) -> None:
        frames: dict[str, NDArray[np.uint8]] = {}
        videos: dict[str, Mapping[str, Video]] = {}
        for turn in turns:
            frames.update(turn.encoded.frames)
            videos.update({item.key: turn.request.videos for item in turn.row.media})

        def pixels(item: Media) -> NDArray[np.uint8]:
            return frames[item.key] if item.key in frames else self.adapter.frames(item, videos[item.key])

        sampler = Sampler(
            [turn.request.sampling for turn in turns],
            self.adapter.suppressed_ids,
            self.adapter.text_config.vocab_size,
            self.adapter.model.device,
        )
        write_rows(
            self.adapter,
            [turn.row for turn in turns],
            sampler,
            lambda media: self.media.features(media, pixels),
            cancel=cancel,
        )

    def _finish(self, turn: _Turn) -> Completion:
        row, request = turn.row, turn.request
        assert row.finish is not None
        said = row.drawn[:-1] if row.finish == "stop" else row.drawn
        text = request.assistant_prefix + self.adapter.decode(said)
        if turn.speaker is not None:
            turn.speaker.finish()
        self._book.put(
            request.episode_id,
            EpisodeState(
                messages=(*request.messages, Message.of("assistant", text)),
                ids=row.ids + row.drawn,
                media=row.media,
                kept=row.kept,
            ),
        )
        return Completion(
            text=text,
            finish=row.finish,
            ids=tuple(row.drawn),
            logprobs=tuple(row.logprobs),
            prompt_ids=turn.encoded.ids,
            extends=turn.extends,
            clips={item.record.clip.key: item.record for item in turn.encoded.media},
            context_tokens=len(row.ids) + len(row.drawn),
        )


class _Speaker:
    """Passes an episode's text on to the caller while it is written."""

    def __init__(self, adapter: Adapter, request: Request, on_token: TokenCallback) -> None:
        self._stream = TextStream(adapter.decode)
        self._episode_id, self._on_token = request.episode_id, on_token

    def say(self, piece: str) -> None:
        if piece:
            self._on_token(self._episode_id, piece)

    def push(self, token: int) -> None:
        self.say(self._stream.push(token))

    def finish(self) -> None:
        self.say(self._stream.finish())


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Within it torch computes with `count` threads (None: as set); afterwards as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _failed(request: Request, reason: str) -> Completion:
    return Completion(text=request.assistant_prefix, finish="error", error=reason)
